"""How the rows of an instruction set become conversations: as they are, or told in one of several phrasings.

Which phrasings a row is told in is drawn by the seed, the set and the row's number, so it does not depend on what was
read before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from tasks.artifact import InputError, Message, Row
from tasks.data.flan import FlanTable
from tasks.data.promptsource import PromptsourceFile
from tasks.data.rows import BadRow, Example, PassedOver, check_characters, checked, read_row
from tasks.data.splits import normalise
from tasks.data.templates import ChatTemplate, Kind, converse
from tasks.recipe import Part

Said = tuple[list[Message], str | None]
"""Prompt and completion."""


class Phrasing(Protocol):
    """One way to tell a row."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    def say(self, row: Mapping[str, Any], rng: Random) -> Said:
        """Prompt and completion of a row. Raises `InputError` or `BadRow` when the row does not fit."""
        ...


class Variants(Part):
    """How often phrasings of each kind are drawn, relative to each other; kinds that a set lacks do not count."""

    direct: float = Field(default=1, ge=0)
    """The task as it is."""
    cot: float = Field(default=1, ge=0)
    """Chain of thought: the answer after its reasons."""
    inverted: float = Field(default=1, ge=0)
    """Another way round: from the answer to the question, or some other task on the same row."""


class FewShot(Part):
    """Some rows are told after solved examples of the same set."""

    share: float = Field(default=0.5, gt=0, le=1)
    """The share of the conversations that get examples."""
    shots: tuple[int, int] = (1, 3)
    """The fewest and the most examples."""
    pool: int = Field(default=32, ge=1)
    """Rows kept as examples; they are used as nothing else, and rows much like them are for fine-tuning, so that no
    evaluation prompt is shown in another one."""
    form: Literal["text", "turns"] = "text"
    """Examples as text above the prompt, or as turns before it."""
    separator: str = "\n\n"
    """Between examples told as text."""
    answer: str = "\n"
    """Between an example's prompt and its answer, told as text."""

    @model_validator(mode="after")
    def _ordered(self) -> "FewShot":
        if not 1 <= self.shots[0] <= self.shots[1] <= self.pool:
            raise ValueError("'shots' must be [fewest, most] with 1 <= fewest <= most <= pool")
        return self


class ChainOfThought(Part):
    """The direct phrasings once more, asking for reasons, where rows have a column of them (Wei et al. 2022)."""

    rationale: str
    """The column with the reasons."""
    triggers: tuple[str, ...] = Field(
        default=(
            "Let's think step by step.",
            "Give your reasons, then answer.",
            "Think it through before you answer.",
        ),
        min_length=1,
    )
    """What asks for them, after the prompt; one is drawn."""
    conclusion: str = "{rationale}\nSo the answer is {answer}."
    """The completion."""

    @model_validator(mode="after")
    def _says_both(self) -> "ChainOfThought":
        if "{rationale}" not in self.conclusion or "{answer}" not in self.conclusion:
            raise ValueError("'conclusion' must say {rationale} and {answer}")
        return self


