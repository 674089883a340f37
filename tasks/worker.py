"""Stages run in processes of their own: a crash there loses one stage, and one start of the libraries serves them all.

Each slot is one process with one torch thread and, where there are GPUs, one of them; what it reports comes back over a
queue.
"""

import json
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tasks.artifact import PipelineError, Row, Work, write_jsonl
from tasks.lineage import CURVES
from tasks.store import Order

LOOK = 1.0
"""Seconds after which a thread that waits for a process looks whether there is a signal for it."""
_events: Any = None  # the queue to the parent, set once in each worker process


class WorkerDied(PipelineError):
    """The process of a stage ended without an answer: killed, or out of memory."""


class Listener(Protocol):
    """Who hears what a stage reports while it runs."""

    def progress(self, done: int, total: int, note: str) -> None: ...
    def curve(self, metrics: Mapping[str, float], step: int, timestamp: int) -> None: ...
    def notify(self, text: str) -> None: ...
    def show(self, rows: list[Row]) -> None: ...


class Workers:
    """A few worker processes, started at the first stage or by `warm_up`; what libraries print goes to `log`.

    A context manager; leaving it ends the processes.
    """

    def __init__(self, count: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        # a run that ends in a hurry leaves semaphores to the kernel, and that is nothing to tell people
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
        self._context = multiprocessing.get_context("spawn")
        self._queue = self._context.Queue()
        self._free: queue.Queue[ProcessPoolExecutor | None] = queue.Queue()
        self._count, self._started, self._closing = count, 0, False
        self._warming = threading.Lock()
        self._gpus, self._pools = gpus(), dict[ProcessPoolExecutor, str | None]()
        self._listeners: dict[str, Listener] = {}
        self._listener = threading.Thread(target=self._listen, name="stage-reports", daemon=True)
        self._listener.start()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes at once: idle ones hold nothing; what still runs goes on from its checkpoint next time."""
        if self._closing:
            return
        self._closing = True
        for pool in list(self._pools):
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)
        self._queue.put(None)
        self._listener.join(timeout=5)
        self._queue.close()

    def warm_up(self, count: int) -> None:
        """Start this many processes, if not done yet; each is there for stages once it has imported the libraries."""
        with self._warming:
            while self._started < count:
                self._started += 1
                pool = self._start()
                imported = pool.submit(_import_libraries)
                imported.add_done_callback(lambda _, pool=pool: self._free.put(pool))

    def run(self, order: Order, out: Path, scratch: Path, listener: Listener) -> dict[str, float]:
        """Run an order's stage function in a free process; returns its final metrics.

        Raises `WorkerDied` when the process was killed, and whatever the function raised.
        """
        key = order.key
        self.warm_up(self._count)
        pool = self._free_one()
        self._listeners[key] = listener
        try:
            pool = pool or self._start()
            inputs = {name: artifact.path for name, artifact in order.inputs.items()}
            return _result(pool.submit(_run, order.stage.function, order.part, inputs, out, scratch, order.seed, key))
        except BrokenProcessPool as error:
            if pool:
                self._pools.pop(pool, None)
            pool = None
            if self._closing:
                raise PipelineError(f"Stage {order.name} was interrupted; run again to go on.") from error
            raise WorkerDied(
                f"The process of stage {order.name} was killed or ran out of memory; "
                "run again: it goes on from its last checkpoint."
            ) from error
        finally:
            self._listeners.pop(key, None)
            self._free.put(pool)

    def _free_one(self) -> ProcessPoolExecutor | None:
        while True:
            with suppress(queue.Empty):
                return self._free.get(timeout=LOOK)

    def _start(self) -> ProcessPoolExecutor:
        if self._closing:
            raise PipelineError("The run is ending; run again to go on.")
        taken = list(self._pools.values())
        gpu = min(self._gpus, key=taken.count, default=None)
        pool = ProcessPoolExecutor(1, self._context, initializer=_initialise, initargs=(self._queue, self._log, gpu))
        self._pools[pool] = gpu
        return pool

    def _listen(self) -> None:
        while True:
            event = self._queue.get()
            if event is None:
                return
            key, kind, arguments = event
            listener = self._listeners.get(key)
            if listener is not None:
                with suppress(OSError, ValueError):  # a terminal that went away must not silence the other stages
                    getattr(listener, kind)(*arguments)


def _result(future: Future[dict[str, float]]) -> dict[str, float]:
    """`future.result()`, which Ctrl-C ends even where the system hands the signal to another thread: Python leaves it
    to the main thread, and a wait without end does not wake up for it."""
    while not future.done():
        wait([future], timeout=LOOK)
    return future.result()


_early: list[Workers] = []


def start_early(home: Path) -> None:
    """Where nothing was built yet, start one worker of the coming run while this process still imports its own.

    One: the first long stage runs in it at once, where several would import side by side and be late.
    """
    if not any((home / "store").glob("*")):
        _early.append(workers_of(home))
        _early[0].warm_up(1)


def workers_of(home: Path) -> Workers:
    """The workers of a run: those started early, else new ones.

    `RLHF_WORKERS` of them; by default one per GPU, and without a GPU one per core, at most 3.
    """
    if _early:
        return _early.pop()
    count = len(gpus()) or min(os.cpu_count() or 1, 3)
    return Workers(count_from("RLHF_WORKERS", count), home / "logs" / "stages.log")


def gpus() -> list[str]:
    """The GPUs that workers share out, as CUDA names them: those of `CUDA_VISIBLE_DEVICES`, else all that are there."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return [name for each in named.split(",") if (name := each.strip()) and name != "-1"]


def _initialise(events: Any, log: Path, gpu: str | None) -> None:
    global _events
    _events = events
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # several in one process would be torch's DataParallel
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threads = str(count_from("RLHF_THREADS", 1))
    os.environ["OMP_NUM_THREADS"] = threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ.setdefault("MPLCONFIGDIR", str(log.parent.parent / "cache" / "matplotlib"))  # not in the user's home
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing where the next run builds."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _import_libraries() -> None:
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if torch.cuda.is_available():  # in every stage alike: transformers' Trainer switches it on where it trains
        from transformers.utils.import_utils import enable_tf32

        enable_tf32(True)


def _run(
    function: Callable[..., None],
    part: Any,
    inputs: Mapping[str, Path],
    out: Path,
    scratch: Path,
    seed: int,
    key: str,
) -> dict[str, float]:
    """In the worker: call the stage function and keep its curves with the artifact."""
    _set_threads()
    kept = scratch / "curves.jsonl"  # survives a kill, so that a resumed build shows its whole curve

    def on_log(metrics: Mapping[str, float], step: int) -> None:
        point = {"metrics": dict(metrics), "step": step, "timestamp": int(time.time() * 1000)}
        with kept.open("a") as file:
            file.write(json.dumps(point) + "\n")
        _events.put((key, "curve", (point["metrics"], step, point["timestamp"])))

    work = Work(
        out,
        scratch,
        seed,
        key,
        checkpoint_seconds=float(os.environ.get("RLHF_CHECKPOINT_SECONDS") or Work.checkpoint_seconds),
        on_log=on_log,
        on_progress=_throttled(key),
        on_notify=lambda text: _events.put((key, "notify", (text,))),
        on_show=lambda rows: _events.put((key, "show", (rows,))),
    )
    started = time.monotonic()
    function(part, inputs, work)
    work.log({"seconds": time.monotonic() - started})
    if kept.exists():
        write_jsonl(out / CURVES, _points(kept))
    return work.metrics


def _points(kept: Path) -> list[dict[str, Any]]:
    """The curve of all attempts: steps done again count once, a line that a kill cut short does not count."""
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in kept.read_text().splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            continue
        points[(point["step"], *sorted(point["metrics"]))] = point
    return list(points.values())


def count_from(variable: str, default: int) -> int:
    """A whole number from 1 in an environment variable. Raises `PipelineError` for anything else."""
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise PipelineError(f"{variable}={text} is not a whole number from 1; set one or unset it.")
    return int(text)


def _set_threads() -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _throttled(key: str) -> Callable[[int, int, str], None]:
    last = 0.0

    def progress(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.1 or done >= total:
            last = 0.0 if done >= total else now  # the part that follows a whole one is told at once
            _events.put((key, "progress", (done, total, note)))

    return progress
