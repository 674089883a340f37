"""An adapter folded into the weights while decoding: one matrix product per layer and token instead of three."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.ia3 import Linear as Ia3Linear
from peft.tuners.lora import Linear as LoraLinear

from tasks.sampling.local import CausalLM


@contextmanager
def folded(model: CausalLM) -> Iterator[CausalLM]:
    """The same model, its LoRA, DoRA and (IA)^3 layers on float32 weights computed as one matrix; the weights come back
    bit for bit.

    PEFT's own merge and unmerge would leave rounding behind at every update. Layers of other kinds or precisions are
    left as they are: folding a small update into bf16 would round it away. Costs a copy of the weights while it lasts.
    """
    kept: list[tuple[Any, dict[str, torch.Tensor]]] = []
    try:
        with torch.no_grad():
            for layer in _foldable(model):
                base = layer.get_base_layer()
                kept.append((layer, {name: each.data for name, each in base.named_parameters(recurse=False)}))
                for each in base.parameters(recurse=False):
                    each.data = each.data.clone()
                layer.merge(adapter_names=list(layer.active_adapters))
        yield model
    finally:
        for layer, weights in kept:
            for name, each in layer.get_base_layer().named_parameters(recurse=False):
                each.data = weights[name]
            layer.merged_adapters.clear()


def _foldable(model: CausalLM) -> Iterator[Any]:
    for layer in model.modules():
        if type(layer) not in (LoraLinear, Ia3Linear) or layer.merged or layer.disable_adapters:
            continue
        held = layer.lora_A if isinstance(layer, LoraLinear) else layer.ia3_l
        known = all(adapter in held for adapter in layer.active_adapters)
        base: Any = layer.get_base_layer()
        if known and not any(getattr(layer, "lora_bias", {}).values()) and base.weight.dtype == torch.float32:
            yield layer
