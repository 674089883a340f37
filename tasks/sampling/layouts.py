"""What layouts differ in, as far as decoding has to know: what their forward takes, and who may stand in one batch."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tasks.artifact import InputError
from tasks.models.prompts import virtual_tokens

if TYPE_CHECKING:
    from tasks.sampling.local import CausalLM

CACHES = "past_key_values", "cache_params"
"""What layouts call what they are given of the tokens before; Mamba and its kin the second."""


def forward_parameters(model: "CausalLM") -> Collection[str]:
    """Names of what the model's forward accepts; PEFT's wrapper would hide them."""
    inner = getattr(model, "get_base_model", lambda: model)()
    return inspect.signature(cast(torch.nn.Module, inner).forward).parameters


def cache_argument(model: "CausalLM") -> str:
    """What the model's forward calls the cache. Raises `InputError` where there is none that rows can leave."""
    accepted = forward_parameters(model)
    found = next((name for name in CACHES if name in accepted), None)
    within = any(hasattr(module, "_setup_cache") for module in model.modules())  # RecurrentGemma's states
    own = not getattr(model, "_supports_default_dynamic_cache", lambda: True)()  # MiniMax, xLSTM
    if found is None or within or own:
        place = "in themselves" if within else "nowhere" if found is None else "in a cache of their own"
        raise InputError(
            f"{model.config.model_type} models keep what they have read {place}, not in a cache whose rows can leave, "
            "so nothing is sampled from them; take another base model."
        )
    return found


def check_causal(model: "CausalLM") -> None:
    """Raise `InputError` for an encoder such as BERT, whose tokens see those after them, though transformers makes a
    language model of its configuration."""
    name = model.config.model_type
    if not getattr(model.config, "is_decoder", True):
        raise InputError(f"{name} models read a text in both directions, so they cannot write it; take a decoder.")
    if any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules()):
        raise InputError(f"{name} models count their positions by the padding; take another base model.")


def batches_of(model: "CausalLM", prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices of prompts, neighbours in length together, the longest first (memory runs out at once or never); of one
    length only where padding would change what is said."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    parts = [order]
    if virtual_tokens(model) and not _goes_by_positions(model):
        parts = [list(part) for _, part in groupby(order, key=lambda i: len(prompts[i]))]
    return (part[start : start + size] for part in parts for start in range(0, len(part), size))


def _goes_by_positions(model: "CausalLM") -> bool:
    """Whether padding between a soft prompt and its text is nothing to any layer: all attend to everything, and know
    how far it is by positions. A window has its width in places of the cache, a recurrent state runs through them."""
    if "local" in getattr(model.config, "attention_layers", ()):  # GPT-Neo's windows, which its cache knows nothing of
        return False
    layers = DynamicCache(config=model.config).layers
    return "position_ids" in forward_parameters(model) and all(type(layer) is DynamicLayer for layer in layers)
