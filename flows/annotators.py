"""`rlhf annotators`: accounts of the people who rank, their passwords and pseudonyms, and how they are erased."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.verbs import Json, err, need_services, out
from tasks.artifact import PipelineError
from tasks.recipe import RecipeError

annotators = typer.Typer(no_args_is_help=True, help="Accounts of the people who rank.")

HAND_OVER = "Hand the passwords over now: they are not shown again (your copy is in RLHF_HOME/credentials)."
Workspace = Annotated[str, typer.Option(help="The project's workspace in Argilla: `label.workspace` of its recipes.")]


@annotators.command()
def create(
    names: Annotated[list[str] | None, typer.Argument(help="Usernames.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--from", help="A file with one username per line.")] = None,
    workspace: Workspace = "rlhf",
    as_json: Json = False,
) -> None:
    """Make accounts with generated passwords, which are shown this once, and let them into a project's workspace."""
    wanted = _usernames([*(names or []), *_lines(file)])
    need_services("argilla")
    from flows import services
    from labeling.service.accounts import create_annotators, usernames
    from tasks.labels.passwords import kept_passwords, known_passwords
    from tasks.labels.round import argilla
    from tasks.tombstones import not_erased, read_tombstones

    erased = set(wanted) - set(not_erased(wanted, read_tombstones(services.home())))
    if erased:
        raise RecipeError(f"'{min(erased)}' was erased and is left out of every round; take another username.")
    with argilla() as client:
        existing = usernames(client)
        passwords = known_passwords(client, workspace, wanted)
        create_annotators(client, workspace, wanted, passwords)
    fresh = {name: passwords[name] for name in wanted if name not in existing}
    files = {name: str(kept.file) for name, kept in kept_passwords().items() if name in wanted}
    if as_json:
        old = [name for name in wanted if name in existing]
        print(json.dumps({"created": fresh, "existing": old, "passwords_in": files}))
        return
    for name in wanted:
        where = (
            f"its password is in {files[name]}" if name in files else f"a new password: rlhf annotators reset {name}"
        )
        told = fresh.get(name, f"(has an account already; {where})")
        out.print(f"{name}  {told}", markup=False, highlight=False, soft_wrap=True)
    if fresh:
        err.print(HAND_OVER, markup=False, highlight=False)


@annotators.command()
def reset(
    names: Annotated[list[str], typer.Argument(help="Usernames.", show_default=False)],
    workspace: Workspace = "rlhf",
    as_json: Json = False,
) -> None:
    """Give accounts new passwords, shown this once; the old ones no longer sign in."""
    need_services("argilla")
    from labeling.service.accounts import reset_password
    from labeling.service.erasure import find_person
    from tasks.labels.passwords import keep_passwords, new_password
    from tasks.labels.round import argilla

    with argilla() as client:
        people = {name: find_person(client, name) for name in names}
        if strangers := [name for name, person in people.items() if person is None]:
            raise PipelineError(f"Argilla has no annotator '{strangers[0]}'; `rlhf annotators list` names them.")
        fresh = {person.name: (person.id, new_password()) for person in people.values() if person}
        for name, (user_id, password) in fresh.items():
            reset_password(client, user_id, password)
            keep_passwords({name: password}, workspace)
    if as_json:
        print(json.dumps({"reset": {name: password for name, (_, password) in fresh.items()}}))
        return
    for name, (_, password) in fresh.items():
        out.print(f"{name}  {password}", markup=False, highlight=False)
    err.print(HAND_OVER, markup=False, highlight=False)


def _usernames(given: list[str]) -> list[str]:
    """Each name once. Raises `RecipeError` for none, and for one that `label.people` could not hold."""
    from pydantic import TypeAdapter, ValidationError

    from tasks.labels.recipe import Name

    if not given:
        raise RecipeError("Give usernames, or --from FILE with one per line.")
    for name in given:
        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            raise RecipeError(
                f"'{name}' is no username; take letters, digits, - and _ (64 at most, a letter or digit first)."
            ) from error
    return list(dict.fromkeys(given))


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} cannot be read ({error}); give a text file with one username per line.") from error
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]


@annotators.command(name="list")
def list_annotators(as_json: Json = False) -> None:
    """Everybody who ranks, what reports call them, and the workspaces they see."""
    need_services("argilla")
    from labeling.service.accounts import annotators_and_workspaces, users_by_id
    from tasks.labels.label import pseudonym
    from tasks.labels.round import argilla

    with argilla() as client:
        seen = annotators_and_workspaces(client)
        called = {name: pseudonym(user_id) for user_id, name in users_by_id(client).items()}
    if as_json:
        found = [{"name": name, "pseudonym": called[name], "workspaces": seen[name]} for name in seen]
        print(json.dumps({"annotators": found}))
        return
    table = Table("annotator", "in reports", "workspaces", box=None)
    for name, workspaces in seen.items():
        table.add_row(escape(name), called[name], ", ".join(workspaces))
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
            out.print(f"  {told}", markup=False, highlight=False, soft_wrap=True)
    if not yes:
        err.print("Nothing was changed; --yes does it.")
