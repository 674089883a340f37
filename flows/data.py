"""`rlhf data`: what a recipe's data is, before anything is trained on it."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from flows import faults, services
from flows.plain_text import visible
from flows.screen import table_of
from flows.verbs import Json, RecipePath, Set, err, load, need_services, out

if TYPE_CHECKING:
    from flows.recipe import LifecycleRecipe
    from tasks.artifact import Artifact
    from tasks.store import Order

data = typer.Typer(no_args_is_help=True, help="The data of a recipe, before anything is trained on it.")


@data.command()
def preview(
    recipe: RecipePath,
    set_: Set = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Conversations shown of each set.")] = 2,
    of: Annotated[str | None, typer.Option("--of", help="Only this set.", metavar="NAME")] = None,
    head: Annotated[
        int | None, typer.Option("--head", min=1, help="Read only so many rows of each set: quick, but not the shares.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Ask the endpoints of judge filters too, which may cost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rendered conversations with the loss mask in colour, token counts, the shares of the sets and what filters do."""
    parsed = load(recipe, set_, None)
    from tasks.artifact import PipelineError
    from tasks.data.preview import check_set, sample, shown, tables_of

    if of is not None:
        check_set(parsed.data, of)
    with tempfile.TemporaryDirectory(prefix="rlhf-preview-") as folder:
        try:
            made, left_out = prepared(parsed, Path(folder), head, judge)
            tables = _with_unasked(tables_of(made), left_out)
            tokenizer, said = _tokenizer(parsed)
            tables = _with_unsaid(tables, made, tokenizer, parsed.sft.mixture)
            drawn = sample(made, rows, of, parsed.seed, parsed.sft.mixture)
        except PipelineError:  # what the filters dropped says why
            _tables(err, tables_of(Path(folder) / "out"), head)
            raise
        conversations = [shown(row, tokenizer, parsed.sft.turns) for row in drawn]
    if as_json:
        document = {**{name.replace(" ", "_"): each for name, each in tables.items()}, "head": head}
        print(json.dumps({**document, "tokenizer": said, "conversations": conversations}, ensure_ascii=False))
        return
    for conversation in conversations:
        _show(conversation)
    _tables(out, tables, head)
    if left_out:
        out.print(f"\nNot asked: {', '.join(left_out)}; --judge asks, and its answers are kept for the run.")
    out.print(f"\nTokens: {said}. [black on green]Green[/] is what the loss is on.", highlight=False)


