"""Argilla over its HTTP API: publish a round, see how far it is, read the judgements with their ranks.

Argilla's own SDK loses the ranks when it reads, and takes seconds to import, so requests are made with httpx.
Everything here may be repeated: what exists already is found and left as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from labeling.accounts import create_workspace, find_workspace
from labeling.comparison import Comparison, Judgement, LabelingError
from labeling.connection import items, request
from labeling.question import QUESTION, Round, dataset_fields, guidelines_version, ranking_question, record_of

BULK = 250
"""Records per request; Argilla takes up to 500."""
PAGE = 1000
"""Records per page when reading; Argilla gives up to 1000."""


@dataclass(frozen=True)
class Progress:
    """How far a round is."""

    total: int
    completed: int
    """Records with enough submitted ranks, as Argilla counts them."""
    answers: Mapping[str, int]
    """Username -> records answered (submitted or discarded)."""


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
    workspace_id = find_workspace(client, workspace)
    if workspace_id is None:
        return None
    found = items(client, "/api/v1/me/datasets", params={"workspace_id": workspace_id, "name": name})
    return next((dataset for dataset in found if dataset["name"] == name), None)


def _dataset(client: httpx.Client, round: Round) -> str:
    """The id of the round's dataset, made and opened if need be, step by step from wherever it was left."""
    workspace = create_workspace(client, round.workspace)
    dataset = find_dataset(client, round.workspace, round.name)
    if dataset is None:
        distribution = {"strategy": "overlap", "min_submitted": round.min_submitted}
        settings = {"name": round.name, "guidelines": round.guidelines, "distribution": distribution}
        made = request(client, "POST", "/api/v1/datasets", json={**settings, "workspace_id": workspace}, accept=(409,))
        if made is None:  # a first try got through although its answer did not
            return _dataset(client, round)
        dataset = made
    path = f"/api/v1/datasets/{dataset['id']}"
    _check_same(client, path, dataset, round)
    if dataset["status"] == "draft":
        fields = {field["name"] for field in items(client, f"{path}/fields")}
        for field in dataset_fields(round):
            if field["name"] not in fields:
                request(client, "POST", f"{path}/fields", json=field, accept=(409,))
        if not items(client, f"{path}/questions"):
            request(client, "POST", f"{path}/questions", json=ranking_question(round), accept=(409,))
        request(client, "PUT", f"{path}/publish", accept=(422,))  # 422: it is open already
        if request(client, "GET", path)["status"] != "ready":
            raise LabelingError(f"Argilla does not open dataset '{round.name}'; delete it there and run again.")
    return dataset["id"]


def _check_same(client: httpx.Client, path: str, dataset: Mapping[str, Any], round: Round) -> None:
    fields = {field["name"] for field in items(client, f"{path}/fields")}
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
