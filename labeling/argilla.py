"""Argilla over its HTTP API: publish a round, see how far it is, read the judgements with their ranks.

Argilla's own SDK loses the ranks when it reads, and takes seconds to import, so requests are made with httpx.
Everything here may be repeated: what exists already is found and left as it is.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from labeling.accounts import create_workspace, find_workspace
from labeling.comparison import Comparison, Judgement, LabelingError
from labeling.connection import items, request
from labeling.question import (
    FLAGS,
    QUESTION,
    RATIONALE,
    Round,
    dataset_fields,
    guidelines_version,
    questions,
    rating_name,
    record_of,
)

BULK = 250
"""Records per request; Argilla takes up to 500."""
PAGE = 1000
"""Records per page when reading; Argilla gives up to 1000."""


VERSIONS = "guidelines_versions"
"""Where a dataset's metadata keeps its versions of the guidelines."""


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
    known: Collection[str] = (),
) -> str:
    """Put the comparisons before the annotators and return the id of the dataset.

    Publishing again adds nothing, and an interrupted publish goes on where it stopped. Raises `LabelingError` when a
    dataset of this name holds another question, or records that are neither given nor `known` (ids).
    """
    dataset = _dataset(client, round)
    published = set(external_ids(client, dataset))
    wanted = [comparison for comparison in comparisons if comparison.id not in published]
    if foreign := published - {comparison.id for comparison in comparisons} - set(known):
        raise LabelingError(
            f"Dataset '{round.name}' in Argilla holds {len(foreign)} records that are not of this round; "
            "give the round another name."
        )
    done, total = len(comparisons) - len(wanted), len(comparisons)
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
    """Bring the guidelines up to date and note since when each version holds, by the server's clock."""
    versions = guidelines_of(dataset)
    if dataset["guidelines"] != round.guidelines:
        dataset = request(client, "PATCH", path, json={"guidelines": round.guidelines})
    if not versions or versions[-1]["version"] != guidelines_version(round.guidelines):
        since = dataset["updated_at"] if versions else dataset["inserted_at"]
        entry = {"version": guidelines_version(round.guidelines), "since": since, "text": round.guidelines}
        metadata = {**(dataset.get("metadata") or {}), VERSIONS: [*versions, entry]}
        request(client, "PATCH", path, json={"metadata": metadata})


def guidelines_of(dataset: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every version of a dataset's guidelines, oldest first: `version`, `since` (the server's clock) and `text`."""
    return list((dataset.get("metadata") or {}).get(VERSIONS, []))


def external_ids(client: httpx.Client, dataset: str) -> Iterator[str]:
    """The ids of the comparisons that a dataset holds."""
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
    versions = guidelines_of(request(client, "GET", f"/api/v1/datasets/{dataset}"))
    judgements = [
        _judgement(
            response, by_id[record["external_id"]], _version(versions, response, round), pseudonym(response["user_id"])
        )
        for record in records(client, dataset, include="responses")
        if record["external_id"] in by_id
        for response in record["responses"]
        if response["status"] in ("submitted", "discarded")
    ]
    return sorted(judgements, key=lambda judgement: (judgement.record, judgement.annotator))


def _version(versions: Sequence[Mapping[str, str]], response: Mapping[str, Any], round: Round) -> str:
    """The version of the guidelines that held when a response was last touched."""
    held = [each["version"] for each in versions[1:] if each["since"] <= response["updated_at"]]
    first = versions[0]["version"] if versions else guidelines_version(round.guidelines)
    return held[-1] if held else first


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
        ratings=_ratings(response, comparison),
        flags=tuple(sorted(_value(response, FLAGS, list) or ())),
        rationale=_value(response, RATIONALE, str) or "",
    )


def _value(response: Mapping[str, Any], question: str, kind: type) -> Any:
    """What was answered to a question, None where nothing of that kind was."""
    value = ((response["values"] or {}).get(question) or {}).get("value")
    return value if isinstance(value, kind) else None


def _ratings(response: Mapping[str, Any], comparison: Comparison) -> dict[str, dict[str, int]]:
    """Criterion -> completion id -> rating, from the questions named after both."""
    shown = {option[-1]: completion.id for option, completion in comparison.options.items()}
    ratings: dict[str, dict[str, int]] = {}
    for name in response["values"] or {}:
        criterion, _, letter = name.rpartition("_")
        rating = _value(response, name, int)
        if criterion and letter in shown and rating is not None and name == rating_name(criterion, letter):
            ratings.setdefault(criterion, {})[shown[letter]] = rating
    return {criterion: dict(sorted(given.items())) for criterion, given in sorted(ratings.items())}


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
