"""The verbs around people: how far a round is, and who annotates."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live

from flows.annotators import annotators
from flows.verbs import Json, Labels, RecipePath, Set, load, need_services, out
from tasks.recipe import RecipeError

if TYPE_CHECKING:
    from labeling.collection.rounds import Standing
    from labeling.collection.sheets import Plan
    from tasks.store import Order

people = typer.Typer(no_args_is_help=True)
people.add_typer(annotators, name="annotators")

WATCH_SECONDS = 5.0


@people.command()
def labels(
    recipe: RecipePath,
    set_: Set = None,
    labels: Labels = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until it is complete.")] = False,
    as_json: Json = False,
) -> None:
    """How far the round of a recipe is: done, in progress, agreement, per person, and what is still missing."""
    order = _round_of(recipe, set_, labels)
    plan, now = _look(order)
    if watch and not as_json:
        with Live(_shown(plan, now), console=out, refresh_per_second=1) as live:
            while not (now.sufficient or now.overdue):
                time.sleep(WATCH_SECONDS)
                plan, now = _look(order)
                live.update(_shown(plan, now))
        raise typer.Exit(int(bool(now.overdue) and not now.sufficient))
    if as_json:
        print(json.dumps(_document(plan, now), ensure_ascii=False))
    else:
        out.print(_shown(plan, now))


def _round_of(path: Path, overrides: list[str] | None, who: str | None) -> "Order":
    parsed = load(path, overrides, who)
    need_services("mlflow", "argilla")
    from flows import services
    from flows.collect import round_order
    from tasks.lineage import Record
    from tasks.registry import Registry
    from tasks.store import Store

    if parsed.preferences.source == "data":
        raise RecipeError(f"{path} imports its preferences, so it has no round.")
    record = Record()
    order = round_order(parsed, Store(services.home(), record), Registry(record))
    if order is None:
        raise RecipeError(f"The completions of {path} are not sampled yet, so there is no round; start it: `rlhf run`.")
    return order


def _look(order: "Order") -> "tuple[Plan, Standing]":
    from flows.waiting import folders
    from tasks.labels.recipe import LabelRecipe
    from tasks.labels.round import argilla, campaign_of

    assert isinstance(order.part, LabelRecipe)
    campaign = campaign_of(order.part, folders(order), order.seed)
    with argilla() as client:
        return campaign.look(client, campaign.start)


def _document(plan: "Plan", now: "Standing") -> dict[str, Any]:
    from labeling.measures.agreement import agreement_by_annotator

    shares = agreement_by_annotator(now.judgements)
    return {
        "round": plan.round.name,
        "workspace": plan.round.workspace,
        "records": now.records,
        "done": now.done,
        "in_progress": now.started,
        "judgements": len(now.judgements),
        "sufficient": now.sufficient,
        "missing": list(now.missing),
        "left_out": dict(now.left_out),
        "overdue": now.overdue,
        "alpha": None if now.alpha is None or not now.judgements else _figures(vars(now.alpha)),
        "seconds_left": now.seconds_left,
        "people": [
            {"name": name, "answered": count, "given": now.given.get(name), "agreement": shares.get(name)}
            for name, count in now.answers.items()
        ],
    }


def _figures(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else round(value, 4) for name, value in values.items()}


def _shown(plan: "Plan", now: "Standing") -> Group:
    from flows.screen import table_of
    from tasks.labels.label import standing_rows

    return Group(f"Round {plan.round.name}", table_of(standing_rows(now)))
