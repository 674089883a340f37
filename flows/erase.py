"""`rlhf annotators erase NAME`: a person's judgements leave Argilla and all snapshots; a tombstone remains.

First the tombstone is begun, with all that is needed to go on. Then the answers and the account leave Argilla, so that
no new snapshot can hold them; then the snapshots go. Each step is harmless when it is done again; last the tombstone is
done.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import services
from flows.shaped import Shaped, shaped_by
from flows.traces import erase_traces
from labeling.service.erasure import Answer, Person, answers_of, find_person, leave, sheets_of
from tasks.artifact import PipelineError
from tasks.erasure import erase_artifact, erased_for, mark
from tasks.labels.label import pseudonym
from tasks.labels.round import argilla
from tasks.lineage import KEY, STAGE, Record
from tasks.registry import Registry
from tasks.store import Store
from tasks.tombstones import TOMBSTONE, Tombstone, read_tombstones, recognised, write_tombstone
from tasks.tracking import answering

SHAPED = "rlhf.shaped_by_erased"
"""On runs and model versions: the pseudonyms of erased people whose judgements went into them; on a registered model:
its aliases that stand on such versions."""

STAYS = (
    "The runs_naming_them keep the username among their parameters, in MLflow, which changes those for nobody, and in "
    "Prefect: delete the runs there if it must go.",
    "A recipe that names them in label.people goes on naming them, and so does the record of each further run: they "
    "are asked no more, so take the name out.",
)
"""What an erasure leaves, for whoever must see to it."""


def erase(name: str, dry_run: bool = True) -> dict[str, Any]:
    """Erase an annotator, or by default only list what that would do; returns the document either way.

    Interrupted and called again, it goes on; called once more it finds nothing left to do. The services must be up and
    in the environment. Raises `PipelineError` when nobody of that name is or was there.
    """
    record, home = Record(), services.home()
    store, registry = Store(home, record), Registry(record)
    with argilla() as client:
        person = find_person(client, name)
        stone = _tombstone_of(name, person, home)
        if person is None and stone is None:
            raise PipelineError(f"Argilla has no annotator '{name}'; `rlhf annotators list` names them.")
        annotator = pseudonym(person.id) if person else stone.annotator if stone else ""
        answers = answers_of(client, person) if person else []
        sheets = [f"{sheet.workspace}/{sheet.name}" for sheet in (sheets_of(client, person) if person else [])]
        known = [*(answer.id for answer in answers), *(stone.judgements if stone else ())]
        shaped = shaped_by(annotator, store, registry, known)
        document = _document(name, annotator, stone, answers, shaped, record)
        document |= {"dry_run": dry_run, "personal_datasets": sheets}
        if dry_run:
            return document
        stone = _begin(name, annotator, stone, answers, shaped)
        write_tombstone(stone, home)
        if person:
            leave(client, person)
    shaped = shaped_by(annotator, store, registry, stone.judgements)  # a run may have made a snapshot meanwhile
    _erase_snapshots(annotator, shaped, store)
    _mark(annotator, shaped, record, registry)
    erase_traces(name, stone, store)
    stone = stone.model_copy(update={"state": "done", "erased_at": stone.erased_at or _now()})
    _tell_mlflow(stone, record)
    write_tombstone(stone, home)
    return document | {"state": stone.state, "erased_at": stone.erased_at}


def _tombstone_of(name: str, person: Person | None, home: Path) -> Tombstone | None:
    """The tombstone of that name: of the account that is there, or else of the last one that was."""
    stones = [stone for stone in read_tombstones(home) if stone.names(name)]
    if person:
        stones = [stone for stone in stones if stone.annotator == pseudonym(person.id)]
    return stones[-1] if stones else None


def _document(
    name: str,
    annotator: str,
    stone: Tombstone | None,
    answers: Sequence[Answer],
    shaped: Shaped,
    record: Record,
) -> dict[str, Any]:
    """What is known of a person, and what was made of it."""
    rounds: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        rounds.setdefault((answer.workspace, answer.dataset), []).append(answer)
    judged = {answer.id for answer in answers if answer.judgement} | set(shaped.ids)
    judged |= set(stone.judgements if stone else ())
    gone = [
        {"stage": tags[STAGE], "name": run.info.run_name, "artifact": tags[KEY], "run_id": run.info.run_id}
        for run in erased_for(record, annotator)
        if (tags := run.data.tags)
    ]
    return {
        "name": name,
        "annotator": annotator,
        "state": stone.state if stone else "present",
        "erased_at": stone.erased_at if stone else None,
        "judgements": sorted(judged),
        "rounds": [
            {
                "workspace": workspace,
                "dataset": dataset,
                "judgements": sum(answer.judgement for answer in given),
                "drafts": sum(not answer.judgement for answer in given),
            }
            for (workspace, dataset), given in sorted(rounds.items())
        ],
        "snapshots": [*gone, *(_row(key, each) for key, each in shaped.holding.items())],
        "shaped": [_row(key, each) for key, each in shaped.others.items() if not each["erased"]],
        "models": [{"name": version.name, "version": version.version} for version in shaped.models],
        "runs_naming_them": _naming(name, record),
        "stays": list(STAYS),
    }


def _row(key: str, each: Mapping[str, Any]) -> dict[str, str]:
    return {"stage": each["stage"], "name": each["name"], "artifact": key, "run_id": each["run_id"]}


def _naming(name: str, record: Record) -> list[str]:
    """Runs whose parameters, copied from a recipe, hold the username: MLflow lets nobody change parameters."""
    quoted = json.dumps(name)
    return [
        run.info.run_id
        for run in record.runs()
        if any(value == name or quoted in value for value in run.data.params.values())
    ]


def _begin(name: str, annotator: str, stone: Tombstone | None, answers: Sequence[Answer], shaped: Shaped) -> Tombstone:
    """The tombstone before anything is deleted, or after a first try deleted some."""
    if stone is None:
        salt, name_hash = recognised(name)
        stone = Tombstone(annotator=annotator, state="begun", begun_at=_now(), salt=salt, name_hash=name_hash)
    votes = {round: dict(records) for round, records in stone.votes.items()}
    for answer in answers:
        if answer.vote:
            votes.setdefault(answer.dataset, {})[answer.record] = 1
    judgements = {*stone.judgements, *shaped.ids, *(answer.id for answer in answers if answer.judgement)}
    return stone.model_copy(
        update={
            "state": "begun",
            "judgements": tuple(sorted(judgements)),
            "votes": votes,
            "artifacts": tuple(dict.fromkeys([*stone.artifacts, *shaped.holding])),
        }
    )


def _erase_snapshots(annotator: str, shaped: Shaped, store: Store) -> None:
    """Delete every artifact that tells of the person, the last made first: an interruption leaves what leads to it."""
    for run in erased_for(store.record, annotator):  # marked by a first try: its files may still be there
        erase_artifact(store.record, run.info.run_id, annotator, ())
        store.find(run.data.tags[KEY])
    for key, each in reversed(shaped.holding.items()):
        erase_artifact(store.record, each["run_id"], annotator, shaped.annotators.get(key, [annotator]))
        store.erase(key)


def _mark(annotator: str, shaped: Shaped, record: Record, registry: Registry) -> None:
    """Say on runs, versions and aliases that an erased person shaped them."""
    client = registry.client
    for each in shaped.others.values():
        mark(record, each["run_id"], SHAPED, annotator)
    with answering():
        for model in shaped.models:
            version = client.get_model_version(model.name, model.version)
            told = {annotator, *version.tags.get(SHAPED, "").split(",")} - {""}
            client.set_model_version_tag(model.name, model.version, SHAPED, ",".join(sorted(told)))
            if version.aliases:
                aliases = ", ".join(f"{alias} (version {model.version})" for alias in sorted(version.aliases))
                client.set_registered_model_tag(model.name, SHAPED, aliases)


def _tell_mlflow(stone: Tombstone, record: Record) -> None:
    """The tombstone as a run of its own, once."""
    with answering():
        query = f"tags.`{TOMBSTONE}` = '{stone.annotator}'"
        found = record.client.search_runs([record.experiment], query, max_results=1)
        tags = {STAGE: "erasure", TOMBSTONE: stone.annotator}
        run = found[0] if found else record.client.create_run(
            record.experiment, run_name=f"erasure of {stone.annotator}", tags=tags
        )  # fmt: skip
        record.client.log_text(run.info.run_id, json.dumps(stone.public(), indent=1), "tombstone.json")
        record.client.log_metric(run.info.run_id, "judgements", len(stone.judgements))
        record.client.set_terminated(run.info.run_id, "FINISHED")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
