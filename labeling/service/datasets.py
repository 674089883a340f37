"""A dataset in Argilla: found, or made and opened with the fields, questions and guidelines of a round."""

from collections.abc import Mapping
from typing import Any

import httpx

from labeling.comparison import LabelingError
from labeling.question import Round, dataset_fields, guidelines_version, questions
from labeling.service.accounts import create_workspace, find_workspace
from labeling.service.connection import items, request

VERSION = "guidelines-"
"""The metadata property of a version of the guidelines is called this and its number."""


def find_dataset(client: httpx.Client, workspace: str, name: str) -> dict[str, Any] | None:
    """Argilla's description of the dataset of that name, or None."""
    workspace_id = find_workspace(client, workspace)
    if workspace_id is None:
        return None
    found = items(client, "/api/v1/me/datasets", params={"workspace_id": workspace_id, "name": name})
    return next((dataset for dataset in found if dataset["name"] == name), None)


def open_dataset(client: httpx.Client, round: Round) -> str:
    """The id of the round's dataset, made and opened if need be, step by step from wherever it was left."""
    workspace = create_workspace(client, round.workspace)
    dataset = find_dataset(client, round.workspace, round.name)
    if dataset is None:
        distribution = {"strategy": "overlap", "min_submitted": round.min_submitted}
        settings = {"name": round.name, "guidelines": round.guidelines, "distribution": distribution}
        made = request(client, "POST", "/api/v1/datasets", json={**settings, "workspace_id": workspace}, accept=(409,))
        if made is None:  # a first try got through although its answer did not
            return open_dataset(client, round)
        dataset = made
    path = f"/api/v1/datasets/{dataset['id']}"
    _check_same(client, path, dataset, round)
    if dataset["status"] == "draft":
        fields = {field["name"] for field in items(client, f"{path}/fields")}
        for field in dataset_fields(round):
            if field["name"] not in fields:
                request(client, "POST", f"{path}/fields", json=field, accept=(409,))
        asked = {question["name"] for question in items(client, f"{path}/questions")}
        for question in questions(round):
            if question["name"] not in asked:
                request(client, "POST", f"{path}/questions", json=question, accept=(409,))
        request(client, "PUT", f"{path}/publish", accept=(422,))  # 422: it is open already
        if request(client, "GET", path)["status"] != "ready":
            raise LabelingError(f"Argilla does not open dataset '{round.name}'; delete it there and run again.")
    _set_guidelines(client, path, request(client, "GET", path), round)
    return dataset["id"]


def _check_same(client: httpx.Client, path: str, dataset: Mapping[str, Any], round: Round) -> None:
    fields = {field["name"] for field in items(client, f"{path}/fields")}
    expected = {field["name"] for field in dataset_fields(round)}
    asked = {question["name"] for question in items(client, f"{path}/questions")}
    wanted = {question["name"] for question in questions(round)}
    ready = dataset["status"] == "ready"
    same_fields = (fields, asked) == (expected, wanted) if ready else fields <= expected and asked <= wanted
    if not (same_fields and dataset["distribution"]["min_submitted"] == round.min_submitted):
        raise LabelingError(
            f"Dataset '{round.name}' in Argilla was published with another question or overlap; "
            "give the round another name."
        )


def _set_guidelines(client: httpx.Client, path: str, dataset: Mapping[str, Any], round: Round) -> None:
    """Bring the guidelines up to date and keep every version, with the time from which it holds by the server's clock.

    Argilla keeps one text only, and of its free metadata no second edit; a metadata property holds what it is given.
    """
    versions = guidelines_of(client, dataset["id"])
    if not versions or versions[-1]["text"] != round.guidelines:
        settings = {"type": "terms", "values": [round.guidelines]}
        name = f"{VERSION}{len(versions) + 1}"
        shown = {"title": f"Guidelines, version {len(versions) + 1}", "visible_for_annotators": False}
        request(
            client,
            "POST",
            f"{path}/metadata-properties",
            json={"name": name, "settings": settings, **shown},
            accept=(409,),
        )
    if dataset["guidelines"] != round.guidelines:
        request(client, "PATCH", path, json={"guidelines": round.guidelines})


def guidelines_of(client: httpx.Client, dataset: str) -> list[dict[str, str]]:
    """Every version of a dataset's guidelines, oldest first: `version`, `since` (the server's clock) and `text`."""
    found = items(client, f"/api/v1/me/datasets/{dataset}/metadata-properties")
    numbered = {int(each["name"].removeprefix(VERSION)): each for each in found if each["name"].startswith(VERSION)}
    texts = [
        (numbered[number]["settings"]["values"][0], numbered[number]["inserted_at"]) for number in sorted(numbered)
    ]
    return [{"version": guidelines_version(text), "since": since, "text": text} for text, since in texts]
