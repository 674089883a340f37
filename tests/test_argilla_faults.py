"""Argilla under faults: malformed answers, curious annotators, a crowd, kill -9, webhook receivers that are down."""

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.argilla_load import Load
from flows import services as local
from labeling.server import outbox, statuses
from labeling.server.outbox import Delivery, Outbox, WebhookGone
from tests.argilla_round import Round


@pytest.fixture(scope="module")
def round(argilla: dict[str, str]) -> Round:
    return Round(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "faults")


def ranks(*given: Any) -> list[dict[str, Any]]:
    return [{"value": option, "rank": rank} for option, rank in zip("abc", given, strict=False)]


def submit(round: Round, record: int, value: Any, status: str = "submitted", **others: Any) -> httpx.Response:
    values = {"ranking": {"value": value}, **{name: {"value": each} for name, each in others.items()}}
    return round.annotators[0].post(
        f"records/{round.records[record]}/responses", json={"status": status, "values": values}
    )


REFUSED: dict[str, Any] = {
    "one missing": ranks(1, 2),
    "none": [],
    "without rank": [{"value": "a"}, {"value": "b", "rank": 1}, {"value": "c", "rank": 2}],
    "unknown option": [{"value": "z", "rank": 1}, *ranks(1, 2)],
    "option twice": [{"value": "a", "rank": 1}, {"value": "a", "rank": 2}, {"value": "b", "rank": 1}],
    "rank over the number of options": ranks(1, 1, 5),
    "2, 3, 4": ranks(2, 3, 4),
    "zero": ranks(0, 1, 2),
    "negative": ranks(-1, 1, 2),
    "huge": ranks(1, 2, 10**30),
    "half": ranks(1.5, 2, 3),
    "a word": ranks("first", 2, 3),
    "bare options": ["a", "b", "c"],
    "an object": {"a": 1, "b": 2, "c": 3},
    "a text": "a > b > c",
    "a number": 3,
    "nothing": None,
    "nested": [ranks(1, 2, 3)],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_malformed_ranks_are_refused_in_words(round: Round, kind: str) -> None:
    response = submit(round, 0, REFUSED[kind])
    assert response.status_code == 422 and response.json()["detail"], response.text


@pytest.mark.parametrize("given", [(1, 1, 3), (2, 3, 3), (3, 3, 3), (1, 2, 2)])
def test_gaps_and_ties_are_an_order_and_kept_as_given(round: Round, given: tuple[int, ...]) -> None:
    response = submit(round, 1, ranks(*given))
    assert response.status_code == 201, response.text
    assert response.json()["values"]["ranking"]["value"] == ranks(*given)
    round.annotators[0].delete(f"responses/{response.json()['id']}").raise_for_status()


NO_ANSWERS = [
    b"{",
    b"\xff\xfe",
    b"[" * 5000,
    b'{"status": "done", "values": {}}',
    b'{"status": "submitted"}',
    b'{"status": "submitted", "values": {"score": {"value": 3}}}',
    b'{"status": "submitted", "values": {"nowhere": {"value": 3}}}',
]


@pytest.mark.parametrize("body", NO_ANSWERS, ids=range(len(NO_ANSWERS)))
def test_bodies_that_are_no_answers_are_refused(round: Round, body: bytes) -> None:
    path = f"records/{round.records[0]}/responses"
    response = round.annotators[0].post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422), response.text


def test_ratings_outside_the_question_are_refused(round: Round) -> None:
    for score in (0, 9, "3", 2.5, [3], True):
        assert submit(round, 0, ranks(1, 2, 3), score=score).status_code == 422, score


def test_an_answer_given_twice_at_once_is_there_once(round: Round) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: round.rank(1, 2).status_code, range(8)))
    assert sorted(codes) == [201] + [409] * 7
    listed = round.owner.get(f"datasets/{round.id}/records", params={"include": "responses"}).json()["items"]
    assert [len(record["responses"]) for record in listed if record["external_id"] == "2"] == [1]


