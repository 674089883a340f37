"""The receiver of Argilla's webhooks: a record is completed, and the runs that waited for it go on within seconds.

A delivery is only a hint to count again; what it says is not believed. One that is lost costs the time to the next
sweep. Signatures follow Standard Webhooks 1.0 (https://github.com/standard-webhooks/standard-webhooks, spec): HMAC
SHA-256 over "id.timestamp.body" with a secret that Argilla makes.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows import faults, services
from labeling.comparison import LabelingError
from labeling.service.connection import UnavailableError, items, request
from tasks.artifact import PipelineError
from tasks.labels.round import argilla

EVENTS = ["record.completed"]
"""One per finished record; what finishes a round otherwise (a discard, a deadline) is the sweep's to find."""
PATH = "/argilla"
PORT = 8765
TOLERANCE = 300.0
"""Seconds between the signing of a delivery and its arrival."""
LARGEST = 2_000_000
"""Bytes of a delivery: it holds the record with all its fields."""
FOLLOW_UP = 15.0
"""Seconds after which is counted once more: the run may only have been about to suspend."""


class RefusedError(Exception):
    """A delivery that does not count, and the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def sign(secret: bytes, message: str, timestamp: int, body: bytes) -> str:
    """The signature of a delivery: `v1,` and the base64 of its HMAC."""
    signed = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def secret_of(text: str) -> bytes:
    """The key in a webhook's secret: base64, perhaps after `whsec_`. Raises `LabelingError` for anything else."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise LabelingError("Argilla gave a webhook secret that is not base64; delete the webhook there and run again.")
    return key


class Deliveries:
    """Which deliveries count: signed with the secret, fresh, and seen for the first time.

    What was signed before this object was made is refused too, so that a restart forgets no delivery.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret, clock
        self._oldest = int(clock())
        self._seen: dict[str, float] = {}

    def accept(self, headers: Mapping[str, str], body: bytes) -> None:
        """Return for a delivery that counts. Raises `RefusedError` for a forged, stale or replayed one."""
        message, signatures = headers.get("webhook-id", ""), headers.get("webhook-signature", "")
        stamp, now = headers.get("webhook-timestamp", ""), self._clock()
        if not (message and signatures and stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
            raise RefusedError(400, "webhook-id, webhook-timestamp and webhook-signature are needed")
        expected = sign(self._secret, message, int(stamp), body).encode()
        if not any(hmac.compare_digest(expected, given.encode()) for given in signatures.split(" ")):
            raise RefusedError(401, "the signature is not Argilla's")
        if abs(now - int(stamp)) > TOLERANCE or int(stamp) < self._oldest:
            raise RefusedError(401, "the delivery is too old or from the future")
        self._seen = {known: when for known, when in self._seen.items() if when > now - 2 * TOLERANCE}
        if message in self._seen:
            raise RefusedError(409, "this delivery was received before")
        self._seen[message] = now


class Counting:
    """Counts waiting rounds in a thread of its own: after a delivery, and once more a little later.

    Deliveries that come meanwhile are one count; a long count is followed by a long rest.
    """

    def __init__(self, count: Callable[[], dict[str, Any]], follow_up: float = FOLLOW_UP) -> None:
        self._count, self._follow_up = count, follow_up
        self._asked, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="counting", daemon=True)
        self.last: dict[str, Any] = {}
        """What the last count found, or the sentence of its failure."""

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Count soon."""
        self._asked.set()

    def stop(self) -> None:
        """End the thread after the count it is at."""
        self._stopped.set()
        self._asked.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        late = False  # whether the count to come is only the later one
        while not self._stopped.is_set():
            asked = self._asked.wait(self._follow_up if late else None)
            if self._stopped.is_set():
                return
            self._asked.clear()
            started = time.monotonic()
            try:
                self.last = self._count()
            except Exception as error:  # the receiver outlives whatever is away; the sweep is certain
                self.last = {"error": f"{type(error).__name__}: {error}"}
            late = asked
            self._stopped.wait(max(1.0, 5 * (time.monotonic() - started)))


