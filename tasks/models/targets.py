"""Which layers of a model an adapter is put on, whatever its layout calls them."""

import re
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tasks.artifact import InputError

KEYS_OR_VALUES = re.compile(r"(k|v|key|value|qkv|query_key_value|c_attn|Wqkv|in_proj)(_proj)?", re.IGNORECASE)
"""Layers that make keys or values, alone or together with queries."""


def linear_layers(model: Any) -> dict[str, Any]:
    """Linear layers by name, but for the output layer: torch's, GPT-2's `Conv1D`, and those in 4 bits."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    kinds = torch.nn.Linear, Conv1D  # bitsandbytes' are torch's
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds) and each is not output}


def attention_layers(model: Any) -> list[str]:
    """Names of the linear layers inside modules that are called attention. Raises `InputError` without any."""
    inside = [name for name, module in model.named_modules() if "Attention" in type(module).__name__]
    found = [name for name in linear_layers(model) if any(name.startswith(f"{each}.") for each in inside)]
    if not found:
        raise InputError(f'{type(model).__name__} has no attention layers; set adapter.targets = "all-linear".')
    return found


def scaled_layers(model: Any) -> tuple[list[str], list[str]]:
    """What (IA)^3 scales: the layers that make keys and values, and those that a feed-forward network ends with."""
    attention = attention_layers(model)
    made = [name for name in attention if KEYS_OR_VALUES.fullmatch(name.rpartition(".")[2])]
    width = model.config.hidden_size
    ends = [
        name
        for name, layer in linear_layers(model).items()
        if name not in attention and _sizes(layer)[1] == width < _sizes(layer)[0]
    ]
    if not made or not ends:
        raise InputError(
            f"Keys, values and feed-forward layers of {type(model).__name__} have names that are not known; "
            "name them in adapter.targets."
        )
    return made, ends


def _sizes(layer: Any) -> tuple[int, int]:
    """Features in and out."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    return layer.in_features, layer.out_features
