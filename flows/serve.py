"""Deployments on this machine: one process takes the runs of `rlhf` and sweeps for those that wait for people.

`python -m flows.serve` is the simplest worker; `deployments/prefect.yaml` puts the same two deployments on a work pool.
"""

import os
import sys
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from flows import faults, services
from tasks.artifact import PipelineError

if TYPE_CHECKING:
    from flows.recipe import LifecycleRecipe

DEPLOYMENT = "rlhf/rlhf"
SWEEP = "sweep/sweep"
SWEEP_SECONDS = 120
SLUG = "often"
"""The sweep's schedule is called this in prefect.yaml too: each may take the deployments over from the other."""
PATIENCE = "6"
"""Times a request to Prefect is tried again, after 2, 4, 8... seconds."""


def serve(sweep_seconds: int = SWEEP_SECONDS) -> None:
    """Take runs of the deployments `rlhf/rlhf` and `sweep/sweep` until interrupted.

    The services must be up. Killed and started again, it goes on: what waits, and what was resumed meanwhile, is with
    Prefect. Every run gets a process of its own and this process's environment.
    """
    os.environ.update(services.environment())  # before Prefect is imported
    os.environ["RLHF_HOME"] = str(services.home())
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = PATIENCE  # runs here outlive a restart of Prefect's server
    import prefect
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Interval
    from prefect.types.entrypoint import EntrypointType

    from flows.collect import sweep
    from flows.lifecycle import rlhf

    module = EntrypointType.MODULE_PATH
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    with faults.prefect_answers():
        _free_the_sweep()
        prefect.serve(
            RunnerDeployment.from_flow(rlhf, "rlhf", entrypoint_type=module, description="The lifecycle of a recipe."),
            RunnerDeployment.from_flow(
                sweep,
                "sweep",
                entrypoint_type=module,
                schedule=Interval(timedelta(seconds=sweep_seconds), slug=SLUG),
                concurrency_limit=one,  # those that were due while nobody served are one sweep, not hundreds
                description="Resumes the runs whose round of labeling is complete.",
            ),
            print_starting_message=False,
        )


def _free_the_sweep() -> None:
    """Give back the place under the limit that a sweep killed with its server would hold for five minutes more.

    Where it is not dead but another server's, two sweeps run at once, which resume a run once all the same.
    """
    from prefect import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        limit = client.read_deployment_by_name(SWEEP).global_concurrency_limit
        if limit and limit.active_slots:
            client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))


def submit(recipe: "LifecycleRecipe") -> str:
    """Ask whoever serves the deployment to run a recipe; returns the id of the flow run at once.

    Raises `PipelineError` when nobody has deployed it.
    """
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with faults.prefect_answers(), get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound as error:
            raise PipelineError(
                f"Prefect has no deployment '{DEPLOYMENT}'; start `rlhf serve`, or deploy deployments/prefect.yaml."
            ) from error
        return str(client.create_flow_run_from_deployment(deployment.id, parameters=parameters_of(recipe)).id)


def parameters_of(recipe: "LifecycleRecipe") -> dict[str, Any]:
    """The flow's parameters: what the recipe says itself, for some values are refused where they have no effect."""
    return {"recipe": recipe.model_dump(mode="json", exclude_unset=True)}


if __name__ == "__main__":
    with faults.told():
        sys.path.insert(0, os.getcwd())
        serve(int(sys.argv[1]) if len(sys.argv) > 1 else SWEEP_SECONDS)
