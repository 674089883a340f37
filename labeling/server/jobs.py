"""Argilla's job queue (RQ on Redis) inside the server process: the re-computing of record statuses, and the hub's jobs.

What is queued is lost when the process dies: statuses are mended at the next start (`statuses`), and webhooks, which
must not get lost, do not go this way (`webhooks`).
"""
# pyright: reportMissingImports=false

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import fakeredis
import redis
from rq import SimpleWorker
from rq.scheduler import RQScheduler
from rq.timeouts import TimerDeathPenalty

_log = logging.getLogger("argilla")


@contextmanager
def redis_in_process() -> Iterator[None]:
    """While argilla_server is imported: give it a Redis that lives in this process."""
    server = fakeredis.FakeServer()
    original = redis.from_url
    redis.from_url = lambda *args, **kwargs: fakeredis.FakeRedis(server=server)
    try:
        yield
    finally:
        redis.from_url = original


class _ThreadWorker(SimpleWorker):
    death_penalty_class = TimerDeathPenalty  # RQ's own needs SIGALRM, which only a main thread gets

    def _install_signal_handlers(self) -> None:
        """Signals belong to uvicorn."""


def start() -> None:
    """Run the worker and the scheduler of retries in daemon threads."""
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
    for target in (_work, _schedule):
        threading.Thread(target=_forever, args=(target,), name=f"argilla{target.__name__}", daemon=True).start()


def _forever(target) -> None:
    while True:
        try:
            target()
        except Exception:
            _log.exception("The job queue stumbled; it goes on.")
        time.sleep(1)


def _work() -> None:
    from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION

    worker = _ThreadWorker([HIGH_QUEUE, DEFAULT_QUEUE], connection=REDIS_CONNECTION)
    worker.work(with_scheduler=False, logging_level="WARNING")


def _schedule() -> None:
    from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION

    scheduler = RQScheduler([HIGH_QUEUE, DEFAULT_QUEUE], connection=REDIS_CONNECTION, interval=1)
    while True:
        scheduler.acquire_locks()
        scheduler.enqueue_scheduled_jobs()
        time.sleep(1)
