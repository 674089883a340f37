"""Data: a source of prompts, split once and for all by the ledger, as the files every later stage reads."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from tasks.artifact import InputError, Message, Row, Work, write_jsonl
from tasks.data import shop
from tasks.data.families import family
from tasks.data.files import read_examples
from tasks.data.mixture import MixtureData, prepare_mixture
from tasks.data.preference_formats import read_preferences
from tasks.data.rows import Example
from tasks.data.splits import SPLITS, Splitting, assign, group_prompts, prompt_id
from tasks.data.spool import made_of
from tasks.data.templates import ChatTemplate
from tasks.recipe import stable_hash


class _Source(Splitting):
    max_rows: int | None = Field(default=None, ge=1)
    """Use at most so many rows, drawn by the seed; none: all."""


class ShopData(_Source):
    """The demo's shop assistant."""

    source: Literal["shop"] = "shop"
    """The domain written in `tasks/data/shop.py`."""
    demonstrations: int = Field(default=10, ge=1)
    """Demonstrations per SFT prompt, of mixed quality."""
    wrong: float = Field(default=0.3, ge=0, le=1)
    """Share of the demonstrations that state a wrong fact."""
    polite: float = Field(default=0.5, ge=0, le=1)
    """Share of the demonstrations that are polite."""
    rude: float = Field(default=0.25, ge=0, le=1)
    """Share of the demonstrations that are rude."""
    long: float = Field(default=0.2, ge=0, le=1)
    """Share of the demonstrations that are long-winded."""

    def external_files(self) -> list[Path]:
        """The domain's own source: editing a fact makes other data."""
        return [Path(shop.__file__)]


class JsonlData(_Source):
    """A file of the user's: conversations, instructions, prompts, or any rows with templates for them."""

    source: Literal["jsonl"]
    """JSON lines (or a .json array) with `messages`, `prompt` and `completion`, or `instruction`/`input`/`output`."""
    path: str
    """The file."""
    templates: tuple[ChatTemplate, ...] = ()
    """Turn each row's columns into conversations with these; none: the rows are conversations already."""
    templates_per_row: int = Field(default=1, ge=1)
    """With how many of the templates each row is told."""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """A row without a prompt, with an empty answer or the like ends the run, or is dropped and reported."""

    def external_files(self) -> list[Path]:
        """The file whose content is part of the identity."""
        return [Path(self.path).expanduser()]


class PreferenceData(_Source):
    """An existing preference file instead of labeling: its pairs, and its chosen answers as demonstrations."""

    source: Literal["preferences"]
    """JSON lines with `chosen` and `rejected` (TRL's forms or hh-rlhf transcripts); broken pairs are dropped."""
    path: str
    """The file."""

    def external_files(self) -> list[Path]:
        """The file whose content is part of the identity."""
        return [Path(self.path).expanduser()]


DataRecipe = Annotated[ShopData | JsonlData | PreferenceData | MixtureData, Field(discriminator="source")]


def prepare_data(
    recipe: ShopData | JsonlData | PreferenceData | MixtureData, inputs: Mapping[str, Path], work: Work
) -> None:
    """Write the five splits, the ledger and the report of one source; preferences also as pairs of two splits.

    `inputs` are the syntheses that a mixture has sets of. Raises `InputError` when the source is missing or empty, or
    when a split would stay empty.
    """
    if isinstance(recipe, MixtureData):
        prepare_mixture(recipe, inputs, work)
        return
    work.progress(0, 3, "reading")
    examples, dropped = _read(recipe, work.seed)
    if recipe.max_rows is not None and recipe.max_rows < len(examples):
        examples = [examples[i] for i in sorted(Random(work.seed).sample(range(len(examples)), recipe.max_rows))]
    work.progress(1, 3, "splitting")
    ledger = _ledger(examples, recipe)
    files = _files(examples, ledger)
    work.progress(2, 3, "writing")
    for name, rows in files.items():
        write_jsonl(work.out / f"{name}.jsonl", rows)
    _report(work, files, dropped)
    work.progress(3, 3, f"{len(ledger)} prompts")


def _read(recipe: ShopData | JsonlData | PreferenceData, seed: int) -> tuple[list[Example], list[Row]]:
    """The examples of a source and its dropped rows (`{"line", "reason", "excerpt"}`)."""
    match recipe:
        case ShopData():
            tones = {"wrong": recipe.wrong, "polite": recipe.polite, "rude": recipe.rude, "long": recipe.long}
            return [
                Example(row["prompt"], shop.demonstrations(row, recipe.demonstrations, seed, **tones), row["reference"])
                for row in shop.rows()
            ], []
        case JsonlData():
            path = Path(recipe.path).expanduser()
            return read_examples(path, recipe.on_bad_row, recipe.templates, recipe.templates_per_row)
        case PreferenceData():
            pairs, dropped = read_preferences(Path(recipe.path).expanduser())
            return [
                Example(pair["prompt"], [pair["chosen"][0]["content"]], pair=_preference(pair), made=pair.get("made"))
                for pair in pairs
            ], [dict(row) for row in dropped]


