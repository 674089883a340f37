"""How the rows of an instruction set become conversations: as they are, or told in one of several phrasings.

Which phrasings a row is told in is drawn by the seed, the set and the row's number, so it does not depend on what was
read before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from random import Random
from typing import Any

from tasks.artifact import InputError, Row
from tasks.data.families import without_made
from tasks.data.fitting import Fits, with_shots
from tasks.data.forms import left_over, read_row
from tasks.data.phrasings import PhrasedSet, Phrasing, Variants
from tasks.data.rows import BadRow, Example, PassedOver, check_characters
from tasks.data.words import normalise

CUT = "text, cut"
"""The form of a piece of plain text that is not the end of its document."""


@dataclass
class Told:
    """A row of a set with what was made of it."""

    line: int
    said: list[str]
    """What the row says apart from its phrasing: its columns' texts, or its user's turns. Near-duplicates and
    contamination are found by it."""
    examples: list[Example]
    asked: list[str] = field(default_factory=list)
    """What of it must not be trained on where it is evaluated on: its columns' texts but for answers and options, or
    its user's turns."""
    problem: str = ""
    """Why there are no examples."""
    shot: bool = False
    """Whether it is kept to be shown in other rows, and used as nothing else."""
    detail: str = ""
    """What is particular about this row's problem."""
    excerpt: str = ""
    """What the row looked like, where it is dropped."""
    unused: list[str] = field(default_factory=list)
    """Of a prompt alone: its columns of text that no form knows."""

    @property
    def content(self) -> str:
        """All that it says, as one text."""
        return "\n".join(self.said)


