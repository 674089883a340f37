"""Argilla's deliveries: what is signed counts once, everything else is refused."""

import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from flows import webhooks
from flows.webhooks import Counting, Deliveries, RefusedError, secret_of, sign
from labeling.comparison import LabelingError
from tasks.artifact import PipelineError
from tests.argilla_round import Round
from tests.lifecycle_runs import RLHF

NOW = 1_700_000_000
SECRET = secret_of(base64.b64encode(b"what only Argilla and the receiver know").decode())
BODY = b'{"type": "record.completed"}'


def delivery(message: str = "msg_1", at: int = NOW, body: bytes = BODY, secret: bytes = SECRET) -> dict[str, str]:
    """The headers of a delivery as Argilla makes them."""
    signature = sign(secret, message, at, body)
    return {"webhook-id": message, "webhook-timestamp": str(at), "webhook-signature": signature}


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deliveries(clock: Clock) -> Deliveries:
    clock.now -= 1000
    made = Deliveries(SECRET, clock)
    clock.now += 1000
    return made


def refused(deliveries: Deliveries, headers: dict[str, str], body: bytes = BODY) -> int:
    with pytest.raises(RefusedError) as refusal:
        deliveries.accept(headers, body)
    return refusal.value.status


def test_the_signature_is_that_of_the_specification() -> None:
    """The vector that the reference libraries of Standard Webhooks are tested with."""
    secret = secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_library_that_argilla_signs_with_signs_the_same() -> None:
    library = pytest.importorskip("standardwebhooks.webhooks").Webhook(base64.b64encode(SECRET).decode())
    body = json.dumps({"prompt": "Où est le café?", "data": {}})
    theirs = library.sign("msg_2", datetime.fromtimestamp(NOW, tz=UTC), body)
    assert theirs == sign(SECRET, "msg_2", NOW, body.encode())


@pytest.mark.parametrize("text", ["", "whsec_", "not base64!", "é"])
def test_a_secret_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises((LabelingError, ValueError)):
        secret_of(text)


def test_a_signed_delivery_counts_once(deliveries: Deliveries, clock: Clock) -> None:
    deliveries.accept(delivery(), BODY)
    assert refused(deliveries, delivery()) == 409
    clock.now += 290
    assert refused(deliveries, delivery()) == 409, "as long as it would be fresh"
    deliveries.accept(delivery("msg_2"), BODY)
    clock.now += 20
    assert refused(deliveries, delivery()) == 401, "then it is stale"


def test_one_of_several_signatures_is_enough(deliveries: Deliveries) -> None:
    right = sign(SECRET, "msg_1", NOW, BODY)
    deliveries.accept({**delivery(), "webhook-signature": f"v1a,xyz v1,AAAA {right}"}, BODY)


@pytest.mark.parametrize(
    "headers",
    [
        delivery(secret=b"somebody else's"),
        {**delivery(), "webhook-id": "msg_9"},
        {**delivery(), "webhook-timestamp": str(NOW - 1)},
        {**delivery(), "webhook-signature": sign(SECRET, "msg_1", NOW, b"{}")},
        {**delivery(), "webhook-signature": sign(SECRET, "msg_1", NOW, BODY).replace("v1,", "v0,")},
        {**delivery(), "webhook-signature": "v1,"},
        {**delivery(), "webhook-signature": "nonsense é"},
    ],
)
def test_a_forged_delivery_is_refused(deliveries: Deliveries, headers: dict[str, str]) -> None:
    assert refused(deliveries, headers) == 401
    deliveries.accept(delivery(), BODY)  # and has not used up the true one's id


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": ""},
        {"webhook-signature": ""},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "-5"},
        {"webhook-timestamp": "1.7e9"},
        {"webhook-timestamp": "٣"},
        {"webhook-timestamp": "9" * 400},
    ],
)
def test_a_malformed_delivery_is_refused(deliveries: Deliveries, changed: dict[str, str]) -> None:
    assert refused(deliveries, {**delivery(), **changed}) == 400


@pytest.mark.parametrize(("age", "counts"), [(299, True), (301, False), (-299, True), (-301, False)])
def test_only_fresh_deliveries_count(deliveries: Deliveries, age: int, counts: bool) -> None:
    if counts:
        deliveries.accept(delivery(at=NOW - age), BODY)
    else:
        assert refused(deliveries, delivery(at=NOW - age)) == 401


def test_a_restart_forgets_no_delivery(clock: Clock) -> None:
    first = Deliveries(SECRET, clock)
    first.accept(delivery(), BODY)
    clock.now += 5
    assert refused(Deliveries(SECRET, clock), delivery()) == 401


