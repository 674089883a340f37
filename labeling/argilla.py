"""Argilla over its HTTP API: publish a round, see how far it is, read the judgements with their ranks.

Argilla's own SDK loses the ranks when it reads, and takes seconds to import, so requests are made with httpx.
Everything here may be repeated: what exists already is found and left as it is.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from labeling.comparison import Comparison, Judgement, LabelingError
from labeling.question import QUESTION, Round, dataset_fields, guidelines_version, ranking_question, record_of

BULK = 250
"""Records per request; Argilla takes up to 500."""
PAGE = 1000
"""Records per page when reading; Argilla gives up to 1000."""
_ATTEMPTS = 4
_BACKOFF = 0.5


@dataclass(frozen=True)
class Account:
    """How an annotator signs in: with the password in the browser, with the API key over HTTP."""

    username: str
    password: str | None
    """None when the account was there before and its password is not known here."""
    api_key: str


@dataclass(frozen=True)
class Progress:
    """How far a round is."""

    total: int
    completed: int
    """Records with enough submitted ranks, as Argilla counts them."""
    answers: Mapping[str, int]
    """Username -> records answered (submitted or discarded)."""


def connect(url: str, api_key: str) -> httpx.Client:
    """A client signed in to Argilla. Raises `LabelingError` when it cannot be reached or refuses the key."""
    client = httpx.Client(
        base_url=url.rstrip("/"),
        headers={"X-Argilla-Api-Key": api_key, "Accept-Encoding": "identity"},  # 4 times faster than gzip
        timeout=httpx.Timeout(60.0, connect=5.0),
    )
    try:
        request(client, "GET", "/api/v1/me")
    except LabelingError:
        client.close()
        raise
    return client


def request(client: httpx.Client, method: str, path: str, *, accept: Sequence[int] = (), **options: Any) -> Any:
    """The JSON answer of Argilla, or None for an error status in `accept`.

    A connection that fails and a server that is busy (502, 503, 504) are tried again for a few seconds; nothing here
    is stored twice when it arrives twice. Raises `LabelingError` on everything else.
    """
    url, failure = str(client.base_url), ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_BACKOFF * 2 ** (attempt - 1))
        try:
            response = client.request(method, path, **options)
        except httpx.TransportError as error:
            failure = f"Argilla at {url} does not answer ({type(error).__name__})"
            continue
        if response.status_code not in (502, 503, 504):
            return _answer(response, url, accept)
        failure = f"Argilla at {url} is not ready (HTTP {response.status_code})"
    raise LabelingError(f"{failure}; start it with `rlhf up` and run again, nothing given so far is lost.")


def _answer(response: httpx.Response, url: str, accept: Sequence[int]) -> Any:
    if response.status_code in accept:
        return None
    if response.status_code == 401:
        raise LabelingError(f"Argilla at {url} refuses the API key; set ARGILLA_API_KEY to the key of an owner.")
    if response.status_code == 403:
        raise LabelingError(
            f"The API key may not do {response.request.method} {response.request.url.path} at Argilla {url}; "
            "use the key of an owner."
        )
    if response.is_error:
        raise LabelingError(
            f"Argilla at {url} answered {response.request.method} {response.request.url.path} with "
            f"{response.status_code}: {response.text[:300]}; see its log, then run again."
        )
    if response.status_code == 204:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise LabelingError(f"What answers at {url} is not Argilla; check ARGILLA_API_URL.") from error


def publish(
    client: httpx.Client,
    round: Round,
    comparisons: Sequence[Comparison],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Put the comparisons before the annotators and return the id of the dataset.

    Publishing again adds nothing, and an interrupted publish goes on where it stopped. Raises `LabelingError` when a
    dataset of this name holds another question, or records that are not of this round.
    """
    dataset = _dataset(client, round)
    published = set(_external_ids(client, dataset))
    wanted = [comparison for comparison in comparisons if comparison.id not in published]
    if foreign := published - {comparison.id for comparison in comparisons}:
        raise LabelingError(
            f"Dataset '{round.name}' in Argilla holds {len(foreign)} records that are not of this round; "
            "give the round another name."
        )
    done, total = len(published), len(comparisons)
    progress(done, total)
    for start in range(0, len(wanted), BULK):
        records = [record_of(comparison) for comparison in wanted[start : start + BULK]]
        # An upsert: should the answer get lost and the request be made again, nothing is there twice.
        request(client, "PUT", f"/api/v1/datasets/{dataset}/records/bulk", json={"items": records})
        done += len(records)
        progress(done, total)
    return dataset


