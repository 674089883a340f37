"""When a round is enough: the rule, what a round still lacks by it, and how long that takes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from labeling.comparison import Comparison, Judgement
from labeling.measures.agreement import Estimate

PACE = timedelta(minutes=30)
"""The present pace is that of the judgements given within this time before the last one."""


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
    """What a round lacks, a clause each; empty when it is enough. `done` are ids of records."""
    lacks = _lacks(enough, asked, set(done), alpha)
    return [] if done and is_late(enough, now) and enough.at_deadline == "use" else lacks


def overdue(enough: Enough, lacks: Sequence[str], done: Sequence[str], now: datetime) -> str:
    """Why a round that `lacks` something can never be enough as it is; empty while it can."""
    if not lacks or not is_late(enough, now) or enough.at_deadline == "extend":
        return ""
    if enough.at_deadline == "use":
        return "The round's deadline has passed and no record is done; move the deadline."
    return f"The round's deadline has passed and it lacks {'; '.join(lacks)}; move it or lower the rule."


def is_late(enough: Enough, now: datetime) -> bool:
    """Whether the deadline has passed."""
    return enough.deadline is not None and now >= enough.deadline


def seconds_left(
    asked: Sequence[Comparison], overlap: int, judgements: Sequence[Judgement], done: Sequence[str]
) -> float | None:
    """Judgements still needed at the pace of the last half hour; None before there is a pace."""
    times = sorted(datetime.fromisoformat(judgement.inserted_at) for judgement in judgements)
    recent = [time for time in times if times[-1] - time <= PACE]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    have = Counter(judgement.record for judgement in judgements)
    over = set(done)
    needed = sum(max(1, overlap - have[each.id]) for each in asked if each.id not in over)
    if not needed:
        return None
    return needed * (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1)


def _lacks(enough: Enough, asked: Sequence[Comparison], done: set[str], alpha: Estimate | None) -> list[str]:
    lacks: list[str] = []
    needed = math.ceil(round(enough.records * len(asked), 6))
    finished = sum(comparison.id in done for comparison in asked)
    if finished < needed:
        lacks.append(f"{needed - finished} of {needed} records")
    reached = Counter(comparison.stratum for comparison in asked if comparison.id in done)
    held = Counter(comparison.stratum for comparison in asked)
    for stratum, quota in sorted(enough.strata.items()):
        wanted = min(quota, held[stratum])  # a judge model may have the others
        if reached[stratum] < wanted:
            lacks.append(f"{wanted - reached[stratum]} of {wanted} records of stratum '{stratum}'")
    if enough.alpha_low is not None and (alpha is None or not alpha.low >= enough.alpha_low):
        found = "nothing yet" if alpha is None or math.isnan(alpha.low) else f"{alpha.low:.2f}"
        lacks.append(f"agreement (alpha's lower bound {enough.alpha_low:.2f}, now {found})")
    return lacks
