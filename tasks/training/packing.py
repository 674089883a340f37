"""Rows of several lengths behind one another in one row, without padding; every row is computed as if it were alone.

Where a row begins, its position ids begin at 0 again: attention kernels for rows of various lengths (FlashAttention's)
and transformers' masks go by that. Known as packing or padding-free training (Krell et al. 2021, arXiv 2107.02027).
"""

import os
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Literal

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from tasks.artifact import InputError
from tasks.models.chat import Encoded
from tasks.training.engine_batches import LengthBatches, logits_at
from tasks.training.packed_groups import agrees

Collate = Callable[[Sequence[Encoded]], dict[str, Any]]
Packing = Literal["auto", "always", "never"]
FLASH = "flash_attention_2"


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of `lengths` in bins that hold at most `capacity`: the longest first, each where it leaves least space.

    Needs at most 11/9 of the fewest bins there could be, and 6/9 of one more (Dosa 2007). Raises `ValueError` for a
    length that fits no bin.
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (space left, bin), sorted
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[place] > capacity:
            raise ValueError(f"a row of {lengths[place]} tokens does not fit a bin of {capacity}")
        found = bisect_left(spaces, (lengths[place], -1))
        if found == len(spaces):
            spaces.append((capacity, len(bins)))
            bins.append([])
        space, chosen = spaces.pop(found)
        bins[chosen].append(place)
        insort(spaces, (space - lengths[place], chosen))
    return bins


class PackedBatches(LengthBatches):
    """Batches that each become one row of at most `capacity` tokens: as many as `batch_size` rows have on average."""

    def __init__(self, lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> None:
        super().__init__(lengths, batch_size, epochs, seed)
        self.capacity = max(*lengths, ceil(batch_size * sum(lengths) / len(lengths)))

    def cut(self, pool: list[int]) -> list[list[int]]:
        return [[pool[i] for i in each] for each in best_fit_decreasing([self.lengths[i] for i in pool], self.capacity)]

    def padding_share(self) -> float:
        return 0.0


def packed(rows: Sequence[Encoded]) -> dict[str, Any]:
    """Rows as one: `input_ids`, `position_ids` and `mask` [1, tokens], and the number of `items` in the loss.

    The first token of a row is never in the loss: what is before it is another row's.
    """
    mask = torch.tensor([[mark for row in rows for mark in (0, *row.labels_mask[1:])]]).bool()
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row.input_ids]]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(row.input_ids))]]),
        "mask": mask,
        "items": int(mask.sum()),
    }


def packed_with_mask(rows: Sequence[Encoded]) -> dict[str, Any]:
    """The same with an `attention_mask` [1, 1, tokens, tokens] of who sees whom, for models that make none by position
    ids (OPT)."""
    row = torch.tensor([number for number, row in enumerate(rows) for _ in row.input_ids])
    return packed(rows) | {"attention_mask": (row[:, None] == row).tril()[None, None]}


def apart(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What keeps a packed batch's rows apart when its last token is left out; nothing for any other batch."""
    cuts = {"position_ids": (..., slice(-1)), "attention_mask": (..., slice(-1), slice(-1))}
    return {name: batch[name][cut] for name, cut in cuts.items() if name in batch}


def choose_packing(packing: Packing, model: Any, rows: Sequence[Encoded]) -> tuple[Collate | None, str]:
    """What packs rows (None: they are not), and why. Turns FlashAttention on where that is installed and packing pays.

    Packing pays where a kernel leaves out what other rows' tokens would cost. Raises `InputError` where it must be, and
    the model would let rows see each other.
    """
    if packing == "never":
        return None, "Not packed, grouped by length: the recipe says so."
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if packing == "always":
            raise InputError('Several devices need batches of equally many rows; set packing = "auto" or "never".')
        return None, "Not packed, grouped by length: several devices need batches of equally many rows."
    before = model.config._attn_implementation
    kernel = before == FLASH or _flash(model)
    if packing == "auto" and not kernel:
        return None, (
            f"Not packed, grouped by length: {before} attention has no kernel for rows of various lengths here (that "
            "needs CUDA and flash-attn), so a packed row would attend to itself whole."
        )
    for collate in (packed,) if kernel else (packed, packed_with_mask):
        if packs_exactly(model, rows, collate):
            attention = model.config._attn_implementation
            return collate, f"Packed: every row's losses are as if it were alone, by {attention} attention."
    model.set_attn_implementation(before)
    reason = f"{model.config.model_type} models ({before}) do not keep packed rows apart"
    if packing == "always":
        raise InputError(f'{reason}, so packing would change the losses; set packing = "auto" or "never".')
    return None, f"Not packed, grouped by length: {reason}."


def packs_exactly(model: Any, rows: Sequence[Encoded], collate: Collate = packed) -> bool:
    """Whether a packed row has its rows' own log-probabilities: tried with the three shortest."""
    device = next(model.parameters()).device
    tried = sorted(rows, key=lambda row: len(row.input_ids))[:3] * (3 if len(rows) < 3 else 1)
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return agrees(
                lambda: torch.cat([_logps(model, packed([row]), device) for row in tried]),
                lambda: _logps(model, collate(tried), device),
                exact=device.type != "cuda",
            )
    finally:
        model.train(was_training)


def _logps(model: Any, batch: dict[str, Any], device: torch.device) -> torch.Tensor:
    """Log-probabilities of all tokens of packed rows that have one before them in their row."""
    there = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    ids, keep = there["input_ids"], there["position_ids"][:, 1:] > 0
    logits = logits_at(model, model.get_output_embeddings(), ids[:, :-1], keep, **apart(there))
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][keep], reduction="none").neg()


def _flash(model: Any) -> bool:
    """Turn FlashAttention on; False where it is not installed, there is no GPU, or the model has no such attention."""
    if not torch.cuda.is_available() or not is_flash_attn_2_available():
        return False
    try:
        model.set_attn_implementation(FLASH)
    except (ValueError, ImportError):
        return False
    return model.config._attn_implementation == FLASH
