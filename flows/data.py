"""`rlhf data`: what a recipe's data is, before anything is trained on it."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flows import services
from flows.screen import table_of
from flows.verbs import Json, RecipePath, Set, err, load, out

if TYPE_CHECKING:
    from flows.recipe import LifecycleRecipe

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
            made = prepared(parsed, Path(folder), head)
            tables = tables_of(made)
            tokenizer, said = _tokenizer(parsed)
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
    out.print(f"\nTokens: {said}. [black on green]Green[/] is what the loss is on.", highlight=False)


def _tables(console: Console, tables: dict[str, list[dict[str, Any]]], head: int | None) -> None:
    for name, each in tables.items():
        if each:
            console.print(f"\n[bold]{name}[/]" + (f" (of the first {head} rows of each set)" if head else ""))
            console.print(table_of(each))


def prepared(recipe: "LifecycleRecipe", folder: Path, head: int | None = None) -> Path:
    """The data artifact of the recipe: the one that is there, or one made in `folder` as a run would make it."""
    from flows.lifecycle import DATA
    from tasks.artifact import Work
    from tasks.data.preview import shorten
    from tasks.store import Order

    if head is None:
        built = services.home() / "store" / Order(DATA, recipe.data, {}, recipe.seed).key
        if (built / "manifest.json").is_file():
            return built
    (folder / "out").mkdir()
    (folder / "scratch").mkdir()
    part: Any = recipe.data if head is None else shorten(recipe.data, head)
    with err.status("data") as state:
        work = Work(folder / "out", folder / "scratch", recipe.seed)
        work.on_progress = lambda done, total, note: state.update(f"data {done}/{total}: {note}")
        DATA.function(part, {}, work)
    return work.out


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
    out.rule(Text(f"{conversation['set'] or 'data'} · {conversation['form'] or 'as it is'}{counted}"), align="left")
    text = Text()
    for piece in conversation["pieces"]:
        text.append(piece["text"], style="black on green" if piece["loss"] else "")
    out.print(text)
