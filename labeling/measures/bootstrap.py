"""Intervals by drawing records anew: answers to one record are not independent, so records are drawn whole."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

GROUPS = 4000
"""More records than this are drawn in as many random groups."""
MOST_SUMS = 20_000_000
"""Sums kept at once (160 MB): wide statistics get fewer groups."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def parts(self) -> dict[str, float]:
        """Suffix of a metric's name -> figure."""
        return {"": self.value, "_low": self.low, "_high": self.high}


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))
"""A figure that is not defined."""


class Resampling:
    """The percentile bootstrap over records, for figures made of sums over records (Efron and Tibshirani 1993).

    Up to `GROUPS` records are drawn one by one, with replacement. More of them are put into that many groups at random
    and the groups are drawn: random groups have, between them, the variance that records have (Wolter, "Introduction to
    Variance Estimation", 2007, chapter 2), so the interval is as wide and a million judgements cost as much as ten
    thousand. `width` is how many sums one record has.
    """

    def __init__(self, records: int, *, samples: int, seed: int, width: int = 1) -> None:
        generator = np.random.default_rng(seed)
        groups = min(records, GROUPS, max(50, MOST_SUMS // width))
        self.groups = groups
        """Rows of what `totals` takes."""
        self.group: Ints = np.arange(records)
        """Record -> its group."""
        if groups < records:
            self.group = generator.permutation(records) % groups
        drawn = generator.integers(max(1, groups), size=(samples, groups)) + groups * np.arange(samples)[:, None]
        times = np.bincount(drawn.ravel(), minlength=samples * groups).reshape(samples, groups)
        self._weights: Floats = np.concatenate([np.ones((1, groups)), times.astype(float)])
        self.draws = 1 + samples
        """Rows of what `totals` gives: all records, then each draw."""

    def sums(self, records: Ints, values: NDArray | None = None) -> Floats:
        """Per group [groups, 1]: the sum of values that belong to these records, or how many there are."""
        weights = None if values is None else np.asarray(values, dtype=float)
        return np.bincount(self.group[records], weights, minlength=self.groups).astype(float)[:, None]

    def totals(self, sums: Any, draws: slice = slice(None)) -> Floats:
        """Sums per group [groups, n], dense or sparse, over all records and over each draw of them [draws, n]."""
        return self._weights[draws] @ sums

    @staticmethod
    def estimate(figures: Floats) -> Estimate:
        """The figure of all records, which comes first, with the 2.5 and 97.5 percentiles of those of the draws.

        Draws that leave the figure undefined do not count.
        """
        value, drawn = float(figures[0]), figures[1:]
        drawn = drawn[~np.isnan(drawn)]
        if np.isnan(value) or not drawn.size:
            return Estimate(value, float("nan"), float("nan"))
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Estimate(value, float(low), float(high))

    def ratio(self, numerators: Floats, denominators: Floats) -> Estimate:
        """The ratio of two sums per group [groups, 1]."""
        over, under = self.totals(numerators)[:, 0], self.totals(denominators)[:, 0]
        return self.estimate(divided(over, under))


def divided(over: Floats, under: Floats) -> Floats:
    """The quotient, NaN where nothing or less is below."""
    positive = under > 0
    return np.where(positive, over / np.where(positive, under, 1.0), np.nan)
