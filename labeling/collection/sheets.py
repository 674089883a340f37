"""Who judges what: a round shared out over people, and given to one more person where the first ones disagree.

Nothing here talks to Argilla, and everything is decided by the plan, the judgements so far and what was given out.

`shared`: one dataset for all; Argilla takes a record from the others' queues when it has its overlap.
`personal`: a dataset per person that holds just their records. That is how quotas, groups, unseen second looks and
records given to a third person work on any Argilla, which itself assigns nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from labeling.collection.sufficiency import Enough
from labeling.comparison import CANNOT_JUDGE, Comparison, Judgement, LabelingError
from labeling.measures.agreement import disagreement
from labeling.question import Round


@dataclass(frozen=True)
class Group:
    """People who judge only some strata, and the only ones who judge them."""

    people: tuple[str, ...]
    strata: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A whole round: what is asked, of whom, how it is shared out and when it is enough."""

    round: Round
    """The question; `min_submitted` is the overlap. Its name stands for the round in Argilla."""
    comparisons: tuple[Comparison, ...]
    """Asked ones, gold ones and repeats."""
    people: tuple[str, ...]
    sharing: Literal["shared", "personal"] = "shared"
    most: int = 0
    """Judgements a disputed record may get; at most the overlap: none are given to further people."""
    disagreement: float = 1 / 3
    """A record is disputed when more than this share of (two people, two completions) is ordered differently."""
    adjudicators: tuple[str, ...] = ()
    """Who gets disputed records instead of further annotators."""
    quotas: Mapping[str, int] = field(default_factory=dict)
    """Records a person gets at most (gold comparisons and repeats come on top)."""
    groups: tuple[Group, ...] = ()
    enough: Enough = field(default_factory=Enough)
    erased: Mapping[str, int] = field(default_factory=dict)
    """Record -> votes it had from people who were erased since: it needs as many less."""
    reserve: tuple[Comparison, ...] = ()
    """Comparisons of the round that people are not asked (yet): a judge model has them."""
    suggestions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Id of a comparison -> what annotators see suggested; see `labeling.ai.feedback.suggestion_of`."""

    @property
    def overlap(self) -> int:
        return self.round.min_submitted

    @property
    def asked(self) -> list[Comparison]:
        """The comparisons that become preferences."""
        return [comparison for comparison in self.comparisons if comparison.kind == "asked"]

    @property
    def everybody(self) -> tuple[str, ...]:
        """Annotators and adjudicators."""
        return (*self.people, *(name for name in self.adjudicators if name not in self.people))


def check_strata(plan: Plan) -> None:
    """Raises `LabelingError` where groups or the rule ask for strata, or more records of one, than the round has."""
    held = Counter(comparison.stratum for comparison in plan.asked)
    there = ", ".join(f"'{name}' ({count})" for name, count in sorted(held.items()) if name)
    told = f"there are {there}" if there else "the completions have no strata"
    for name in (stratum for group in plan.groups for stratum in group.strata):
        if name not in held:
            raise LabelingError(f"No record is of stratum '{name}' in label.groups; {told}.")
    for name, quota in plan.enough.strata.items():
        if quota > held[name]:
            raise LabelingError(f"label.enough.strata asks for {quota} records of stratum '{name}'; {told}.")


Issued = Mapping[str, Collection[str]]
"""Person -> ids of the comparisons they were given."""


def share_out(plan: Plan, given: Issued) -> dict[str, list[str]]:
    """Person -> ids of the comparisons they get besides those they were `given`, so that each record has its overlap.

    Evenly, as far as quotas and groups allow. Raises `LabelingError` when they leave a record with too few people.
    """
    holders = _people_of(given)
    load = _load(plan, given)
    fresh: dict[str, list[str]] = {name: [] for name in plan.people}
    for comparison in sorted(plan.asked, key=lambda each: _draw(plan, each.id)):
        having = holders.get(comparison.id, set())
        needed = plan.overlap - len(having) - plan.erased.get(comparison.id, 0)
        eligible = [name for name in _eligible(plan, comparison.stratum) if name not in having]
        free = [name for name in eligible if load[name] < _quota(plan, name)]
        if len(free) < needed and not plan.erased:  # a round that lost somebody goes on with those who are left
            raise LabelingError(
                f"Quotas and groups leave {len(free) + len(having)} people for a record of stratum "
                f"'{comparison.stratum}', {plan.overlap} are needed; raise quotas, add people or lower the overlap."
            )
        free.sort(key=lambda name: (load[name], _draw(plan, f"{name}/{comparison.id}")))
        for name in free[: max(0, needed)]:
            fresh[name].append(comparison.id)
            load[name] += 1
    return {name: [*ids, *_checks(plan, set(ids), given.get(name, ()))] for name, ids in fresh.items()}


def _checks(plan: Plan, own: Collection[str], given: Collection[str]) -> list[str]:
    """Ids of the gold comparisons, and of the repeats of somebody's own records, that they were not given yet."""
    return [
        each.id
        for each in plan.comparisons
        if each.id not in given and (each.kind == "gold" or (each.kind == "repeat" and each.source in {*own, *given}))
    ]


