"""What a data recipe makes of its sources, looked at before anything is trained on it."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.artifact import InputError, Message, Row, iterate_jsonl
from tasks.data.splits import SPLITS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tasks.models.chat import Encoded

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


def without_paid_judges(recipe: Any) -> tuple[Any, list[str]]:
    """The same data recipe without filters that ask a judge behind an endpoint, and what the tables call those."""
    from tasks.data.intake import filter_names

    named = filter_names(getattr(recipe, "filters", ()))
    paid = [name for name, part in named.items() if part.kind == "judge" and part.judge.kind == "endpoint"]
    if not paid:
        return recipe, []
    return recipe.model_copy(update={"filters": tuple(named[name] for name in named if name not in paid)}), paid


def tokenizer_of(artifact: Path, model: str | None, chat_template: str) -> "PreTrainedTokenizerBase | None":
    """The base model's tokenizer: out of its artifact, or of the local folder it will be made from; else None."""
    from tasks.models.loading import load_tokenizer
    from tasks.models.source import local_folder
    from tasks.models.templates import prepare_tokenizer

    if (artifact / "tokenizer").is_dir():
        return load_tokenizer(artifact)
    folder = local_folder(model, "base.model") if model else None
    return prepare_tokenizer(load_tokenizer(folder), chat_template) if folder else None


def check_set(recipe: Any, name: str) -> None:
    """Raise `InputError` when a data recipe has no set of this name."""
    names = [each.name for each in getattr(recipe, "sets", ())]
    if name not in names:
        there = f"its sets are {', '.join(names)}" if names else "it has no sets, so leave --of out"
        raise InputError(f"The data has no set '{name}'; {there}.")


def sample(data: Path, per_set: int, only: str | None, seed: int, stage: str | None = None) -> list[Row]:
    """So many different rows of each set, drawn by the seed: of what SFT (or a stage of it) learns from, and of a set
    that gives it nothing the prompts of the other splits.

    Raises `InputError` for a set that has none.
    """
    chosen: dict[str, list[tuple[bytes, Row]]] = {}
    for file in (f"sft.{stage}" if stage else "sft", *(split for split in SPLITS if split != "sft")):
        new: dict[str, list[tuple[bytes, Row]]] = {}
        for row in iterate_jsonl(data / f"{file}.jsonl"):
            name = row.get("set", "")
            if name in chosen or (not name and file != "sft"):
                continue
            drawn = new.setdefault(name, [])
            rank = sha256(f"{seed}/{json.dumps(row, sort_keys=True)}".encode()).digest()  # equal rows are drawn once
            if (len(drawn) < per_set or rank < drawn[-1][0]) and all(rank != other for other, _ in drawn):
                drawn[:] = sorted([*drawn, (rank, row)], key=lambda pair: pair[0])[:per_set]
        chosen |= new
    if only is not None and only not in chosen:
        raise InputError(f"Nothing is left of the set '{only}'; the tables 'filters' and 'dropped by set' say why.")
    return [row for name, rows in sorted(chosen.items()) if only in (None, name) for _, row in rows]


def shown(row: Row, tokenizer: "PreTrainedTokenizerBase | None", turns: Literal["all", "last"] = "all") -> Row:
    """A row as a document: its pieces with the loss mask of SFT, and how many tokens it has and learns from.

    Without a tokenizer, or where its chat template refuses the row, the pieces are the turns, and there are no counts.
    A prompt is not learnt from.
    """
    if "prompt" in row:
        return _prompt(row, tokenizer)
    about = {"set": row.get("set"), "form": row.get("form"), "messages": row.get("messages"), "text": row.get("text")}
    about["made"] = row.get("made")
    encoded: list[Encoded] = []
    if tokenizer is not None:
        from tasks.training.sft_engine import encode_rows

        refused: dict[int, str] = {}
        encoded = encode_rows([row], tokenizer, turns, refused)
        about["form"] = f"refused by the chat template: {refused[1]}" if refused else about["form"]
    if tokenizer is None or not encoded:
        return {**about, "pieces": _listed(list(_turns(row))), "tokens": None, "loss_tokens": None}
    mask = encoded[0].labels_mask
    pieces = [(str(tokenizer.decode(run)), loss) for run, loss in _runs(encoded[0].input_ids, mask)]
    return {**about, "pieces": _listed(pieces), "tokens": len(mask), "loss_tokens": sum(mask)}


def _prompt(row: Row, tokenizer: "PreTrainedTokenizerBase | None") -> Row:
    from tasks.models.chat import encode_prompt
    from tasks.models.rendering import RowRefused

    about = {"set": row.get("set"), "form": "a prompt alone", "messages": row["prompt"], "text": None}
    about["made"] = row.get("made")
    ids: list[int] | None = None
    if tokenizer is not None:
        try:
            ids = encode_prompt(tokenizer, row["prompt"])
        except RowRefused as error:
            about["form"] = f"refused by the chat template: {error.__cause__}"
    if tokenizer is None or ids is None:
        pieces = _listed(list(_turns({"messages": row["prompt"]})))
        return {**about, "pieces": pieces, "tokens": None, "loss_tokens": None}
    return {**about, "pieces": _listed([(str(tokenizer.decode(ids)), False)]), "tokens": len(ids), "loss_tokens": 0}


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
        yield turn["content"] + "\n", turn["role"] == "assistant" and "weight" not in turn


def _listed(pieces: list[Piece]) -> list[Row]:
    return [{"text": text, "loss": loss} for text, loss in pieces]


def tables_of(data: Path) -> dict[str, list[Row]]:
    """What the report says of shares and filters, by the tables' names."""
    mixtures = sorted(path.stem for path in (data / "report").glob("mixture*.json"))
    return {
        name: table(data, name)
        for name in (
            *mixtures,
            "phrasings",
            "filters",
            "scores",
            "ledger",
            "dropped by set",
            "personal data",
            "notices",
        )
    }


def table(data: Path, name: str) -> list[Row]:
    """A table of the data artifact's report; empty where it has none."""
    path = data / "report" / f"{name}.json"
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(document["columns"], values, strict=True)) for values in document["data"]]
