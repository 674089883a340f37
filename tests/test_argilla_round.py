"""Rounds in a real Argilla over HTTP: published once, resumed, read back with ranks intact, faults in one sentence."""

import uuid
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.comparison import Comparison, Completion, LabelingError, Ranks, compare
from labeling.question import DEFAULT_GUIDELINES, QUESTION, Round, escaped, unescaped
from labeling.service import argilla as rounds
from labeling.service.accounts import create_annotators, create_workspace, usernames
from labeling.service.connection import connect, request
from labeling.simulated import SimulatedAnnotator, answer_round

TEXTS = ("Aisle 4.", "# Aisle <b>9</b> <script>alert(1)</script>", "", "Größe 4 🛒\n\nline")


@pytest.fixture
def client(argilla: dict[str, str]) -> Iterator[httpx.Client]:
    with closing(connect(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"])) as client:
        yield client


def some(count: int) -> list[Comparison]:
    return [
        compare(
            f"{number:016x}",
            [{"role": "user", "content": f"Where is item {number}?"}],
            [Completion(f"{number:016x}-{k}", text) for k, text in enumerate(TEXTS)],
            seed=0,
        )
        for number in range(count)
    ]


def fresh(**changes: object) -> Round:
    settings = {"workspace": "rounds", "guidelines": DEFAULT_GUIDELINES, "options": 4, "min_submitted": 2}
    return Round(**{"name": f"round-{uuid.uuid4().hex[:8]}", **settings, **changes})  # type: ignore[arg-type]


def annotators(client: httpx.Client, *names: str) -> dict[str, str]:
    return create_annotators(client, "rounds", names, {name: f"password of {name}" for name in names})


def answer(url: str, key: str, record: str, ranks: Ranks | None, status: str) -> httpx.Response:
    values = [{"value": option, "rank": rank} for option, rank in (ranks or {}).items()]
    body = {"status": status, **({"values": {QUESTION: {"value": values}}} if ranks else {})}
    path = f"{url}/api/v1/records/{record}/responses"
    return httpx.post(path, json=body, headers={"X-Argilla-Api-Key": key}, timeout=30)


def test_publishing_twice_adds_nothing(client: httpx.Client) -> None:
    campaign, comparisons = fresh(), some(7)
    first = rounds.publish(client, campaign, comparisons)
    before = {record["id"]: record["updated_at"] for record in rounds.records(client, first)}
    seen: list[tuple[int, int]] = []

    second = rounds.publish(client, campaign, comparisons, lambda done, total: seen.append((done, total)))

    assert second == first
    assert {record["id"]: record["updated_at"] for record in rounds.records(client, first)} == before
    assert len(before) == 7
    assert seen == [(7, 7)]


def test_interrupted_publish_goes_on(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "BULK", 3)
    campaign, comparisons = fresh(), some(10)

    def interrupt(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounds.publish(client, campaign, comparisons, interrupt)
    seen: list[int] = []
    dataset = rounds.publish(client, campaign, comparisons, lambda done, total: seen.append(done))

    assert seen == [6, 9, 10]
    assert sorted(record["external_id"] for record in rounds.records(client, dataset)) == [c.id for c in comparisons]


def test_half_made_dataset_is_completed(client: httpx.Client) -> None:
    """Killed after the dataset and one field were made, before it was opened to annotators."""
    campaign = fresh()
    workspace = create_workspace(client, campaign.workspace)
    distribution = {"strategy": "overlap", "min_submitted": campaign.min_submitted}
    settings = {"name": campaign.name, "guidelines": campaign.guidelines, "distribution": distribution}
    made = request(client, "POST", "/api/v1/datasets", json={**settings, "workspace_id": workspace})
    field = {"name": "prompt", "title": "Prompt", "required": True, "settings": {"type": "text"}}
    request(client, "POST", f"/api/v1/datasets/{made['id']}/fields", json=field)

    assert rounds.publish(client, campaign, some(2)) == made["id"]
    assert rounds.progress_of(client, made["id"]).total == 2


def test_a_dataset_of_another_round_is_left_alone(client: httpx.Client) -> None:
    campaign = fresh()
    rounds.publish(client, campaign, some(3))
    for other in (
        fresh(name=campaign.name, options=3),
        fresh(name=campaign.name, min_submitted=3),
        fresh(name=campaign.name, criteria=("helpful",)),
    ):
        with pytest.raises(LabelingError, match="was published with another question or overlap"):
            rounds.publish(client, other, some(3))
    with pytest.raises(LabelingError, match="holds 1 records that are not of this round"):
        rounds.publish(client, campaign, some(2))


def test_markup_in_completions_is_published_as_text(client: httpx.Client) -> None:
    dataset = rounds.publish(client, fresh(), some(1))
    shown = some(1)[0].options
    record = next(rounds.records(client, dataset))
    fields = {option: record["fields"][option] for option in shown}
    assert not any("<" in text for text in fields.values())
    assert {option: unescaped(text) for option, text in fields.items()} == {o: c.text for o, c in shown.items()}
    settings = request(client, "GET", f"/api/v1/datasets/{dataset}/fields")["items"]
    assert {field["settings"]["use_markdown"] for field in settings} == {False}


@given(st.text())
def test_escaping_loses_nothing(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert not {"<", ">"} & set(escaped(text))


def test_ranks_ties_gaps_and_discards_come_back_intact(client: httpx.Client, argilla: dict[str, str]) -> None:
    campaign, comparisons = fresh(), some(3)
    dataset = rounds.publish(client, campaign, comparisons)
    keys = annotators(client, "rank-ana", "rank-ben")
    records = {record["external_id"]: record["id"] for record in rounds.records(client, dataset)}
    ranked = {"response_a": 1, "response_b": 1, "response_c": 4, "response_d": 2}
    url = argilla["ARGILLA_API_URL"]
    assert answer(url, keys["rank-ana"], records[comparisons[0].id], ranked, "submitted").status_code == 201
    assert answer(url, keys["rank-ben"], records[comparisons[0].id], None, "discarded").status_code == 201
    assert answer(url, keys["rank-ana"], records[comparisons[1].id], ranked, "draft").status_code == 201

    found = rounds.fetch_judgements(client, dataset, campaign, comparisons, lambda user: user)

    options = comparisons[0].options
    by_status = {judgement.status: judgement for judgement in found}
    assert len(found) == 2, "a draft is not a judgement yet"
    assert by_status["submitted"].ranks == {options[option].id: rank for option, rank in ranked.items()}
    assert by_status["discarded"].ranks is None
    assert rounds.progress_of(client, dataset).answers == {"rank-ana": 1, "rank-ben": 1}


def test_malformed_answers_are_refused(client: httpx.Client, argilla: dict[str, str]) -> None:
    dataset = rounds.publish(client, fresh(), some(1))
    key = annotators(client, "rank-ana")["rank-ana"]
    record = next(rounds.records(client, dataset))["id"]
    for ranks in (
        {"response_a": 1},
        {"response_a": 1, "response_b": 2, "response_c": 3, "elsewhere": 4},
        {"response_a": 0, "response_b": 2, "response_c": 3, "response_d": 5},
    ):
        assert answer(argilla["ARGILLA_API_URL"], key, record, ranks, "submitted").status_code == 422


def test_reading_pages_loses_and_doubles_nothing(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = rounds.publish(client, fresh(), some(25))
    monkeypatch.setattr(rounds, "PAGE", 4)
    found = [record["external_id"] for record in rounds.records(client, dataset)]
    assert sorted(found) == [comparison.id for comparison in some(25)]


def test_accounts_are_made_once(client: httpx.Client, argilla: dict[str, str]) -> None:
    name = f"person-{uuid.uuid4().hex[:6]}"
    first = create_annotators(client, "rounds", [name], {name: "first password"})
    assert create_annotators(client, "rounds", [name], {name: "second password"}) == first
    assert create_annotators(client, "elsewhere", [name], {}) == first
    assert name in usernames(client)
    sign_in = f"{argilla['ARGILLA_API_URL']}/api/v1/token"
    assert httpx.post(sign_in, data={"username": name, "password": "first password"}).is_success
    assert not httpx.post(sign_in, data={"username": name, "password": "second password"}).is_success
    owner = request(client, "GET", "/api/v1/me")["username"]
    with pytest.raises(LabelingError, match="is owner in Argilla, not annotator"):
        create_annotators(client, "rounds", [owner], {})


def test_many_annotators_at_once_lose_nothing(client: httpx.Client, argilla: dict[str, str]) -> None:
    campaign, comparisons = fresh(min_submitted=6), some(10)
    dataset = rounds.publish(client, campaign, comparisons)
    keys = annotators(client, *(f"crowd-{number}" for number in range(6)))
    crowd = [(dataset, SimulatedAnnotator(name), key) for name, key in keys.items()]

    answered = answer_round(argilla["ARGILLA_API_URL"], crowd, lambda record, text: len(text))
    again = answer_round(argilla["ARGILLA_API_URL"], crowd, lambda record, text: len(text))

    judgements = rounds.fetch_judgements(client, dataset, campaign, comparisons, lambda user: user)
    assert (answered, again) == (60, 0)
    assert len({(judgement.record, judgement.annotator) for judgement in judgements}) == 60
    assert rounds.progress_of(client, dataset).completed == 10


def test_lost_answers_of_the_server_double_nothing(argilla: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request arrives, but the first answer to each that changes something gets lost on the way back."""
    monkeypatch.setattr("labeling.service.connection._BACKOFF", 0.01)
    handle, lost = httpx.HTTPTransport.handle_request, set()

    def lossy(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        response = handle(transport, request)
        what = (request.method, str(request.url), request.read())
        if request.method == "GET" or request.url.path.endswith("/search") or what in lost:
            return response
        lost.add(what)
        response.close()
        raise httpx.ReadError("connection reset", request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lossy)
    campaign, comparisons = fresh(workspace=f"lossy-{uuid.uuid4().hex[:6]}"), some(4)
    names = [f"lossy-{uuid.uuid4().hex[:6]}" for _ in range(2)]
    with closing(connect(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"])) as client:
        dataset = rounds.publish(client, campaign, comparisons)
        keys = create_annotators(client, campaign.workspace, names, dict.fromkeys(names, "a long password"))
        crowd = [(dataset, SimulatedAnnotator(name), key) for name, key in keys.items()]
        answer_round(argilla["ARGILLA_API_URL"], crowd, lambda record, text: len(text))
        judgements = rounds.fetch_judgements(client, dataset, campaign, comparisons, lambda user: user)

    assert len(lost) > 15
    assert len(judgements) == len({(each.record, each.annotator) for each in judgements}) == 8


def test_an_annotators_key_may_not_publish(client: httpx.Client, argilla: dict[str, str]) -> None:
    key = annotators(client, "rank-ana")["rank-ana"]
    with (
        closing(connect(argilla["ARGILLA_API_URL"], key)) as annotator,
        pytest.raises(LabelingError, match="use the key of an owner"),
    ):
        rounds.publish(annotator, fresh(workspace="new"), some(1))


def test_connection_faults_are_one_sentence(argilla: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeling.service.connection._BACKOFF", 0.01)
    with pytest.raises(LabelingError, match="refuses the API key"):
        connect(argilla["ARGILLA_API_URL"], "wrong")
    with pytest.raises(LabelingError, match=r"does not answer .* run again, nothing given so far is lost"):
        connect("http://127.0.0.1:9", "any")
    with pytest.raises(LabelingError, match="does not answer"):
        connect("not a url", "any")
    with pytest.raises(LabelingError, match="malformed"):
        connect("http://localhost:port", "any")


def test_guidelines_and_options_out_of_range_are_refused() -> None:
    with pytest.raises(LabelingError, match="2 to 8 completions"):
        fresh(options=9)
    with pytest.raises(LabelingError, match="Guidelines must have 1 to 10000 characters"):
        fresh(guidelines="x" * 10_001)
