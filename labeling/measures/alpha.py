"""Krippendorff's alpha, nominal, ordinal and interval, of any number of annotators with data missing.

Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011). Units rated once or never do not count.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labeling.measures.bootstrap import NOTHING, Estimate, Floats, Ints, Resampling, divided
from labeling.measures.tables import MISSING, Table, agreeing_and_given, table_of

Metric = Literal["nominal", "ordinal", "interval"]
AT_ONCE = 4_000_000
"""Cells of coincidence matrices worked on at once."""


def krippendorff_alpha(ratings: NDArray, metric: Metric) -> float:
    """Krippendorff's alpha of ratings [annotators, units]; NaN marks what was not rated."""
    return alpha_estimate(ratings, np.zeros(ratings.shape[1], dtype=int), metric, samples=0).value


def alpha_estimate(ratings: NDArray, records: Ints, metric: Metric, *, samples: int = 1000, seed: int = 0) -> Estimate:
    """Alpha of ratings [annotators, units] with an interval from resampling `records` [units]: whose each unit is."""
    codes, scale = coded(ratings)
    names, owners = np.unique(records, return_inverse=True)
    table = table_of(codes, owners)
    resampling = Resampling(len(names), samples=samples, seed=seed, width=alpha_width(len(scale), metric))
    return table_alpha([table], scale, resampling, metric)


def coded(ratings: NDArray) -> tuple[Ints, Floats]:
    """Ratings as places on the scale of all values there are, and that scale, sorted; NaN becomes `MISSING`."""
    known = ~np.isnan(ratings)
    scale, places = np.unique(ratings[known], return_inverse=True)
    codes = np.full(ratings.shape, MISSING)
    codes[known] = places
    return codes, scale


def alpha_width(categories: int, metric: Metric) -> int:
    """Sums per record that alpha needs: see `Resampling`."""
    return {"nominal": categories + 1, "ordinal": categories**2, "interval": 4}[metric]


def table_alpha(tables: Sequence[Table], scale: Floats, resampling: Resampling, metric: Metric) -> Estimate:
    """Alpha of what the tables hold, the categories having these places on the scale [categories]."""
    if not resampling.groups:
        return NOTHING
    if metric == "interval":
        return _interval(tables, scale, resampling)
    if metric == "nominal":
        return _nominal(tables, len(scale), resampling)
    return _ordinal(tables, len(scale), resampling)


def _nominal(tables: Sequence[Table], categories: int, resampling: Resampling) -> Estimate:
    """alpha = 1 - (n - 1) sum_{c != k} o_ck / (n^2 - sum_c n_c^2)."""
    alike, counts = agreeing_and_given(tables, categories, resampling, counted=lambda raters: raters)
    total = counts.sum(axis=1)
    return resampling.estimate(1 - (total - 1) * divided(total - alike, total**2 - (counts**2).sum(axis=1)))


def _interval(tables: Sequence[Table], scale: Floats, resampling: Resampling) -> Estimate:
    """The same with squared differences, whose sum over all pairs of n values is 2 n sum x^2 - 2 (sum x)^2."""
    middle = scale - scale.mean() if scale.size else scale  # alpha does not change, rounding errors do
    sums = np.zeros((resampling.groups, 4))
    for table in tables:
        raters = table.raters()
        for left, right in table.dyads():
            known = (table.codes[left] != MISSING) & (table.codes[right] != MISSING)
            squares = (middle[table.codes[left]] - middle[table.codes[right]]) ** 2
            apart = (known * squares * (2 / np.maximum(raters[left] - 1, 1))).sum(axis=1)
            sums[:, :1] += resampling.sums(table.owner[left], apart)
        known = (raters > 1) & (table.codes != MISSING)
        for place, power in enumerate((0, 1, 2), 1):
            moments = (known * middle[table.codes] ** power).sum(axis=1)
            sums[:, place : place + 1] += resampling.sums(table.owner, moments)
    observed, total, first, second = resampling.totals(sums).T
    expected = 2 * total * second - 2 * first**2
    varied = expected > 1e-12 * total * second  # not the rounding error of values that are all the same
    return resampling.estimate(1 - (total - 1) * divided(observed, np.where(varied, expected, 0.0)))


def _ordinal(tables: Sequence[Table], categories: int, resampling: Resampling) -> Estimate:
    """The same with the squared number of ratings between two values, each end counted half, in the draw at hand."""
    cells = np.zeros(resampling.groups * categories**2)
    for table in tables:
        raters = table.raters()
        for left, right in table.dyads():
            rows, columns = np.nonzero((table.codes[left] != MISSING) & (table.codes[right] != MISSING))
            left, right = left[rows], right[rows]
            group = resampling.group[table.owner[left]]
            place = (group * categories + table.codes[left, columns]) * categories + table.codes[right, columns]
            cells += np.bincount(place, 1 / (raters[left, columns] - 1), minlength=cells.size)
    halves = resampling.totals(cells.reshape(resampling.groups, -1)).reshape(-1, categories, categories)
    at_once = max(1, AT_ONCE // max(1, categories**2))
    chunks = [_ordinal_of(halves[start : start + at_once]) for start in range(0, len(halves), at_once)]
    return resampling.estimate(np.concatenate(chunks))


def _ordinal_of(halves: Floats) -> Floats:
    """Ordinal alpha of coincidence matrices [draws, categories, categories] of which each pair is counted one way."""
    coincidences = halves + halves.transpose(0, 2, 1)
    marginals = coincidences.sum(axis=2)
    total = marginals.sum(axis=1)
    scale = np.cumsum(marginals, axis=1) - marginals / 2
    distance = (scale[:, :, None] - scale[:, None, :]) ** 2
    observed = np.einsum("dck,dck->d", coincidences, distance)
    expected = np.einsum("dc,dck,dk->d", marginals, distance, marginals, optimize=True)
    return 1 - (total - 1) * divided(observed, expected)
