"""A person leaves Argilla: every answer they gave, their sheets of records, and their account.

Answers go before the account, so that Argilla counts each record anew and tells its webhooks. Interrupted and done
again it goes on with what is left.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from labeling.comparison import CANNOT_JUDGE, LabelingError
from labeling.question import flags_of
from labeling.service.argilla import records
from labeling.service.connection import items, request

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Person:
    """An annotator's account."""

    id: str
    name: str


@dataclass(frozen=True)
class Answer:
    """One answer of a person, a draft or not."""

    id: str
    """Argilla's id of it, which is also that of the judgement."""
    record: str
    """Id of the comparison."""
    dataset: str
    """Name of the dataset, which is that of the round."""
    workspace: str
    status: str
    vote: bool
    """Whether it ranked the record, so that the record had one of the votes it needs."""

    @property
    def judgement(self) -> bool:
        """A draft is none yet."""
        return self.status in ("submitted", "discarded")


@dataclass(frozen=True)
class Sheet:
    """A dataset in a workspace that only this person sees, and that holds nobody else's answers."""

    id: str
    name: str
    workspace: str
    workspace_id: str


def find_person(client: httpx.Client, name: str) -> Person | None:
    """The annotator of that username, or None. Raises `LabelingError` for an account that is no annotator's."""
    for user in items(client, "/api/v1/users"):
        if user["username"] == name:
            if user["role"] != "annotator":
                raise LabelingError(f"'{name}' is {user['role']} in Argilla, not annotator; name an annotator.")
            return Person(user["id"], name)
    return None


def answers_of(client: httpx.Client, person: Person) -> list[Answer]:
    """All answers of a person, in every dataset of the server."""
    return [answer for dataset, place in _datasets(client) for answer in _answers(client, dataset, place, person)]


def sheets_of(client: httpx.Client, person: Person) -> list[Sheet]:
    """The datasets that go with the person: in a workspace named after them alone, without others' answers."""
    sheets = []
    for dataset, workspace in _datasets(client):
        if workspace["name"].endswith(f"-{person.name}") and _only_theirs(client, dataset, workspace, person):
            sheets.append(Sheet(dataset["id"], dataset["name"], workspace["name"], workspace["id"]))
    return sheets


def leave(client: httpx.Client, person: Person, progress: Progress = lambda done, total: None) -> None:
    """Delete a person's answers, their sheets with the workspaces that are empty then, and their account."""
    answers, sheets = answers_of(client, person), sheets_of(client, person)
    for done, answer in enumerate(answers):
        progress(done, len(answers))
        request(client, "DELETE", f"/api/v1/responses/{answer.id}", accept=(404,))
    for sheet in sheets:
        request(client, "DELETE", f"/api/v1/datasets/{sheet.id}", accept=(404,))
    for workspace in items(client, "/api/v1/me/workspaces"):
        members = {user["id"] for user in items(client, f"/api/v1/workspaces/{workspace['id']}/users")}
        if workspace["name"].endswith(f"-{person.name}") and members <= {person.id}:
            # 409, 422: something else is in it, so it stays
            request(client, "DELETE", f"/api/v1/workspaces/{workspace['id']}", accept=(404, 409, 422))
    request(client, "DELETE", f"/api/v1/users/{person.id}", accept=(404,))
    progress(len(answers), len(answers))


def _datasets(client: httpx.Client) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every dataset that was opened, with its workspace."""
    for workspace in items(client, "/api/v1/me/workspaces"):
        for dataset in items(client, "/api/v1/me/datasets", params={"workspace_id": workspace["id"]}):
            yield dataset, workspace


def _answers(
    client: httpx.Client, dataset: dict[str, Any], workspace: dict[str, Any], person: Person
) -> Iterator[Answer]:
    for record in records(client, dataset["id"], include="responses"):
        for response in record["responses"] or ():
            if response["user_id"] == person.id:
                yield Answer(
                    id=response["id"],
                    record=record["external_id"] or record["id"],
                    dataset=dataset["name"],
                    workspace=workspace["name"],
                    status=response["status"],
                    vote=_is_vote(response),
                )


def _is_vote(response: dict[str, Any]) -> bool:
    return response["status"] == "submitted" and CANNOT_JUDGE not in flags_of(response["values"])


def _only_theirs(client: httpx.Client, dataset: dict[str, Any], workspace: dict[str, Any], person: Person) -> bool:
    members = {user["id"] for user in items(client, f"/api/v1/workspaces/{workspace['id']}/users")}
    if not members <= {person.id}:
        return False
    found = records(client, dataset["id"], include="responses")
    return all(response["user_id"] == person.id for record in found for response in record["responses"] or ())
