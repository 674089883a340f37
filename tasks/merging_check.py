"""A stored model beside the chain of adapters it was made of: the same logits, or by how much not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tasks.models.loading import device, load_causal_lm, open_adapter
from tasks.models.quantised import quantise

PROBE = (8, 64)
"""Rows and tokens of the probe."""


def compare(chain: Sequence[Path], merged: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[float, float]:
    """Largest difference of a logit, and mean KL(chain || merged) in nats per token, on random ids, in fp32."""
    right: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, use_safetensors=True)
    return _apart(with_adapters(chain), right.to(device()).eval(), tokenizer, seed)


def kl_from_quantised(chain: Sequence[Path], tokenizer: PreTrainedTokenizerBase, seed: int) -> float:
    """Mean KL in nats per token from the chain's last adapter on the 4-bit weights that it was trained on to the same
    adapter on the full weights, on random ids, in fp32."""
    trained = load_causal_lm(chain[:-1], dtype=torch.float32)
    quantise(trained)
    opened = open_adapter(trained, chain[-1] / "adapter").eval()
    return _apart(opened, load_causal_lm(chain, dtype=torch.float32), tokenizer, seed)[1]


@torch.no_grad()
def _apart(left: Any, right: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[float, float]:
    ids = torch.randint(len(tokenizer), PROBE, generator=torch.Generator().manual_seed(seed)).to(device())
    theirs, ours = left(input_ids=ids).logits, right(input_ids=ids).logits
    log_theirs, log_ours = theirs.log_softmax(dim=-1), ours.log_softmax(dim=-1)
    divergence = (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=-1).mean()
    return float((theirs - ours).abs().max()), max(0.0, float(divergence))


def with_adapters(chain: Sequence[Path]) -> Any:
    """The last full weights of the chain with the adapters after them side by side, none of them merged."""
    start = max(i for i, folder in enumerate(chain) if i == 0 or (folder / "model").is_dir())
    adapters = [folder / "adapter" for folder in chain[start + 1 :]]
    model: Any = load_causal_lm(chain[: start + 1], dtype=torch.float32)
    if not adapters:
        return model
    model = open_adapter(model, adapters[0])
    names = [model.active_adapter]
    for number, adapter in enumerate(adapters[1:], 1):
        names.append(f"link{number}")
        model.load_adapter(str(adapter), adapter_name=names[-1])
    model.base_model.set_adapter(names)
    return model.eval()
