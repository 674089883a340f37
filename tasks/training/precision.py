"""In which precision a training computes, and by which AdamW it steps.

Weights, gradients and the optimiser's moments are fp32 (what is frozen in 4 bits aside): bf16 is autocast, where matrix
products are.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from tasks.artifact import InputError

Precision = Literal["auto", "fp32", "bf16"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]

WORTH_IT = 15_000_000
"""Smaller models lose more by casting than products in bf16 save on a CPU."""
NAMES = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""What transformers calls them."""


def choose(asked: Precision, parameters: int) -> tuple[bool, str]:
    """Whether to compute in bf16, and why. Raises `InputError` where a GPU is asked for bf16 and has none."""
    if torch.cuda.is_available():
        if asked != "fp32" and torch.cuda.is_bf16_supported():
            return True, "bf16: on a GPU"
        if asked == "bf16":
            raise InputError('This GPU has no bf16; set precision = "fp32" or "auto".')
        return False, "fp32: as asked" if asked == "fp32" else "fp32: this GPU has no bf16"
    if asked != "auto":
        return asked == "bf16", f"{asked}: as asked"
    if parameters < WORTH_IT:
        return False, f"fp32: {parameters / 1e6:.1f}M parameters, and bf16 pays on a CPU from {WORTH_IT / 1e6:.0f}M"
    if not has_bf16():
        return False, "fp32: this CPU has neither avx512_bf16 nor amx_bf16"
    return True, f"bf16: {parameters / 1e6:.1f}M parameters, on a CPU that has it"


def has_bf16() -> bool:
    """Whether this CPU multiplies matrices in bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(bf16: bool) -> AbstractContextManager[Any]:
    """The precision of a training, for what is computed beside it and compared with it."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=bf16)


def name_here(optimizer: Optimizer) -> str:
    """transformers' name of an optimiser on this machine: only a GPU's memory has pages that can go elsewhere."""
    return NAMES[optimizer if torch.cuda.is_available() else optimizer.replace("paged_", "")]  # type: ignore[index]


def adamw(optimizer: Optimizer, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> Any:
    """The optimiser itself, without weight decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)
    import bitsandbytes

    bits = 8 if "8bit" in optimizer else 32
    paged = name_here(optimizer).startswith("paged_")
    return bitsandbytes.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, optim_bits=bits, is_paged=paged)
