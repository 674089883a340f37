"""The verbs of a deployment: runs given to whoever serves, what resumes waiting ones, and Argilla's backup."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.progress import Progress
from rich.table import Table

from flows import faults
from flows.verbs import Json, Labels, RecipePath, Set, err, load, need_services, out, set_environment

operations = typer.Typer(no_args_is_help=True)

Archive = Annotated[Path, typer.Argument(help="The backup's file.", show_default=False)]


@operations.command()
def serve(
    sweep_seconds: Annotated[int, typer.Option(min=5, help="How often waiting runs are counted again.")] = 120,
) -> None:
    """Take submitted runs and resume those whose round is complete, until interrupted."""
    need_services("prefect", "mlflow")
    from flows.serve import DEPLOYMENT
    from flows.serve import serve as take_runs

    err.print(f"Serving {DEPLOYMENT}; submit runs with `rlhf submit RECIPE`, stop with Ctrl-C.", highlight=False)
    take_runs(sweep_seconds)


@operations.command()
def submit(recipe: RecipePath, set_: Set = None, labels: Labels = None, as_json: Json = False) -> None:
    """Give a run to whoever serves (`rlhf serve`, or a worker) and return at once; it suspends while people rank."""
    parsed = load(recipe, set_, labels)
    need_services("prefect")
    from flows.serve import submit as ask

    with faults.prefect_answers():
        run = ask(parsed)
    url = f"{os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{run}"
    print(json.dumps({"flow_run": run, "url": url})) if as_json else out.print(f"Submitted: {url}", highlight=False)


@operations.command()
def sweep(as_json: Json = False) -> None:
    """Count every waiting round once and resume the runs whose round is complete."""
    set_environment()
    need_services("prefect", "mlflow")
    from flows.collect import resume_finished_rounds

    found = resume_finished_rounds()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    table = Table("run", "", "", box=None)
    for run in found["waiting"]:
        table.add_row(run["name"], "resumed" if run["resumed"] else "waiting", run["error"] or run["says"])
    out.print(table if found["waiting"] else "No run waits for people.")


@operations.command(name="serve-reward")
def serve_reward(
    model: Annotated[str, typer.Argument(help="A reward artifact's key, or a model: the reward model behind it.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine put a proxy before it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8500,
) -> None:
    """Serve a reward model over HTTP, for `policy.rewards = [{kind = "server", url = ...}]` of runs elsewhere."""
    need_services("mlflow")
    from flows.reward_server import serve

    serve(model, host, port)


@operations.command()
def webhooks(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8765,
    url: Annotated[str | None, typer.Option(help="Where Argilla reaches this, if not there.")] = None,
) -> None:
    """Receive Argilla's webhooks, so that a waiting run goes on within seconds; `rlhf serve` makes sure it does."""
    set_environment()
    need_services("prefect", "mlflow", "argilla")
    from flows.webhooks import serve as receive

    receive(host, port, url)


@operations.command()
def backup(
    file: Archive,
    workspace: Annotated[str | None, typer.Option(help="Only this workspace of Argilla's.")] = None,
    as_json: Json = False,
) -> None:
    """Write Argilla's datasets, records and every judgement with its ranks to one file (no passwords, no keys).

    Whoever is erased later is still in it: keep backups no longer than you need them.
    """
    need_services("argilla")
    from labeling.service.backup import backup as write
    from tasks.labels.round import argilla

    with argilla() as client, Progress(console=err, transient=True) as bars:
        bar = bars.add_task("records", total=None)
        counts = write(client, file, workspace, lambda done, total: bars.update(bar, completed=done, total=total))
    _told(counts, as_json)


@operations.command()
def restore(file: Archive, as_json: Json = False) -> None:
    """Put back what a backup holds and Argilla does not; twice adds nothing. New accounts get fresh passwords."""
    need_services("argilla")
    from labeling.service.restoring import restore as put_back
    from tasks.labels.passwords import kept_passwords, known_passwords
    from tasks.labels.round import argilla

    with argilla() as client, Progress(console=err, transient=True) as bars:
        bar = bars.add_task("records", total=None)
        restored = put_back(
            client,
            file,
            lambda done, total: bars.update(bar, completed=done, total=total),
            lambda name: known_passwords(client, "restored", [name])[name],
        )
    counts = {name: getattr(restored, name) for name in ("workspaces", "datasets", "records", "responses")}
    files = sorted({str(kept.file) for name, kept in kept_passwords().items() if name in restored.users})
    _told({"users": len(restored.users), **counts}, as_json, restored.refused, files)


def _told(counts: dict[str, int], as_json: bool, refused: Sequence[str] = (), passwords_in: Sequence[str] = ()) -> None:
    if as_json:
        more = {"refused": list(refused), "passwords_in": list(passwords_in)}
        print(json.dumps({**counts, **{name: told for name, told in more.items() if told}}, ensure_ascii=False))
        return
    table = Table("", "", box=None)
    for name, count in counts.items():
        table.add_row(name, str(count))
    out.print(table)
    for sentence in refused:
        err.print(sentence, markup=False, highlight=False)
    if passwords_in:
        told = f"The new accounts' passwords are in {', '.join(passwords_in)}; runs know them."
        err.print(told, markup=False, highlight=False, soft_wrap=True)


@operations.command()
def compare(
    a: Annotated[str, typer.Argument(help="NAME, NAME@champion, NAME/VERSION or an artifact's key.")],
    b: Annotated[str, typer.Argument(help="The other model, named likewise.")],
    recipe: Annotated[Path | None, typer.Option(help="Whose prompts and round are taken.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A JSONL file of prompts instead.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """People compare two models blind: win rate with its interval and a sign test."""
    set_environment()
    need_services("prefect", "mlflow", "argilla")
    with faults.prefect_answers():
        from flows.versus import compare as ask_people
        from flows.versus import markdown

        document = ask_people(a, b, recipe, prompts, set_ or [])
    print(json.dumps(document, ensure_ascii=False)) if as_json else out.print(Markdown(markdown(document)))
