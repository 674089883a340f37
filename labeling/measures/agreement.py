"""How far annotators agree about rankings with ties: every statistic with a bootstrap interval over records.

Rankings are compared in two ways. By mid-ranks, a unit being a completion: alpha and Kendall's W. By the order of each
two completions, a unit being a pair labelled *better*, *tie* or *worse*: pairwise and tie-discounted agreement, and the
kappas, which take each pair both ways round. Ratings, flags and labels are in `labeling.measures.ratings`.

A figure that is not defined (one annotator, no variation at all) is NaN. Answers flagged `cannot_judge` and discarded
ones do not count. Completions that an annotator left unranked are missing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from labeling.comparison import CANNOT_JUDGE, Judgement
from labeling.measures.alpha import alpha_estimate, alpha_width, krippendorff_alpha, table_alpha
from labeling.measures.bootstrap import NOTHING, Estimate, Floats, Resampling
from labeling.measures.concordance import (
    ORDERS,
    compared,
    kendalls_w,
    mean_concordance,
    midranks,
    mirrored,
    order_tables,
    pairwise_agreement,
    rank_tables,
    shares_alike,
    tie_discounted_agreement,
)
from labeling.measures.kappa import fleiss_estimate, light_kappa
from labeling.measures.tables import Answers, Table, answers, midranked

__all__ = [
    "Agreement",
    "Estimate",
    "agreement",
    "agreement_by_annotator",
    "agreement_by_stratum",
    "agreement_of_answers",
    "agreement_without",
    "alpha_estimate",
    "annotator_agreement",
    "annotator_matrix",
    "disagreement",
    "kendalls_w",
    "krippendorff_alpha",
    "midranks",
    "pairwise_agreement",
    "rankings",
    "tie_discounted_agreement",
]


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree, over the records that two or more of them ranked."""

    alpha: Estimate
    """Krippendorff's alpha, ordinal, of mid-ranks: 1 is perfect, 0 is chance."""
    kendalls_w: Estimate
    """Kendall's W, corrected for ties, averaged over records: 1 is perfect, 1/m of m annotators is chance."""
    pairwise: Estimate
    """Share of (two annotators, two completions) ordered alike, a tie being an order of its own."""
    tie_discounted: Estimate
    """The same, but a tie against a preference counts half (see `tie_discounted_agreement`)."""
    cohen_kappa: Estimate
    """Cohen's kappa of the orders, averaged over each two annotators (see `labeling.measures.kappa.light_kappa`).

    Both kappas take each two completions both ways round (see `labeling.measures.concordance.mirrored`).
    """
    fleiss_kappa: Estimate
    """Fleiss' kappa of the orders (see `labeling.measures.kappa.fleiss_kappa`)."""
    records: int

    def figures(self) -> dict[str, float]:
        """What is defined, by name: each figure with its `_low` and `_high`."""
        names = {"pairwise": "pairwise_agreement", "tie_discounted": "tie_discounted_agreement"}
        named = {names.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}
        found = {name: value for name, value in named.items() if isinstance(value, Estimate)}
        each = {f"{name}{part}": value for name, given in found.items() for part, value in given.parts().items()}
        return {name: value for name, value in each.items() if not math.isnan(value)}


def agreement(judgements: Iterable[Judgement], *, samples: int = 1000, seed: int = 0) -> Agreement:
    """The agreement of a round's submitted judgements. Records ranked by one annotator only do not count."""
    return agreement_of_answers(rankings(judgements), samples=samples, seed=seed)


def agreement_by_stratum(
    judgements: Iterable[Judgement], stratum_of: Mapping[str, str], *, samples: int = 1000, seed: int = 0
) -> dict[str, Agreement]:
    """The agreement within each stratum (record -> stratum), in the order of their names.

    Records that belong to none are left out.
    """
    found = rankings(judgements)
    strata = np.array([stratum_of.get(record, "") for record in found.records], dtype=object)
    return {
        stratum: agreement_of_answers(found.where(strata == stratum), samples=samples, seed=seed)
        for stratum in sorted(set(strata.tolist()) - {""})
    }


def annotator_agreement(judgements: Iterable[Judgement], *, samples: int = 1000, seed: int = 0) -> dict[str, Agreement]:
    """Each annotator's agreement with the others: of all (this one, another, record), taken two by two.

    Annotators who share no record with anybody are left out.
    """
    found = rankings(judgements)
    ranks, orders = rank_tables(found), order_tables(found)
    result = {}
    for number, annotator in enumerate(found.annotators):
        ranked, ordered = ([table.of_rater(number) for table in each] for each in (ranks, orders))
        owners = np.unique(np.concatenate([table.owner for table in ranked])) if ranked else np.zeros(0, int)
        if owners.size:
            ranked, ordered = ([table.renumbered(owners) for table in each] for each in (ranked, ordered))
            result[annotator] = _agreement(ranked, ordered, owners.size, samples, seed)
    return result


