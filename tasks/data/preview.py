"""What a data recipe makes of its sources, looked at before anything is trained on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from tasks.artifact import InputError, Message, Row, read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = tuple[str, bool]
"""A stretch of text, and whether the loss is on it."""


def shorten(recipe: Any, head: int) -> Any:
    """The same data recipe reading only the first rows of every set; other sources draw as many."""
    sets = getattr(recipe, "sets", None)
    if sets is None:
        return recipe.model_copy(update={"max_rows": min(head, recipe.max_rows or head)})
    return recipe.model_copy(
        update={"sets": tuple(s.model_copy(update={"max_rows": min(head, s.max_rows or head)}) for s in sets)}
    )


def tokenizer_of(artifact: Path, model: str | None, chat_template: str) -> "PreTrainedTokenizerBase | None":
    """The base model's tokenizer: out of its artifact, or of the local folder it will be made from; else None."""
    from tasks.models.loading import load_tokenizer
    from tasks.models.source import local_folder
    from tasks.models.templates import prepare_tokenizer

    if (artifact / "tokenizer").is_dir():
        return load_tokenizer(artifact)
    folder = local_folder(model, "base.model") if model else None
    return prepare_tokenizer(load_tokenizer(folder), chat_template) if folder else None


def sample(data: Path, per_set: int, only: str | None, seed: int) -> list[Row]:
    """Rows of `sft.jsonl`, so many of each set, drawn by the seed. Raises `InputError` for a set that has none."""
    by_set: dict[str, list[Row]] = {}
    seen: dict[str, int] = {}
    rng = Random(seed)
    for row in read_jsonl(data / "sft.jsonl"):
        name = row.get("set", "")
        seen[name] = seen.get(name, 0) + 1
        chosen = by_set.setdefault(name, [])
        if len(chosen) < per_set:
            chosen.append(row)
        elif (place := rng.randrange(seen[name])) < per_set:  # every row is as likely to be shown
            chosen[place] = row
    if only is not None and only not in by_set:
        names = ", ".join(sorted(by_set)) or "none"
        raise InputError(f"The fine-tuning rows hold none of the set '{only}'; the sets there are {names}.")
    return [row for name, rows in sorted(by_set.items()) if only in (None, name) for row in rows]


def shown(row: Row, tokenizer: "PreTrainedTokenizerBase | None", turns: Literal["all", "last"] = "all") -> Row:
    """A row as a document: its pieces with the loss mask of SFT, and how many tokens it has and learns from.

    Without a tokenizer the pieces are the turns, and there are no counts.
    """
    about = {"set": row.get("set"), "form": row.get("form"), "messages": row.get("messages"), "text": row.get("text")}
    about["made"] = row.get("made")
    if tokenizer is None:
        pieces = list(_turns(row))
        return {**about, "pieces": _listed(pieces), "tokens": None, "loss_tokens": None}
    from tasks.training.sft_engine import encode_rows

    [encoded] = encode_rows([row], tokenizer, turns)
    mask = encoded.labels_mask
    pieces = [(str(tokenizer.decode(run)), loss) for run, loss in _runs(encoded.input_ids, mask)]
    return {**about, "pieces": _listed(pieces), "tokens": len(mask), "loss_tokens": sum(mask)}


def made_by(made: Row) -> str:
    """How a synthesis made a row, on one line."""
    told = [step for step in made["steps"] if isinstance(step, dict)]
    steps = [" ".join(str(step[name]) for name in ("step", "operation") if name in step) for step in told]
    parent = next((f", from {step['parent']}" for step in reversed(told) if "parent" in step), "")
    return f"made by {made.get('model')} (synthesis {made.get('synthesis')}): {', '.join(steps)}{parent}"


def _runs(ids: list[int], mask: list[int]) -> Iterator[tuple[list[int], bool]]:
    begin = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or mask[place] != mask[begin]:
            yield ids[begin:place], bool(mask[begin])
            begin = place


def _turns(row: Row) -> Iterator[Piece]:
    if "text" in row:
        yield row["text"], True
        return
    messages: list[Message] = row["messages"]
    for turn in messages:
        yield f"{turn['role']}: ", False
        yield turn["content"] + "\n", turn["role"] == "assistant"


def _listed(pieces: list[Piece]) -> list[Row]:
    return [{"text": text, "loss": loss} for text, loss in pieces]


def tables_of(data: Path) -> dict[str, list[Row]]:
    """What the report says of shares and filters, by the tables' names."""
    mixtures = sorted(path.stem for path in (data / "report").glob("mixture*.json"))
    return {
        name: table(data, name) for name in (*mixtures, "phrasings", "filters", "scores", "ledger", "dropped by set")
    }


def table(data: Path, name: str) -> list[Row]:
    """A table of the data artifact's report; empty where it has none."""
    path = data / "report" / f"{name}.json"
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(document["columns"], values, strict=True)) for values in document["data"]]
