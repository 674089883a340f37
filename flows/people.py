"""The verbs around people: how far a round is, who annotates, and what takes up runs that waited for them."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from flows.verbs import Json, Labels, RecipePath, Set, err, load, need_services, out
from tasks.recipe import RecipeError

if TYPE_CHECKING:
    from labeling.rounds import Standing
    from labeling.sheets import Plan
    from tasks.store import Order

people = typer.Typer(no_args_is_help=True)
annotators = typer.Typer(no_args_is_help=True, help="Accounts of the people who rank.")
people.add_typer(annotators, name="annotators")

WATCH_SECONDS = 5.0
Workspace = Annotated[str, typer.Option(help="The project's workspace in Argilla: `label.workspace` of its recipes.")]


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
            while not now.sufficient:
                time.sleep(WATCH_SECONDS)
                plan, now = _look(order)
                live.update(_shown(plan, now))
        return
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
    from tasks.label_recipe import LabelRecipe
    from tasks.round import argilla, campaign_of

    assert isinstance(order.part, LabelRecipe)
    campaign = campaign_of(order.part, folders(order), order.seed)
    with argilla() as client:
        return campaign.now(client, campaign.start)


def _document(plan: "Plan", now: "Standing") -> dict[str, Any]:
    from labeling.agreement import agreement_by_annotator

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
    from tasks.label import standing_rows

    table = Table("who", "answered", "given", "agrees with others", "", box=None, title=f"Round {plan.round.name}")
    shares = {person["name"]: person["agreement"] for person in _document(plan, now)["people"]}
    for row in standing_rows(now):
        share = shares.get(str(row["who"]))
        agrees = "" if share is None else f"{share:.0%}"
        table.add_row(str(row["who"]), str(row["answered"]), str(row["given"]), agrees, str(row["note"]))
    return Group(table, now.sentence)


@annotators.command()
def create(
    names: Annotated[list[str] | None, typer.Argument(help="Usernames.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--from", help="A file with one username per line.")] = None,
    workspace: Workspace = "rlhf",
    as_json: Json = False,
) -> None:
    """Make accounts with generated passwords, which are shown this once, and let them into a project's workspace."""
    wanted = [*(names or []), *_lines(file)]
    if not wanted:
        raise RecipeError("Give usernames, or --from FILE with one per line.")
    need_services("argilla")
    from flows import services
    from labeling.accounts import create_annotators, usernames
    from tasks.round import argilla, known_passwords
    from tasks.tombstones import not_erased, read_tombstones

    erased = set(wanted) - set(not_erased(wanted, read_tombstones(services.home())))
    if erased:
        raise RecipeError(f"'{min(erased)}' was erased and is left out of every round; take another username.")
    with argilla() as client:
        existing = usernames(client)
        passwords = known_passwords(client, workspace, wanted)
        create_annotators(client, workspace, wanted, passwords)
    fresh = {name: passwords[name] for name in wanted if name not in existing}
    if as_json:
        print(json.dumps({"created": fresh, "existing": [name for name in wanted if name in existing]}))
        return
    for name in wanted:
        out.print(f"{name}  {fresh.get(name, '(has an account already)')}", markup=False, highlight=False)
    if fresh:
        err.print("Hand the passwords over now: they are not shown again (your copy is in RLHF_HOME/credentials).")


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} cannot be read ({error}); give a text file with one username per line.") from error
    return [line.strip() for line in lines if line.strip()]


@annotators.command(name="list")
def list_annotators(as_json: Json = False) -> None:
    """Everybody who ranks, and the workspaces they see."""
    need_services("argilla")
    from labeling.accounts import annotators_and_workspaces
    from tasks.round import argilla

    with argilla() as client:
        found = annotators_and_workspaces(client)
    if as_json:
        print(json.dumps({"annotators": [{"name": name, "workspaces": seen} for name, seen in found.items()]}))
        return
    table = Table("annotator", "workspaces", box=None)
    for name, seen in found.items():
        table.add_row(name, ", ".join(seen))
    out.print(table)


@annotators.command()
def erase(
    name: Annotated[str, typer.Argument(help="Username in Argilla.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is changed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a person's account and judgements here, in Argilla and in MLflow; lists first what they shaped."""
    need_services("prefect", "mlflow", "argilla")
    from flows.erase import erase as remove

    document = remove(name, dry_run=not yes)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    for key, value in document.items():
        rows = value if isinstance(value, list) else [value]
        out.print(f"{key}: {len(rows) if isinstance(value, list) else value}", markup=False, highlight=False)
        for row in rows if isinstance(value, list) else []:
            told = ", ".join(map(str, row.values())) if isinstance(row, dict) else str(row)
            out.print(f"  {told}", markup=False, highlight=False)
    if not yes:
        err.print("Nothing was changed; --yes does it.")