def receiver(deliveries: Deliveries, counting: Counting, leave: Callable[[], None] = lambda: None) -> Starlette:
    """The web application; `leave` is called when it ends."""

    async def receive(http: Request) -> Response:
        body = b""
        async for chunk in http.stream():
            body += chunk
            if len(body) > LARGEST:
                return JSONResponse({"error": "the delivery is too large"}, 413)
        try:
            deliveries.accept(http.headers, body)
        except RefusedError as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        counting.ask()
        return Response(status_code=204)

    async def health(http: Request) -> Response:
        return JSONResponse({"waiting": counting.last.get("waiting", []), "error": counting.last.get("error", "")})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        counting.start()
        counting.ask()  # for what was missed while nobody received
        yield
        counting.stop()
        leave()

    return Starlette(
        routes=[Route(PATH, receive, methods=["POST"]), Route("/health", health, methods=["GET"])], lifespan=lifespan
    )


def register(url: str) -> str:
    """Have Argilla deliver to `url` and return the secret it signs with, the one kept here while Argilla is away.

    Raises `PipelineError` when it is away and no secret is kept, or refuses.
    """
    here = os.environ.get("ARGILLA_API_URL", "")
    try:
        with argilla() as client:
            found = next((hook for hook in items(client, "/api/v1/webhooks") if hook["url"] == url), None)
            if found is None:
                wanted = {"url": url, "events": EVENTS, "description": "rlhf: runs that wait for labels"}
                found = request(client, "POST", "/api/v1/webhooks", json=wanted)
            elif not found["enabled"] or found["events"] != EVENTS:
                change = {"enabled": True, "events": EVENTS}
                request(client, "PATCH", f"/api/v1/webhooks/{found['id']}", json=change)
    except PipelineError as error:
        kept = _kept().get(f"{here} {url}")
        if kept is None or not isinstance(error.__cause__, UnavailableError):
            raise
        return kept
    _keep({**_kept(), f"{here} {url}": found["secret"]})
    return found["secret"]


def unregister(url: str) -> None:
    """Have Argilla deliver nothing more, until the next start; an Argilla that is away may go on trying."""
    try:
        with argilla() as client:
            for hook in items(client, "/api/v1/webhooks"):
                if hook["url"] == url:
                    request(client, "PATCH", f"/api/v1/webhooks/{hook['id']}", json={"enabled": False})
    except PipelineError:
        return


def _kept() -> dict[str, str]:
    path = services.home() / "credentials" / "webhooks.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _keep(secrets: dict[str, str]) -> None:
    """Write the secrets where only this user reads them."""
    folder = services.home() / "credentials"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f"webhooks.{os.getpid()}"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(secrets, file, indent=1)
    draft.replace(folder / "webhooks.json")


def serve(host: str = "127.0.0.1", port: int = PORT, url: str | None = None) -> None:
    """Receive until interrupted. `url` is where Argilla reaches this receiver, if not under host and port.

    The services must be up. Raises `PipelineError` when the port is taken or Argilla refuses the webhook.
    """
    os.environ.update(services.environment())  # before Prefect is imported
    os.environ["RLHF_HOME"] = str(services.home())
    import uvicorn

    from flows.collect import resume_finished_rounds
    from flows.processes import port_free, port_holder

    if not port_free(port):
        raise PipelineError(f"Port {port} is held by {port_holder(port)}; choose another one for the receiver.")
    address = url or f"http://{host}:{port}{PATH}"
    deliveries = Deliveries(secret_of(register(address)))

    def leave() -> None:
        unregister(address)
        print("Stopped: Argilla delivers here no more until the next start.", file=sys.stderr)

    app = receiver(deliveries, Counting(resume_finished_rounds), leave)
    print(f"Receiving Argilla's webhooks at {address}; stop with Ctrl-C.", file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


if __name__ == "__main__":
    with faults.told():
        serve(port=int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
