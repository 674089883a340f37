"""Argilla over its HTTP API: publish a round, see how far it is, read the judgements with their ranks.

Argilla's own SDK loses the ranks when it reads, and takes seconds to import, so requests are made with httpx.
Everything here may be repeated: what exists already is found and left as it is.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx

from labeling.comparison import Comparison, Judgement, LabelingError
from labeling.question import QUESTION, RATIONALE, Round, flags_of, guidelines_version, rating_name, record_of
from labeling.service.connection import items, request
from labeling.service.datasets import guidelines_of, open_dataset

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
    known: Collection[str] = (),
    suggestions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> str:
    """Put the comparisons before the annotators and return the id of the dataset.

    Publishing again adds nothing, and an interrupted publish goes on where it stopped. Raises `LabelingError` when a
    dataset of this name holds another question, or records that are neither given nor `known` (ids). `suggestions` (by
    id of the comparison) are shown with records that are published now.
    """
    dataset = open_dataset(client, round)
    published = set(external_ids(client, dataset))
    wanted = [comparison for comparison in comparisons if comparison.id not in published]
    if foreign := published - {comparison.id for comparison in comparisons} - set(known):
        raise LabelingError(
            f"Dataset '{round.name}' in Argilla holds {len(foreign)} records that are not of this round; "
            "give the round another name."
        )
    done, total = len(comparisons) - len(wanted), len(comparisons)
    progress(done, total)
    asked = items(client, f"/api/v1/datasets/{dataset}/questions") if suggestions else []
    ids = {question["name"]: question["id"] for question in asked}
    for start in range(0, len(wanted), BULK):
        records = [_record(comparison, suggestions, ids) for comparison in wanted[start : start + BULK]]
        # An upsert: should the answer get lost and the request be made again, nothing is there twice.
        request(client, "PUT", f"/api/v1/datasets/{dataset}/records/bulk", json={"items": records})
        done += len(records)
        progress(done, total)
    return dataset


def _record(
    comparison: Comparison, suggestions: Mapping[str, Mapping[str, Any]], questions: Mapping[str, str]
) -> dict[str, Any]:
    """A record as it is published, with its suggestion where there is one."""
    record = record_of(comparison)
    if given := suggestions.get(comparison.id):
        rest = {name: value for name, value in given.items() if name != "question"}
        record["suggestions"] = [{"question_id": questions[given["question"]], **rest}]
    return record


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
    versions = guidelines_of(client, dataset)
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
        flags=flags_of(response["values"]),
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
