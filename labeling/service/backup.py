"""Backup of an Argilla over its HTTP API, and restore into another, ranks included: Argilla's own export loses them.

Kept: workspaces and their members, users with their roles, datasets with guidelines, fields, questions, metadata
properties, vectors and records, suggestions, and every response, drafts and discarded ones too. Not kept: passwords and
API keys (restored users get new ones), webhooks, and, because Argilla gives every row it takes the time of taking it,
the times of restored records and answers (they stay readable in the file).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from labeling.comparison import LabelingError
from labeling.service import archive
from labeling.service.argilla import records
from labeling.service.connection import items, request
from labeling.service.restoring import Restored, restore

__all__ = ["Restored", "backup", "restore"]

OFTEN = 250
"""Records between two reports of the progress."""
SETTINGS = ("name", "title", "description", "required", "settings", "visible_for_annotators", "dimensions")


def backup(
    client: httpx.Client,
    path: Path,
    workspace: str | None = None,
    progress: archive.Progress = lambda done, total: None,
) -> dict[str, int]:
    """Write everything (or one workspace) to `path` and return how much there was of each kind.

    The file appears when it is whole. Raises `LabelingError` when the workspace is not there, or Argilla fails.
    """
    found = [each for each in items(client, "/api/v1/me/workspaces") if workspace in (None, each["name"])]
    if not found and workspace is not None:
        raise LabelingError(f"Argilla has no workspace '{workspace}'; name one of its workspaces, or none for all.")
    datasets = [
        dataset
        for each in found
        for dataset in items(client, "/api/v1/me/datasets", params={"workspace_id": each["id"]})
    ]
    total, done, needed = sum(_size(client, dataset) for dataset in datasets), 0, set[str]()
    progress(0, total)
    with archive.writing(path) as file:
        for each in found:
            members = [user["id"] for user in items(client, f"/api/v1/workspaces/{each['id']}/users")]
            needed.update(members)
            file.add("workspace", {"id": each["id"], "name": each["name"], "users": members})
        for dataset in datasets:
            questions = _add_dataset(client, file, dataset)
            for record in records(client, dataset["id"], include="responses,suggestions,vectors"):
                file.add("record", _record_row(record, dataset["id"], questions))
                needed.update(response["user_id"] for response in record["responses"])
                done += 1
                if done % OFTEN == 0:
                    progress(done, max(done, total))
        for user in items(client, "/api/v1/users"):
            if workspace is None or user["id"] in needed:
                kept = ("id", "username", "first_name", "last_name", "role", "inserted_at")
                file.add("user", {name: user[name] for name in kept})
    progress(done, done)
    return file.counts


def _size(client: httpx.Client, dataset: Mapping[str, Any]) -> int:
    ready = dataset["status"] == "ready"
    return request(client, "GET", f"/api/v1/datasets/{dataset['id']}/progress")["total"] if ready else 0


def _add_dataset(client: httpx.Client, file: archive.Writer, dataset: Mapping[str, Any]) -> dict[str, str]:
    """Write a dataset's own line; returns its questions' names by id."""
    parts = {name: items(client, f"/api/v1/{path.format(dataset['id'])}") for name, path in archive.PARTS_OF.items()}
    kept = ("id", "name", "guidelines", "allow_extra_metadata", "status", "distribution", "metadata", "inserted_at")
    settings = {
        name: [{key: part[key] for key in SETTINGS if key in part} for part in each] for name, each in parts.items()
    }
    file.add(
        "dataset", {**{name: dataset.get(name) for name in kept}, "workspace": dataset["workspace_id"], **settings}
    )
    return {question["id"]: question["name"] for question in parts["questions"]}


def _record_row(record: Mapping[str, Any], dataset: str, questions: Mapping[str, str]) -> dict[str, Any]:
    kept = ("id", "external_id", "status", "fields", "metadata", "inserted_at", "updated_at")
    responses = ("user_id", "status", "values", "inserted_at", "updated_at")
    suggestions = ("value", "score", "agent", "type")
    return {
        **{name: record.get(name) for name in kept},
        "dataset": dataset,
        "vectors": record.get("vectors") or {},
        "responses": [{name: each[name] for name in responses} for each in record["responses"]],
        "suggestions": [
            {"question": questions[each["question_id"]], **{name: each[name] for name in suggestions}}
            for each in record["suggestions"]
        ],
    }
