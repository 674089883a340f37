"""Argilla's own HTTP API, answered by the stock server with our search engine on SQLite."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from tests.argilla_round import Round


def _terms(scope: dict[str, Any], *values: str) -> dict[str, Any]:
    return {"type": "terms", "scope": scope, "values": list(values)}


def _range(scope: dict[str, Any], low: Any = None, high: Any = None) -> dict[str, Any]:
    return {"type": "range", "scope": scope, **({"ge": low} if low is not None else {}), "le": high}


def _metadata(name: str) -> dict[str, Any]:
    return {"entity": "metadata", "metadata_property": name}


def _response(**scope: str) -> dict[str, Any]:
    return {"entity": "response", **scope}


@pytest.fixture(scope="module")
def shop(argilla: dict[str, str]) -> Round:
    return Round(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "shop")


@pytest.fixture(scope="module")
def ranked(argilla: dict[str, str]) -> Round:
    """Record 0 completed by both, 1 submitted by the first, 2 discarded, 3 a draft, 4 and 5 untouched."""
    ranked = Round(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "ranked")
    answers = [(0, 0, 5), (1, 0, 4), (0, 1, 2)]
    responses = [ranked.rank(who, record, score) for who, record, score in answers]
    responses += [ranked.rank(0, 2, 1, "discarded"), ranked.rank(0, 3, 3, "draft")]
    assert [response.status_code for response in responses] == [201] * 5
    return ranked


def test_the_engine_says_what_it_is(argilla: dict[str, str]) -> None:
    status = httpx.get(f"{argilla['ARGILLA_API_URL']}/api/v1/status", trust_env=False).json()
    assert status["search_engine"]["name"] == "embedded"


@pytest.mark.parametrize(
    ("query", "field", "found"),
    [
        ("bread", None, {0, 1, 4}),
        ("bread", "prompt", {0}),
        ("bread milk", None, {1}),
        ("bread | cheese", None, {0, 1, 3, 4}),
        ("bread -milk", None, {0, 4}),
        ('"aisle four"', None, {0, 4}),
        ('"four aisle"', None, set()),
        ("past*", None, {4}),
        ("past", None, set()),
        ("CAFÉ", None, {2}),
        ("???", None, set()),
        ("'; DROP TABLE records; --", None, set()),
    ],
)
def test_text_search(shop: Round, query: str, field: str | None, found: set[int]) -> None:
    assert shop.text(query, field) == found


def test_the_better_match_comes_first(shop: Round) -> None:
    assert shop.search(query={"text": {"q": "two"}}) == [3, 1]


def test_metadata_filters(shop: Round) -> None:
    assert shop.filter(_terms(_metadata("aisle"), "dairy", "drinks")) == {1, 2, 3}
    assert shop.filter(_range(_metadata("price"), 3, 7)) == {0, 2, 4}
    assert shop.filter(_range(_metadata("weight"), 0.5)) == {0, 3, 5}
    assert shop.filter(_terms(_metadata("aisle"), "dairy"), _range(_metadata("price"), 5)) == {3}


def test_suggestion_filters(shop: Round) -> None:
    scope = {"entity": "suggestion", "question": "score"}
    assert shop.filter(_terms({**scope, "property": "agent"}, "judge")) == {0, 1, 2}
    assert shop.filter(_range({**scope, "property": "score"}, 0.2)) == {2, 3, 4}
    assert shop.filter(_range({**scope, "property": "value"}, 2, 3)) == {1, 2}


def test_record_filters_by_id_and_time(shop: Round) -> None:
    assert shop.filter(_terms({"entity": "record", "property": "id"}, shop.records[4])) == {4}
    scope = {"entity": "record", "property": "inserted_at"}
    assert shop.filter(_range(scope, "2020-01-01T00:00:00")) == set(range(6))
    assert shop.filter(_range(scope, "2020-01-01T00:00:00", "2021-01-01T00:00:00+02:00")) == set()


def test_an_unknown_field_is_refused_and_not_a_crash(shop: Round) -> None:
    body = {"query": {"text": {"q": "x", "field": "nowhere"}}}
    assert shop.owner.post(f"me/datasets/{shop.id}/records/search", json=body).status_code == 422


def test_sorting_puts_records_without_a_value_last(shop: Round) -> None:
    assert shop.sort(_metadata("price")) == [1, 0, 4, 2, 3, 5]
    assert shop.sort(_metadata("price"), "desc") == [3, 2, 4, 0, 1, 5]
    score = {"entity": "suggestion", "question": "score", "property": "score"}
    assert shop.sort(score, "desc") == [4, 3, 2, 1, 0, 5]
    assert shop.sort({"entity": "record", "property": "inserted_at"}) == list(range(6))


def test_each_annotator_has_a_stable_order_of_their_own(shop: Round) -> None:
    orders = [shop.search(annotator) for annotator in shop.annotators]
    assert [shop.search(annotator) for annotator in shop.annotators] == orders
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6))
    assert orders[0] != orders[1]
    pages = [shop.search(shop.annotators[0], f"?offset={offset}&limit=2") for offset in (0, 2, 4, 6)]
    assert [number for page in pages for number in page] == orders[0]


def test_similarity_search(shop: Round) -> None:
    near = {"vector": {"name": "meaning", "record_id": shop.records[0]}}
    assert shop.search(query=near) == [1, 4, 5, 2, 3]
    far = {"vector": {"name": "meaning", "value": [1.0, 0.0], "order": "least_similar"}}
    assert shop.search(page="?limit=2", query=far) == [3, 2]


def test_metadata_metrics(shop: Round) -> None:
    terms = shop.owner.get(f"metadata-properties/{shop.properties['aisle']}/metrics").json()
    counts = {value["term"]: value["count"] for value in terms["values"]}
    assert terms["total"] == 5 and counts == {"bakery": 2, "dairy": 2, "drinks": 1}
    price = shop.owner.get(f"metadata-properties/{shop.properties['price']}/metrics").json()
    weight = shop.owner.get(f"metadata-properties/{shop.properties['weight']}/metrics").json()
    assert (price["min"], price["max"], weight["min"], weight["max"]) == (1, 9, 0.25, 2.0)


def test_response_filters_follow_who_asks(ranked: Round) -> None:
    first, second = ranked.annotators

    def by_status(who: httpx.Client, *statuses: str) -> set[int]:
        return ranked.filter(_terms(_response(property="status"), *statuses), who=who)

    assert by_status(first, "submitted") == {0, 1}
    assert by_status(first, "discarded", "draft") == {2, 3}
    assert by_status(first, "pending") == {4, 5}
    assert by_status(first, "pending", "draft") == {3, 4, 5}
    assert by_status(second, "pending") == {1, 2, 3, 4, 5}
    assert ranked.filter(_range(_response(question="score"), 4, 5), who=first) == {0}
    assert ranked.filter(_terms(_response(question="score"), "2"), who=first) == {1}


def test_progress_counts_records_and_an_annotators_responses(ranked: Round) -> None:
    progress = ranked.owner.get(f"datasets/{ranked.id}/progress").json()
    assert (progress["total"], progress["completed"], progress["pending"]) == (6, 1, 5)
    mine = ranked.annotators[0].get(f"me/datasets/{ranked.id}/metrics").json()["responses"]
    assert {name: mine[name] for name in ("submitted", "discarded", "draft")} == dict(submitted=2, discarded=1, draft=1)
    assert ranked.filter(_terms({"entity": "record", "property": "status"}, "completed")) == {0}


def test_ranks_with_ties_are_kept_as_given(ranked: Round) -> None:
    records = ranked.owner.get(f"datasets/{ranked.id}/records", params={"include": "responses"}).json()["items"]
    record = next(record for record in records if record["external_id"] == "0")
    stored = record["responses"][0]["values"]["ranking"]["value"]
    assert {option["value"]: option["rank"] for option in stored} == {"b": 1, "a": 2, "c": 2}


def test_annotators_who_answer_at_once_lose_nothing(argilla: dict[str, str]) -> None:
    crowded = Round(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "crowded")
    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(lambda n: crowded.rank(n % 2, n // 2).status_code, range(12)))
    assert codes == [201] * 12
    assert crowded.owner.get(f"datasets/{crowded.id}/progress").json()["completed"] == 6


def test_a_webhook_reaches_us_through_the_queue_inside_the_server(argilla: dict[str, str]) -> None:
    heard: list[bytes] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    listener = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    webhooked = Round(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "webhooked")
    url = f"http://127.0.0.1:{listener.server_port}/"
    hook = webhooked.post("webhooks", url=url, events=["record.completed", "response.created"], description="test")
    try:
        webhooked.rank(0, 0)
        webhooked.rank(1, 0)
        deadline = time.monotonic() + 20
        while len(heard) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        types = sorted(json.loads(body)["type"] for body in heard)
        assert types == ["record.completed", "response.created", "response.created"]
        assert all(webhooked.records[0].encode() in body for body in heard)
    finally:
        webhooked.owner.delete(f"webhooks/{hook['id']}")
        listener.shutdown()


def test_the_web_ui_is_served(argilla: dict[str, str]) -> None:
    page = httpx.get(f"{argilla['ARGILLA_API_URL']}/sign-in", trust_env=False)
    assert page.status_code == 200 and "<script" in page.text and "@@baseUrl@@" not in page.text