def find_dataset(client: httpx.Client, workspace: str, name: str) -> dict[str, Any] | None:
    """Argilla's description of the dataset of that name, or None."""
    workspace_id = next((w["id"] for w in _items(client, "/api/v1/me/workspaces") if w["name"] == workspace), None)
    if workspace_id is None:
        return None
    found = _items(client, "/api/v1/me/datasets", params={"workspace_id": workspace_id, "name": name})
    return next((dataset for dataset in found if dataset["name"] == name), None)


def _dataset(client: httpx.Client, round: Round) -> str:
    """The id of the round's dataset, made and opened if need be, step by step from wherever it was left."""
    workspace = create_workspace(client, round.workspace)
    dataset = find_dataset(client, round.workspace, round.name)
    if dataset is None:
        distribution = {"strategy": "overlap", "min_submitted": round.min_submitted}
        settings = {"name": round.name, "guidelines": round.guidelines, "distribution": distribution}
        dataset = request(client, "POST", "/api/v1/datasets", json={**settings, "workspace_id": workspace})
    path = f"/api/v1/datasets/{dataset['id']}"
    _check_same(client, path, dataset, round)
    if dataset["status"] == "draft":
        fields = {field["name"] for field in _items(client, f"{path}/fields")}
        for field in dataset_fields(round):
            if field["name"] not in fields:
                request(client, "POST", f"{path}/fields", json=field, accept=(409,))
        if not _items(client, f"{path}/questions"):
            request(client, "POST", f"{path}/questions", json=ranking_question(round), accept=(409,))
        request(client, "PUT", f"{path}/publish")
    return dataset["id"]


def _check_same(client: httpx.Client, path: str, dataset: Mapping[str, Any], round: Round) -> None:
    fields = {field["name"] for field in _items(client, f"{path}/fields")}
    expected = {field["name"] for field in dataset_fields(round)}
    same_fields = fields == expected if dataset["status"] == "ready" else fields <= expected
    same_rules = dataset["distribution"]["min_submitted"] == round.min_submitted
    if not (same_fields and same_rules and dataset["guidelines"] == round.guidelines):
        raise LabelingError(
            f"Dataset '{round.name}' in Argilla was published with another question, overlap or guidelines; "
            "give the round another name."
        )


def _external_ids(client: httpx.Client, dataset: str) -> Iterator[str]:
    for record in records(client, dataset):
        yield record["external_id"]


def records(client: httpx.Client, dataset: str, include: str | None = None) -> Iterator[dict[str, Any]]:
    """Every record of a dataset once, page by page.

    Argilla sorts pages by insertion time without a tie-break, so a record may come twice and another not at all: the
    first is dropped here, the second is noticed. Raises `LabelingError` when records are missing.
    """
    seen: set[str] = set()
    offset, total = 0, 0
    params = {"limit": PAGE} | ({"include": include} if include else {})
    while True:
        page = request(client, "GET", f"/api/v1/datasets/{dataset}/records", params={**params, "offset": offset})
        total = page.get("total") or total
        for record in page["items"]:
            if record["id"] not in seen:
                seen.add(record["id"])
                yield record
        offset += len(page["items"])
        if len(page["items"]) < PAGE:
            break
    if len(seen) < total:
        raise LabelingError(f"Argilla gave {len(seen)} of {total} records of dataset {dataset}; run again.")


