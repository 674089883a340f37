"""A round as it stands in Argilla: opened, read, given on to further people, and judged by its rule.

Everything may be repeated and interrupted: what a round is follows from its plan and from what Argilla holds.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx

from labeling import argilla
from labeling.accounts import create_annotators, users_by_id
from labeling.agreement import Estimate, agreement
from labeling.comparison import Judgement
from labeling.connection import items
from labeling.question import Round
from labeling.sheets import Plan, done, follow_ups, share_out
from labeling.sufficiency import missing

Progress = Callable[[int, int], None]
PACE = timedelta(minutes=30)
"""The present pace is that of the judgements given within this time before the last one."""


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

    @property
    def sufficient(self) -> bool:
        return not self.missing

    @property
    def sentence(self) -> str:
        """Where the round stands."""
        return "The round is complete." if self.sufficient else f"The round lacks {'; '.join(self.missing)}."


def open_round(
    client: httpx.Client, plan: Plan, passwords: Mapping[str, str], progress: Progress = lambda done, total: None
) -> dict[str, str]:
    """Make accounts, workspaces and datasets and publish what is missing; returns the people's API keys by name."""
    keys: dict[str, str] = {}
    for workspace, names in _members(plan):
        keys |= create_annotators(client, workspace, names, passwords)
    if plan.sharing == "shared":
        argilla.publish(client, plan.round, plan.comparisons, progress, _ids(plan), plan.suggestions)
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
    sheets = read_sheets(client, plan)
    judgements = read_judgements(client, plan, sheets)
    given = _given(client, plan, sheets, judgements)
    finished = done(plan, judgements, given)
    asked = {comparison.id for comparison in plan.asked}
    alpha = agreement([each for each in judgements if each.record in asked], samples=200).alpha if judgements else None
    answers = Counter(judgement.annotator for judgement in judgements)
    return Standing(
        records=len(asked),
        done=len(finished),
        started=len(({judgement.record for judgement in judgements} & asked) - set(finished)),
        answers={name: answers[name] for name in sorted({*plan.everybody, *answers})},
        given={name: len(ids) for name, ids in given.items()},
        judgements=tuple(judgements),
        alpha=alpha,
        missing=tuple(missing(plan.enough, plan.asked, finished, alpha, now or datetime.now(UTC))),
        seconds_left=_seconds_left(plan, judgements, finished),
        datasets=tuple(sheet.dataset for sheet in sheets),
    )


def read_sheets(client: httpx.Client, plan: Plan) -> list[Sheet]:
    """Every dataset of the round, also of people who left it."""
    sheets: list[Sheet] = []
    for workspace, person in _workspaces(client, plan):
        for dataset in items(client, "/api/v1/me/datasets", params={"workspace_id": workspace}):
            if dataset["name"] == plan.round.name and dataset["status"] == "ready":
                ids = frozenset(argilla.external_ids(client, dataset["id"])) if person else frozenset()
                sheets.append(Sheet(dataset["id"], person, ids))
    return sheets


def read_judgements(client: httpx.Client, plan: Plan, sheets: Sequence[Sheet]) -> list[Judgement]:
    """All judgements of a round, signed with people's names, by record and name."""
    names = users_by_id(client)
    judgements = [
        judgement
        for sheet in sheets
        for judgement in argilla.fetch_judgements(
            client, sheet.dataset, plan.round, plan.comparisons, lambda user: names.get(user, f"deleted-{user}")
        )
    ]
    return sorted(judgements, key=lambda judgement: (judgement.record, judgement.annotator))


def _seconds_left(plan: Plan, judgements: Sequence[Judgement], finished: Sequence[str]) -> float | None:
    """Judgements still needed at the pace of the last half hour; None before there is a pace."""
    times = sorted(datetime.fromisoformat(judgement.inserted_at) for judgement in judgements)
    recent = [time for time in times if times[-1] - time <= PACE]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    have = Counter(judgement.record for judgement in judgements)
    over = set(finished)
    needed = sum(max(1, plan.overlap - have[each.id]) for each in plan.asked if each.id not in over)
    if not needed:
        return None
    return needed * (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1)


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
            found = read_judgements(client, plan, [sheet]) if judgements is None else judgements
            given[sheet.person] = {each.record for each in found if each.annotator == sheet.person}
    return given


def _ids(plan: Plan) -> set[str]:
    return {comparison.id for comparison in (*plan.comparisons, *plan.reserve)}