def _preference(pair: Row) -> Row:
    """A pair of a file as a preference row: full weight, no judgement behind it, completions named by their text."""
    prompt = prompt_id(pair["prompt"])
    return {
        "id": pair["id"],
        "prompt_id": prompt,
        "prompt": pair["prompt"],
        "chosen": pair["chosen"],
        "rejected": pair["rejected"],
        "chosen_id": f"{prompt}-{stable_hash(pair['chosen'])[:8]}",
        "rejected_id": f"{prompt}-{stable_hash(pair['rejected'])[:8]}",
        "weight": 1.0,
        "margin": None,
        "judgements": [],
        **({"made": pair["made"]} if "made" in pair else {}),
    }


def _ledger(examples: Sequence[Example], recipe: _Source) -> dict[str, Row]:
    """Every prompt's line of the ledger, `{"id", "split", "group"}`, by its id."""
    by_id: dict[str, list[Example]] = {}
    for example in examples:
        by_id.setdefault(prompt_id(example.prompt), []).append(example)
    ids = list(by_id)
    siblings: dict[int | str, list[int]] = {}
    for index, same in enumerate(by_id.values()):
        sources: set[int | str] = {example.source for example in same if example.source is not None}
        for source in sources.union(*(family(example.made) for example in same if example.made)):
            siblings.setdefault(source, []).append(index)
    groups = group_prompts([same[0].prompt for same in by_id.values()], recipe.near_duplicates, siblings.values())
    without_answer = [not any(example.completions for example in same) for same in by_id.values()]
    if all(without_answer) and recipe.shares.sft > 0:
        raise InputError(
            "No row of the data has a completion, so there is nothing to fine-tune on; "
            "add completions, or set data.shares.sft = 0 and start from a model that is fine-tuned already."
        )
    splits = assign(ids, groups, recipe.shares, recipe.split_seed, no_sft=without_answer)
    for split, share in recipe.shares.model_dump().items():
        if share > 0 and split not in splits:
            raise InputError(
                f"The split '{split}' stays empty: the data has {len(set(groups))} groups of different prompts; "
                "add rows, or raise data.near_duplicates if different prompts were taken for near-duplicates."
            )
    return {
        name: {"id": name, "split": split, "group": ids[group]}
        for name, split, group in zip(ids, splits, groups, strict=True)
    }


def _files(examples: Sequence[Example], ledger: Mapping[str, Row]) -> dict[str, list[Row]]:
    """The rows of every file by its name. SFT has a row per demonstration, the other splits one per prompt."""
    files: dict[str, list[Row]] = {split: [] for split in SPLITS}
    pairs: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for example in examples:
        name = prompt_id(example.prompt)
        split = ledger[name]["split"]
        if split == "sft":
            files[split] += [_conversation(name, example, text) for text in example.completions]
        elif name not in seen:
            row = {"id": name, "prompt": example.prompt, "reference": example.reference}
            files[split].append({**row, **made_of(example)})
        seen.add(name)
        if example.pair is not None:
            pairs.setdefault(split, []).append(example.pair)
    if pairs:
        files["preferences_train"] = pairs.get("reward_train", [])
        files["preferences_validation"] = pairs.get("reward_validation", [])
    return files | {"ledger": list(ledger.values())}


def _conversation(name: str, example: Example, text: str) -> Row:
    answer: Message = {"role": "assistant", "content": text}
    if example.calls:
        answer["tool_calls"] = example.calls
    row = {"id": name, "messages": [*example.prompt, answer], "reference": example.reference}
    return {**row, **made_of(example)}


def _report(work: Work, files: Mapping[str, list[Row]], dropped: list[Row]) -> None:
    ledger = files["ledger"]
    prompts = Counter(row["split"] for row in ledger)
    work.table("dropped", dropped)
    work.table("ledger", [{"split": s, "prompts": prompts[s], "rows": len(files[s])} for s in SPLITS])
    work.table(
        "examples", [{"split": s, "row": json.dumps(row, ensure_ascii=False)} for s in SPLITS for row in files[s][:5]]
    )
    work.log({f"prompts/{split}": prompts[split] for split in SPLITS})
    work.log({f"rows/{name}": len(rows) for name, rows in files.items() if name != "ledger"})
    work.log({"prompts/all": len(ledger), "groups": len({row["group"] for row in ledger}), "dropped/all": len(dropped)})
    for reason, count in Counter(row["reason"] for row in dropped).items():
        work.log({f"dropped/{reason}": count})
