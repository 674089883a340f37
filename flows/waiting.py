"""A deployed run gives its process back while people rank: it suspends, and counts again whenever it is resumed.

Resumed, the flow starts from the top under the same flow run id; its stages are reused and its MLflow run goes on.
"""

import os
from pathlib import Path
from typing import cast

from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import deployment, flow_run

from labeling.collection.rounds import Standing, advance
from tasks.artifact import without_credentials
from tasks.labels.recipe import LabelRecipe
from tasks.labels.round import ArgillaAwayError, argilla, campaign_of, publish_round
from tasks.lineage import Record
from tasks.store import Order, Store
from tasks.tracking import answering

TAG = "waiting-for-labels"
"""Marks suspended runs that people can set going by ranking; others were suspended by somebody for a reason."""
FLOW_RUN, WAITING, ERROR = "rlhf.flow_run", "rlhf.waiting", "rlhf.error"


def must_suspend(order: Order) -> bool:
    """Whether this run waits for people without holding a process: it is deployed, so it can be started again."""
    part = cast(LabelRecipe, order.part)
    if deployment.id is None or part.source != "people":
        return False
    return part.ai is None or bool(campaign_of(part, folders(order), order.seed).start.asked)


def folders(order: Order) -> dict[str, Path]:
    """Where the inputs of an order lie."""
    return {name: artifact.path for name, artifact in order.inputs.items()}


def count(order: Order) -> Standing:
    """How far the round of an order is now; disputed records are given to further people on the way.

    Raises `PipelineError` where the round can never be sufficient, `ArgillaAwayError` while Argilla is only away.
    """
    campaign = campaign_of(cast(LabelRecipe, order.part), folders(order), order.seed)
    with argilla() as client:
        plan, now = campaign.now(client, campaign.start)
        if not now.sufficient:
            advance(client, plan, now)
    return now


def suspend_until_sufficient(order: Order, store: Store, parent: str) -> None:
    """Publish the order's round and return when it is sufficient; until then the run is suspended.

    Raises Prefect's `Pause`, which ends this process. A resume that comes early, twice or late is harmless: the count
    alone lets the run go on. There is no timeout here; the round's own deadline decides.
    """
    while lacking := _lacking(order):
        suspend(lacking, store, parent)
    _tag(waiting=False)


def suspend(lacking: str, store: Store, parent: str) -> None:
    """Say what the run waits for and suspend it.

    Raises Prefect's `Pause`, but returns at once where an earlier start of this run suspended here: count once more.
    """
    store.settle()
    _tell(store.record, parent, lacking)
    suspend_flow_run()


def _lacking(order: Order) -> str:
    """What the run waits for; empty when it may go on."""
    recipe = cast(LabelRecipe, order.part)
    try:
        publish_round(recipe, folders(order), order.seed)
        now = count(order)
    except ArgillaAwayError as error:  # no reason to end a run that has waited for days
        return str(error)
    return "" if now.sufficient else now.sentence


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


def _tell(record: Record, parent: str, lacking: str) -> None:
    """Say in Prefect and MLflow what the run waits for, before the process ends."""
    _tag(waiting=True)
    url = without_credentials(os.environ.get("ARGILLA_API_URL", ""))
    create_markdown_artifact(
        key="rlhf-waiting",
        markdown=f"{lacking}\n\nPeople rank at {url}. The run goes on by itself when the round is complete.",
        description="What the run waits for",
    )
    with answering():
        record.client.set_tag(parent, WAITING, lacking)
        record.client.update_run(parent, status="SCHEDULED")


def _tag(waiting: bool) -> None:
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        tags = sorted({*run.tags} - {TAG} | ({TAG} if waiting else set()))
        if tags != sorted(run.tags):
            client.update_flow_run(run.id, tags=tags)
