"""A round as it stands in Argilla: opened, read, given on to further people, and judged by its rule.

Everything may be repeated and interrupted: what a round is follows from its plan and from what Argilla holds.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import httpx

from labeling.collection.people import ever_listed, list_people
from labeling.collection.sheets import Plan, done, follow_ups, share_out
from labeling.collection.sufficiency import missing, overdue, seconds_left
from labeling.comparison import Judgement
from labeling.measures.agreement import Estimate, agreement
from labeling.question import Round
from labeling.service import argilla
from labeling.service.accounts import create_annotators, users_by_id
from labeling.service.connection import items

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sheet:
    """One dataset of a round."""

    dataset: str
    """Argilla's id."""
    person: str | None
    """Whose it is; None where it is shared."""
    ids: frozenset[str]
    """The comparisons it holds; not read where it is shared."""


@dataclass(frozen=True)
class Standing:
    """How far a round is."""

    records: int
    """Asked comparisons."""
    done: int
    started: int
    """Asked comparisons that somebody answered and that are not done."""
    answers: Mapping[str, int]
    """Person -> records answered."""
    given: Mapping[str, int]
    """Person -> records given to them; empty where all share one dataset."""
    judgements: tuple[Judgement, ...]
    """Signed with people's names."""
    alpha: Estimate | None
    missing: tuple[str, ...]
    """What the round lacks by its rule, a clause each."""
    seconds_left: float | None
    """Until every record has its overlap, at the present pace."""
    datasets: tuple[str, ...]
    """Argilla's ids of the datasets that hold it."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Username -> answers that do not count, because the plan never listed this person."""
    overdue: str = ""
    """Why it can never be enough as it is: its deadline has passed."""

    @property
    def sufficient(self) -> bool:
        return not self.missing

    @property
    def sentence(self) -> str:
        """Where the round stands."""
        if self.overdue:
            return self.overdue
        told = "is complete" if self.sufficient else f"lacks {'; '.join(self.missing)}"
        return f"The round {'; '.join((told, *self.strangers))}."

    @property
    def strangers(self) -> list[str]:
        """Whose answers are left out, a clause each."""
        return [
            f"{count} answer{'s' * (count > 1)} of '{name}', who is not in label.people, {'are' if count > 1 else 'is'}"
            " left out"
            for name, count in self.left_out.items()
        ]


def open_round(
    client: httpx.Client, plan: Plan, passwords: Mapping[str, str], progress: Progress = lambda done, total: None
) -> dict[str, str]:
    """Make accounts, workspaces and datasets and publish what is missing; returns the people's API keys by name."""
    keys: dict[str, str] = {}
    for workspace, names in _members(plan):
        keys |= create_annotators(client, workspace, names, passwords)
    if plan.sharing == "shared":
        dataset = argilla.publish(client, plan.round, plan.comparisons, progress, _ids(plan), plan.suggestions)
        list_people(client, dataset, [id for id, name in users_by_id(client).items() if name in plan.everybody])
    else:
        sheets = read_sheets(client, plan)
        for sheet in sheets:  # what was given keeps up with the guidelines
            if sheet.person in plan.everybody:
                argilla.publish(client, _personal(plan, str(sheet.person)), (), known=_ids(plan))
        _publish(client, plan, share_out(plan, _given(client, plan, sheets)), progress)
    return keys


def _publish(client: httpx.Client, plan: Plan, wanted: Mapping[str, Sequence[str]], progress: Progress) -> None:
    total, before = sum(map(len, wanted.values())), 0
    for name, ids in wanted.items():
        if not ids:
            continue
        chosen, start = set(ids), before
        comparisons = [comparison for comparison in plan.comparisons if comparison.id in chosen]
        argilla.publish(
            client,
            _personal(plan, name),
            comparisons,
            lambda n, _, start=start: progress(start + n, total),
            _ids(plan),
            plan.suggestions,
        )
        before += len(ids)


def advance(client: httpx.Client, plan: Plan, standing: Standing) -> int:
    """Give disputed records, and ones short of a vote, to further people; returns how many were given."""
    if plan.sharing == "shared":
        return 0
    given = _given(client, plan, read_sheets(client, plan), standing.judgements)
    extra = follow_ups(plan, standing.judgements, given)
    _publish(client, plan, extra, lambda done, total: None)
    return sum(map(len, extra.values()))


