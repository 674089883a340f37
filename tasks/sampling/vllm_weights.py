"""What of a model vLLM is given: its weights as files, adapters it serves or merged, and how it is to serve them."""

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.artifact import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tasks.sampling.local import CausalLM

SAVED = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""What loading and saving write into a configuration."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for in an adapter."""


def arguments_for(fits: tuple[Any, ...], tokens: int, training: bool) -> list[str]:
    """How vLLM serves a model: with its own defaults and not what a generation_config.json asks for.

    It takes nine tenths of the memory that a GPU has left, or four where the model is trained on the same one.
    """
    import torch

    dtype, _, rank, rows = fits
    arguments = ["--generation-config", "vllm", "--dtype", dtype, "--max-model-len", str(tokens)]
    arguments += ["--max-num-seqs", str(rows), "--logprobs-mode", "raw_logprobs", "--disable-uvicorn-access-log"]
    if rank:
        arguments += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank)]
    if not torch.cuda.is_available():
        # vLLM 0.32 ends with an error where a seeded request's prompt is computed in parts on a CPU
        return [*arguments, "--no-enable-chunked-prefill", "--enforce-eager", "--kv-cache-memory-bytes", str(2**30)]
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return [*arguments, "--gpu-memory-utilization", f"{(0.4 if training else 0.9) * free / total:.3f}"]


def computing_dtype(model: "PreTrainedModel") -> str:
    """bfloat16 on a GPU, where vLLM is fast with it, or where another's server decides; else what the weights are."""
    import torch

    elsewhere = torch.cuda.is_available() or os.environ.get("RLHF_VLLM_URL")
    return "bfloat16" if elsewhere else str(next(model.parameters()).dtype).removeprefix("torch.")


def shape(model: "PreTrainedModel") -> str:
    """What two models must share for one server to take the weights of either."""
    told = {name: value for name, value in model.config.to_dict().items() if name not in SAVED}
    return type(model).__name__ + json.dumps(told, sort_keys=True, default=str)


def is_plain_lora(model: "PeftModel") -> bool:
    """Whether vLLM serves the adapters as they are: updates of linear layers alone, of one rank each."""
    from peft import get_peft_model_state_dict

    from tasks.models.targets import updates_layers_only

    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        kept = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        return {key: tuple(value.shape) for key, value in kept.items()}

    return all(
        config.peft_type == "LORA"
        and not (config.rank_pattern or config.alpha_pattern)
        and updates_layers_only(config, shapes(name))
        for name, config in cast("dict[str, Any]", model.peft_config).items()
    )


def merged(model: "CausalLM") -> "PreTrainedModel":
    """A model without adapters: itself, or a copy into whose weights they are merged."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    merging: Any = copy.deepcopy(model)
    return merging.merge_and_unload()


def room_for(adapter: "PeftModel") -> int:
    """Room for the adapter. Raises `InputError` where vLLM has none."""
    rank = max(config.r for config in adapter.peft_config.values())  # type: ignore[union-attr]  # ours are all LoRA
    fitting = [each for each in RANKS if each >= rank]
    if not fitting:
        raise InputError(f"vLLM takes adapters of rank {RANKS[-1]} at most, not {rank}; lower adapter.rank.")
    return fitting[0]


def write_base(model: "PreTrainedModel", folder: Path) -> None:
    """The weights that an adapter, if there is one, lies upon."""
    own = {
        name.replace(".base_layer.", "."): weight for name, weight in model.state_dict().items() if ".lora_" not in name
    }
    model.save_pretrained(folder, state_dict=own)
