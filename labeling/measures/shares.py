"""Shares of counts: their intervals, and how likely a count is by chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """A share of some count, with its 95 % interval."""

    hits: float
    count: int
    """What was counted: pairs, judgements."""
    low: float
    high: float

    @property
    def value(self) -> float:
        """NaN when nothing was counted."""
        return self.hits / self.count if self.count else math.nan


def share_of(hits: float, count: int, independent: float) -> Share:
    """A share whose interval rests on fewer independent looks than were counted."""
    return Share(hits, count, *wilson(hits * independent / count if count else 0, independent))


def wilson(hits: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share; (0, 1) when nothing was counted."""
    if count <= 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def chance_of_count(hits: int, chances: Sequence[float]) -> float:
    """Two-sided exact p of `hits` successes in trials of these chances: twice the smaller tail, at most 1.

    The exact (Poisson binomial) distribution up to 2,000 trials, beyond that the normal one with its continuity
    correction. NaN without trials.
    """
    if not chances:
        return math.nan
    if len(chances) > 2000:
        deviation = math.sqrt(sum(chance * (1 - chance) for chance in chances))
        away = max(0.0, abs(hits - sum(chances)) - 0.5) / deviation
        return min(1.0, math.erfc(away / math.sqrt(2)))
    distribution = np.ones(1)
    for chance in chances:
        distribution = np.convolve(distribution, [1 - chance, chance])
    return float(min(1.0, 2 * min(distribution[: hits + 1].sum(), distribution[hits:].sum())))