def test_other_peoples_records_and_answers_are_out_of_reach(round: Round) -> None:
    stranger = Round(round.url, round.owner.headers["X-Argilla-Api-Key"], "faults-elsewhere").annotators[0]
    record, colleague = round.records[3], round.annotators[1]
    answer = {"status": "submitted", "values": {"ranking": {"value": ranks(1, 2, 3)}}}
    assert stranger.post(f"records/{record}/responses", json=answer).status_code == 403
    bulk = stranger.post("me/responses/bulk", json={"items": [{"record_id": record, **answer}]}).json()["items"][0]
    assert bulk["item"] is None and "not allowed" in bulk["error"]["detail"]
    assert stranger.post(f"me/datasets/{round.id}/records/search", json={}).status_code == 403
    assert stranger.get(f"records/{record}").status_code == 403
    mine = round.rank(0, 3).json()["id"]
    assert colleague.put(f"responses/{mine}", json=answer).status_code == 403
    assert colleague.delete(f"responses/{mine}").status_code == 403
    assert colleague.get(f"datasets/{round.id}/records?include=responses").status_code == 403
    assert colleague.post(f"datasets/{round.id}/records/search?include=responses", json={}).status_code == 403


def test_an_annotator_reads_their_own_answer_and_visible_metadata_only(round: Round) -> None:
    hidden = {"name": "model", "title": "model", "settings": {"type": "terms"}, "visible_for_annotators": False}
    round.post(f"datasets/{round.id}/metadata-properties", **hidden)
    record = round.records[4]
    round.owner.patch(f"records/{record}", json={"metadata": {"model": "ours", "aisle": "bakery", "extra": 1}})
    round.rank(0, 4)
    seen = [client.get(f"records/{record}").json() for client in (*round.annotators, round.owner)]
    assert [len(each["responses"]) for each in seen] == [1, 0, 1]
    assert [sorted(each["metadata"]) for each in seen] == [["aisle"], ["aisle"], ["aisle", "extra", "model"]]
    assert seen[0]["vectors"] == {"meaning": [0.7, 0.7]} and seen[0]["fields"]["prompt"] == "Where are pastries?"


def test_a_dataset_that_is_not_open_holds_nothing_and_takes_nothing(round: Round) -> None:
    workspace = round.owner.get(f"datasets/{round.id}").json()["workspace_id"]
    draft = round.post("datasets", name="not open", workspace_id=workspace)["id"]
    items = [{"fields": {"prompt": "x"}}]
    assert round.owner.post(f"datasets/{draft}/records/bulk", json={"items": items}).status_code == 422
    found = round.annotators[0].post(f"me/datasets/{draft}/records/search", json={})
    assert found.status_code == 200 and found.json() == {"items": [], "total": 0}
    round.owner.delete(f"datasets/{draft}").raise_for_status()