def disagreement(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Per record that two or more ranked: the share of (two annotators, two completions) they order differently."""
    found = rankings(judgements)
    alike, pairs = np.zeros(len(found.records)), np.zeros(len(found.records))
    for table in order_tables(found):
        for left, right in table.dyads():
            same, both = compared(table, left, right)
            alike += np.bincount(table.owner[left], same.sum(axis=1), minlength=alike.size)
            pairs += np.bincount(table.owner[left], both.sum(axis=1), minlength=pairs.size)
    return {
        record: float(1 - a / b)
        for record, a, b in zip(found.records, alike.tolist(), pairs.tolist(), strict=True)
        if b
    }


def agreement_by_annotator(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Per annotator: the share of (another annotator, two completions of a record) they order alike."""
    found = rankings(judgements)
    alike, pairs = _couples(found)[:2]
    return {
        annotator: float(alike[number].sum() / pairs[number].sum())
        for number, annotator in enumerate(found.annotators)
        if pairs[number].any()
    }


def agreement_without(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Per annotator: the share of (two others, two completions of a record) that those order alike.

    Annotators without whom nobody shares a record are left out.
    """
    found = rankings(judgements)
    alike, pairs = _couples(found)[:2]
    others = [(alike.sum() - 2 * alike[n].sum(), pairs.sum() - 2 * pairs[n].sum()) for n in range(len(pairs))]
    named = zip(found.annotators, others, strict=True)
    return {annotator: float(same / count) for annotator, (same, count) in named if count > 0}


def annotator_matrix(judgements: Iterable[Judgement]) -> tuple[list[str], Floats, NDArray[np.int64]]:
    """Everybody against everybody: names, pairwise agreement [names, names], and how many records both ranked.

    Agreement is NaN on the diagonal and between annotators who share no record.
    """
    found = rankings(judgements)
    alike, pairs, records = _couples(found)
    return found.annotators, np.where(pairs > 0, alike / np.maximum(pairs, 1), np.nan), records.astype(np.int64)


def rankings(judgements: Iterable[Judgement], *, fewest: int = 2) -> Answers:
    """The judgements that rank, as arrays of mid-ranks, of records that `fewest` or more annotators ranked."""
    rows = (
        (judgement.record, judgement.annotator, judgement.ranks)
        for judgement in judgements
        if judgement.ranks is not None and len(judgement.ranks) > 1 and CANNOT_JUDGE not in judgement.flags
    )
    return answers(rows, fewest=fewest).mapped(midranked)


def agreement_of_answers(found: Answers, *, samples: int = 1000, seed: int = 0) -> Agreement:
    """The agreement of mid-ranks."""
    return _agreement(rank_tables(found), order_tables(found), len(found.records), samples, seed)


def _agreement(ranks: Sequence[Table], orders: Sequence[Table], records: int, samples: int, seed: int) -> Agreement:
    if not records:
        return Agreement(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, 0)
    scale = np.arange(2, 2 * max(table.codes.shape[1] for table in ranks) + 1) / 2
    width = alpha_width(len(scale), "ordinal")
    resampling = Resampling(records, samples=samples, seed=seed, width=width)
    pairwise, tie_discounted = shares_alike(orders, resampling)
    both_ways = mirrored(orders)
    return Agreement(
        alpha=table_alpha(ranks, scale, resampling, "ordinal"),
        kendalls_w=mean_concordance(ranks, resampling),
        pairwise=pairwise,
        tie_discounted=tie_discounted,
        cohen_kappa=light_kappa(both_ways, ORDERS, resampling),
        fleiss_kappa=fleiss_estimate(both_ways, ORDERS, resampling),
        records=records,
    )


def _couples(found: Answers) -> tuple[Floats, Floats, Floats]:
    """Of each two annotators: completions' pairs ordered alike, pairs, and records in common, all [names, names]."""
    size = len(found.annotators)
    sums = np.zeros((3, size * size))
    for table in order_tables(found):
        for left, right in table.dyads():
            same, both = compared(table, left, right)
            cell = table.rater[left] * size + table.rater[right]
            for place, value in enumerate((same.sum(axis=1), both.sum(axis=1), both.any(axis=1))):
                sums[place] += np.bincount(cell, value, minlength=size * size)
    alike, pairs, records = (each + each.T for each in sums.reshape(3, size, size))
    return alike, pairs, records
