"""How far a judge model may be trusted: held against people, and against itself in the other order."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from labeling.agreement import Agreement, agreement, annotator_agreement
from labeling.ai_feedback import Opinion
from labeling.bootstrap import Estimate
from labeling.comparison import Comparison, Judgement
from labeling.shares import wilson

GOLD = "gold"
"""Whom expected ranks are put down to."""


@dataclass(frozen=True)
class Position:
    """What the place of a completion does to a judge: pairs of completions asked in both orders."""

    pairs: int
    alike: int
    """Told the same in both orders."""
    first: int
    """The one that stood first won both times."""
    last: int
    """The one that stood last won both times. What is left was a tie in one order only."""

    @property
    def consistency(self) -> float:
        """Share of pairs told the same in both orders; NaN without any."""
        return self.alike / self.pairs if self.pairs else math.nan


@dataclass(frozen=True)
class Validation:
    """A judge held against people on records that both judged."""

    agreement: Agreement
    """Of (the judge, a person), two by two; `records` counts those both judged."""
    people: Agreement
    """Of people among themselves on the same records: what can be asked for at most."""
    strata: Mapping[str, Agreement]
    """The judge's agreement with people within each stratum."""
    position: Position
    opinions: int
    invalid: int
    """Records without a judgement, because an answer could not be read or was refused."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why answers are invalid -> how many."""

    @property
    def records(self) -> int:
        """Records that the judge and people judged."""
        return self.agreement.records

    @property
    def low(self) -> float:
        """A lower bound of tie-discounted agreement: the lower of the bootstrap's and of Wilson's for as many records.

        A handful of records on which all agree have a bootstrap interval without width; Wilson's does not.
        """
        given = self.agreement.tie_discounted
        if not self.records or math.isnan(given.value):
            return math.nan
        bound = wilson(given.value * self.records, self.records)[0]
        return bound if math.isnan(given.low) else min(given.low, bound)

    def reaches(self, minimum: float, at_least: int) -> bool:
        """Whether the bound is at least the minimum, on at least so many records."""
        return self.records >= at_least and self.low >= minimum

    def figures(self) -> dict[str, float]:
        """What is defined, by name."""
        found = {f"ai_{name}": value for name, value in self.agreement.figures().items()}
        found |= {f"people_{name}": value for name, value in self.people.figures().items()}
        found |= {
            "ai_agreement_bound": self.low,
            "ai_validation_records": self.records,
            "ai_position_consistency": self.position.consistency,
            "ai_invalid_records": self.invalid,
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}


def validated(
    opinions: Iterable[Opinion],
    people: Iterable[Judgement],
    comparisons: Iterable[Comparison],
    records: Collection[str] | None = None,
    *,
    seed: int = 0,
) -> Validation:
    """The judge against people's judgements, only on these `records` when they are given.

    What is routed must be validated on the audited records alone: the judge was not sure of the others. Expected ranks
    of gold comparisons count as a person's.
    """
    held, opinions = {each.id: each for each in comparisons}, list(opinions)
    chosen = set(held) if records is None else set(records)
    own = [each.judgement for each in opinions if each.judgement and each.record in chosen]
    judged = {each.record for each in own}
    given = [each for each in [*people, *gold_judgements(held.values())] if each.by == "person"]
    given = [each for each in given if each.record in judged]
    reasons: dict[str, int] = {}
    for answer in (answer for each in opinions for answer in each.answers if answer.invalid):
        reasons[answer.invalid] = reasons.get(answer.invalid, 0) + 1
    stratum_of = {id: comparison.stratum for id, comparison in held.items() if comparison.stratum}
    return Validation(
        agreement=_with_people(own, given, seed),
        people=agreement(given, seed=seed),
        strata={
            stratum: _with_people(_within(own, stratum_of, stratum), _within(given, stratum_of, stratum), seed)
            for stratum in sorted({stratum_of[id] for id in judged if id in stratum_of})
        },
        position=position_of(opinions),
        opinions=len(opinions),
        invalid=sum(each.judgement is None for each in opinions),
        reasons=reasons,
    )


def gold_judgements(comparisons: Iterable[Comparison]) -> list[Judgement]:
    """The expected ranks of gold comparisons as judgements of a person named `GOLD`."""
    return [
        Judgement(f"gold-{each.id}", each.id, GOLD, "submitted", each.expected, "", "", "")
        for each in comparisons
        if each.expected is not None
    ]