@pytest.mark.parametrize("people", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_a_crowd_at_once_loses_and_doubles_nothing(argilla: dict[str, str], people: int) -> None:
    url, key = argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"]
    load = Load(url, key, f"crowd-{people}", people, size=50 * people)
    figures = load.figures(load.run(seconds=people))
    assert set(figures["codes"]) == {"200", "201"}, "no 5xx reaches a person"
    assert figures["answers"] >= people and _faults(figures) == 0, figures


def _faults(figures: dict[str, Any]) -> int:
    return sum(figures[name] for name in ("lost", "doubled", "never_sent", "wrong_ranks", "wrong_status"))


# A receiver of webhooks that can be down


class Receiver:
    """Listens on a port of its own; while `up` is False it answers 503."""

    def __init__(self) -> None:
        self.up = True
        self.heard: list[tuple[str, dict[str, Any]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.up:
                    receiver.heard.append((self.headers["webhook-id"], json.loads(body)))
                self.send_response(200 if receiver.up else 503)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Stay quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()


def _until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


@pytest.mark.slow
def test_kill_minus_nine_loses_no_acknowledged_answer_and_no_event(fresh_home: Path, receiver: Receiver) -> None:
    receiver.up = False
    local.up(only=("argilla",))
    service, key = local.status()["argilla"], local.argilla_credentials()[2]
    assert service.pid is not None
    load = Load(service.url, key, "killed", annotators=8, size=300)
    hook = {"url": receiver.url, "events": ["response.created"], "description": "down at first"}
    load.owner.post("webhooks", json=hook).raise_for_status()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(load.run, 60)
        for _ in range(60):
            load.answered.acquire()
        os.kill(service.pid, signal.SIGKILL)
        working.result()
    acknowledged = {record: person for person, told in load.told.items() for record in told.ranks}
    assert sum(len(told.ranks) for told in load.told.values()) >= 60
    assert any(told.unsure for told in load.told.values()), "somebody was interrupted in the middle of an answer"

    receiver.up = True
    local.up(only=("argilla",))
    assert local.status()["argilla"].pid != service.pid
    load.url = local.status()["argilla"].url
    assert sum(load.check().values()) == 0, load.check()
    told = sum(len(told.ranks) for told in load.told.values())
    assert _until(lambda: len({id for id, _ in receiver.heard}) >= told - len(load.people)), "what was kept is sent"
    assert {event["data"]["record"]["id"] for _, event in receiver.heard} <= set(acknowledged) | {
        record for told in load.told.values() for record in told.unsure
    }
    load.run(5)
    assert sum(load.check().values()) == 0 and sum(len(told.ranks) for told in load.told.values()) > told


# The parts by themselves


def _statuses(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as database:
        return dict(database.execute("SELECT id, status FROM records ORDER BY id"))


def test_statuses_left_behind_by_a_crash_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "argilla.db"
    with sqlite3.connect(path) as database:
        database.executescript(
            "CREATE TABLE datasets (id TEXT, distribution JSON); CREATE TABLE responses (record_id TEXT, status TEXT);"
            "CREATE TABLE records (id TEXT, dataset_id TEXT, status TEXT);"
            'INSERT INTO datasets VALUES (\'d\', \'{"strategy": "overlap", "min_submitted": 2}\');'
            "INSERT INTO records VALUES ('behind', 'd', 'pending'), ('ahead', 'd', 'completed');"
            "INSERT INTO records VALUES ('right', 'd', 'pending');"
            "INSERT INTO responses VALUES ('behind', 'submitted'), ('behind', 'submitted'), ('ahead', 'submitted'),"
            "('ahead', 'discarded'), ('right', 'draft')"
        )
    assert statuses.mend(path) == 2
    assert _statuses(path) == {"ahead": "pending", "behind": "completed", "right": "pending"}
    assert statuses.mend(path) == 0


class Post:
    """Takes deliveries, except from webhooks that are `down`."""

    def __init__(self, *down: str) -> None:
        self.down, self.gone = set(down), set[str]()
        self.taken: list[Delivery] = []
        self.tried: list[Delivery] = []

    def __call__(self, delivery: Delivery) -> None:
        self.tried.append(delivery)
        if delivery.webhook in self.gone:
            raise WebhookGone
        if delivery.webhook in self.down:
            raise OSError("refused")
        self.taken.append(delivery)


def _outbox(path: Path, post: Post) -> Outbox:
    box = Outbox(path / "webhooks.db", post, pauses=(0.05,))
    box.start()
    return box


def test_a_receiver_that_is_down_gets_its_events_later_and_holds_up_nobody(tmp_path: Path) -> None:
    post = Post("b")
    box = _outbox(tmp_path, post)
    for number in range(5):
        box.put(["a", "b"], str(number))
    assert _until(lambda: len(post.taken) == 5 and len(post.tried) > 7)
    assert [each.body for each in post.taken] == list("01234") and {each.webhook for each in post.taken} == {"a"}
    post.down.clear()
    assert _until(lambda: box.waiting() == 0)
    later = post.taken[5:]
    assert sorted(each.body for each in later) == list("01234") and {each.webhook for each in later} == {"b"}
    ids = {(each.webhook, each.body): each.message for each in post.tried}
    assert all(ids[each.webhook, each.body] == each.message for each in post.tried), "a message keeps its id"
    box.stop()


def test_what_was_not_taken_survives_the_process(tmp_path: Path) -> None:
    post = Post("a")
    box = _outbox(tmp_path, post)
    box.put(["a"], "kept")
    assert _until(lambda: len(post.tried) > 0)
    box.stop()
    again = _outbox(tmp_path, after := Post())
    assert _until(lambda: again.waiting() == 0)
    assert [(each.body, each.message) for each in after.taken] == [("kept", post.tried[0].message)]
    again.stop()


def test_a_deleted_webhook_and_a_day_of_silence_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    post = Post("silent")
    post.gone.add("deleted")
    monkeypatch.setattr(outbox, "PATIENCE", 0.3)
    box = _outbox(tmp_path, post)
    box.put(["deleted", "silent"], "lost")
    assert _until(lambda: box.waiting() == 0, seconds=5) and post.taken == []
    assert [each.webhook for each in post.tried].count("deleted") == 1
    assert [each.webhook for each in post.tried].count("silent") > 2
    box.stop()
