"""Stages as Prefect tasks: asked of the store, run in worker processes, shown on the screen."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import Pause
from prefect.tasks import Task

from flows import waiting
from flows.screen import Screen, StageListener
from tasks.artifact import Artifact, PipelineError
from tasks.labels.round import ArgillaAwayError
from tasks.lineage import Record
from tasks.store import Order, Store
from tasks.worker import LOOK, WorkerDied, Workers


class BuildsOne(Protocol):
    """Turns one order after the other into artifacts."""

    def one(self, order: Order) -> Artifact:
        """The artifact of one order."""
        ...


class Builder(BuildsOne, Protocol):
    """Turns orders into artifacts: by building them (`Running`) or by only looking (`Planning`)."""

    def side_by_side(self, orders: Sequence[Order]) -> list[Artifact]:
        """The artifacts of orders that do not need each other."""
        ...

    def by_people(self, order: Order) -> Artifact:
        """The artifact of an order that people may have to work on first."""
        ...

    def require(self, check: Callable[[], None]) -> None:
        """Go on only if `check` raises nothing."""
        ...


def _worker_died(task: Task, run: TaskRun, state: State) -> bool:
    """A killed process is started once more by itself; every other failure is the user's to see first."""
    return (
        isinstance(state.data, WorkerDied) or "WorkerDied" in repr(state.data) or "WorkerDied" in (state.message or "")
    )


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # the store decides what is reused, and checks the bytes
    persist_result=False,
    retries=1,
    retry_condition_fn=_worker_died,
)
def build_stage(stage: str, build: Callable[[], Artifact]) -> Artifact:
    """One stage of the lifecycle, as Prefect shows it."""
    return build()


class Running:
    """Builds what is not there yet."""

    def __init__(self, store: Store, workers: Workers, screen: Screen, parent_run: str) -> None:
        self._store, self._workers, self._screen, self._parent = store, workers, screen, parent_run
        self.done: list[tuple[str, Artifact]] = []
        self._died: set[str] = set()

    def one(self, order: Order) -> Artifact:
        return build_stage(order.name, lambda: self._get(order))

    def side_by_side(self, orders: Sequence[Order]) -> list[Artifact]:
        def get(order: Order) -> Callable[[], Artifact]:
            return lambda: self._get(order)

        futures = [build_stage.submit(order.name, get(order)) for order in orders]
        for future in futures:
            while not future.wrapped_future.done():  # type: ignore[attr-defined]  # in steps: Ctrl-C is not slept over
                future.wait(LOOK)  # a branch that fails does not stop the others: what they finish is kept
        return [future.result() for future in futures]

    def by_people(self, order: Order) -> Artifact:
        while waiting.must_suspend(order) and self._store.find(order.key) is None:
            waiting.suspend_until_sufficient(order, self._store, self._parent)
            try:
                return self.one(order)
            except ArgillaAwayError as error:  # it went away between the count and the reading
                waiting.suspend(str(error), self._store, self._parent)
        return self.one(order)

    def require(self, check: Callable[[], None]) -> None:
        check()

    def _get(self, order: Order) -> Artifact:
        try:
            artifact = self._store.get(order, self._run, self._parent)
        except BaseException as error:
            self._screen.drop(order.name)
            if isinstance(error, WorkerDied):
                self._died.add(order.name)
            raise
        self._screen.end(order.name, artifact)
        _show_texts(order.name, artifact)
        self.done.append((order.name, artifact))
        return artifact

    def _run(self, order: Order, run_id: str, out: Path, scratch: Path) -> dict[str, float]:
        if order.name in self._died:
            self._screen.say(f"{order.name}: its process was killed or ran out of memory; it is started once more")
        if any(each.is_dir() for each in scratch.iterdir()):  # a checkpoint
            self._screen.say(f"{order.name}: goes on from where it was interrupted")
        self._screen.begin(order.name)
        listener = StageListener(self._screen, order.name, run_id, self._store.record)
        return self._workers.run(order, out, scratch, listener)


def _show_texts(stage: str, artifact: Artifact) -> None:
    """What a stage wrote for people to read, as artifacts of its task run in Prefect."""
    for text in sorted((artifact.path / "report").glob("*.md")):
        key = re.sub(r"[^a-z0-9]+", "-", f"rlhf-{stage}-{text.stem}".lower())
        create_markdown_artifact(key=key, markdown=text.read_text(encoding="utf-8"))


class Planning:
    """Says what a run would build, and builds nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.steps: list[tuple[str, Artifact | None]] = []

    def one(self, order: Order) -> Artifact:
        missing = any(not artifact.digest for artifact in order.inputs.values())
        found = None if missing else self._store.find(order.key)
        self.steps.append((order.name, found))
        return found or Artifact(key="", stage=order.stage.name, digest="", path=Path(), run_id="", metrics={})

    def side_by_side(self, orders: Sequence[Order]) -> list[Artifact]:
        return [self.one(order) for order in orders]

    def by_people(self, order: Order) -> Artifact:
        return self.one(order)

    def require(self, check: Callable[[], None]) -> None:
        """A plan goes on: it says what would be built if all went well."""


@contextmanager
def failure_recorded(record: Record, parent: str, store: Store, workers: Workers) -> Iterator[None]:
    """A run that fails ends its processes, keeps the record of what was built, and says why in MLflow."""
    try:
        yield
    except Pause:  # people are at work; this process ends and the run goes on in another one
        raise
    except BaseException as error:
        workers.close()
        with suppress(PipelineError):
            store.settle()
        record.fail(parent, error)
        raise


@contextmanager
def curves_sent(record: Record, every: float = 2.0) -> Iterator[None]:
    """Sends curve points to MLflow in the background. A server that is away is no reason to stop training:
    the points are kept with the artifact and sent when it is finished."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(every):
            try:
                record.flush()
            except PipelineError:
                continue

    thread = threading.Thread(target=send, name="curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