def position_of(opinions: Iterable[Opinion]) -> Position:
    """How the judge answered on each two completions in the one order and the other."""
    pairs = alike = first = last = 0
    for opinion in opinions:
        if opinion.judgement is None:
            continue
        for a, b in combinations(opinion.chances, 2):
            both = [each for each in opinion.answers if a in each.order and b in each.order]
            ahead = [_way(each.preference(a, b)) for each in both if each.order.index(a) < each.order.index(b)]
            behind = [_way(each.preference(a, b)) for each in both if each.order.index(a) > each.order.index(b)]
            for one, other in zip(ahead, behind, strict=True):
                pairs, alike = pairs + 1, alike + (one == other)
                first, last = first + ((one, other) == (1, -1)), last + ((one, other) == (-1, 1))
    return Position(pairs, alike, first, last)


def _way(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)


def _within(judgements: Iterable[Judgement], stratum_of: Mapping[str, str], stratum: str) -> list[Judgement]:
    return [each for each in judgements if stratum_of.get(each.record) == stratum]


def _with_people(own: Sequence[Judgement], people: Sequence[Judgement], seed: int) -> Agreement:
    """The agreement of (the judge, a person) pairs."""
    names = {each.annotator for each in own}
    found = annotator_agreement([*own, *people], seed=seed)
    return next((found[name] for name in sorted(names) if name in found), agreement([]))


def validation_report(
    validation: Validation,
    *,
    judge: str,
    minimum: float,
    at_least: int,
    unvalidated: bool = False,
    assisted: bool = False,
) -> str:
    """What a labeling lead reads before a judge's labels are used, as Markdown."""
    verdict = _verdict(validation, minimum, at_least, unvalidated)
    lines = [f"## AI judge {judge} against people", "", f"**{verdict}**", ""]
    if assisted:
        lines += ["People saw the judge's ranks before they gave theirs, so this agreement is too high.", ""]
    lines += [
        "| | judge and people | people among themselves |",
        "|---|---|---|",
        *(
            f"| {title} | {_shown(getattr(validation.agreement, name))} | {_shown(getattr(validation.people, name))} |"
            for name, title in TITLES.items()
        ),
        f"| records | {validation.records} | {validation.people.records} |",
        "",
    ]
    if validation.strata:
        lines += ["| stratum | records | tie-discounted agreement |", "|---|---|---|"]
        lines += [
            f"| {name.replace('|', '/')} | {found.records} | {_shown(found.tie_discounted)} |"
            for name, found in validation.strata.items()
        ]
        lines.append("")
    return "\n".join([*lines, *_position_lines(validation), *_invalid_lines(validation)]).rstrip() + "\n"


TITLES = {
    "tie_discounted": "tie-discounted agreement",
    "pairwise": "pairwise agreement",
    "alpha": "Krippendorff's alpha",
    "cohen_kappa": "Cohen's kappa",
}


def _verdict(validation: Validation, minimum: float, at_least: int, unvalidated: bool) -> str:
    if not validation.records:
        end = "its labels are used UNVALIDATED" if unvalidated else "its labels are not used"
        return f"NOT VALIDATED: no record was judged by people too; {end}."
    bound = f"the bound of tie-discounted agreement is {validation.low:.2f} on {validation.records} records"
    wanted = f"{minimum:.2f} on {at_least} or more is asked for"
    if validation.reaches(minimum, at_least):
        return f"Validated: {bound}; {wanted}."
    return f"NOT VALIDATED: {bound}; {wanted}." + (" Its labels are used UNVALIDATED." if unvalidated else "")


def _position_lines(validation: Validation) -> list[str]:
    found = validation.position
    if not found.pairs:
        return []
    rest = found.pairs - found.alike - found.first - found.last
    return [
        f"Of {found.pairs} pairs asked in both orders it told {found.alike} alike ({found.consistency:.0%}); "
        f"{found.first} went to whichever stood first, {found.last} to whichever stood last, {rest} were a tie in one "
        "order. What was not told alike counts as a tie.",
    ]


def _invalid_lines(validation: Validation) -> list[str]:
    if not validation.invalid:
        return [f"All {validation.opinions} records have valid answers."]
    why = ", ".join(f"{reason}: {count}" for reason, count in sorted(validation.reasons.items()))
    return [f"{validation.invalid} of {validation.opinions} records have no judgement of its ({why})."]


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"
