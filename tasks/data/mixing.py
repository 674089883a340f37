"""How much of each set goes into a mixture.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section 3.5.2:
examples-proportional mixing with an artificial limit on a set's size, and temperature-scaled mixing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from tasks.artifact import InputError
from tasks.recipe import Part


class Mix(Part):
    """The rates of the sets. A set's `boost` multiplies its rate; a `share` of its own stands above all this."""

    strategy: Literal["proportional", "temperature", "weights"] = "proportional"
    """By the sets' sizes; by their sizes to the power 1/temperature; or by the `weight` of each."""
    cap: int | None = Field(default=None, ge=1)
    """A set counts as no larger than this, so that a huge one does not drown the others."""
    temperature: float = Field(default=2.0, ge=1)
    """1 is proportional; the higher, the more equal the sets."""
    rows: int | None = Field(default=None, ge=1)
    """Rows for fine-tuning in all; none: as many as the sets have, each counted up to the cap, and beside them what
    gives sets of a fixed share theirs. Where all sets have fixed shares: as many as need no row twice."""
    repeats: float = Field(default=4.0, ge=1)
    """A set is used no more than so many times over (four epochs of the same data are nearly as good as new data:
    Muennighoff et al. 2023); what it would get beyond that goes to the others."""


@dataclass(frozen=True)
class Wanted:
    """What a set asks of the mixture."""

    name: str
    size: int
    """Rows there are."""
    weight: float = 1
    boost: float = 1
    share: float | None = None


def rates(mix: Mix, sets: Sequence[Wanted]) -> dict[str, float]:
    """The share of each set in the mixture, together 1 (all 0 where there are no rows).

    Raises `InputError` when fixed shares leave nothing for the others.
    """
    fixed = {each.name: each.share for each in sets if each.share is not None and each.size}
    free = [each for each in sets if each.share is None and each.size]
    left = 1 - sum(fixed.values())
    if (left < 1e-9 and free) or left < -1e-9:
        raise InputError(
            f"The fixed shares of the sets {', '.join(fixed)} add up to {1 - left:g}, which leaves nothing for the "
            "others; lower them."
        )
    raw = {each.name: each.boost * _rate(mix, each) for each in free}
    total = sum(raw.values())
    free_rates = {name: left * rate / total for name, rate in raw.items()}
    if not free and fixed:
        fixed = {name: share / (1 - left) for name, share in fixed.items()}
    return {each.name: fixed.get(each.name) or free_rates.get(each.name, 0.0) for each in sets}


def _rate(mix: Mix, each: Wanted) -> float:
    if mix.strategy == "weights":
        return each.weight
    size = min(each.size, mix.cap) if mix.cap else each.size
    return size ** (1 / mix.temperature) if mix.strategy == "temperature" else float(size)


def amounts(mix: Mix, sets: Sequence[Wanted]) -> dict[str, int]:
    """How many rows of each set are used; more than it has means that rows are used again.

    No set exceeds `repeats` times its size: what it would get beyond is shared out among the others.
    """
    share = rates(mix, sets)
    total = mix.rows or _size(mix, sets, share)
    limits = {each.name: int(each.size * mix.repeats) for each in sets}
    full: dict[str, float] = {}
    while True:
        open_ = {name: rate for name, rate in share.items() if name not in full and rate}
        rest = total - sum(full.values())
        scale = rest / sum(open_.values()) if open_ else 0.0
        over = [name for name, rate in open_.items() if rate * scale > limits[name] + 1e-9]
        if not over:
            break
        full |= {name: float(limits[name]) for name in over}
    return _whole({name: full.get(name, rate * scale) for name, rate in share.items()})


def shortfalls(mix: Mix, sets: Sequence[Wanted]) -> list[str]:
    """What `repeats` keeps a mixture from: its number of rows, and the rates of sets, where a tenth is missing."""
    rate, count = rates(mix, sets), amounts(mix, sets)
    total = sum(count.values())
    why = f"no set is used more than {mix.repeats:g} times over (mix.repeats)"
    found = []
    if mix.rows and total < mix.rows:
        found.append(f"The mixture has {total} of the {mix.rows} rows that mix.rows asks for, because {why}.")
    for each in sets:
        share = count[each.name] / total if total else 0.0
        if count[each.name] < 0.9 * rate[each.name] * total - 1:
            found.append(
                f"The set '{each.name}' is {share:.1%} of the mixture instead of {rate[each.name]:.1%}: it has "
                f"{each.size} rows for fine-tuning, and {why}."
            )
    return found


def _size(mix: Mix, sets: Sequence[Wanted], share: Mapping[str, float]) -> float:
    """The rows of a mixture that has no size of its own."""
    there = [each for each in sets if each.size]
    free = [each for each in there if each.share is None]
    if free:
        counted, left = sum(_counted(mix, each) for each in free), sum(share[each.name] for each in free)
        fixed = [each for each in there if each.share is not None]
        return counted + sum(min(counted * share[f.name] / left, int(f.size * mix.repeats)) for f in fixed)
    return min((_counted(mix, each) / share[each.name] for each in there), default=0)


def _counted(mix: Mix, each: Wanted) -> int:
    return min(each.size, mix.cap) if mix.cap else each.size


def _whole(parts: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers with the same sum (rounded), by the largest remainders; a set with any part keeps at least one."""
    floors = {name: int(part) for name, part in parts.items()}
    missing = round(sum(parts.values())) - sum(floors.values())
    by_remainder = sorted(parts, key=lambda name: (floors[name] - parts[name], name))
    for name in by_remainder[: max(missing, 0)]:
        floors[name] += 1
    return {name: max(floor, 1) if parts[name] > 0 else 0 for name, floor in floors.items()}
