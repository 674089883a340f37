"""What should not decide a ranking and may: where a completion was shown, and how long it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import gammaincc

from labeling.comparison import Comparison, Judgement, LabelingError
from labeling.measures.agreement import rankings
from labeling.measures.bootstrap import NOTHING, Estimate, Floats, Resampling
from labeling.measures.tables import Answers


@dataclass(frozen=True)
class PositionBias:
    """Whether what was shown first, second, ... wins more often than the shuffling of positions lets expect."""

    win_rates: tuple[float, ...]
    """Position -> share of the other completions of its record that the one shown there beats; ties count half."""
    chi2: float
    degrees: int
    p_value: float
    """Probability of a chi2 as large when positions do not matter; NaN when everything is tied."""
    records: int


UNTESTED = PositionBias((), 0.0, 0, float("nan"), 0)
"""Nothing was ranked."""


def position_bias(comparisons: Iterable[Comparison], judgements: Iterable[Judgement]) -> PositionBias:
    """Win rate per position with Friedman's test, a record being a block and a position a treatment.

    The order shown is drawn by chance for each record, and shared by its annotators. If it does not matter, every order
    of a record's scores x_1 ... x_K (win shares less 1/2, summed over its annotators) was equally likely, so that with
    X_p the sum of the scores at position p over records, `chi2 = (K - 1) sum_p X_p^2 / sum_records sum_p x_p^2` with
    K - 1 degrees of freedom: with one annotator per record Friedman's test corrected for ties (Conover, "Practical
    Nonparametric Statistics", 1999). Records of different K add up. Gold and repeated comparisons and unfinished
    rankings do not count. Raises `LabelingError` for judgements of an unknown record.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    found = _asked(by_id, judgements)
    widest = max((block.values.shape[1] for block in found.blocks), default=0)
    wins, shown = np.zeros(widest), np.zeros(widest)
    chi2, degrees = 0.0, 0
    for block in found.blocks:
        size = block.values.shape[1]
        starts = np.flatnonzero(np.diff(block.record, prepend=-1))
        records = [by_id[found.records[record]] for record in block.record[starts].tolist()]
        scores = np.add.reduceat((size - block.values) / (size - 1) - 0.5, starts, axis=0)
        placed = np.zeros_like(scores)
        np.put_along_axis(placed, np.array([_places(each) for each in records]), scores, axis=1)
        wins[:size] += placed.sum(axis=0) + 0.5 * len(block.record)
        shown[:size] += len(block.record)
        if (spread := float((placed**2).sum())) > 0:
            chi2 += (size - 1) * float((placed.sum(axis=0) ** 2).sum()) / spread
            degrees += size - 1
    rates = tuple((wins / np.maximum(shown, 1)).tolist())
    p_value = float(gammaincc(degrees / 2, chi2 / 2)) if degrees else float("nan")
    return PositionBias(rates, chi2, degrees, p_value, len(found.records))


def length_bias(
    comparisons: Iterable[Comparison], judgements: Iterable[Judgement], *, samples: int = 1000, seed: int = 0
) -> Estimate:
    """Share of preferences between completions of unlike length (characters) in which the longer one wins.

    More than half may be right: it depends on what the guidelines ask for. Gold and repeated comparisons do not count.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    found = _asked(by_id, judgements)
    if not found.records:
        return NOTHING
    resampling = Resampling(len(found.records), samples=samples, seed=seed)
    longer, pairs = np.zeros((resampling.groups, 1)), np.zeros((resampling.groups, 1))
    for block in found.blocks:
        records, of = np.unique(block.record, return_inverse=True)
        lengths = np.array([_lengths(by_id[found.records[record]]) for record in records.tolist()])[of]
        for one, other in combinations(range(block.values.shape[1]), 2):
            preferred = np.sign(block.values[:, other] - block.values[:, one])
            extra = np.sign(lengths[:, one] - lengths[:, other])
            longer += resampling.sums(block.record, preferred * extra > 0)
            pairs += resampling.sums(block.record, preferred * extra != 0)
    return resampling.ratio(longer, pairs)


def tie_share(judgements: Iterable[Judgement]) -> float:
    """Share of (judgement, two completions) that are tied; NaN without any."""
    tied, pairs = 0.0, 0.0
    for block in rankings(judgements, fewest=1).blocks:
        for one, other in combinations(range(block.values.shape[1]), 2):
            apart: Floats = block.values[:, one] - block.values[:, other]
            tied += float((apart == 0).sum())
            pairs += float((~np.isnan(apart)).sum())
    return tied / pairs if pairs else float("nan")


def _asked(by_id: Mapping[str, Comparison], judgements: Iterable[Judgement]) -> Answers:
    """The whole rankings of comparisons that are there to learn from."""
    asked = []
    for judgement in judgements:
        if judgement.record not in by_id:
            raise LabelingError(
                f"Judgement {judgement.id} is of record '{judgement.record}', which is not in the round; "
                "give the comparisons it belongs to."
            )
        comparison, ranks = by_id[judgement.record], judgement.ranks
        whole = (
            ranks is not None and len(ranks) == len(comparison.shown) and all(map(ranks.__contains__, comparison.shown))
        )
        if whole and comparison.kind == "asked":
            asked.append(judgement)
    return rankings(asked, fewest=1)


def _places(comparison: Comparison) -> list[int]:
    """Where each completion was shown, in the order of their ids."""
    return [comparison.shown.index(name) for name in sorted(comparison.shown)]


def _lengths(comparison: Comparison) -> list[int]:
    texts = {completion.id: len(completion.text.strip()) for completion in comparison.completions}
    return [texts[name] for name in sorted(texts)]
