"""Restore of a backup into an Argilla, over its HTTP API: what is missing is added, what is there is left alone."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from labeling.comparison import LabelingError
from labeling.service import archive
from labeling.service.argilla import records
from labeling.service.connection import items, request

BATCH = 250
"""Records per request."""
PARTS = 2000
"""Answers, suggestions and vectors per request: SQLite takes 32,766 values in one statement."""


@dataclass(frozen=True)
class Restored:
    """What a restore has added; what was there before is left as it is."""

    users: tuple[str, ...] = ()
    """Names of the accounts made; their passwords are the ones `password` gave."""
    workspaces: int = 0
    datasets: int = 0
    records: int = 0
    responses: int = 0
    refused: tuple[str, ...] = ()
    """Why Argilla did not take a record's answers or the record, one sentence each."""


def restore(
    client: httpx.Client,
    path: Path,
    progress: archive.Progress = lambda done, total: None,
    password: Callable[[str], str] = lambda username: secrets.token_urlsafe(16),
) -> Restored:
    """Add what the backup holds and Argilla does not; returns what was added. Restoring again adds nothing.

    Users, workspaces and datasets are the same when their names are, records by their external ids (a record without
    one gets its former id as its external id), answers by record and user. New accounts get the password that
    `password` gives for their name. Raises `LabelingError`, before anything is written, for a file that is not a whole
    backup, and for a dataset of the same name with other questions.
    """
    total = archive.check(path)["records"]
    try:
        return _Restore(client, password, progress, total).run(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise LabelingError(f"{path} is damaged ({error!r}); restore from another backup.") from error


@dataclass
class _Sheet:
    """A dataset that is being filled."""

    id: str
    questions: dict[str, str]
    """Name -> id."""
    known: dict[str, tuple[str, set[str]]]
    """External id or id of the records that were there -> their id and the users who have answered them."""
    batch: list[dict[str, Any]] = field(default_factory=list)


class _Restore:
    def __init__(
        self, client: httpx.Client, password: Callable[[str], str], progress: archive.Progress, total: int
    ) -> None:
        self._client, self._password, self._progress, self._total = client, password, progress, total
        self._users: dict[str, str] = {}
        self._workspaces: dict[str, str] = {}
        self._sheets: dict[str, _Sheet] = {}
        self._made: dict[str, list[str]] = {"users": [], "workspaces": [], "datasets": [], "refused": []}
        self._records = self._responses = self._done = 0

    def run(self, path: Path) -> Restored:
        self._make_users([row for row in archive.lines(path) if row["kind"] == "user"])
        current = None
        for row in archive.lines(path):
            if row["kind"] == "workspace":
                self._make_workspace(row)
            elif row["kind"] == "dataset":
                self._flush(current)
                current = self._sheets[row["id"]] = self._make_dataset(row)
            elif row["kind"] == "record":
                current = self._sheets[row["dataset"]]
                self._add(current, row)
        self._flush(current)
        return Restored(
            users=tuple(self._made["users"]),
            workspaces=len(self._made["workspaces"]),
            datasets=len(self._made["datasets"]),
            records=self._records,
            responses=self._responses,
            refused=tuple(self._made["refused"]),
        )

    def _make_users(self, rows: list[dict[str, Any]]) -> None:
        present = {user["username"]: user["id"] for user in items(self._client, "/api/v1/users")}
        for row in rows:
            name = row["username"]
            if name not in present:
                account = {key: row.get(key) for key in ("username", "first_name", "last_name", "role")}
                account |= {"password": self._password(name)} | _free(row["id"], present.values())
                made = request(self._client, "POST", "/api/v1/users", json=account)
                present[name] = made["id"]
                self._made["users"].append(name)
            self._users[row["id"]] = present[name]

    def _make_workspace(self, row: dict[str, Any]) -> None:
        present = {each["name"]: each["id"] for each in items(self._client, "/api/v1/me/workspaces")}
        if row["name"] not in present:
            body = {"name": row["name"]} | _free(row["id"], present.values())
            present[row["name"]] = request(self._client, "POST", "/api/v1/workspaces", json=body)["id"]
            self._made["workspaces"].append(row["name"])
        self._workspaces[row["id"]] = workspace = present[row["name"]]
        path = f"/api/v1/workspaces/{workspace}/users"
        members = {user["id"] for user in items(self._client, path)}
        for user in row["users"]:
            if self._users[user] not in members:
                request(self._client, "POST", path, json={"user_id": self._users[user]}, accept=(409,))

    def _make_dataset(self, row: dict[str, Any]) -> _Sheet:
        workspace = self._workspaces[row["workspace"]]
        found = items(self._client, "/api/v1/me/datasets", params={"workspace_id": workspace, "name": row["name"]})
        present = next((each for each in found if each["name"] == row["name"]), None)
        if present is None:
            keys = ("name", "guidelines", "allow_extra_metadata", "distribution", "metadata")
            body = {key: row[key] for key in keys if row.get(key) is not None}
            present = request(self._client, "POST", "/api/v1/datasets", json={**body, "workspace_id": workspace})
            self._made["datasets"].append(row["name"])
        path = f"/api/v1/datasets/{present['id']}"
        if present["status"] == "draft":
            self._complete(present["id"], row)
            if row["status"] == "ready":
                request(self._client, "PUT", f"{path}/publish", accept=(422,))
        questions = {each["name"]: each["id"] for each in items(self._client, f"{path}/questions")}
        fields = {each["name"] for each in items(self._client, f"{path}/fields")}
        if set(questions) != {each["name"] for each in row["questions"]} or fields != {
            f["name"] for f in row["fields"]
        }:
            raise LabelingError(
                f"Argilla has another dataset '{row['name']}', with other fields or questions; rename or delete that "
                "and restore again."
            )
        known = {}
        for record in records(self._client, present["id"], include="responses") if row["status"] == "ready" else ():
            entry = (record["id"], {response["user_id"] for response in record["responses"]})
            known |= {record["id"]: entry, record["external_id"] or record["id"]: entry}
        return _Sheet(present["id"], questions, known)

    def _complete(self, dataset: str, row: dict[str, Any]) -> None:
        """Add the parts a draft does not have yet, in their order."""
        for name, path in archive.PARTS_OF.items():
            there = {each["name"] for each in items(self._client, f"/api/v1/{path.format(dataset)}")}
            for part in row[name]:
                if part["name"] not in there:
                    request(self._client, "POST", f"/api/v1/{path.format(dataset).removeprefix('me/')}", json=part)

    def _add(self, sheet: _Sheet, row: dict[str, Any]) -> None:
        """Put a record that lacks something into the batch."""
        name = row.get("external_id") or row["id"]
        there = sheet.known.get(name) or sheet.known.get(row["id"])
        responses = [self._response(each) for each in row["responses"]]
        if there is None:
            item = {key: row.get(key) for key in ("fields", "metadata", "vectors")} | {"external_id": name}
            item["suggestions"] = [_suggestion(each, sheet.questions) for each in row["suggestions"]]
            sheet.batch.append({**item, "responses": responses})
        elif missing := [each for each in responses if each["user_id"] not in there[1]]:
            sheet.batch.append({"id": there[0], "responses": missing})  # what is not named stays as it is
        if len(sheet.batch) == BATCH or sum(map(_parts, sheet.batch)) >= PARTS:
            self._flush(sheet)
        self._done += 1
        if self._done % BATCH == 0 or self._done == self._total:
            self._progress(self._done, self._total)

    def _response(self, row: dict[str, Any]) -> dict[str, Any]:
        values = {name: {"value": given["value"]} for name, given in (row["values"] or {}).items()}
        return {"user_id": self._users[row["user_id"]], "status": row["status"], "values": values}

    def _flush(self, sheet: _Sheet | None) -> None:
        if sheet is None or not sheet.batch:
            return
        batch, sheet.batch = sheet.batch, []
        if not self._send(sheet, batch):
            for item in batch:  # one that Argilla does not take must not hold up the others
                if not self._send(sheet, [item]):
                    name = item.get("external_id") or item["id"]
                    self._made["refused"].append(f"Argilla does not take record {name} of the backup.")

    def _send(self, sheet: _Sheet, batch: list[dict[str, Any]]) -> bool:
        path = f"/api/v1/datasets/{sheet.id}/records/bulk"
        if request(self._client, "PUT", path, json={"items": batch}, accept=(422,)) is None:
            return False
        self._records += sum("id" not in item for item in batch)
        self._responses += sum(len(item["responses"]) for item in batch)
        return True


def _parts(item: Mapping[str, Any]) -> int:
    return sum(len(item.get(name) or ()) for name in ("responses", "suggestions", "vectors"))


def _free(id: str, taken: Any) -> dict[str, str]:
    """The former id, where nobody has it."""
    return {} if id in set(taken) else {"id": id}


def _suggestion(row: dict[str, Any], questions: Mapping[str, str]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("value", "score", "agent", "type") if row.get(name) is not None}
    return {"question_id": questions[row["question"]], **kept}
