"""A model behind an OpenAI-compatible HTTP endpoint: chat completions, some at a time, tried again, counted.

The key comes from an environment variable, goes into one header and into nothing else: not into errors, which may quote
what the server says, and not to another host, for redirects are not followed.
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

import httpx

from labeling.ai.keys import key_in, quoted
from labeling.ai.replies import Reply, read_completion, retry_after
from labeling.comparison import LabelingError

BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Worth another attempt."""
REFUSED = (400, 413, 422)
"""This question cannot be answered (too long, filtered); others can."""
DOWN = 3
"""As many questions in a row without an answer mean that the endpoint is down."""
WRONG = 10
"""As many refusals before the first answer mean that the request itself is wrong."""
PATIENCE = 0.02
"""Seconds until a question that may not be asked yet is looked at again."""
LONG = 10.0
"""Seconds of waiting for a busy endpoint from which the reason is told."""
ADAPTED = 3
"""How often a request is put otherwise because the endpoint does not take it so."""
_UNTAKEN = re.compile(
    r"\b(temperature|top_p)\b.{0,40}(?:not support|unsupported|deprecated)"
    r"|(?:unsupported|not support).{0,40}\b(temperature|top_p)\b"
)
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Endpoint:
    """Where a judge answers, and how it is asked."""

    url: str
    """Up to the version, as in `https://api.example.com/v1`; `/chat/completions` is added."""
    model: str
    key_env: str | None = None
    """Name of the environment variable that holds the key; None: none is sent."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request: temperature, max_tokens, seed, ..."""
    concurrency: int = 8
    """Questions under way at once."""
    timeout: float = 120.0
    """Seconds to wait for an answer."""
    attempts: int = 6
    backoff: float = 1.0
    """Seconds before the second attempt, doubled for each further one; the server's `Retry-After` goes first."""
    who: str = "judge"
    """What the model is to the user."""
    may_leave: tuple[str, ...] = ()
    """Options that are left out where the endpoint does not take their value; others end the run."""


@dataclass
class Usage:
    """What answers cost."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    """Answers whose tokens the server did not tell."""

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count one answer."""
        self.answers += 1
        self.unmetered += prompt_tokens is None or completion_tokens is None
        self.prompt_tokens += prompt_tokens or 0
        self.completion_tokens += completion_tokens or 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1_000_000


def ask(
    endpoint: Endpoint,
    questions: Mapping[str, Messages],
    on_reply: Callable[[str, Reply], None],
    answered: int = 0,
    admit: Callable[[str], bool] = lambda name: True,
    refused: int = 0,
    on_wait: Callable[[str], None] = lambda reason: None,
) -> None:
    """Ask every question; `on_reply` gets its name and reply, one at a time, as soon as it is there.

    `answered` and `refused`: how many it answered before, so that one question it fails at does not mean that it is
    down, and how many it refused before, so that few at a time tell of a wrong request as well. `admit` says whether a
    question may be asked now; it is called again until it may, and what it raises ends the run. `on_wait` gets a
    sentence when a busy endpoint is waited for, once.
    What is busy or garbled is tried again. Raises `LabelingError` when the key or the address is refused, or nothing
    answers any more; what `on_reply` got by then is paid for and need not be asked again.
    """
    with _connect(endpoint) as client, ThreadPoolExecutor(endpoint.concurrency) as pool:
        asking = _Asking(endpoint, client, on_reply, answered, admit, on_wait)
        asking.refused = refused
        futures = [pool.submit(asking.one, name, messages) for name, messages in questions.items()]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # an error, or Ctrl-C: what is under way ends, nothing else begins
            asking.over.set()
            for future in futures:
                future.cancel()
        for future in done:
            if not future.cancelled():
                future.result()


def _connect(endpoint: Endpoint) -> httpx.Client:
    if fault := url_fault(endpoint.url):
        raise LabelingError(f"The {endpoint.who}'s url {fault}.")
    key = key_in(endpoint.key_env, endpoint.who)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    timeout = httpx.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout))
    return httpx.Client(headers=headers, timeout=timeout, limits=limits, follow_redirects=False)


