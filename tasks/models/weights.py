"""Weights out of a model's folder: all of them or none, for what is not in the files would be drawn at random."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from tasks.artifact import InputError
from tasks.models.source import require_safetensors


def open_weights(folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """A language model on the CPU, and what of its files' weights should have a place in it and has none.

    Raises `InputError` for files that are damaged, or lack weights, or hold others than config.json says.
    """
    require_safetensors(folder)
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = read(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InputError(
            f"The weights in {folder} cannot be read ({reason}); their files are cut, damaged or missing: copy or "
            "fetch the model again."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{folder} lacks {len(missing)} weights of a {type(model).__name__} ({_some(missing)}), which would be "
            "random; fetch the model again, or mend its config.json."
        )
    if other := sorted(key for key, *_ in info["mismatched_keys"]):
        raise InputError(
            f"{len(other)} weights in {folder} have another size than its config.json says ({_some(other)}); put the "
            "right config.json beside them."
        )
    return model, sorted(key for key in info["unexpected_keys"] if _has_a_place(key, model))


def _has_a_place(key: str, model: Any) -> bool:
    """Whether a weight belongs to a layer that the model has, or to one more of its layers: not so what other uses of a
    model need, such as seeing."""
    modules = {name for name, _ in model.named_modules()}
    parts = key.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    first_absent = next((place for place, name in enumerate(above) if name not in modules), None)
    return first_absent is None or (first_absent > 0 and parts[first_absent].isdigit())


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