def _load(plan: Plan, given: Issued) -> Counter[str]:
    """Person -> asked records they have; gold comparisons and repeats do not count."""
    asked = {comparison.id for comparison in plan.asked}
    return Counter({name: sum(each in asked for each in ids) for name, ids in given.items()})


def follow_ups(plan: Plan, judgements: Sequence[Judgement], issued: Issued) -> dict[str, list[str]]:
    """Person -> ids of the records they get besides: disputed ones, and ones that lost a vote to a discard.

    A record waits until everybody who has it answered. `judgements` are signed with the people's names.
    """
    extra: dict[str, list[str]] = {}
    for record, name in _settle(plan, judgements, issued):
        if name:
            extra.setdefault(name, []).append(record)
    return extra


def done(plan: Plan, judgements: Sequence[Judgement], issued: Issued) -> list[str]:
    """Ids of the asked records that need nobody any more."""
    if plan.sharing == "shared":
        votes = _votes(judgements)
        votes.update(plan.erased)
        answered = {(judgement.annotator, judgement.record) for judgement in judgements}
        return [
            each.id
            for each in plan.asked
            if votes[each.id] >= plan.overlap or all((name, each.id) in answered for name in plan.people)
        ]
    return [record for record, name in _settle(plan, judgements, issued) if name is None]


def _settle(plan: Plan, judgements: Sequence[Judgement], issued: Issued) -> Iterator[tuple[str, str | None]]:
    """Each asked record that everybody who has it answered, and who gets it next: None when it is done."""
    holders = _people_of(issued)
    answered = {(judgement.annotator, judgement.record) for judgement in judgements}
    load = _load(plan, issued)
    votes = _votes(judgements) + Counter(plan.erased)
    shares = disagreement(judgement for judgement in judgements if CANNOT_JUDGE not in judgement.flags)
    for comparison in plan.asked:
        having = holders.get(comparison.id, set())
        if any((name, comparison.id) not in answered for name in having):
            continue
        if not having and comparison.id not in plan.erased:
            continue
        disputed = shares.get(comparison.id, 0.0) > plan.disagreement
        free = _candidates(plan, comparison.stratum, votes[comparison.id], disputed, having)
        free = [name for name in free if load[name] < _quota(plan, name)]
        free.sort(key=lambda name: (load[name], _draw(plan, f"{name}/{comparison.id}")))
        load.update(free[:1])
        yield comparison.id, free[0] if free else None


def _candidates(plan: Plan, stratum: str, votes: int, disputed: bool, having: Collection[str]) -> list[str]:
    """Who may judge a record next that all of `having` answered."""
    if votes >= plan.overlap:
        if not disputed or votes >= plan.most:
            return []
        if plan.adjudicators:  # one of them has the last word
            return [] if set(plan.adjudicators) & set(having) else list(plan.adjudicators)
    return [name for name in _eligible(plan, stratum) if name not in having]


def _people_of(issued: Issued) -> dict[str, set[str]]:
    people: dict[str, set[str]] = {}
    for name, ids in issued.items():
        for each in ids:
            people.setdefault(each, set()).add(name)
    return people


def _votes(judgements: Sequence[Judgement]) -> Counter[str]:
    return Counter(each.record for each in judgements if each.ranks is not None and CANNOT_JUDGE not in each.flags)


def _eligible(plan: Plan, stratum: str) -> Sequence[str]:
    for group in plan.groups:
        if stratum in group.strata:
            return group.people
    return plan.people


def _quota(plan: Plan, name: str) -> float:
    return plan.quotas.get(name, float("inf"))


def _draw(plan: Plan, what: str) -> str:
    """A fair order that is the same each time."""
    return hashlib.sha256(f"{plan.round.name}/{what}".encode()).hexdigest()
