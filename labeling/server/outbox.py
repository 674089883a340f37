"""Webhook deliveries on disk until their receiver has taken them: a crash of either side delays them, nothing more.

Each delivery is tried until it is answered with success, at growing intervals, for a day. One that was answered just
before a crash is sent again with the same message id, so receivers may see it twice.
"""

import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds before the second, third, ... attempt; the last one repeats."""
PATIENCE = 24 * 3600.0
"""Seconds after which a delivery is given up."""
AT_ONCE = 10
"""Webhooks served at the same time; Argilla allows no more than 10."""

_log = logging.getLogger("argilla")
_TABLE = """
    CREATE TABLE IF NOT EXISTS deliveries (
        number INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, webhook TEXT NOT NULL, body TEXT NOT NULL,
        created REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0
    )
"""


class WebhookGone(Exception):
    """Nobody listens any more: the webhook was deleted or disabled."""


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one webhook."""

    number: int
    message: str
    """Stays the same in every attempt."""
    webhook: str
    body: str
    created: float
    attempts: int


class Outbox:
    """Deliveries waiting in a SQLite file, and the threads that send them.

    `send` returns when the receiver has taken a delivery, and raises otherwise (`WebhookGone` where there is none).
    """

    def __init__(self, path: Path, send: Callable[[Delivery], None], pauses: Sequence[float] = PAUSES) -> None:
        self._send, self._pauses = send, pauses
        self._lock, self._news, self._stopped = threading.Lock(), threading.Event(), threading.Event()
        self._busy: set[str] = set()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", _TABLE):
            self._database.execute(statement)
        self._database.execute("UPDATE deliveries SET due = 0")  # what a former process has left goes out at once
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argilla_webhook")

    def put(self, webhooks: Sequence[str], body: str) -> None:
        """Keep an event for each of the webhooks; on disk when this returns."""
        rows = [(f"msg_{secrets.token_urlsafe(16)}", webhook, body, time.time()) for webhook in webhooks]
        with self._lock:
            self._database.execute("BEGIN")
            sql = "INSERT INTO deliveries (message, webhook, body, created) VALUES (?, ?, ?, ?)"
            self._database.executemany(sql, rows)
            self._database.execute("COMMIT")
        self._news.set()

    def waiting(self) -> int:
        """How many deliveries are not taken yet."""
        with self._lock:
            return self._database.execute("SELECT count(*) FROM deliveries").fetchone()[0]

    def start(self) -> None:
        """Send in background threads from now on."""
        threading.Thread(target=self._run, name="argilla_outbox", daemon=True).start()

    def stop(self) -> None:
        """Begin no more attempts; what is not sent stays on disk."""
        self._stopped.set()
        self._news.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._news.clear()
            try:
                pause = self._dispatch()
            except Exception:
                _log.exception("The webhook outbox stumbled; it goes on.")
                pause = 1.0
            self._news.wait(pause)

    def _dispatch(self) -> float:
        """Hand each webhook with something due to a thread; returns the seconds until the next one is due."""
        now = time.time()
        with self._lock:
            due = dict(self._database.execute("SELECT webhook, min(due) FROM deliveries GROUP BY webhook").fetchall())
            ready = [webhook for webhook, at in due.items() if at <= now and webhook not in self._busy]
            self._busy.update(ready)
            later = [at - now for webhook, at in due.items() if webhook not in self._busy]
        for webhook in ready:
            self._pool.submit(self._serve, webhook)
        return max(0.05, min([60.0, *later]))

    def _serve(self, webhook: str) -> None:
        """Send what is due for one webhook, until something fails: its receiver may be down, and is left in peace."""
        try:
            while not self._stopped.is_set() and (delivery := self._next(webhook)) is not None:
                if not self._attempt(delivery):
                    break
        finally:
            with self._lock:
                self._busy.discard(webhook)
            self._news.set()

    def _next(self, webhook: str) -> Delivery | None:
        columns = "number, message, webhook, body, created, attempts"
        sql = f"SELECT {columns} FROM deliveries WHERE webhook = ? AND due <= ? ORDER BY due, number LIMIT 1"
        with self._lock:
            row = self._database.execute(sql, (webhook, time.time())).fetchone()
        return Delivery(*row) if row else None

    def _attempt(self, delivery: Delivery) -> bool:
        try:
            self._send(delivery)
        except WebhookGone:
            self._forget("webhook = ?", delivery.webhook)
            return False
        except Exception as error:
            self._postpone(delivery, error)
            return False
        self._forget("number = ?", delivery.number)
        return True

    def _forget(self, which: str, value: str | int) -> None:
        with self._lock:
            self._database.execute(f"DELETE FROM deliveries WHERE {which}", (value,))

    def _postpone(self, delivery: Delivery, error: Exception) -> None:
        if time.time() - delivery.created > PATIENCE:
            _log.warning("Webhook %s never took message %s; given up.", delivery.webhook, delivery.message)
            return self._forget("number = ?", delivery.number)
        due = time.time() + self._pauses[min(delivery.attempts, len(self._pauses) - 1)]
        with self._lock:
            sql = "UPDATE deliveries SET attempts = attempts + 1, due = ? WHERE number = ?"
            self._database.execute(sql, (due, delivery.number))
        if delivery.attempts == 0:
            _log.warning("Webhook %s did not take message %s (%s).", delivery.webhook, delivery.message, error)
        return None