def _with_unasked(tables: dict[str, list[dict[str, Any]]], left_out: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The tables with the filters that were left out, before the ledger's line."""
    rows = tables["filters"]
    end = next((place for place, row in enumerate(rows) if row["filter"] == "ledger"), len(rows))
    empty = dict.fromkeys(rows[0]) if rows else {}
    unasked = [{**empty, "filter": name, "seen": "not asked"} for name in left_out]
    return {**tables, "filters": [*rows[:end], *unasked, *rows[end:]]}


def _with_unsaid(
    tables: dict[str, list[dict[str, Any]]], made: Path, tokenizer: Any, mixture: str | None
) -> dict[str, list[dict[str, Any]]]:
    """The tables with what of the rows for SFT the tokenizer leaves out among the notices."""
    if tokenizer is None:
        return tables
    from tasks.artifact import iterate_jsonl
    from tasks.models.unsaid import unsaid

    rows = iterate_jsonl(made / (f"sft.{mixture}.jsonl" if mixture else "sft.jsonl"))
    if told := [{"notice": notice} for notice in unsaid(rows, tokenizer)]:
        return {**tables, "notices": [*tables.get("notices", []), *told]}
    return tables


def _tables(console: Console, tables: dict[str, list[dict[str, Any]]], head: int | None) -> None:
    for name, each in tables.items():
        if each:
            console.print(f"\n[bold]{name}[/]" + (f" (of the first {head} rows of each set)" if head else ""))
            console.print(table_of(each))


@data.command()
def synthesise(recipe: RecipePath, set_: Set = None, as_json: Json = False) -> None:
    """Have the models of a recipe's syntheses write their rows, and nothing else; a run takes them as they are."""
    parsed = load(recipe, set_, None, here=True)
    need_services("mlflow", "prefect")
    with faults.prefect_answers():
        from flows.synthesis import write_rows

        document = write_rows(parsed)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    rows = [{name: value for name, value in row.items() if name != "rows_file"} for row in document["syntheses"]]
    out.print(table_of(rows))
    for row in document["syntheses"]:
        out.print(f"{row['name']}: {row['rows_file']}", highlight=False, soft_wrap=True)


def prepared(
    recipe: "LifecycleRecipe", folder: Path, head: int | None = None, judge: bool = False
) -> tuple[Path, list[str]]:
    """The data artifact of the recipe: the one that is there, or one made in `folder` as a run would make it; and the
    filters that were left out, for without `judge` no judge behind an endpoint is asked.

    Raises `InputError` where a set of it is of a synthesis that is not there yet: a preview has no model write.
    """
    from flows.lifecycle import DATA, build_syntheses, data_order
    from tasks.artifact import InputError, Work
    from tasks.data.preview import shorten, without_paid_judges

    syntheses = build_syntheses(recipe, _Local())
    order = data_order(recipe, syntheses)
    if missing := [name for name, artifact in order.inputs.items() if not artifact.digest]:
        name = missing[0].removeprefix("synthesis.")
        raise InputError(
            f"The rows of the synthesis '{name}' are not written yet, and looking at the data writes none; have them "
            "written first with `rlhf data synthesise` and this recipe."
        )
    if head is None:
        built = services.home() / "store" / order.key
        if (built / "manifest.json").is_file():
            return built, []
    (folder / "out").mkdir()
    (folder / "scratch").mkdir()
    part: Any = recipe.data if head is None else shorten(recipe.data, head)
    part, left_out = (part, []) if judge else without_paid_judges(part)
    with err.status("data") as state:
        work = Work(folder / "out", folder / "scratch", recipe.seed)
        work.on_progress = lambda done, total, note: state.update(escape(visible(f"data {done}/{total}: {note}")))
        DATA.function(part, {name: artifact.path for name, artifact in order.inputs.items()}, work)
    return work.out, left_out


class _Local:
    """Builds nothing: finds the artifacts that are on this machine, without any service."""

    def one(self, order: "Order") -> "Artifact":
        from tasks.artifact import Artifact
        from tasks.store import load_artifact

        missing = any(not artifact.digest for artifact in order.inputs.values())
        found = None if missing else load_artifact(services.home() / "store" / order.key)
        return found or Artifact(key="", stage=order.stage.name, digest="", path=Path(), run_id="", metrics={})


def _tokenizer(recipe: "LifecycleRecipe") -> tuple[Any, str]:
    """The base model's tokenizer, or None where it is not built yet, and which it is."""
    from flows.lifecycle import BASE
    from tasks.data.preview import tokenizer_of
    from tasks.store import Order

    artifact = services.home() / "store" / Order(BASE, recipe.base, {}, recipe.seed).key
    found = tokenizer_of(artifact, recipe.base.model, recipe.base.chat_template)
    if found is not None:
        return found, f"the tokenizer of {recipe.base.model or 'the base model'}, {len(found)} entries"
    return None, "not counted: the base model and its tokenizer are not built yet, so turns are shown as plain text"


def _show(conversation: dict[str, Any]) -> None:
    tokens = conversation["tokens"]
    counted = f" · {tokens} tokens, {conversation['loss_tokens']} in the loss" if tokens is not None else ""
    about = visible(f"{conversation['set'] or 'data'} · {conversation['form'] or 'as it is'}{counted}")
    out.rule(Text(about), align="left")
    text = Text()
    for piece in conversation["pieces"]:
        text.append(visible(piece["text"]), style="black on green" if piece["loss"] else "")
    out.print(text)
    if conversation["made"]:
        from tasks.data.preview import made_by

        out.print(Text(visible(made_by(conversation["made"])), style="dim"))
