"""How far annotators agree about what is no ranking: ordinal ratings per criterion, flags, and labels of any kind."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from labeling.comparison import CANNOT_JUDGE, Judgement
from labeling.measures.agreement import Agreement, agreement_of_answers
from labeling.measures.alpha import alpha_width, table_alpha
from labeling.measures.bootstrap import NOTHING, Estimate, Ints, Resampling
from labeling.measures.concordance import shares_alike
from labeling.measures.kappa import fleiss_estimate, light_kappa
from labeling.measures.tables import MISSING, Answers, answers, midranked, tables_of

LONGEST_SCALE = 1000
"""A scale of whole numbers has at most so many steps; beyond it only the values given are steps."""


@dataclass(frozen=True)
class RatingAgreement:
    """How far annotators agree in one criterion, a unit being a completion that two or more rated."""

    alpha: Estimate
    """Krippendorff's alpha, ordinal: only the order of the ratings counts."""
    alpha_interval: Estimate
    """Krippendorff's alpha, interval: a step is a step everywhere on the scale, and every annotator's the same."""
    kappa_linear: Estimate
    """Cohen's kappa with linear weights, averaged over each two annotators."""
    kappa_quadratic: Estimate
    """Cohen's kappa with quadratic weights, averaged over each two annotators."""
    exact: Estimate
    """Share of (two annotators, completion) rated the same."""
    order: Agreement
    """Agreement about the order of a record's completions that the ratings give, best first."""

    def figures(self) -> dict[str, float]:
        """What is defined, by name: each figure with its `_low` and `_high`, those of `order` under `order_`."""
        return _figures(self) | {f"order_{name}": value for name, value in self.order.figures().items()}


@dataclass(frozen=True)
class LabelAgreement:
    """How far annotators agree about labels without an order, over the records that two or more labelled."""

    alpha: Estimate
    """Krippendorff's alpha, nominal."""
    cohen_kappa: Estimate
    """Cohen's kappa, averaged over each two annotators (see `labeling.measures.kappa.light_kappa`)."""
    fleiss_kappa: Estimate
    exact: Estimate
    """Share of (two annotators, record) labelled the same."""
    records: int

    def figures(self) -> dict[str, float]:
        """What is defined, by name: each figure with its `_low` and `_high`."""
        return _figures(self)


def rating_agreement(
    judgements: Iterable[Judgement], *, samples: int = 1000, seed: int = 0
) -> dict[str, RatingAgreement]:
    """Criterion -> how far its ratings agree, in the order of their names; criteria nobody shares are left out.

    Answers flagged `cannot_judge` do not count; ratings that were not given are missing.
    """
    rows: dict[str, list[tuple[str, str, Mapping[str, float]]]] = {}
    for judgement in judgements:
        if CANNOT_JUDGE not in judgement.flags:
            for criterion, given in judgement.ratings.items():
                rows.setdefault(criterion, []).append((judgement.record, judgement.annotator, given))
    by_criterion = {criterion: answers(rows[criterion]) for criterion in sorted(rows)}
    return {name: _of_ratings(found, samples, seed) for name, found in by_criterion.items() if found.records}


def flag_agreement(judgements: Iterable[Judgement], *, samples: int = 1000, seed: int = 0) -> dict[str, LabelAgreement]:
    """Flag -> how far annotators agree whether a record has it, in the order of their names.

    Who discarded a record without a flag said nothing about it and is missing.
    """
    given = [judgement for judgement in judgements if judgement.status == "submitted" or judgement.flags]
    return {
        flag: label_agreement(((j.record, j.annotator, flag in j.flags) for j in given), samples=samples, seed=seed)
        for flag in sorted({flag for judgement in given for flag in judgement.flags})
    }


def label_agreement(labels: Iterable[tuple[str, str, object]], *, samples: int = 1000, seed: int = 0) -> LabelAgreement:
    """How far labels (record, annotator, label) of any kind agree; None is a missing one."""
    known = [(record, annotator, label) for record, annotator, label in labels if label is not None]
    names = sorted({label for _, _, label in known}, key=str)
    places = {label: place for place, label in enumerate(names)}
    found = answers((record, annotator, {"label": places[label]}) for record, annotator, label in known)
    if not found.records:
        return LabelAgreement(NOTHING, NOTHING, NOTHING, NOTHING, 0)
    tables = tables_of(found, [block.values.astype(int) for block in found.blocks])
    width = alpha_width(len(names), "nominal")
    resampling = Resampling(len(found.records), samples=samples, seed=seed, width=width)
    return LabelAgreement(
        alpha=table_alpha(tables, np.arange(len(names), dtype=float), resampling, "nominal"),
        cohen_kappa=light_kappa(tables, len(names), resampling),
        fleiss_kappa=fleiss_estimate(tables, len(names), resampling),
        exact=shares_alike(tables, resampling)[0],
        records=len(found.records),
    )


def _of_ratings(found: Answers, samples: int, seed: int) -> RatingAgreement:
    scale = _scale(found)
    tables = tables_of(found, [_places(block.values, scale) for block in found.blocks])
    width = alpha_width(len(scale), "ordinal")
    resampling = Resampling(len(found.records), samples=samples, seed=seed, width=width)
    best_first = found.mapped(lambda ratings: midranked(-ratings))
    return RatingAgreement(
        alpha=table_alpha(tables, scale, resampling, "ordinal"),
        alpha_interval=table_alpha(tables, scale, resampling, "interval"),
        kappa_linear=light_kappa(tables, len(scale), resampling, "linear"),
        kappa_quadratic=light_kappa(tables, len(scale), resampling, "quadratic"),
        exact=shares_alike(tables, resampling)[0],
        order=agreement_of_answers(best_first, samples=samples, seed=seed),
    )


def _scale(found: Answers) -> np.ndarray:
    """Every whole number from the lowest to the highest rating, given or not: a step is a step."""
    values = np.unique(np.concatenate([block.values.ravel() for block in found.blocks]))
    values = values[~np.isnan(values)]
    whole = bool((values == np.round(values)).all())
    if whole and values.size and values[-1] - values[0] < LONGEST_SCALE:
        return np.arange(values[0], values[-1] + 1)
    return values


def _places(values: np.ndarray, scale: np.ndarray) -> Ints:
    return np.where(np.isnan(values), MISSING, np.searchsorted(scale, np.nan_to_num(values)))


def _figures(found: RatingAgreement | LabelAgreement) -> dict[str, float]:
    each = {field.name: getattr(found, field.name) for field in fields(found)}
    parts = {
        f"{name}{part}": value
        for name, given in each.items()
        if isinstance(given, Estimate)
        for part, value in given.parts().items()
    }
    return {name: value for name, value in parts.items() if not math.isnan(value)}