class PhrasedSet(Part):
    """One set of the mixture: where it comes from, how its rows are told, and how much it counts."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What it is called in every table."""
    use: Literal["split", "sft", "evaluation"] = "split"
    """"split": the ledger shares its prompts out; "sft": all are for fine-tuning; "evaluation": all are held out."""
    weight: float = Field(default=1, gt=0)
    """Its part of the mixture under `mix.strategy = "weights"`."""
    boost: float = Field(default=1, gt=0)
    """So many times the rate that the strategy gives it: for a set that is worth more than its size."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """A fixed share of the fine-tuning rows, whatever the strategy gives the others."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Columns under other names, old to new."""
    fill: dict[str, str] = Field(default_factory=dict)
    """What `{{key}}` in the rows' texts is replaced with, as in `{name = "Ada"}` for rows about who the model is."""
    templates: tuple[ChatTemplate, ...] = ()
    """Phrasings written here."""
    flan: FlanTable | None = None
    """Phrasings of a FLAN template table."""
    promptsource: PromptsourceFile | None = None
    """Phrasings of a promptsource file."""
    templates_per_row: int = Field(default=1, ge=1)
    """In how many phrasings each row is told; without any phrasing the rows are conversations already."""
    variants: Variants = Variants()
    """How often each kind of phrasing is drawn."""
    cot: ChainOfThought | None = None
    """Adds chain-of-thought variants of the direct phrasings."""
    fewshot: FewShot | None = None
    """Shows some rows after solved examples."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read no more rows than so many, from the beginning."""

    @model_validator(mode="after")
    def _phrased(self) -> "PhrasedSet":
        phrased = bool(self.templates or self.flan or self.promptsource)
        if self.cot and not phrased:
            raise ValueError(f"the set '{self.name}' has 'cot' without templates; add some")
        if not phrased and self.templates_per_row > 1:
            raise ValueError(f"the set '{self.name}' has 'templates_per_row' without templates; add some")
        return self

    def template_files(self) -> list[Path]:
        """Files of templates, part of the identity."""
        return [Path(part.path).expanduser() for part in (self.flan, self.promptsource) if part]

    def phrasings(self) -> list[Phrasing]:
        """All ways to tell a row. Raises `InputError` when a file of templates cannot be used."""
        found: list[Phrasing] = [_Written(template, number) for number, template in enumerate(self.templates, 1)]
        found += self.flan.phrasings() if self.flan else []
        found += self.promptsource.phrasings() if self.promptsource else []
        if self.cot:
            found += [_Reasoned(phrasing, self.cot) for phrasing in found if phrasing.kind == "direct"]
        if found and not any(getattr(self.variants, phrasing.kind) for phrasing in found):
            kinds = ", ".join(sorted({phrasing.kind for phrasing in found}))
            raise InputError(f"The set '{self.name}' has only {kinds} phrasings, and 'variants' draws none of them.")
        return [phrasing for phrasing in found if getattr(self.variants, phrasing.kind)]


@dataclass(frozen=True)
class _Written:
    """A phrasing of the recipe."""

    template: ChatTemplate
    number: int

    @property
    def name(self) -> str:
        return f"template {self.number}"

    @property
    def kind(self) -> Kind:
        return self.template.kind

    def say(self, row: Mapping[str, Any], rng: Random) -> Said:
        prompt, completion = converse(self.template, row)
        return prompt, completion[0]["content"] if completion else None