class Slow:
    """A count that takes a moment, and how often it was made."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds, self.times = seconds, 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        time.sleep(self.seconds)
        return {"waiting": [{"name": "demo"}]}


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_many_deliveries_are_few_counts_and_one_more_later() -> None:
    count = Slow()
    counting = Counting(count, follow_up=0.3)
    counting.start()
    for _ in range(50):
        counting.ask()
    until(lambda: count.times >= 2)
    time.sleep(2.5)
    counting.stop()
    assert count.times <= 3, "what comes meanwhile is one count; the later one is not repeated"


def test_a_count_that_fails_does_not_end_the_receiver() -> None:
    answers: list[Any] = [PipelineError("Argilla does not answer."), {"waiting": []}]

    def count() -> dict[str, Any]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    counting = Counting(count, follow_up=0.1)
    counting.start()
    counting.ask()
    until(lambda: "error" in counting.last)
    assert "Argilla does not answer." in counting.last["error"]
    until(lambda: counting.last == {"waiting": []})
    counting.stop()


def test_the_application_answers_fast_and_refuses_what_does_not_count() -> None:
    count, left = Slow(seconds=5), threading.Event()
    app = webhooks.receiver(Deliveries(SECRET), Counting(count), left.set)
    now = int(time.time())
    with TestClient(app) as client:
        started = time.monotonic()
        good = delivery(at=now)
        assert client.post("/argilla", content=BODY, headers=good).status_code == 204
        assert client.post("/argilla", content=BODY, headers=good).status_code == 409
        assert client.post("/argilla", content=BODY + b" ", headers=delivery("m", now)).status_code == 401
        assert client.post("/argilla", content=BODY).status_code == 400
        assert client.post("/argilla", content=b"x" * 2_000_001, headers=good).status_code == 413
        assert client.get("/argilla").status_code == 405
        assert client.get("/health").json() == {"waiting": [], "error": ""}
        assert time.monotonic() - started < 2, "counting happens elsewhere"
    assert left.is_set() and count.times >= 1


@pytest.fixture
def near_argilla(argilla: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in argilla.items():
        monkeypatch.setenv(name, value)
    return argilla


def hooks(argilla: dict[str, str]) -> list[dict[str, Any]]:
    headers = {"X-Argilla-Api-Key": argilla["ARGILLA_API_KEY"]}
    return httpx.get(f"{argilla['ARGILLA_API_URL']}/api/v1/webhooks", headers=headers).json()["items"]


def test_registering_again_keeps_the_webhook_and_its_secret(near_argilla: dict[str, str], rlhf_home: Path) -> None:
    url = "http://127.0.0.1:1/argilla"
    secret = webhooks.register(url)
    webhooks.unregister(url)
    assert [hook["enabled"] for hook in hooks(near_argilla) if hook["url"] == url] == [False]
    assert webhooks.register(url) == secret
    [hook] = [hook for hook in hooks(near_argilla) if hook["url"] == url]
    assert hook["enabled"] and hook["events"] == ["record.completed"] and hook["secret"] == secret
    kept = rlhf_home / "credentials" / "webhooks.json"
    assert oct(os.stat(kept).st_mode & 0o777) == "0o600" and secret in kept.read_text()
    webhooks.unregister(url)


def test_the_kept_secret_serves_while_argilla_is_away(
    near_argilla: dict[str, str],
    rlhf_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_port: Callable[[], int],
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("ARGILLA_API_URL", away)
    with pytest.raises(PipelineError, match="does not answer"):
        webhooks.register("http://127.0.0.1:1/argilla")
    kept = rlhf_home / "credentials" / "webhooks.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    webhooks._keep({**before, f"{away} http://127.0.0.1:1/argilla": "c2VjcmV0"})
    assert webhooks.register("http://127.0.0.1:1/argilla") == "c2VjcmV0"


@pytest.fixture
def receiving(near_argilla: dict[str, str], free_port: Callable[[], int]) -> Iterator[Slow]:
    """A receiver that Argilla delivers to; gives its count."""
    port, count = free_port(), Slow()
    url = f"http://127.0.0.1:{port}{webhooks.PATH}"
    deliveries = Deliveries(secret_of(webhooks.register(url)))
    app = webhooks.receiver(deliveries, Counting(count, follow_up=600), lambda: webhooks.unregister(url))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: count.times == 1)
    yield count
    server.should_exit = True
    thread.join(timeout=20)


def test_argilla_delivers_a_completed_record(receiving: Slow, near_argilla: dict[str, str]) -> None:
    round = Round(near_argilla["ARGILLA_API_URL"], near_argilla["ARGILLA_API_KEY"], f"delivered-{time.time_ns()}")
    time.sleep(2)
    before = receiving.times
    round.rank(0, 0).raise_for_status()
    time.sleep(2)
    assert receiving.times == before, "one of two judgements does not complete a record"
    round.rank(1, 0).raise_for_status()
    until(lambda: receiving.times > before)


def test_the_verb_says_when_it_receives_and_when_it_stops(
    services: dict[str, str], free_port: Callable[[], int]
) -> None:
    port = free_port()
    receiver = subprocess.Popen([str(RLHF), "webhooks", "--port", str(port)], stderr=subprocess.PIPE, text=True)
    assert receiver.stderr is not None
    assert f"Receiving Argilla's webhooks at http://127.0.0.1:{port}/argilla" in receiver.stderr.readline()
    until(lambda: _answers(f"http://127.0.0.1:{port}/health"))
    receiver.send_signal(signal.SIGINT)
    _, told = receiver.communicate(timeout=60)
    assert told.startswith("Stopped:") and len(told.splitlines()) == 1


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False
