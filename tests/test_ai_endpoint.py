"""A judge over HTTP, against a real server that speaks OpenAI's chat format and fails in every way one does."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from labeling.ai import endpoint as endpoints
from labeling.ai import replies
from labeling.ai.endpoint import Endpoint, Usage, ask, url_fault
from labeling.ai.replies import Reply
from labeling.comparison import LabelingError

KEY = "sk-test-9d1f6a-not-for-anyone"

Brain = Callable[[dict[str, Any], int], tuple[int, Any] | tuple[int, Any, dict[str, str]]]
"""(request body, number of the request) -> status, body (JSON, or bytes as they are), headers."""


def completion(text: str | None, finish: str = "stop", prompt: int = 100, given: int = 10) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": given, "total_tokens": prompt + given},
    }


class ChatServer:
    """What it was asked, and the most requests it ever held at once."""

    def __init__(self, brain: Brain) -> None:
        self.brain, self.lock = brain, threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most = 0
        self.url = ""

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            number = len(self.requests)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            status, content, *more = self.brain(body, number)
            return status, content, dict(*more)
        finally:
            with self.lock:
                self.at_once -= 1


@contextmanager
def serving(brain: Brain) -> Iterator[ChatServer]:
    chat = ChatServer(brain)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, headers = chat.answer(self.path, dict(self.headers), body)
            sent = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(sent) + ("X-Cut" in headers)))
                self.end_headers()
                for at in range(0, len(sent), each := int(headers.get("X-Slow", len(sent)))):
                    self.wfile.write(sent[at : at + each])
                    time.sleep(0.05 if "X-Slow" in headers else 0)
            except OSError:
                pass  # the client has gone

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def to(server: ChatServer, **more: Any) -> Endpoint:
    settings: dict[str, Any] = {"key_env": "JUDGE_KEY", "backoff": 0.01, "timeout": 5.0, **more}
    return Endpoint(server.url, "judge-1", **settings)


def questions(count: int) -> dict[str, list[dict[str, str]]]:
    return {f"q{n}": [{"role": "user", "content": f"question {n}"}] for n in range(count)}


def asked(endpoint: Endpoint, count: int = 1) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    ask(endpoint, questions(count), replies.__setitem__)
    return replies


def test_questions_and_answers_keep_together_and_under_the_limit() -> None:
    def echo(body: dict[str, Any], number: int) -> tuple[int, Any]:
        time.sleep(0.02)
        return 200, completion(f"to {body['messages'][0]['content']}")

    with serving(echo) as server:
        replies = asked(to(server, concurrency=3, options={"temperature": 0, "seed": 7}), 12)
        assert {name: reply.text for name, reply in replies.items()} == {f"q{n}": f"to question {n}" for n in range(12)}
        assert server.most <= 3 and len(server.requests) == 12
        assert server.requests[0]["model"] == "judge-1" and server.requests[0]["seed"] == 7
        assert set(server.paths) == {"/v1/chat/completions"}
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


GARBAGE = [
    b"<html>busy</html>",
    b'{"choices": [',
    b"[]",
    b'{"choices": []}',
    b'{"choices": [{}]}',
    b'{"choices": 3}',
    b"",
]


@pytest.mark.parametrize("failure", [*(429, 500, 502, 503, 504), *GARBAGE])
def test_what_is_busy_or_garbled_is_tried_again(failure: int | bytes) -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        if number < 3:
            return (200, failure) if isinstance(failure, bytes) else (failure, {"error": {"message": "later"}})
        return 200, completion("yes")

    with serving(brain) as server:
        assert asked(to(server))["q0"].text == "yes"
        assert len(server.requests) == 3


def test_a_timeout_and_a_broken_connection_are_tried_again() -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any] | tuple[int, Any, dict[str, str]]:
        if number == 1:
            time.sleep(1.0)
        if number == 2:
            return 200, completion("half"), {"X-Cut": "1", "Connection": "close"}  # one byte less than it promises
        return 200, completion("yes")

    with serving(brain) as server:
        assert asked(to(server, timeout=0.3))["q0"].text == "yes"
        assert len(server.requests) == 3


def test_an_answer_that_comes_bit_by_bit_is_not_waited_for() -> None:
    with serving(lambda body, number: (200, completion("yes"), {"X-Slow": "2"})) as server:
        begun = time.monotonic()
        with pytest.raises(
            LabelingError, match=r"gives no answer \(no whole answer within its 'timeout' of 0.3 s, 2 att"
        ):
            asked(to(server, timeout=0.3, attempts=2))
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("header", "least", "most"), [("0.5", 0.5, 3.0), ("nonsense", 0.0, 0.4), ("", 0.0, 0.4)])
def test_the_server_says_how_long_to_wait(header: str, least: float, most: float) -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any] | tuple[int, Any, dict[str, str]]:
        return (429, {}, {"Retry-After": header}) if number == 1 else (200, completion("yes"))

    with serving(brain) as server:
        started = time.monotonic()
        assert asked(to(server))["q0"].text == "yes"
        assert least <= time.monotonic() - started < most


@pytest.mark.parametrize("header", ["86400", "Fri, 20 Nov 2099 00:00:00 GMT"])
def test_no_server_waits_forever(monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    monkeypatch.setattr(replies, "LONGEST_WAIT", 0.2)

    def brain(body: dict[str, Any], number: int) -> tuple[int, Any] | tuple[int, Any, dict[str, str]]:
        return (503, {}, {"Retry-After": header}) if number == 1 else (200, completion("yes"))

    with serving(brain) as server:
        assert asked(to(server))["q0"].text == "yes"


def test_a_long_wait_says_what_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LONG", 0.05)

    def brain(body: dict[str, Any], number: int) -> tuple[int, Any] | tuple[int, Any, dict[str, str]]:
        refused = (429, {"error": f"slow down, {KEY}"}, {"Retry-After": "0.1"})
        return refused if number <= 4 else (200, completion("yes"))

    heard: list[str] = []
    with serving(brain) as server:
        ask(to(server), questions(3), lambda name, reply: None, on_wait=heard.append)
    [told] = heard
    assert re.search(r"busy \(HTTP 429: .*slow down.*\); waiting \d+ s\.$", told) and KEY not in told


def test_what_the_judge_does_not_say_is_told_apart() -> None:
    cases: list[tuple[int, Any]] = [
        (200, completion("A >", finish="length")),
        (200, completion(None)),
        (200, completion("", finish="content_filter")),
        (400, {"error": {"message": "maximum context length is 4096 tokens"}}),
        (200, {"choices": [{"message": {"content": "fine"}}]}),
    ]
    with serving(lambda body, number: cases[int(body["messages"][0]["content"].split()[1])]) as server:
        replies = asked(to(server), len(cases))
    assert not replies["q0"].whole and replies["q0"].completion_tokens == 10
    assert [bool(replies[f"q{n}"].refused) for n in range(5)] == [False, True, True, True, False]
    assert "maximum context length" in replies["q3"].refused and replies["q3"].lasting
    assert replies["q4"].whole and replies["q4"].prompt_tokens is None


def test_one_question_that_always_fails_does_not_stop_the_others() -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return (500, {}) if body["messages"][0]["content"] == "question 5" else (200, completion("yes"))

    with serving(brain) as server:
        replies = asked(to(server, concurrency=1, attempts=2), 10)
    assert [name for name, reply in replies.items() if reply.refused] == ["q5"]
    assert not replies["q5"].lasting, "asked again next time"


def test_a_server_that_is_down_ends_the_run_and_what_was_answered_is_kept() -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return (200, completion("yes")) if number <= 4 else (503, {"error": "overloaded"})

    replies: dict[str, Reply] = {}
    with serving(brain) as server, pytest.raises(LabelingError, match=r"gives no answer \(HTTP 503.*is kept"):
        ask(to(server, concurrency=1, attempts=2), questions(50), replies.__setitem__)
    assert sum(not reply.refused for reply in replies.values()) == 4
    assert len(server.requests) <= 4 + 2 * (endpoints.DOWN + 1)
    gone = Endpoint("http://127.0.0.1:9/v1", "m", backoff=0.01, attempts=2)
    with pytest.raises(LabelingError, match=r"127.0.0.1:9/v1 gives no answer \(ConnectError"):
        ask(gone, questions(3), lambda n, r: None)


def test_a_request_that_is_wrong_for_all_ends_the_run() -> None:
    with (
        serving(lambda body, number: (400, {"error": "unknown field temprature"})) as server,
        pytest.raises(LabelingError, match=r"refuses every question.*temprature"),
    ):
        asked(to(server, concurrency=1), 100)
    assert len(server.requests) == endpoints.WRONG
    with (
        serving(lambda body, number: (404, {"error": "no such model"})) as server,
        pytest.raises(LabelingError, match=r"HTTP 404.*no such model.*check its url and model"),
    ):
        asked(to(server), 20)
    with (
        serving(lambda body, number: (402, {"error": "insufficient credits"})) as server,
        pytest.raises(LabelingError, match=r"HTTP 402.*insufficient credits.*pay for it.*is kept"),
    ):
        asked(to(server), 20)
    with (
        serving(lambda body, number: (302, {}, {"Location": "http://127.0.0.1:9/steal"})) as server,
        pytest.raises(LabelingError, match="HTTP 302"),
    ):
        asked(to(server))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_the_key_is_in_no_error_and_no_log(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"error": {"message": f"Incorrect API key provided: {KEY}. Also seen: sk-test-****anyone"}}
    with serving(lambda request, number: (status, body)) as server:
        with pytest.raises(LabelingError) as caught:
            asked(to(server, attempts=2), 12)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    for text in [*(f"{each!s} {each!r}" for each in chain), caplog.text]:
        assert KEY not in text and "anyone" not in text
    if status in (401, 403):
        assert "JUDGE_KEY" in str(caught.value)


def test_a_missing_key_and_addresses_with_secrets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(LabelingError, match="JUDGE_KEY is not set"):
        asked(Endpoint("http://127.0.0.1:9/v1", "m", key_env="JUDGE_KEY"))
    monkeypatch.setenv("JUDGE_KEY", "with\nnewline")
    with pytest.raises(LabelingError, match="characters no API key has") as caught:
        asked(Endpoint("http://127.0.0.1:9/v1", "m", key_env="JUDGE_KEY"))
    assert "newline" not in str(caught.value)
    for wrong in ("http://me:secret@host/v1", "https://host/v1?api-key=secret"):
        assert "environment variable" in url_fault(wrong) and "secret" not in url_fault(wrong)
    for wrong in ("host/v1", "ftp://host", "http://", "http://host:port/v1", ""):
        assert url_fault(wrong)
    assert not url_fault("https://api.example.com/v1") and not url_fault("http://127.0.0.1:8000/v1")


def test_cost_by_hand() -> None:
    usage = Usage()
    for prompt, given in ((1000, 50), (2000, 150), (None, None)):
        usage.add(prompt, given)
    assert (usage.answers, usage.prompt_tokens, usage.completion_tokens, usage.unmetered) == (3, 3000, 200, 1)
    assert usage.cost(2.5, 10.0) == pytest.approx(0.0075 + 0.002)


def test_what_on_reply_raises_ends_the_run() -> None:
    def full(name: str, reply: Reply) -> None:
        raise OSError("disk full")

    with serving(lambda body, number: (200, completion("yes"))) as server:
        with pytest.raises(OSError, match="disk full"):
            ask(to(server, concurrency=2), questions(40), full)
        assert len(server.requests) < 10


@pytest.mark.parametrize("encoded", [b"[" * 200_000, b"\x1f\x8bnot gzip"])
def test_what_cannot_even_be_parsed_is_tried_again_too(encoded: bytes) -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
        headers = {"Content-Encoding": "gzip"} if encoded.startswith(b"\x1f") else {}
        return (200, encoded, headers) if number < 3 else (200, completion("yes"), {})

    with serving(brain) as server:
        assert asked(to(server))["q0"].text == "yes"
        assert len(server.requests) == 3


def test_half_a_character_is_replaced() -> None:
    body = json.dumps(completion("a \ud83d b")).encode()
    with serving(lambda request, number: (200, body)) as server:
        assert asked(to(server))["q0"].text == "a \ufffd b"
    whole = json.dumps(completion("a \U0001f600 b")).encode()
    with serving(lambda request, number: (200, whole)) as server:
        assert asked(to(server))["q0"].text == "a \U0001f600 b"


def test_a_question_waits_until_it_may_be_asked() -> None:
    tries: list[str] = []

    def admit(name: str) -> bool:
        tries.append(name)
        return tries.count(name) > 2

    replies: dict[str, Reply] = {}
    with serving(lambda body, number: (200, completion("yes"))) as server:
        ask(to(server), questions(4), replies.__setitem__, admit=admit)
    assert len(replies) == 4 and len(tries) == 12