def url_fault(url: str) -> str:
    """What is wrong with an endpoint's address, a clause; empty when it is right."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        return "is malformed; write it as https://host/v1"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "holds a user, a password or parameters; put the key into the environment variable of 'api_key_env'"
    return "" if right else "is malformed; write it as https://host/v1"


class _Asking:
    """One run over questions: what its threads share."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: httpx.Client,
        on_reply: Callable[[str, Reply], None],
        answered: int,
        admit: Callable[[str], bool],
        on_wait: Callable[[str], None],
    ) -> None:
        self.endpoint, self.client, self.on_reply, self.admit = endpoint, client, on_reply, admit
        self.on_wait, self.has_waited = on_wait, False
        self.options = dict(endpoint.options)
        self.over = Event()
        self.lock = Lock()
        self.answered = answered
        self.refused = self.failed_in_a_row = 0

    def one(self, name: str, messages: Messages) -> None:
        """Ask one question and hand its reply on. Raises what ends the whole run, and stops the others."""
        try:
            while not self.admit(name):
                if self.over.wait(PATIENCE):
                    return
            reply = self._reply(messages)
            with self.lock:
                if reply is not None:
                    self._count(reply)
                    self.on_reply(name, reply)
        except BaseException:
            self.over.set()
            raise

    def _count(self, reply: Reply) -> None:
        self.answered += not reply.refused
        self.refused += bool(reply.refused) and reply.lasting
        self.failed_in_a_row = self.failed_in_a_row + 1 if not reply.lasting else 0
        if self.failed_in_a_row >= DOWN or (self.failed_in_a_row and not self.answered and not self.refused):
            raise LabelingError(
                f"The {self.endpoint.who} at {self.endpoint.url} gives no answer ({reply.refused}); run again when it "
                "does, what was answered is kept."
            )
        if self.refused >= WRONG and not self.answered:
            raise LabelingError(
                f"The {self.endpoint.who} at {self.endpoint.url} refuses every question ({reply.refused}); check the "
                f"{self.endpoint.who}'s model and options."
            )

    def _reply(self, messages: Messages) -> Reply | None:
        """The reply after as many attempts as it takes; None when the run is over."""
        failure = ""
        pause = 0.0
        for attempt in range(self.endpoint.attempts):
            if self.over.wait(pause):
                return None
            pause = self.endpoint.backoff * 2**attempt * random.uniform(0.5, 1)
            try:
                response = self._post(messages)
                for _ in range(ADAPTED):
                    if response.status_code != 400 or not self._adapted(response):
                        break
                    response = self._post(messages)
            except (httpx.TransportError, httpx.DecodingError) as error:
                late = f"no whole answer within its 'timeout' of {self.endpoint.timeout:g} s"
                failure = late if isinstance(error, httpx.ReadTimeout) else type(error).__name__
                continue
            if response.status_code in BUSY:
                failure = f"HTTP {response.status_code}{self._said(response)}"
                pause = max(pause, retry_after(response))
                self._tell_wait(failure, pause)
                continue
            reply = self._read(response)
            if reply is not None:
                return reply
            failure = "what it sends is no chat completion"
        return Reply(refused=f"{failure}, {self.endpoint.attempts} attempts", lasting=False)

    def _tell_wait(self, failure: str, pause: float) -> None:
        with self.lock:
            if pause < LONG or self.has_waited:
                return
            self.has_waited = True
        self.on_wait(f"The {self.endpoint.who} at {self.endpoint.url} is busy ({failure}); waiting {pause:.0f} s.")

    def _post(self, messages: Messages) -> httpx.Response:
        """What the server sends. Raises `httpx.ReadTimeout` also where it comes bit by bit and not whole in time."""
        body = {"model": self.endpoint.model, "messages": [dict(each) for each in messages], **self.options}
        end, parts = time.monotonic() + self.endpoint.timeout, list[bytes]()
        with self.client.stream("POST", f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body) as response:
            for part in response.iter_raw():
                parts.append(part)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer is not whole in time")
        return httpx.Response(response.status_code, headers=response.headers, content=b"".join(parts))

    def _adapted(self, response: httpx.Response) -> bool:
        """Whether the request can be put as this endpoint takes it; so are all further ones.

        OpenAI's later models take `max_completion_tokens` in place of `max_tokens`, and no temperature but 1. Raises
        `LabelingError` where the value of an option is not taken that may not be left out.
        """
        said = response.text.lower()
        with self.lock:
            if "max_completion_tokens" in said and "max_tokens" in said:
                limit = self.options.pop("max_tokens", None)
                if limit is not None:
                    self.options["max_completion_tokens"] = limit
                return "max_completion_tokens" in self.options
            untaken = _UNTAKEN.search(said)
            name = (untaken[1] or untaken[2]) if untaken else ""
            if name in self.endpoint.may_leave:
                self.options.pop(name, None)
                return True
        if name not in self.options:
            return False
        raise LabelingError(
            f"The {self.endpoint.who} at {self.endpoint.url} takes no {name} but its own{self._said(response)}; "
            f"set its '{name}' to 1."
        )

    def _read(self, response: httpx.Response) -> Reply | None:
        """The reply in a response, None when it is garbled. Raises `LabelingError` when no question can be answered."""
        if response.status_code in (401, 403):
            name = self.endpoint.key_env or "no key: name its variable in 'api_key_env'"
            raise LabelingError(
                f"The {self.endpoint.who} at {self.endpoint.url} refuses the API key ({name}); set the right one."
            )
        if response.status_code in REFUSED:
            return Reply(refused=f"HTTP {response.status_code}{self._said(response)}")
        if response.status_code != 200:
            unpaid = "pay for it and run again, what was answered is kept"
            advice = unpaid if response.status_code == 402 else "check its url and model"
            raise LabelingError(
                f"The {self.endpoint.who} at {self.endpoint.url} answers with HTTP "
                f"{response.status_code}{self._said(response)}; {advice}."
            )
        return read_completion(response)

    def _said(self, response: httpx.Response) -> str:
        """What the server says about a failure, shortened, on one line and without the key it may quote."""
        key = str(self.client.headers.get("Authorization", "")).removeprefix("Bearer ")
        shown = quoted(response.text, key)
        return f": {shown}" if shown else ""