@dataclass(frozen=True)
class _Reasoned:
    """A direct phrasing that asks for reasons."""

    direct: Phrasing
    cot: ChainOfThought

    @property
    def name(self) -> str:
        return f"{self.direct.name} cot"

    @property
    def kind(self) -> Kind:
        return "cot"

    def say(self, row: Mapping[str, Any], rng: Random) -> Said:
        rationale = row.get(self.cot.rationale)
        if not isinstance(rationale, str) or not rationale.strip():
            raise BadRow(f"has no text in the column '{self.cot.rationale}'")
        prompt, answer = self.direct.say(row, rng)
        if answer is None:
            raise BadRow("has no answer to conclude with")
        asked: Message = {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{rng.choice(self.cot.triggers)}"}
        parts = {"{rationale}": rationale.strip(), "{answer}": answer.rstrip(".")}
        concluded = self.cot.conclusion
        before, _, after = concluded.partition("{rationale}")
        said = [text.replace("{answer}", parts["{answer}"]) for text in (before, after)]
        return [*prompt[:-1], asked], parts["{rationale}"].join(said)


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
    """
    phrasings = part.phrasings()
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
                row = _prepared(part, row)
                said = list(_texts(row)) if phrasings else _turns_of(read_row(row))
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
            row = _prepared(part, row)
            yield _told(part, phrasings, row, number, pool, seed)
        except (BadRow, InputError) as bad:
            excerpt = str(row)[:200].encode("utf-8", "replace").decode()
            detail = " ".join(map(str, bad.args[1:]))
            yield Told(number, [], [], problem=str(bad.args[0]), detail=detail, excerpt=excerpt)


def _told(part: PhrasedSet, phrasings: Sequence[Phrasing], row: Row, number: int, pool: list[Row], seed: int) -> Told:
    if "text" in row and part.kind == "text":  # type: ignore[attr-defined]
        return Told(number, [row["text"]], [Example([], [row["text"]], form="text")])
    rng = Random(f"{seed}/{part.name}/{number}")
    if not phrasings:
        example = read_row(row)
        asked = [turn["content"] for turn in example.prompt if turn["role"] == "user"]
        said = _turns_of(example)
        if part.fewshot and pool and rng.random() < part.fewshot.share:
            example = _with_shots(example, part.fewshot, pool, rng, None)
        return Told(number, said, [example], asked)
    examples: list[Example] = []
    bare: list[Example] = []
    for phrasing in _drawn(phrasings, part.variants, rng):
        with suppress(PassedOver):
            example = _said(phrasing, row, rng)
            bare.append(example)
            shown = part.fewshot and pool and rng.random() < part.fewshot.share
            examples.append(_with_shots(example, part.fewshot, pool, rng, phrasing) if shown else example)  # type: ignore[arg-type]
        if len(examples) == part.templates_per_row:
            break
    if not examples:
        raise PassedOver("is passed over by its templates")
    options = (part.flan.options,) if part.flan else ()
    return Told(number, list(_texts(row)), examples, _asked(row, bare, options))


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


def _drawn(phrasings: Sequence[Phrasing], variants: Variants, rng: Random) -> Iterator[Phrasing]:
    """The phrasings in a drawn order: each draw first draws a kind by its weight, then a phrasing of it."""
    left = list(phrasings)
    while left:
        kinds = sorted({phrasing.kind for phrasing in left})
        kind = rng.choices(kinds, [getattr(variants, kind) for kind in kinds])[0] if len(kinds) > 1 else kinds[0]
        drawn = rng.choice([phrasing for phrasing in left if phrasing.kind == kind])
        left.remove(drawn)
        yield drawn


def _said(phrasing: Phrasing, row: Row, rng: Random) -> Example:
    try:
        prompt, completion = phrasing.say(row, rng)
    except InputError as error:
        raise BadRow("does not fit a template", f"({error})") from error
    if completion is not None and not completion.strip():
        raise BadRow("has an empty completion")
    reference = row.get("reference", {name: value for name, value in row.items() if _plain(value)})
    reference = reference if isinstance(reference, dict) else {"value": reference}
    completions = [] if completion is None else [completion]
    return Example(checked(prompt), completions, reference, form=phrasing.name, kind=phrasing.kind)


def _with_shots(example: Example, shots: FewShot, pool: list[Row], rng: Random, phrasing: Phrasing | None) -> Example:
    """The example after solved ones in the same phrasing; those of the pool that do not fit it are passed over."""
    wanted = rng.randint(*shots.shots)
    solved: list[tuple[str, str]] = []
    for row in rng.sample(pool, len(pool)):
        try:
            shown = read_row(row) if phrasing is None else _said(phrasing, row, rng)
        except BadRow:
            continue
        if shown.completions and len(shown.prompt) == 1 + (shown.prompt[0]["role"] == "system"):
            solved.append((shown.prompt[-1]["content"], shown.completions[0]))
        if len(solved) == wanted:
            break
    if not solved:
        return example
    before = [turn for turn in example.prompt if turn["role"] == "system"]
    turns = example.prompt[len(before) :]
    shown_turns: list[Message] = []
    if shots.form == "turns":
        for question, answer in solved:
            shown_turns.append({"role": "user", "content": question})
            shown_turns.append({"role": "assistant", "content": answer})
    else:
        texts = [f"{question}{shots.answer}{answer}" for question, answer in solved]
        first: Message = {**turns[0], "content": shots.separator.join([*texts, turns[0]["content"]])}
        turns = [first, *turns[1:]]
    return replace(example, prompt=[*before, *shown_turns, *turns], form=f"{example.form} {len(solved)}-shot")


def _prepared(part: PhrasedSet, row: Row) -> Row:
    if part.rename:
        missing = [old for old in part.rename if old not in row]
        if missing:
            raise BadRow(f"has no column '{missing[0]}'")
        row = {part.rename.get(name, name): value for name, value in row.items()}
    return _filled(row, part.fill) if part.fill else row


def _filled(value: Any, fill: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for key, text in fill.items():
            value = value.replace("{{" + key + "}}", text)
        return value
    if isinstance(value, list):
        return [_filled(each, fill) for each in value]
    return {key: _filled(each, fill) for key, each in value.items()} if isinstance(value, dict) else value


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


def _plain(value: Any) -> bool:
    """Whether a value can stand in a reference, which is kept as JSON."""
    if isinstance(value, (list, tuple)):
        return all(_plain(each) for each in value)
    if isinstance(value, Mapping):
        return all(_plain(each) for each in value.values())
    return value is None or (isinstance(value, (str, int, float)) and value == value)
