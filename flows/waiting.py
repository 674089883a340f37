"""A deployed run gives its process back while people rank: it suspends, and counts again whenever it is resumed.

Resumed, the flow starts from the top under the same flow run id; its stages are reused and its MLflow run goes on.
"""

from typing import cast

from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import deployment, flow_run

from flows.round_for_now import Standing, publish_round, round_standing
from tasks.label import LabelRecipe
from tasks.lineage import Record, answering
from tasks.store import Order, Store

TAG = "waiting-for-labels"
"""Marks suspended runs that people can set going by ranking; others were suspended by somebody for a reason."""
FLOW_RUN, WAITING, ERROR = "rlhf.flow_run", "rlhf.waiting", "rlhf.error"


def must_suspend(order: Order) -> bool:
    """Whether this run waits for people without holding a process: it is deployed, so it can be started again."""
    return deployment.id is not None and cast(LabelRecipe, order.part).source == "people"


def standing_of(order: Order) -> Standing:
    """How far the round of an order is, counted now."""
    recipe, completions = cast(LabelRecipe, order.part), order.inputs["completions"].path
    return round_standing(recipe, completions, order.key, order.seed)


def suspend_until_sufficient(order: Order, store: Store, parent: str) -> None:
    """Publish the order's round and return when it is sufficient; until then the run is suspended.

    Raises Prefect's `Pause`, which ends this process. A resume that comes early, twice or late is harmless: the count
    alone lets the run go on. There is no timeout here; the round's own deadline decides.
    """
    recipe, completions = cast(LabelRecipe, order.part), order.inputs["completions"].path
    publish_round(recipe, completions, order.key, order.seed, lambda done, total: None)
    standing = standing_of(order)
    while not standing.sufficient:
        store.settle()
        _tell(store.record, parent, standing)
        suspend_flow_run()  # returns at once where an earlier start of this run suspended here: count once more
        standing = standing_of(order)
    _tag(waiting=False)


def parent_of(record: Record, flow_run_id: str | None) -> str | None:
    """The MLflow run that an earlier start of this deployed run opened, going again; None for the first start."""
    if deployment.id is None or not flow_run_id:
        return None
    with answering():
        query = f"tags.`{FLOW_RUN}` = '{flow_run_id}'"
        found = record.client.search_runs([record.experiment], query, max_results=1)
        if not found:
            return None
        run = found[0]
        record.client.update_run(run.info.run_id, status="RUNNING")
        for name in {WAITING, ERROR} & set(run.data.tags):
            record.client.delete_tag(run.info.run_id, name)
    return run.info.run_id


def _tell(record: Record, parent: str, standing: Standing) -> None:
    """Say in Prefect and MLflow that people are at work, before the process ends."""
    _tag(waiting=True)
    create_markdown_artifact(
        key="rlhf-waiting", markdown=f"Waiting for people. {standing.sentence}", description="What the round lacks"
    )
    with answering():
        record.client.set_tag(parent, WAITING, standing.sentence)
        record.client.update_run(parent, status="SCHEDULED")


def _tag(waiting: bool) -> None:
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        tags = sorted({*run.tags} - {TAG} | ({TAG} if waiting else set()))
        if tags != sorted(run.tags):
            client.update_flow_run(run.id, tags=tags)
