"""Frozen weights in 4 bits under an adapter (QLoRA, Dettmers et al. 2023): NF4 with double quantisation.

Only bitsandbytes knows the format, and only training computes with it: the adapter is saved alone, and goes on the full
weights wherever it is loaded. What that changes is measured when a policy is merged (`kl_from_quantised`).
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifact import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARK = "quantised.json"
"""Stands in the folder of an adapter that was trained on 4-bit weights."""


def quantise(model: "PreTrainedModel", keep: Sequence[str] = ()) -> None:
    """Replace the linear layers of a model on its device by 4-bit ones, in turn, that compute in the weights' own
    type. The output layer stays, and modules named in `keep` with what is in them.

    Raises `InputError` where there is no such layer.
    """
    import torch

    output: Any = model.get_output_embeddings()
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is torch.nn.Linear
        and layer is not output
        and not any(name == kept or name.startswith(f"{kept}.") for kept in keep)
    ]
    if not found:
        raise InputError(f'{type(model).__name__} has no linear layers to keep in 4 bits; set adapter.kind = "lora".')
    four_bit: Any = importlib.import_module("bitsandbytes.nn.modules")
    while found:  # the list lets go of each layer as it is replaced
        name, layer = found.pop()
        small = four_bit.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        small.weight = four_bit.Params4bit(
            layer.weight.detach().contiguous(), requires_grad=False, compress_statistics=True, quant_type="nf4",
            module=small,
        )  # fmt: skip
        small.bias = layer.bias
        small.support_avx512bf16_for_cpu = False  # its fast CPU kernel rounds to bf16, but in evaluation only
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, small.to(layer.weight.device))


def is_quantised(model: Any) -> bool:
    """Whether some weight of a model is in 4 bits."""
    return any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters())


def trained_quantised(adapter: Path) -> bool:
    """Whether a saved adapter was trained on 4-bit weights."""
    return (adapter / MARK).is_file()
