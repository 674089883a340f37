"""The sweep: every suspended run is counted again, and those whose round is sufficient go on.

It makes waiting certain where webhooks only make it prompt: what a receiver missed, whatever was restarted meanwhile,
the next sweep finds. All it needs is in Prefect (the run and its recipe), in the store and in Argilla.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from pydantic import ValidationError

from flows import faults, services, waiting
from flows.blind import BLIND_LABEL
from flows.lifecycle import build_lifecycle, rlhf
from flows.recipe import LifecycleRecipe
from flows.running import Planning
from tasks.artifact import Artifact, PipelineError
from tasks.labels.round import ArgillaAwayError
from tasks.lineage import Record
from tasks.recipe import explain
from tasks.registry import Registry
from tasks.store import Order, Store


@flow(name="sweep", persist_result=False)
def sweep() -> dict[str, Any]:
    """Count every waiting round once and resume the runs whose round is sufficient; returns what was found.

    Raises `PipelineError` when a run could not be counted, after all others were.
    """
    found = resume_finished_rounds()
    failures = [f"{run['name']}: {run['error']}" for run in found["waiting"] if run["error"]]
    if failures:
        raise PipelineError(failures[0] + (f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""))
    return found


def resume_finished_rounds() -> dict[str, Any]:
    """What `sweep` does, without being a flow: `{"waiting": [{flow_run, name, ready, resumed, says, error}]}`.

    Two at once on one machine do it one after the other.
    """
    with _alone(), faults.prefect_answers(), get_client(sync_client=True) as client:
        runs = waiting_runs(client)
        if not runs:
            return {"waiting": []}  # before MLflow is imported: this is what most sweeps find
        record = Record()
        store = Store(services.home(), record)
        return {"waiting": [_count_again(client, run, store, Registry(record)) for run in runs]}


def waiting_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """The suspended runs that wait for labels, oldest first."""
    runs: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[rlhf.name])),
            flow_run_filter=FlowRunFilter.model_validate(
                {"state": {"type": {"any_": ["PAUSED"]}}, "tags": {"all_": [waiting.TAG]}}
            ),
            offset=len(runs),
        )
        runs.extend(page)
        if not page:
            return sorted(runs, key=lambda run: str(run.created))


def round_order(recipe: LifecycleRecipe, store: Store, registry: Registry, *, collected: bool = True) -> Order | None:
    """The round a recipe's run waits for; without one the last of its own that is `collected`, if those count.

    None where there is neither: its completions cannot be had here.
    """
    planning = _UpToPeople(store)
    try:
        for _ in build_lifecycle(recipe, planning, store, registry):
            pass
    except _ReachedError as reached:
        return reached.order
    return planning.collected if collected else None


class _ReachedError(Exception):
    def __init__(self, order: Order) -> None:
        super().__init__(order.name)
        self.order = order


class _UpToPeople(Planning):
    """Looks at a lifecycle up to the order that people must work on."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.collected: Order | None = None

    def by_people(self, order: Order) -> Artifact:
        found = super().by_people(order)
        missing = any(not artifact.digest for artifact in order.inputs.values())
        if not missing and not found.digest:
            raise _ReachedError(order)
        if found.digest and not order.name.startswith(BLIND_LABEL):
            self.collected = order
        return found


def _count_again(client: SyncPrefectClient, run: FlowRun, store: Store, registry: Registry) -> dict[str, Any]:
    row = {"flow_run": str(run.id), "name": run.name, "ready": False, "resumed": False, "says": "", "error": ""}
    try:
        recipe = LifecycleRecipe.model_validate(run.parameters["recipe"])
        order = round_order(recipe, store, registry, collected=False)
        if order:
            row |= _verdict(order, store)
        elif round_order(recipe, store, registry):
            row |= {"ready": True, "says": "Every round is collected."}
        else:
            raise PipelineError(
                "its completions are neither here nor in MLflow; resume it in Prefect to have them made again."
            )
        row["resumed"] = row["ready"] and _resume(client, run.id)
    except ValidationError as error:
        row["error"] = (
            f"its recipe is of another version of the pipeline ({explain(LifecycleRecipe, error)[0]}); run it anew."
        )
    except PipelineError as error:
        row["error"] = str(error)
    return row


def _verdict(order: Order, store: Store) -> dict[str, Any]:
    """Whether a run may go on: also where it alone can mend its round, or has to say why that cannot be."""
    if store.find(order.key):  # another run of this recipe has collected the judgements
        return {"ready": True, "says": "The round is collected."}
    try:
        now = waiting.count(order)
    except ArgillaAwayError:
        raise
    except PipelineError as error:
        return {"ready": True, "says": str(error)}  # past a deadline, for one: the run fails with this sentence
    if not now.datasets:
        return {"ready": True, "says": "The round is no longer in Argilla; the run publishes it again."}
    return {"ready": now.sufficient, "says": now.sentence}


def _resume(client: SyncPrefectClient, run: UUID) -> bool:
    """Resume a run that is still suspended; False when somebody else just did."""
    state = client.read_flow_run(run).state
    if state is None or not state.is_paused():
        return False
    after = client.resume_flow_run(run).state
    return after is not None and after.is_scheduled()


@contextmanager
def _alone() -> Iterator[None]:
    """One resumer at a time on this machine; the kernel frees the lock when its holder dies."""
    folder = services.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(folder / "resume", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