def standing(client: httpx.Client, plan: Plan, now: datetime | None = None) -> Standing:
    """Read the round and judge it by its rule."""
    now = now or datetime.now(UTC)
    sheets = read_sheets(client, plan)
    judgements, left_out = read_judgements(client, plan, sheets)
    given = _given(client, plan, sheets, judgements)
    finished = done(plan, judgements, given)
    asked = {comparison.id for comparison in plan.asked}
    alpha = agreement([each for each in judgements if each.record in asked], samples=200).alpha if judgements else None
    answers = Counter(judgement.annotator for judgement in judgements)
    lacks = missing(plan.enough, plan.asked, finished, alpha, now)
    return Standing(
        records=len(asked),
        done=len(finished),
        started=len(({judgement.record for judgement in judgements} & asked) - set(finished)),
        answers={name: answers[name] for name in sorted({*plan.everybody, *answers})},
        given={name: len(ids) for name, ids in given.items()},
        judgements=tuple(judgements),
        alpha=alpha,
        missing=tuple(lacks),
        seconds_left=seconds_left(plan.asked, plan.overlap, judgements, finished),
        datasets=tuple(sheet.dataset for sheet in sheets),
        left_out=left_out,
        overdue=overdue(plan.enough, lacks, finished, now),
    )


def activity(client: httpx.Client, plan: Plan) -> frozenset[tuple[str, str]]:
    """Each dataset of the round with when an answer in it was last given, changed or withdrawn; one small request."""
    found = items(client, "/api/v1/me/datasets", params={"name": plan.round.name})
    return frozenset((each["id"], each["last_activity_at"]) for each in found)


def read_sheets(client: httpx.Client, plan: Plan) -> list[Sheet]:
    """Every dataset of the round, also of people who left it."""
    sheets: list[Sheet] = []
    for workspace, person in _workspaces(client, plan):
        for dataset in items(client, "/api/v1/me/datasets", params={"workspace_id": workspace}):
            if dataset["name"] == plan.round.name and dataset["status"] == "ready":
                ids = frozenset(argilla.external_ids(client, dataset["id"])) if person else frozenset()
                sheets.append(Sheet(dataset["id"], person, ids))
    return sheets


def read_judgements(
    client: httpx.Client, plan: Plan, sheets: Sequence[Sheet]
) -> tuple[list[Judgement], dict[str, int]]:
    """The judgements of a round, signed with people's names, by record and name; and username -> answers left out.

    In a shared dataset whom the plan lists or once listed counts, in a personal one only its person.
    """
    names = users_by_id(client)
    judgements: list[Judgement] = []
    left_out: Counter[str] = Counter()
    for sheet in sheets:
        listed = {names.get(user) for user in ever_listed(client, sheet.dataset)} if sheet.person is None else ()
        asked = {sheet.person} if sheet.person else {*plan.everybody, *listed}
        for judgement in argilla.fetch_judgements(
            client, sheet.dataset, plan.round, plan.comparisons, lambda user: names.get(user, f"deleted-{user}")
        ):
            if judgement.annotator in asked:
                judgements.append(judgement)
            else:
                left_out[judgement.annotator] += 1
    ordered = sorted(judgements, key=lambda judgement: (judgement.record, judgement.annotator))
    return ordered, dict(sorted(left_out.items()))


def personal_workspace(plan: Plan, person: str) -> str:
    """The workspace that only this person and the project's owners see."""
    return f"{plan.round.workspace}-{person}"


def _personal(plan: Plan, person: str) -> Round:
    """The round as one person's dataset."""
    return replace(plan.round, workspace=personal_workspace(plan, person), min_submitted=1)


def _workspaces(client: httpx.Client, plan: Plan) -> list[tuple[str, str | None]]:
    """Argilla's ids of the workspaces that may hold the round, each with whose it is."""
    held = {each["name"]: each["id"] for each in items(client, "/api/v1/me/workspaces")}
    if plan.sharing == "shared":
        return [(held[plan.round.workspace], None)] if plan.round.workspace in held else []
    prefix = personal_workspace(plan, "")
    return [(id, name.removeprefix(prefix)) for name, id in sorted(held.items()) if name.startswith(prefix)]


def _members(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Workspace -> who is let in."""
    if plan.sharing == "shared":
        return [(plan.round.workspace, plan.everybody)]
    return [(personal_workspace(plan, name), (name,)) for name in plan.everybody]


def _given(
    client: httpx.Client, plan: Plan, sheets: Sequence[Sheet], judgements: Sequence[Judgement] | None = None
) -> dict[str, set[str]]:
    """Person -> what they were given; of people who left the round only what they answered."""
    given: dict[str, set[str]] = {}
    for sheet in sheets:
        if sheet.person in plan.everybody:
            given[sheet.person] = set(sheet.ids)
        elif sheet.person is not None:
            found = read_judgements(client, plan, [sheet])[0] if judgements is None else judgements
            given[sheet.person] = {each.record for each in found if each.annotator == sheet.person}
    return given


def _ids(plan: Plan) -> set[str]:
    return {comparison.id for comparison in (*plan.comparisons, *plan.reserve)}
