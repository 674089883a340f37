"""The phrasings of an instruction set: templates of the recipe, of FLAN and of promptsource, reasons asked for, and
examples shown before. How rows are told in them: telling.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from tasks.artifact import InputError, Message
from tasks.data.columns import Read
from tasks.data.flan import FlanTable
from tasks.data.promptsource import PromptsourceFile
from tasks.data.rows import BadRow, LacksReasons
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
    variants: Variants | None = None
    """How often each kind of phrasing is drawn; none: every phrasing as often as any other."""
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

    def column_types(self) -> dict[str, Read]:
        """How to read the columns of a source whose values are all texts."""
        return {}

    def remarks(self) -> list[str]:
        """Sentences about settings that say nothing of this source."""
        return []

    def phrasings(self) -> list[Phrasing]:
        """All ways to tell a row. Raises `InputError` when a file of templates cannot be used."""
        found: list[Phrasing] = [_Written(template, number) for number, template in enumerate(self.templates, 1)]
        found += self.flan.phrasings() if self.flan else []
        found += self.promptsource.phrasings(self.column_types()) if self.promptsource else []
        if self.cot:
            found += [_Reasoned(phrasing, self.cot) for phrasing in found if phrasing.kind == "direct"]
        if self.variants is None:
            return found
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
        if self.cot.rationale not in row:
            raise LacksReasons(f"has no column '{self.cot.rationale}'")
        rationale = row[self.cot.rationale]
        if not isinstance(rationale, str) or not rationale.strip():
            raise LacksReasons(f"has no text in the column '{self.cot.rationale}'")
        prompt, answer = self.direct.say(row, rng)
        if answer is None:
            raise BadRow("has no answer to conclude with")
        asked: Message = {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{rng.choice(self.cot.triggers)}"}
        parts = {"{rationale}": rationale.strip(), "{answer}": answer.rstrip(".")}
        concluded = self.cot.conclusion
        before, _, after = concluded.partition("{rationale}")
        said = [text.replace("{answer}", parts["{answer}"]) for text in (before, after)]
        return [*prompt[:-1], asked], parts["{rationale}"].join(said)
