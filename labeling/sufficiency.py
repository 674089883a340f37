"""When a round is enough: the rule, and what a round still lacks by it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from labeling.agreement import Estimate
from labeling.comparison import Comparison, LabelingError


@dataclass(frozen=True)
class Enough:
    """What a round must have before it ends."""

    records: float = 1.0
    """Share of the records that must be done."""
    alpha_low: float | None = None
    """What the lower end of the 95 % interval of Krippendorff's alpha must reach."""
    strata: Mapping[str, int] = field(default_factory=dict)
    """Records that must be done per stratum."""
    deadline: datetime | None = None
    """When people's time is over; with a time zone."""
    at_deadline: Literal["use", "extend", "fail"] = "use"
    """Go on with what there is, keep waiting for the rest, or end the run."""


def missing(
    enough: Enough, asked: Sequence[Comparison], done: Sequence[str], alpha: Estimate | None, now: datetime
) -> list[str]:
    """What a round lacks, a clause each; empty when it is enough. `done` are ids of records.

    Raises `LabelingError` when the deadline has passed and the rule says "fail", or nothing at all was done by then.
    """
    lacks = _lacks(enough, asked, set(done), alpha)
    late = enough.deadline is not None and now >= enough.deadline
    if not lacks or not late or enough.at_deadline == "extend":
        return lacks
    if enough.at_deadline == "fail":
        raise LabelingError(
            f"The round's deadline has passed and it lacks {'; '.join(lacks)}; move it or lower the rule."
        )
    if not done:
        raise LabelingError("The round's deadline has passed and no record is done; move the deadline.")
    return []


def _lacks(enough: Enough, asked: Sequence[Comparison], done: set[str], alpha: Estimate | None) -> list[str]:
    lacks: list[str] = []
    needed = math.ceil(round(enough.records * len(asked), 6))
    finished = sum(comparison.id in done for comparison in asked)
    if finished < needed:
        lacks.append(f"{needed - finished} of {needed} records")
    reached = Counter(comparison.stratum for comparison in asked if comparison.id in done)
    held = Counter(comparison.stratum for comparison in asked)
    for stratum, quota in sorted(enough.strata.items()):
        if quota > held[stratum]:
            raise LabelingError(
                f"Stratum '{stratum}' has {held[stratum]} records but enough.strata asks for {quota}; lower it."
            )
        if reached[stratum] < quota:
            lacks.append(f"{quota - reached[stratum]} of {quota} records of stratum '{stratum}'")
    if enough.alpha_low is not None and (alpha is None or not alpha.low >= enough.alpha_low):
        found = "nothing yet" if alpha is None or math.isnan(alpha.low) else f"{alpha.low:.2f}"
        lacks.append(f"agreement (alpha's lower bound {enough.alpha_low:.2f}, now {found})")
    return lacks
