"""What a round costs in judgements and hours, estimated from when the judgements came in."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

from labeling.comparison import Judgement

PAUSE_SECONDS = 600.0
"""A longer time between two judgements is a pause and not work."""


@dataclass(frozen=True)
class Budget:
    """What may be spent on a round; None: no limit."""

    judgements: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Effort:
    """What one annotator, or a whole round, has spent."""

    judgements: int
    """Discarded ones are work too."""
    seconds: float
    """Median time between two judgements of one annotator; NaN where no two are less than a pause apart."""
    hours: float
    """That time for every judgement; NaN where it is not known."""


NO_EFFORT = Effort(0, math.nan, math.nan)


def effort_by_annotator(judgements: Iterable[Judgement]) -> dict[str, Effort]:
    """What each annotator has spent, by name. AI judgements cost no hours and are left out."""
    times: dict[str, list[float | None]] = defaultdict(list)
    for judgement in judgements:
        if judgement.by == "person":
            times[judgement.annotator].append(_seconds(judgement.inserted_at))
    return {annotator: _effort(times[annotator]) for annotator in sorted(times)}


def total_effort(by_annotator: Iterable[Effort]) -> Effort:
    """What everybody has spent together; the hours of those whose pace is not known are taken at the others' mean."""
    efforts = list(by_annotator)
    judgements = sum(effort.judgements for effort in efforts)
    timed = [effort for effort in efforts if not math.isnan(effort.hours)]
    count = sum(effort.judgements for effort in timed)
    if not count:
        return Effort(judgements, math.nan, math.nan)
    mean = 3600 * sum(effort.hours for effort in timed) / count
    return Effort(judgements, mean, mean * judgements / 3600)


def _effort(times: list[float | None]) -> Effort:
    known = sorted(time for time in times if time is not None)
    gaps = [after - before for before, after in pairwise(known) if after - before <= PAUSE_SECONDS]
    pace = median(gaps) if gaps else math.nan
    return Effort(len(times), pace, pace * len(times) / 3600)


def _seconds(time: str) -> float | None:
    """A time as seconds, without a zone in UTC as Argilla gives it; None when it cannot be read."""
    try:
        read = datetime.fromisoformat(time)
    except ValueError:
        return None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