def tell(
    part: PhrasedSet,
    lines: Iterator[tuple[int, Row | str]],
    seed: int,
    known: Callable[[list[str]], bool] | None = None,
) -> Iterator[Told]:
    """Every row of a set as conversations, or with the reason why not; in the order of the rows.

    Few-shot examples come first. A row of which `known` says that its texts are evaluated on is never one of them.
    Raises `InputError` when a phrasing fits no row: at the end, or as soon as the sandbox refused it on many.
    """
    phrasings, fits = part.phrasings(), Fits()
    rows = islice(lines, part.max_rows)
    pool: list[Row] = []
    if part.fewshot:
        first = list(islice(rows, 20 * part.fewshot.pool))
        usable = [number for number, row in first if isinstance(row, dict)]
        drawn = set(Random(f"{seed}/{part.name}/pool").sample(usable, min(len(usable) // 2, part.fewshot.pool)))
        kept: set[int] = set()
        for number, row in first:
            if number not in drawn or not isinstance(row, dict):
                continue
            with suppress(BadRow):  # told like any other row, it is dropped with its reason
                check_characters(row)
                row, _ = without_made(_prepared(part, row))
                said = list(_texts(row)) if phrasings else _turns_of(read_row(row)[0])
                if known is None or not known(said):
                    kept.add(number)
                    pool.append(row)
                    yield Told(number, said, [], problem="is kept as a few-shot example", shot=True)
        rows = chain((pair for pair in first if pair[0] not in kept), rows)
    for number, row in rows:
        try:
            if isinstance(row, str):
                raise BadRow(row)
            check_characters(row)
            row, made = without_made(_prepared(part, row))
            told = _told(part, phrasings, row, number, pool, seed, fits)
            told.examples = [replace(example, made=made) for example in told.examples] if made else told.examples
            yield told
        except (BadRow, InputError) as bad:
            excerpt = str(row)[:200].encode("utf-8", "replace").decode()
            detail = " ".join(map(str, bad.args[1:]))
            yield Told(number, [], [], problem=str(bad.args[0]), detail=detail, excerpt=excerpt)
        if fits.hopeless:
            break
    fits.check(part.name)


def _told(
    part: PhrasedSet, phrasings: Sequence[Phrasing], row: Row, number: int, pool: list[Row], seed: int, fits: Fits
) -> Told:
    if "text" in row and part.kind == "text":  # type: ignore[attr-defined]
        return Told(number, [row["text"]], [Example([], [row["text"]], form=CUT if row.get("goes_on") else "text")])
    rng = Random(f"{seed}/{part.name}/{number}")
    if not phrasings:
        found = read_row(row)
        turns = [turn for example in found for turn in example.prompt if turn["role"] != "system"]
        asked = _once([turn["content"] for turn in turns if turn["role"] == "user"], len(found))
        said = _once([turn["content"] for turn in turns], len(found))
        unused = [] if any(example.completions for example in found) else left_over(row)
        if part.fewshot and pool and rng.random() < part.fewshot.share:
            found = [with_shots(example, part.fewshot, pool, rng, None) for example in found]
        return Told(number, said, found, asked, unused=unused)
    examples: list[Example] = []
    bare: list[Example] = []
    passed = PassedOver("is passed over by its templates")
    for phrasing in _drawn(phrasings, part.variants, rng):
        try:
            example = fits.say(phrasing, row, rng)
            bare.append(example)
            shown = part.fewshot and pool and rng.random() < part.fewshot.share
            examples.append(with_shots(example, part.fewshot, pool, rng, phrasing) if shown else example)  # type: ignore[arg-type]
        except PassedOver as other:
            passed = other
        if len(examples) == part.templates_per_row:
            break
    if not examples:
        raise passed
    options = (part.flan.options,) if part.flan else ()
    return Told(number, list(_texts(row)), examples, _asked(row, bare, options))


def _once(texts: list[str], conversations: int) -> list[str]:
    """What several conversations of one row say, without what they repeat."""
    return texts if conversations == 1 else list(dict.fromkeys(texts))


def _turns_of(example: Example) -> list[str]:
    return [turn["content"] for turn in example.prompt if turn["role"] != "system"]


def _asked(row: Row, examples: Sequence[Example], options: Sequence[str]) -> list[str]:
    """The texts of a row but for those that its examples use as answers or options.

    A text is an answer where it is the completion, or stands in it and not in the prompt; a column of several texts
    holds options where one of them is an answer. Inverted phrasings count only where there are no others.
    """
    told = [example for example in examples if example.kind != "inverted"] or examples
    prompts = [_padded("\n".join(turn["content"] for turn in example.prompt)) for example in told]
    completions = [_padded(text) for example in told for text in example.completions]

    def answers(text: str, among_options: bool) -> bool:
        words = _padded(text)
        if among_options or not any(words in prompt for prompt in prompts):
            return any(words in completion for completion in completions)
        return words in completions

    asked: list[str] = []
    for name, value in row.items():
        texts = list(_texts(value))
        several = not isinstance(value, str)
        if name not in options and not any(answers(text, several) for text in texts):
            asked += texts
    return asked


def _padded(text: str) -> str:
    """A normalised text between spaces, so that whole words are found in it."""
    return f" {normalise(text)} "


def _drawn(phrasings: Sequence[Phrasing], variants: Variants | None, rng: Random) -> Iterator[Phrasing]:
    """The phrasings in a drawn order: all alike, or each draw draws a kind by its weight, then one of that kind."""
    left = list(phrasings)
    if variants is None:
        rng.shuffle(left)
        yield from left
        return
    while left:
        kinds = sorted({phrasing.kind for phrasing in left})
        kind = rng.choices(kinds, [getattr(variants, kind) for kind in kinds])[0] if len(kinds) > 1 else kinds[0]
        drawn = rng.choice([phrasing for phrasing in left if phrasing.kind == kind])
        left.remove(drawn)
        yield drawn


def _prepared(part: PhrasedSet, row: Row) -> Row:
    if part.rename:
        missing = [old for old in part.rename if old not in row]
        if missing:
            raise BadRow(f"has no column '{missing[0]}'")
        row = {part.rename.get(name, name): value for name, value in row.items()}
    return with_filled(row, part.fill) if part.fill else row


def with_filled(value: Any, fill: Mapping[str, str]) -> Any:
    """A row with `{{key}}` replaced in its texts, at any depth."""
    if isinstance(value, str):
        for key, text in fill.items():
            value = value.replace("{{" + key + "}}", text)
        return value
    if isinstance(value, list):
        return [with_filled(each, fill) for each in value]
    return {key: with_filled(each, fill) for key, each in value.items()} if isinstance(value, dict) else value


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
