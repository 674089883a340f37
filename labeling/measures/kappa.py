"""Cohen's kappa of two annotators (weighted too) and of each two of many, and Fleiss' kappa of any number."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from scipy import sparse

from labeling.comparison import LabelingError
from labeling.measures.bootstrap import MOST_SUMS, NOTHING, Estimate, Floats, Ints, Resampling, divided
from labeling.measures.tables import MISSING, Table, agreeing_and_given, table_of

Weights = Literal["linear", "quadratic"]
Labels = Iterable[Any]
"""One annotator's labels, one per unit: numbers, texts or truth values; NaN and None are missing."""
AT_ONCE = 20_000_000
"""Sums of draws worked on at once."""


def cohen_kappa(
    left: Labels, right: Labels, weights: Weights | None = None, *, categories: Labels | None = None
) -> float:
    """Cohen's kappa of two annotators' labels of the same units, in [-1, 1]; NaN when both give one label only.

    `1 - sum w_ij p_ij / sum w_ij p_i q_j` with w_ij = 1 for i != j (Cohen 1960), |i - j| (`linear`) or (i - j)^2
    (`quadratic`; Cohen 1968), the categories being numbered in order: those of the labels given, sorted, or
    `categories`, the whole scale. Units that one of the two left out (NaN or None) do not count. Raises `LabelingError`
    when there is not one label of each for every unit, or a label is not on the scale.
    """
    codes, scale = labels_coded([left, right], categories)
    table = table_of(codes, np.zeros(codes.shape[1], dtype=int))
    return light_kappa([table], len(scale), Resampling(1, samples=0, seed=0), weights).value


def fleiss_kappa(labels: Iterable[Labels]) -> float:
    """Fleiss' kappa of labels [annotators, units]: `(P - P_e) / (1 - P_e)`; NaN when there is one label only.

    P is the mean over units of the share of annotator pairs that agree, P_e the sum of the squared shares of the
    labels. Fleiss, "Measuring nominal scale agreement among many raters" (1971) has the same number of annotators for
    every unit. With labels missing (NaN or None) each unit counts once, however many annotators it has: both P and the
    labels' shares are means over units of shares within the unit; units labelled once or never are left out.
    """
    codes, scale = labels_coded(labels)
    table = table_of(codes, np.zeros(codes.shape[1], dtype=int))
    return fleiss_estimate([table], len(scale), Resampling(1, samples=0, seed=0)).value


def light_kappa(
    tables: Sequence[Table], categories: int, resampling: Resampling, weights: Weights | None = None
) -> Estimate:
    """The mean of Cohen's kappa over each two annotators, weighted by how many units they share.

    Where everybody answers everything that is the plain mean of Light, "Measures of response agreement for qualitative
    data" (1971); two annotators have Cohen's kappa itself. Pairs of annotators whose kappa is not defined are left out.
    """
    if not resampling.groups:
        return NOTHING
    couples, sums = _couples(tables, categories, resampling, weights)
    columns = 2 * categories + 1
    at_once = max(1, AT_ONCE // max(1, couples * columns))
    figures = []
    for start in range(0, resampling.draws, at_once):
        totals = resampling.totals(sums, slice(start, start + at_once)).reshape(-1, couples, columns)
        left, right, observed = totals[..., :categories], totals[..., categories:-1], totals[..., -1]
        units = left.sum(axis=2)
        expected = np.einsum("dcj,dcj->dc", left @ _distances(categories, weights), right)
        kappas = 1 - units * divided(observed, expected)
        counted = np.where(np.isnan(kappas), 0.0, units)
        figures.append(divided((counted * np.nan_to_num(kappas)).sum(axis=1), counted.sum(axis=1)))
    return resampling.estimate(np.concatenate(figures))


def fleiss_estimate(tables: Sequence[Table], categories: int, resampling: Resampling) -> Estimate:
    """Fleiss' kappa (see `fleiss_kappa`) of what the tables hold."""
    if not resampling.groups:
        return NOTHING
    alike, given = agreeing_and_given(tables, categories, resampling, counted=np.ones_like)
    units = given.sum(axis=1)
    chance = (given**2).sum(axis=1)
    varied = units**2 - chance > 1e-12 * units**2  # not the rounding error of one label only
    return resampling.estimate(divided(alike * units - chance, np.where(varied, units**2 - chance, 0.0)))


def labels_coded(labels: Iterable[Labels], categories: Labels | None = None) -> tuple[Ints, list]:
    """Labels [annotators, units] of any kind as places on the scale, and the scale; NaN and None become `MISSING`."""
    rows = [list(row) for row in labels]
    if len({len(row) for row in rows}) > 1:
        raise LabelingError(
            "The annotators have unequal numbers of labels; give one per unit, None where it is missing."
        )
    given = {label for row in rows for label in row if not _missing(label)}
    scale = sorted(given) if categories is None else list(categories)
    if strange := given - set(scale):
        raise LabelingError(f"Label {sorted(strange, key=str)[0]!r} is not among the categories; add it to them.")
    places = {label: place for place, label in enumerate(scale)}
    codes = [[MISSING if _missing(label) else places[label] for label in row] for row in rows]
    return np.array(codes, dtype=int).reshape(len(rows), -1), scale


def _couples(
    tables: Sequence[Table], categories: int, resampling: Resampling, weights: Weights | None
) -> tuple[int, Floats | sparse.csr_array]:
    """How many pairs of annotators there are, and sums per group [groups, pairs x (2 categories + 1)].

    The sums are what the one gave, what the other gave, and how far apart they were; sparse where there are so many
    pairs of annotators that most groups know few of them.
    """
    distances = _distances(categories, weights)
    keys = [_key(table, left, right) for table in tables for left, right in table.dyads()]
    couples = np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)
    columns = 2 * categories + 1
    shape = (resampling.groups, couples.size * columns)
    dense = shape[0] * shape[1] <= MOST_SUMS
    sums = np.zeros(shape[0] * shape[1]) if dense else sparse.csr_array(shape)
    for table in tables:
        for left, right in table.dyads():
            one, other = table.codes[left], table.codes[right]
            known = (one != MISSING) & (other != MISSING)
            base = np.searchsorted(couples, _key(table, left, right)) * columns
            group = resampling.group[table.owner[left]]
            each, apart = known.sum(axis=1), (known * distances[one, other]).sum(axis=1)
            place = np.concatenate([(base[:, None] + one)[known], (base[:, None] + categories + other)[known]])
            place = np.concatenate([place, base + columns - 1])
            value = np.concatenate([np.ones(2 * each.sum()), apart])
            group = np.concatenate([np.tile(np.repeat(group, each), 2), group])
            if dense:
                sums += np.bincount(group * shape[1] + place, value, minlength=sums.size)
            else:
                sums = sums + sparse.coo_array((value, (group, place)), shape=shape).tocsr()
    return int(couples.size), sums.reshape(shape) if dense else sums


def _distances(categories: int, weights: Weights | None) -> Floats:
    """How far apart two categories are [categories, categories]."""
    apart = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories))).astype(float)
    return {None: (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]


def _key(table: Table, left: Ints, right: Ints) -> Ints:
    """One number per two annotators."""
    return (table.rater[left].astype(np.int64) << 32) | table.rater[right].astype(np.int64)


def _missing(label: object) -> bool:
    return label is None or label != label
