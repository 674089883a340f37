"""Everything a round's report says, measured once."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling.comparison import CANNOT_JUDGE, Comparison, Judgement
from labeling.measures.agreement import (
    Agreement,
    agreement,
    agreement_by_stratum,
    agreement_without,
    annotator_agreement,
)
from labeling.measures.biases import UNTESTED, PositionBias, length_bias, position_bias, tie_share
from labeling.measures.bootstrap import NOTHING, Estimate
from labeling.measures.effort import NO_EFFORT, Budget, Effort, effort_by_annotator, total_effort
from labeling.measures.ratings import LabelAgreement, RatingAgreement, flag_agreement, rating_agreement

SLICE_SAMPLES = 400
"""Draws for the intervals of one annotator, stratum, criterion or flag: there may be hundreds of them."""


@dataclass(frozen=True)
class Findings:
    """The figures of a round: of people's answers to what was asked, unless it says otherwise."""

    agreement: Agreement
    strata: Mapping[str, Agreement] = field(default_factory=dict)
    annotators: Mapping[str, Agreement] = field(default_factory=dict)
    """Each with the others."""
    without: Mapping[str, float] = field(default_factory=dict)
    """The others among themselves: pairwise agreement."""
    criteria: Mapping[str, RatingAgreement] = field(default_factory=dict)
    flags: Mapping[str, LabelAgreement] = field(default_factory=dict)
    flagged: Mapping[str, int] = field(default_factory=dict)
    """Flag -> judgements that have it."""
    position: PositionBias = UNTESTED
    length: Estimate = NOTHING
    """Share of preferences for the longer completion."""
    ties: float = math.nan
    """Share of pairs tied."""
    overlap: Mapping[int, int] = field(default_factory=dict)
    """People who ranked a record -> records."""
    judgements: int = 0
    """Of people, discarded ones and checks included."""
    discarded: int = 0
    cannot_judge: int = 0
    ai: int = 0
    """Judgements of an AI, which count for nothing else here."""
    checks: int = 0
    """Judgements of gold and repeated comparisons."""
    left_out: int = 0
    """Answers of people whom the round does not list; they count for nothing here."""
    guidelines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Version of the guidelines, by first use -> the times of people's judgements under it, in order."""
    quality: Sequence[Mapping[str, Any]] = ()
    """Rows of `labeling.quality.reliability.AnnotatorQuality`."""
    efforts: Mapping[str, Effort] = field(default_factory=dict)
    effort: Effort = NO_EFFORT
    budget: Budget | None = None


def measure_round(
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    quality_rows: Sequence[Mapping[str, Any]] = (),
    budget: Budget | None = None,
    left_out: int = 0,
    seed: int = 0,
) -> Findings:
    """The figures of a round. Raises `LabelingError` for a judgement of a record that is not among the comparisons."""
    people = [judgement for judgement in judgements if judgement.by == "person"]
    asked = asked_of_people(comparisons, people)
    strata = {comparison.id: comparison.stratum for comparison in comparisons}
    several = len({*strata.values()} - {""}) > 1
    efforts = effort_by_annotator(people)
    return Findings(
        agreement=agreement(asked, seed=seed),
        strata=agreement_by_stratum(asked, strata, samples=SLICE_SAMPLES, seed=seed) if several else {},
        annotators=annotator_agreement(asked, samples=SLICE_SAMPLES, seed=seed),
        without=agreement_without(asked),
        criteria=rating_agreement(asked, samples=SLICE_SAMPLES, seed=seed),
        flags=flag_agreement(asked, samples=SLICE_SAMPLES, seed=seed),
        flagged=Counter(flag for judgement in asked for flag in judgement.flags),
        position=position_bias(comparisons, people),
        length=length_bias(comparisons, people, seed=seed),
        ties=tie_share(asked),
        overlap=_overlap(comparisons, asked),
        judgements=len(people),
        discarded=sum(judgement.status == "discarded" for judgement in people),
        cannot_judge=sum(CANNOT_JUDGE in judgement.flags for judgement in people),
        ai=len(judgements) - len(people),
        checks=len(people) - len(asked),
        left_out=left_out,
        guidelines=_guidelines(people),
        quality=quality_rows,
        efforts=efforts,
        effort=total_effort(efforts.values()),
        budget=budget,
    )


def asked_of_people(comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[Judgement]:
    """People's judgements of the comparisons that are there to learn from."""
    checks = {comparison.id for comparison in comparisons if comparison.kind != "asked"}
    return [judgement for judgement in judgements if judgement.by == "person" and judgement.record not in checks]


def _guidelines(people: Sequence[Judgement]) -> dict[str, list[str]]:
    times: dict[str, list[str]] = {}
    for judgement in sorted(people, key=lambda each: each.updated_at):  # which decides under which version it was made
        times.setdefault(judgement.guidelines, []).append(judgement.updated_at)
    return times


def _overlap(comparisons: Sequence[Comparison], asked: Sequence[Judgement]) -> dict[int, int]:
    """How many asked records were ranked by no one, by one, by two, ..."""
    ranked: dict[str, set[str]] = {comparison.id: set() for comparison in comparisons if comparison.kind == "asked"}
    for judgement in asked:
        if judgement.ranks is not None and CANNOT_JUDGE not in judgement.flags:
            ranked[judgement.record].add(judgement.annotator)
    return dict(sorted(Counter(len(names) for names in ranked.values()).items()))
