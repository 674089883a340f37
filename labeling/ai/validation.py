"""How far a judge model may be trusted: held against people, and against itself in the other order."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from labeling.ai.feedback import Opinion
from labeling.comparison import Comparison, Judgement
from labeling.measures.agreement import Agreement, agreement, annotator_agreement
from labeling.measures.shares import wilson

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
    def wilson(self) -> float:
        """Wilson's lower bound of tie-discounted agreement, a record being one look; NaN without records.

        A handful of records on which all agree have a bootstrap interval without width; Wilson's does not.
        """
        given = self.agreement.tie_discounted.value
        return wilson(given * self.records, self.records)[0] if self.records and not math.isnan(given) else math.nan

    @property
    def low(self) -> float:
        """The lower bound of tie-discounted agreement: the lower of the bootstrap's over records and of Wilson's."""
        bootstrap = self.agreement.tie_discounted.low
        return self.wilson if math.isnan(bootstrap) else min(bootstrap, self.wilson)

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
