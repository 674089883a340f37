"""An adapter folded into the weights while decoding: one matrix product per layer and token instead of three."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear

from tasks.sampling.local import CausalLM


@contextmanager
def folded(model: CausalLM) -> Iterator[CausalLM]:
    """The same model, its LoRA layers on float32 weights computed as one matrix; the weights come back bit for bit.

    PEFT's own merge and unmerge would leave rounding behind at every update. Layers of other kinds or precisions are
    left as they are: folding a small update into bf16 would round it away. Costs a copy of the weights while it lasts.
    """
    kept: list[tuple[Any, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for layer in _foldable(model):
                weight, adapters = layer.get_base_layer().weight, list(layer.active_adapters)
                kept.append((layer, weight.data))
                weight.data = sum((layer.get_delta_weight(adapter) for adapter in adapters), weight.data)
                layer.merged_adapters.extend(adapters)
        yield model
    finally:
        for layer, weights in kept:
            layer.get_base_layer().weight.data = weights
            layer.merged_adapters.clear()


def _foldable(model: CausalLM) -> Iterator[Any]:
    for layer in model.modules():
        if type(layer) is not LoraLinear or layer.merged or layer.disable_adapters:
            continue
        plain = not any(layer.use_dora.values()) and not any(layer.lora_bias.values())
        known = all(adapter in layer.lora_A for adapter in layer.active_adapters)
        base: Any = layer.get_base_layer()
        if plain and known and base.weight.dtype == torch.float32:
            yield layer