def fetch_judgements(
    client: httpx.Client, dataset: str, round: Round, comparisons: Sequence[Comparison], pseudonym: Callable[[str], str]
) -> list[Judgement]:
    """Every submitted or discarded judgement of a round with its ranks, sorted by record and annotator.

    `pseudonym` turns Argilla's user id into what the judgement is signed with. Drafts are no judgements yet.
    Raises `LabelingError` for ranks that do not fit the comparison.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    version = guidelines_version(round.guidelines)
    judgements = [
        _judgement(response, by_id[record["external_id"]], version, pseudonym(response["user_id"]))
        for record in records(client, dataset, include="responses")
        if record["external_id"] in by_id
        for response in record["responses"]
        if response["status"] in ("submitted", "discarded")
    ]
    return sorted(judgements, key=lambda judgement: (judgement.record, judgement.annotator))


def _judgement(response: Mapping[str, Any], comparison: Comparison, guidelines: str, annotator: str) -> Judgement:
    submitted = response["status"] == "submitted"
    return Judgement(
        id=response["id"],
        record=comparison.id,
        annotator=annotator,
        status="submitted" if submitted else "discarded",
        ranks=_ranks(response, comparison) if submitted else None,
        guidelines=guidelines,
        inserted_at=response["inserted_at"],
        updated_at=response["updated_at"],
    )


def _ranks(response: Mapping[str, Any], comparison: Comparison) -> dict[str, int]:
    options = comparison.options
    value = response["values"][QUESTION]["value"]
    ranks = {options[item["value"]].id: int(item["rank"]) for item in value if item["value"] in options}
    if len(ranks) != len(options) or len(value) != len(options):
        raise LabelingError(
            f"Judgement {response['id']} does not rank the completions of record {comparison.id}; "
            "discard it in Argilla and run again."
        )
    return dict(sorted(ranks.items()))


def progress_of(client: httpx.Client, dataset: str) -> Progress:
    """How many records are complete and how many each annotator has answered."""
    counts = request(client, "GET", f"/api/v1/datasets/{dataset}/progress")
    users = request(client, "GET", f"/api/v1/datasets/{dataset}/users/progress")["users"]
    answers = {
        user["username"]: sum(user[part].get(status, 0) for part in ("completed", "pending") for status in ANSWERED)
        for user in users
    }
    return Progress(counts["total"], counts["completed"], answers)


ANSWERED = ("submitted", "discarded")


def create_workspace(client: httpx.Client, name: str) -> str:
    """The id of the workspace of that name, made if need be."""
    found = next((w["id"] for w in _items(client, "/api/v1/me/workspaces") if w["name"] == name), None)
    return found or request(client, "POST", "/api/v1/workspaces", json={"name": name})["id"]


def create_annotators(client: httpx.Client, workspace: str, passwords: Mapping[str, str]) -> list[Account]:
    """Accounts for the usernames in `passwords`, all members of the workspace.

    The caller makes the passwords and keeps them before it calls, so that none gets lost on the way. An account that is
    there already keeps its own password, and None is returned for it. Raises `LabelingError` when a name belongs to
    somebody who is not an annotator.
    """
    workspace_id = create_workspace(client, workspace)
    users = {user["username"]: user for user in _items(client, "/api/v1/users")}
    members = {user["username"] for user in _items(client, f"/api/v1/workspaces/{workspace_id}/users")}
    accounts = []
    for username, password in passwords.items():
        known = users.get(username)
        if known and known["role"] != "annotator":
            raise LabelingError(f"'{username}' is an {known['role']} in Argilla, not an annotator; use another name.")
        user = known or request(
            client,
            "POST",
            "/api/v1/users",
            json={"username": username, "first_name": username, "role": "annotator", "password": password},
        )
        if username not in members:
            path = f"/api/v1/workspaces/{workspace_id}/users"
            request(client, "POST", path, json={"user_id": user["id"]}, accept=(409,))
        accounts.append(Account(username, None if known else password, user["api_key"]))
    return accounts


def _items(client: httpx.Client, path: str, **options: Any) -> list[dict[str, Any]]:
    return request(client, "GET", path, **options)["items"]
