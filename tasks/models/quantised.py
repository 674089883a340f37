"""Frozen weights in 4 bits under an adapter (QLoRA, Dettmers et al. 2023): NF4 with double quantisation.

Only bitsandbytes knows the format, and only training computes with it: the adapter is saved alone, and goes on the full
weights wherever it is loaded. What that changes is measured when a policy is merged (`kl_from_quantised`).
"""

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifact import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARK = "quantised.json"
"""Stands in the folder of an adapter that was trained on 4-bit weights."""


def quantise(
    model: "PreTrainedModel",
    keep: Sequence[str] = (),
    weights: str = "nf4",
    double_quantisation: bool = True,
    compute: str = "auto",
) -> None:
    """Replace the linear layers of a model (GPT-2's `Conv1D` too) by 4-bit ones on this process's device, in turn: a
    GPU never holds the whole weights of a model that comes from the CPU's memory. The output layer stays as it is, and
    modules named in `keep` with what is in them.

    compute: "fp32" or "bf16"; "auto": bf16 on a GPU, on a CPU the weights' own type.
    Raises `InputError` where there is no such layer, or no bitsandbytes.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    from tasks.models.loading import device

    output: Any = model.get_output_embeddings()
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) in (torch.nn.Linear, Conv1D)
        and layer is not output
        and not any(name == kept or name.startswith(f"{kept}.") for kept in keep)
    ]
    if not found:
        raise InputError(f'{type(model).__name__} has no linear layers to keep in 4 bits; set adapter.kind = "lora".')
    require_bitsandbytes("kind 'qlora'", "kind 'lora'")
    four_bit: Any = importlib.import_module("bitsandbytes.nn.modules")
    while found:  # the list lets go of each layer as it is replaced
        name, layer = found.pop()
        own = torch.bfloat16 if device().type == "cuda" else layer.weight.dtype
        weight: Any = layer.weight.data
        weight = weight.T if type(layer) is Conv1D else weight
        small = four_bit.Linear4bit(
            weight.shape[1], weight.shape[0], layer.bias is not None,
            {"fp32": torch.float32, "bf16": torch.bfloat16}.get(compute, own), quant_type=weights,
            compress_statistics=double_quantisation, device="meta",
        )  # fmt: skip
        small.weight = four_bit.Params4bit(
            weight.contiguous(), requires_grad=False,
            compress_statistics=double_quantisation, quant_type=weights, module=small,
        )  # fmt: skip
        small.bias = layer.bias
        small.support_avx512bf16_for_cpu = False  # its fast CPU kernel rounds to bf16, but in evaluation only
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, small.to(device()))
    model.to(device())  # type: ignore[arg-type]


def require_bitsandbytes(what: str, instead: str) -> None:
    """Raise `InputError` where the library is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"{what} needs bitsandbytes; run `pip install -c constraints.txt -e '.[qlora]'` in the project's folder, "
            f"or take {instead}."
        )


def is_quantised(model: Any) -> bool:
    """Whether some weight of a model is in 4 bits."""
    return any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters())


def settings_of(model: Any) -> dict[str, Any]:
    """How a model in 4 bits was quantised, as `quantise` takes it."""
    layer = next(module for module in model.modules() if type(getattr(module, "weight", None)).__name__ == "Params4bit")
    return {"weights": layer.weight.quant_type, "double_quantisation": layer.weight.compress_statistics}


def trained_quantised(adapter: Path) -> dict[str, Any] | None:
    """How the weights under a saved adapter were quantised when it was trained; None where they were not."""
    return json.loads((adapter / MARK).read_text()) if (adapter / MARK).is_file() else None
