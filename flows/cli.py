"""The verbs of `rlhf`. Each has `--json` (one document on stdout), an honest exit status and errors of one sentence."""

import json
import os
import sys
import warnings
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from flows import faults, services
from flows.data import data
from flows.operations import operations
from flows.people import people
from flows.plain_text import visible
from flows.verbs import Json, Labels, RecipePath, Set, err, load, need_services, out, set_environment
from tasks.artifact import without_credentials
from tasks.recipe import RecipeError
from tasks.worker import start_early

app = typer.Typer(
    help="The full RLHF lifecycle: collect preferences, train, gate, collect again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data, name="data")
app.add_typer(people)
app.add_typer(operations)


def main() -> None:
    """Entry point of the console script."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT's affair, not the user's
    with faults.told():
        app()


@app.command()
def up(as_json: Json = False) -> None:
    """Start Prefect, MLflow and Argilla on this machine (what already runs is left as it is)."""
    found = _start_services()
    _show_services(found, as_json)


@app.command()
def down(as_json: Json = False) -> None:
    """Stop the services that `up` started, and nothing else."""
    stopped = services.down(lambda name, note: err.print(f"{name}: {note}"))
    if as_json:
        print(json.dumps({"stopped": stopped}))
    elif not stopped:
        out.print("Nothing was running.")


@app.command()
def status(as_json: Json = False) -> None:
    """Where the services are, and whether they answer."""
    found = services.status()
    _show_services(found, as_json)
    if not all(service.healthy for service in found.values()):
        raise typer.Exit(1)


@app.command()
def run(recipe: RecipePath, set_: Set = None, labels: Labels = None, as_json: Json = False) -> None:
    """Run a whole lifecycle here: build what is missing, reuse the rest, wait for people where the recipe says so."""
    set_environment()
    if all(service.healthy for service in services.status().values()):  # else the workers would not know where they are
        start_early(services.home())
    parsed = load(recipe, set_, labels, here=True)
    _start_services(quiet=True)
    os.environ.update(services.environment())
    with faults.prefect_answers():
        from flows.lifecycle import rlhf

        document = rlhf(parsed)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    from flows.summary import markdown

    out.print(Markdown(markdown(document)))


@app.command()
def plan(
    recipe: RecipePath,
    set_: Set = None,
    labels: Labels = None,
    estimate: Annotated[bool, typer.Option(help="Tokens, memory, hours and cost instead; needs no service.")] = False,
    machine_price: Annotated[float, typer.Option(min=0, help="Of an hour of the machine.")] = 0.0,
    label_price: Annotated[float, typer.Option(min=0, help="Of an hour of an annotator.")] = 0.0,
    judgement_seconds: Annotated[float, typer.Option(min=1, help="A person takes for one record.")] = 45.0,
    as_json: Json = False,
) -> None:
    """What a run would build and what it would reuse, or what it would cost (--estimate); builds nothing."""
    parsed = load(recipe, set_, labels)
    if estimate:
        from flows.costs import show_costs
        from tasks.estimating import Prices
        from tasks.foresight import check_models

        prices = Prices(machine_hour=machine_price, label_hour=label_price, seconds_per_judgement=judgement_seconds)
        check_models(parsed)
        show_costs(parsed, prices, as_json)
        return
    need_services("mlflow")
    from flows.lifecycle import build_lifecycle
    from flows.running import Planning
    from tasks.lineage import Record
    from tasks.registry import Registry
    from tasks.store import Store

    record = Record()
    store = Store(services.home(), record)
    planning = Planning(store)
    for _ in build_lifecycle(parsed, planning, store, Registry(record)):
        pass
    steps = [{"name": n, "reused": a is not None, "artifact": a.key if a else None} for n, a in planning.steps]
    if as_json:
        print(json.dumps({"stages": steps}))
        return
    table = Table("stage", "", "artifact", box=None)
    for step in steps:
        table.add_row(step["name"], "reused" if step["reused"] else "build", (step["artifact"] or "")[:12])
    out.print(table)


@app.command()
def lineage(
    model: Annotated[str | None, typer.Argument(help="NAME, NAME@champion, NAME/VERSION or an artifact's key.")] = None,
    judgement: Annotated[
        str | None, typer.Option("--judgement", help="Id of one judgement: which models it shaped.")
    ] = None,
    as_json: Json = False,
) -> None:
    """From a model to every artifact and judgement behind it; with --judgement ID the other way round."""
    need_services("mlflow")
    from flows.tree import ancestry, descent

    if (model is None) == (judgement is None):
        raise RecipeError("Give either a model or --judgement ID.")
    document, tree = ancestry(model) if model else descent(str(judgement))
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        out.print(tree)


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="NAME, NAME@champion, NAME/VERSION, an artifact's key or a model folder.")
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask once and leave.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    as_json: Json = False,
) -> None:
    """Talk to a model: /use MODEL changes it, /new forgets the conversation, /quit leaves."""
    if as_json and prompt is None:
        raise RecipeError("--json needs --prompt TEXT.")
    from flows.talk import Talk

    talk = Talk(temperature, max_new_tokens)
    talk.use(model)
    if prompt is None:
        talk.converse(out)
        return
    answer = talk.ask(prompt)
    document = {"model": model, "prompt": prompt, "completion": answer}
    print(json.dumps(document, ensure_ascii=False) if as_json else visible(answer))


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed, reachable and missing, and how to mend it."""
    from flows.doctor import check

    checks = check()
    if as_json:
        print(json.dumps({"checks": [vars(found) for found in checks]}))
    else:
        table = Table("", "check", "found", "what to do", box=None)
        for found in checks:
            table.add_row("✓" if found.ok else "✗", found.name, found.detail, "" if found.ok else found.remedy)
        out.print(table)
    if not all(found.ok for found in checks):
        raise typer.Exit(1)


def _start_services(quiet: bool = False) -> dict[str, services.Service]:
    last: dict[str, str] = {}

    def progress(name: str, note: str) -> None:
        if not sys.stderr.isatty() and note.split(" ")[0] == last.get(name):
            return  # one line per state, not per package
        last[name] = note.split(" ")[0]
        state.update(f"{name}: {escape(note)}") if sys.stderr.isatty() else err.print(f"{name}: {note}", markup=False)

    if quiet and all(service.healthy for service in services.status().values()):
        return services.status()
    with err.status("services") as state:
        return services.up(progress)


def _show_services(found: dict[str, services.Service], as_json: bool) -> None:
    if as_json:
        document = {
            name: {"url": without_credentials(service.url), "healthy": service.healthy}
            for name, service in found.items()
        }
        print(json.dumps({"services": document}))
        return
    table = Table("service", "address", "", box=None)
    for name, service in found.items():
        table.add_row(name, without_credentials(service.url), "healthy" if service.healthy else "not running")
    out.print(table)
    if found["argilla"].local:
        username, _, _ = services.argilla_credentials()
        path = services.home() / "argilla" / "owner-password"
        out.print(f"Argilla's owner signs in as [bold]{username}[/] with the password in {path}", highlight=False)
        for known in sorted((services.home() / "credentials").glob("*.json")):
            if known.name != "webhooks.json":
                out.print(f"Annotators of {escape(known.stem)} sign in with the passwords in {known}", highlight=False)


if __name__ == "__main__":
    main()
