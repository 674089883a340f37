"""`rlhf data synthesise`: what a recipe's models write, by itself; a run of the recipe takes it as it is."""

import os
import time
from typing import Any

from prefect import flow

from flows import services
from flows.lifecycle import build_syntheses
from flows.recipe import LifecycleRecipe
from flows.running import Running, curves_sent, failure_recorded
from flows.screen import Screen
from tasks.artifact import Artifact
from tasks.lineage import Record
from tasks.recipe import RecipeError
from tasks.store import Store
from tasks.worker import workers_of


@flow(name="synthesise", flow_run_name="{recipe.name}: synthesis", validate_parameters=False, persist_result=False)
def write_rows(recipe: LifecycleRecipe) -> dict[str, Any]:
    """Build every synthesis of a recipe and return the document that `rlhf data synthesise --json` prints.

    The services must be up and in the environment. Raises `RecipeError` where the recipe has no synthesis, and
    `PipelineError` when one fails; what was written is kept.
    """
    if not recipe.synthesis:
        raise RecipeError("The recipe has no [[synthesis]], so there is nothing to write; add one.")
    started = time.monotonic()
    home = services.home()
    os.environ["RLHF_HOME"] = str(home)  # so that paid answers are kept there by stages in their own processes too
    with workers_of(home) as workers:
        record = Record()
        store = Store(home, record)
        parent = record.open_lifecycle(f"{recipe.name}: synthesis", recipe.model_dump(mode="json"), {})
        with failure_recorded(record, parent, store, workers):
            with Screen() as screen, curves_sent(record):
                running = Running(store, workers, screen, parent)
                made = build_syntheses(recipe, running)
            workers.close()
            store.settle()
            record.close_lifecycle(parent, {}, {f"rlhf.artifact.{name}": each.key for name, each in running.done}, {})
    return {
        "syntheses": [_line(name, artifact) for name, artifact in made.items()],
        "seconds": round(time.monotonic() - started, 2),
    }


def _line(name: str, artifact: Artifact) -> dict[str, Any]:
    figures = ("rows", "dropped", "unique_share", "distinct_2", "nearest_rouge_l", "cost_now")
    known = dict(artifact.metrics)
    if artifact.reused and "cost_now" in known:
        known["cost_now"] = 0.0
    return {
        "name": name,
        "reused": artifact.reused,
        **{figure: round(known[figure], 4) for figure in figures if figure in known},
        "rows_file": str(artifact.path / "rows.jsonl"),
    }
