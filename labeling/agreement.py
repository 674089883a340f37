"""How far annotators agree: Krippendorff's alpha, Kendall's W and pairwise agreement, with bootstrap intervals.

Intervals are percentile bootstraps over records, because annotators' answers to one record are not independent.
A figure that is not defined (one annotator, no variation at all) is NaN.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from labeling.comparison import Judgement, Ranks

Metric = Literal["nominal", "ordinal", "interval"]
Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def parts(self) -> dict[str, float]:
        """Suffix of a metric's name -> figure."""
        return {"": self.value, "_low": self.low, "_high": self.high}


@dataclass(frozen=True)
class Agreement:
    """How far the annotators of one round agree, over the records that two or more of them ranked."""

    alpha: Estimate
    """Krippendorff's alpha, ordinal, of mid-ranks: 1 is perfect, 0 is chance."""
    kendalls_w: Estimate
    """Kendall's W, corrected for ties, averaged over records: 1 is perfect, 1/m of m annotators is chance."""
    pairwise: Estimate
    """Share of (two annotators, two completions) ordered alike, a tie being an order of its own."""
    records: int

    def figures(self) -> dict[str, float]:
        """What is defined, by name: each figure with its `_low` and `_high`."""
        named = {"alpha": self.alpha, "kendalls_w": self.kendalls_w, "pairwise_agreement": self.pairwise}
        each = {f"{name}{part}": value for name, found in named.items() for part, value in found.parts().items()}
        return {name: value for name, value in each.items() if not math.isnan(value)}


def midranks(ranks: Ranks) -> dict[str, float]:
    """Ranks on one scale, whatever gaps an annotator left: ties share the mean of the places they take up.

    1, 1, 3 and 1, 1, 2 both become 1.5, 1.5, 3.
    """
    values = np.array(list(ranks.values()), dtype=float)
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return dict(zip(ranks, (below + (equal + 1) / 2).tolist(), strict=True))


def krippendorff_alpha(ratings: Array, metric: Metric) -> float:
    """Krippendorff's alpha of ratings [annotators, units]; NaN marks what was not rated.

    Units rated once or never do not count. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0)
    return float(_alpha(_coincidences(counts).sum(axis=0)[None], values, metric)[0])


def alpha_estimate(ratings: Array, records: Array, metric: Metric, *, samples: int = 1000, seed: int = 0) -> Estimate:
    """Alpha of ratings [annotators, units] with an interval from resampling `records` [units]: whose each unit is."""
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0)
    return _alpha_by_record(counts, records, values, metric, samples, seed)


def kendalls_w(ranks: Array) -> float:
    """Kendall's coefficient of concordance of mid-ranks [annotators, items], corrected for ties.

    `W = (12 S) / (m^2 (n^3 - n) - m sum T)` with S the squared deviations of the rank sums and T = sum(t^3 - t) over
    each annotator's groups of ties. Kendall and Gibbons, "Rank Correlation Methods" (1990). NaN when everybody ties
    everything.
    """
    annotators, items = ranks.shape
    sums = ranks.sum(axis=0)
    squares = float(((sums - sums.mean()) ** 2).sum())
    ties = sum(float((sizes**3 - sizes).sum()) for sizes in (np.unique(row, return_counts=True)[1] for row in ranks))
    spread = annotators**2 * (items**3 - items) - annotators * ties
    return 12 * squares / spread if annotators > 1 and spread > 0 else float("nan")


def pairwise_agreement(ranks: Array) -> tuple[float, int]:
    """How many (two annotators, two items) of ranks [annotators, items] are ordered alike, and how many there are."""
    upper = np.triu_indices(ranks.shape[1], 1)
    orders = np.sign(ranks[:, upper[0]] - ranks[:, upper[1]])
    left, right = np.triu_indices(ranks.shape[0], 1)
    return float((orders[left] == orders[right]).sum()), int(left.size * upper[0].size)


def agreement(judgements: Iterable[Judgement], *, samples: int = 1000, seed: int = 0) -> Agreement:
    """The agreement of a round's submitted judgements. Records ranked by one annotator only do not count."""
    blocks = list(_ranks_by_record(judgements).values())
    if not blocks:
        nothing = Estimate(float("nan"), float("nan"), float("nan"))
        return Agreement(nothing, nothing, nothing, 0)
    values = np.unique(np.concatenate([block.ravel() for block in blocks]))
    counts = np.concatenate([(block[:, :, None] == values).sum(axis=0) for block in blocks])
    owners = np.repeat(np.arange(len(blocks)), [block.shape[1] for block in blocks])
    alpha = _alpha_by_record(counts, owners, values, "ordinal", samples, seed)
    concordances = np.array([kendalls_w(block) for block in blocks])
    agreeing, pairs = np.array([pairwise_agreement(block) for block in blocks]).T
    return Agreement(
        alpha=alpha,
        kendalls_w=_ratio(np.nan_to_num(concordances), (~np.isnan(concordances)).astype(float), samples, seed),
        pairwise=_ratio(agreeing, pairs, samples, seed),
        records=len(blocks),
    )


