"""Merging: the chain of adapters becomes one standalone model, and is checked to compute the same."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.artifact import PipelineError, Work, below
from tasks.recipe import Part


class MergeRecipe(Part):
    """How the standalone model is stored."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the stored weights; bf16 is half as large and rounds to 8 bits of mantissa."""
    fp32_tolerance: float = Field(default=1e-4, gt=0)
    """The largest difference of a logit from the adapter chain's that is let pass in fp32."""
    bf16_tolerance: float = Field(default=0.005, gt=0)
    """The largest mean KL divergence (nats per token) from the adapter chain that is let pass in bf16."""


def merge_policy(recipe: MergeRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, sft (or `start`), policy. Writes `model/` with tokenizer, as `from_pretrained` loads it, and
    `model/prompt/` for a soft prompt, which no weights can hold: whoever uses the model without it has another one.

    Raises `PipelineError` when the stored model's logits are not the adapter chain's.
    """
    import torch

    from tasks.merging_check import compare, kl_from_quantised
    from tasks.models.adapters import save_whole
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.models.quantised import trained_quantised

    chain = [inputs[name] for name in (*below(inputs), "policy")]
    tokenizer = load_tokenizer(inputs["base"])
    dtype = torch.float32 if recipe.dtype == "fp32" else torch.bfloat16
    work.progress(0, 2, "merging")
    model = load_causal_lm(chain, dtype=dtype)
    save_whole(model, work.out)
    tokenizer.save_pretrained(work.out / "model")
    del model
    work.progress(1, 2, "comparing with the adapters")
    difference, divergence = compare(chain, work.out, tokenizer, work.seed)
    work.log({"max_logit_difference": difference, "kl_per_token": divergence})
    if trained_quantised(chain[-1] / "adapter"):
        if importlib.util.find_spec("bitsandbytes") is None:
            work.notify("bitsandbytes is not installed here: how far this is from the 4-bit model was not measured.")
        else:
            work.log({"kl_from_quantised": kl_from_quantised(chain, tokenizer, work.seed)})
    if recipe.dtype == "fp32" and difference > recipe.fp32_tolerance:
        raise PipelineError(
            f"The merged model's logits differ from the adapters' by {difference:.2g}; "
            "rebuild the policy, or raise merge.fp32_tolerance if the model's logits are that coarse."
        )
    if recipe.dtype == "bf16" and divergence > recipe.bf16_tolerance:
        raise PipelineError(
            f'The merged model diverges from the adapters by {divergence:.2g} nats per token; set merge.dtype = "fp32".'
        )
    work.progress(2, 2, f"largest difference {difference:.1g}")