def disagreement(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Per record that two or more ranked: the share of (two annotators, two completions) they order differently."""
    result = {}
    for record, block in _ranks_by_record(judgements).items():
        agreeing, pairs = pairwise_agreement(block)
        result[record] = 1 - agreeing / pairs
    return result


def agreement_by_annotator(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Per annotator: the share of (another annotator, two completions of a record) they order alike."""
    alike: dict[str, float] = {}
    pairs: dict[str, int] = {}
    for answers in _answers_by_record(judgements).values():
        for left, right in combinations(answers, 2):
            agreeing, total = pairwise_agreement(np.array([answers[left], answers[right]]))
            for annotator in (left, right):
                alike[annotator] = alike.get(annotator, 0.0) + agreeing
                pairs[annotator] = pairs.get(annotator, 0) + total
    return {annotator: alike[annotator] / pairs[annotator] for annotator in sorted(pairs)}


def _ranks_by_record(judgements: Iterable[Judgement]) -> dict[str, Array]:
    """Mid-ranks [annotators, completions] of each record with two or more of both."""
    return {record: np.array(list(answers.values())) for record, answers in _answers_by_record(judgements).items()}


def _answers_by_record(judgements: Iterable[Judgement]) -> dict[str, dict[str, list[float]]]:
    """Record -> annotator -> mid-ranks of the completions in one order, for records with two or more of both."""
    by_record: dict[str, dict[str, list[float]]] = {}
    for judgement in judgements:
        if judgement.ranks is not None and len(judgement.ranks) > 1:
            ranks = midranks(judgement.ranks)
            by_record.setdefault(judgement.record, {})[judgement.annotator] = [ranks[name] for name in sorted(ranks)]
    return {record: answers for record, answers in by_record.items() if len(answers) > 1}


def _coincidences(counts: Array) -> Array:
    """Coincidence matrices [units, values, values] of how often each value was given to each unit [units, values]."""
    raters = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    usable = raters > 1
    return np.where(usable[:, None, None], pairs / np.where(usable, raters - 1, 1)[:, None, None], 0.0)


def _alpha(coincidences: Array, values: Array, metric: Metric) -> Array:
    """Alpha of each coincidence matrix [samples, values, values]."""
    marginals = coincidences.sum(axis=2)
    total = marginals.sum(axis=1)
    distance = _distances(marginals, values, metric)
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (marginals[:, :, None] * marginals[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def _distances(marginals: Array, values: Array, metric: Metric) -> Array:
    """Squared distances [samples or 1, values, values] between values, which are sorted."""
    if metric == "nominal":
        return 1.0 - np.eye(len(values))[None]
    # Ordinal: how many ratings lie between two values, each end counted half.
    scale = np.cumsum(marginals, axis=1) - marginals / 2 if metric == "ordinal" else values[None, :]
    return (scale[:, :, None] - scale[:, None, :]) ** 2


def _alpha_by_record(counts: Array, records: Array, values: Array, metric: Metric, samples: int, seed: int) -> Estimate:
    names, owners = np.unique(records, return_inverse=True)
    per_record = np.zeros((len(names), len(values), len(values)))
    np.add.at(per_record, owners, _coincidences(counts))
    flat = per_record.reshape(len(names), -1)

    def of(weights: Array) -> Array:
        return _alpha((weights @ flat).reshape(-1, len(values), len(values)), values, metric)

    return _bootstrap(len(names), of, samples, seed)


def _ratio(numerators: Array, denominators: Array, samples: int, seed: int) -> Estimate:
    """The ratio of two sums over records."""

    def of(weights: Array) -> Array:
        total = weights @ denominators
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(total > 0, (weights @ numerators) / total, np.nan)

    return _bootstrap(len(numerators), of, samples, seed)


def _bootstrap(records: int, of: Callable[[Array], Array], samples: int, seed: int) -> Estimate:
    """The figure for all records once each, and the 2.5 and 97.5 percentiles over resampled records.

    `of` takes how often each record was drawn [samples, records] and gives the figure [samples].
    """
    value = float(of(np.ones((1, records)))[0])
    generator = np.random.default_rng(seed)
    chunk = max(1, min(samples, 20_000_000 // max(1, records)))  # at most 160 MB of draws at once
    drawn: list[Array] = []
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        draws = generator.multinomial(records, np.full(records, 1 / records), size=size)
        drawn.append(of(draws.astype(float)))
    figures = np.concatenate(drawn) if drawn else np.array([])
    figures = figures[~np.isnan(figures)]
    if not figures.size or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(figures, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
