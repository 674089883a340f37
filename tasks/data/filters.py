"""What keeps a row out of the training sets: rules on one conversation at a time, and how each is named in a recipe.

Every filter has a `kind`. A rule looks at one conversation and says why it is dropped, or hands it back, perhaps
changed. What looks at many rows at once (duplicates), at the evaluation sets (contamination) or through a model has a
file of its own.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from tasks.artifact import Message
from tasks.data.families import IDS
from tasks.data.pii import Pii, found, redact, redact_calls, redact_json, redact_values
from tasks.data.rows import Example
from tasks.data.words import MARKS, count_words
from tasks.recipe import Part

Rule = Callable[[Example], Example | str]
"""The conversation, perhaps changed, or why it is dropped."""


class FilterPart(Part):
    """One filter of a recipe."""

    sets: tuple[str, ...] = ()
    """Only these sets; none: all but the evaluation sets, which no filter touches."""


class LengthFilter(FilterPart):
    """Prompts and completions that are too short or too long."""

    kind: Literal["length"]
    """By length."""
    unit: Literal["words", "characters"] = "words"
    """What is counted; words are what stands between spaces, in Chinese, Japanese or Thai two characters."""
    prompt: tuple[int, int | None] = (1, None)
    """Fewest and most in all turns of the prompt together."""
    completion: tuple[int, int | None] = (1, None)
    """Fewest and most in the completion."""

    @field_validator("prompt", "completion", mode="before")
    @classmethod
    def _open_ended(cls, value: object) -> object:
        return [*value, None] if isinstance(value, (list, tuple)) and len(value) == 1 else value

    @model_validator(mode="after")
    def _ordered(self) -> "LengthFilter":
        for name in ("prompt", "completion"):
            fewest, most = getattr(self, name)
            if fewest < 0 or (most is not None and most < fewest):
                raise ValueError(f"'{name}' must be [fewest, most], or [fewest] alone")
        return self

    def rule(self) -> Rule:
        def check(example: Example) -> Example | str:
            prompt = "\n".join(turn["content"] for turn in example.prompt)
            texts = [("prompt", prompt, self.prompt)] if example.prompt else []
            if not example.calls:  # a call of a tool may say nothing beside
                texts += [("completion", text, self.completion) for text in example.completions]
            for name, text, (fewest, most) in texts:
                count = len(text) if self.unit == "characters" else count_words(text)
                if count < fewest:
                    return f"the {name} has fewer than {fewest} {self.unit}"
                if most is not None and count > most:
                    return f"the {name} has more than {most} {self.unit}"
            return example

        return check


_SYMBOLS = re.compile(rf"[^\w\s{MARKS}]|_")
_MARKS = re.compile(f"[{MARKS}]")
_LETTERS = re.compile(r"[^\W\d_]")
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")


class CharacterFilter(FilterPart):
    """Texts that are not prose: symbols, repetitions, broken encodings, or what a pattern of one's own finds."""

    kind: Literal["characters"]
    """By characters and words."""
    of: Literal["prompt", "completion", "both"] = "both"
    """What is looked at."""
    letters: float = Field(default=0.0, ge=0, le=1)
    """At least this share of what is not a space must be letters."""
    symbols: float = Field(default=1.0, ge=0, le=1)
    """At most this share of what is not a space may be neither letter nor digit."""
    unseen: int | None = Field(default=0, ge=0)
    """At most so many control or replacement characters, as broken encodings leave them; none: any number."""
    repeated: float = Field(default=1.0, ge=0, le=1)
    """At most this share of the words may be in lines, or in runs of three words, that came before."""
    forbidden: tuple[str, ...] = ()
    """Regular expressions that may match nowhere."""
    required: tuple[str, ...] = ()
    """Regular expressions that must match somewhere."""

    @field_validator("forbidden", "required")
    @classmethod
    def _valid(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression ({error})") from error
        return patterns

    def rule(self) -> Rule:
        forbidden, required = [[re.compile(p) for p in patterns] for patterns in (self.forbidden, self.required)]

        def fault(text: str) -> str:
            if self.unseen is not None and len(_UNSEEN.findall(text)) > self.unseen:
                return "control or replacement characters"
            seen = _seen(text) if self.letters or self.symbols < 1 else 0
            if self.symbols < 1 and len(_SYMBOLS.findall(text)) > self.symbols * seen:
                return f"more than {self.symbols:g} symbols"
            if self.letters and len(_LETTERS.findall(text)) < self.letters * seen:
                return f"fewer than {self.letters:g} letters"
            if self.repeated < 1 and repetition(text) > self.repeated:
                return f"more than {self.repeated:g} repeated"
            for pattern in forbidden:
                if pattern.search(text):
                    return f"'{pattern.pattern}' is forbidden"
            for pattern in required:
                if not pattern.search(text):
                    return f"'{pattern.pattern}' is required"
            return ""

        return lambda example: next((why for text in _looked_at(example, self.of) if (why := fault(text))), example)


def _seen(text: str) -> int:
    """Characters that take room: neither spaces nor the marks of other letters."""
    return len(text) - sum(map(text.count, " \n\t\r")) - (0 if text.isascii() else len(_MARKS.findall(text)))


def repetition(text: str) -> float:
    """The share of a text's words that are in a line, or in a run of three words, seen before (Rae et al. 2021,
    "Scaling Language Models", appendix A.1.1, in short)."""
    words = text.split()
    if len(words) < 6:
        return 0.0
    runs = list(zip(words, words[1:], words[2:], strict=False))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    by_run = 1 - len(set(runs)) / len(runs)
    seen: set[str] = set()
    again = 0
    for line in lines:
        again += len(line.split()) if line in seen else 0
        seen.add(line)
    return max(by_run, again / len(words))


class LanguageFilter(FilterPart):
    """Conversations in other languages, told by py3langid."""

    kind: Literal["language"]
    """By language."""
    allowed: tuple[str, ...] = Field(min_length=1)
    """Codes such as `en`."""
    of: Literal["prompt", "completion", "both"] = "both"
    """What is looked at; the texts are judged together."""
    confidence: float = Field(default=0.5, ge=0, le=1)
    """How sure another language must be: what is less certain stays, so short texts are not lost by chance."""
    characters: int = Field(default=20, ge=1)
    """Shorter texts stay: a few words could be many languages."""

    def rule(self) -> Rule:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = identifier.labels() if callable(identifier.labels) else identifier.labels
        unknown = sorted({*self.allowed} - {*known})
        if unknown:
            from tasks.artifact import InputError

            raise InputError(f"The language filter does not know '{unknown[0]}'; it knows {', '.join(sorted(known))}.")

        def check(example: Example) -> Example | str:
            text = "\n".join(_looked_at(example, self.of))[:2000]
            if len(text) < self.characters:
                return example
            language, confidence = identifier.classify(text)
            if language in self.allowed or confidence < self.confidence:
                return example
            return f"the language is {language}"

        return check


class PiiFilter(FilterPart):
    """Personal data in a form that patterns can find: it is masked, or the row is dropped."""

    kind: Literal["pii"]
    """By personal data."""
    action: Literal["redact", "drop"] = "redact"
    """"redact": `[EMAIL]` and the like stand in its place."""
    find: tuple[Pii, ...] = get_args(Pii)
    """What is looked for."""

    def rule(self) -> Rule:
        def check(example: Example) -> Example | str:
            masked = self.masked(example)
            if masked == example:
                return example
            said = replace(masked, made=example.made)  # how it was made is masked, and no reason to drop it
            return "there is personal data in it" if self.action == "drop" and said != example else masked

        return check

    def masked(self, example: Example) -> Example:
        """The conversation without what was found in its turns, tools, calls, reference and how it was made."""
        return replace(
            example,
            prompt=[self._masked_turn(turn) for turn in example.prompt],
            completions=[redact(text, self.find) for text in example.completions],
            calls=redact_calls(example.calls, self.find),
            reference=redact_values(example.reference, self.find),
            made=redact_values(example.made, self.find, IDS),
        )

    def found(self, example: Example) -> Counter[str]:
        """How much of each kind is in a conversation."""
        before, after = (
            str([each.prompt, each.completions, each.calls, each.reference])
            for each in (example, self.masked(example))
        )  # fmt: skip
        return found(before, after)

    def _masked_turn(self, turn: Message) -> Message:
        masked: Message = {**turn, "content": redact(turn["content"], self.find)}
        if "tools" in turn:
            masked["tools"] = redact_json(turn["tools"], self.find)
        if "tool_calls" in turn:
            masked["tool_calls"] = redact_calls(turn["tool_calls"], self.find)
        return masked


class DuplicateFilter(FilterPart):
    """Rows that say what an earlier row says; the first stays. Across all sets; one row in several phrasings is one."""

    kind: Literal["duplicates"]
    """By likeness."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of words and word pairs from which two are near-duplicates; 1: exact ones only."""
    of: Literal["prompt", "conversation"] = "conversation"
    """What is compared: what rows ask, or that with its answer. Case, punctuation and spacing do not count."""


class ContaminationFilter(FilterPart):
    """Rows that share runs of words with an evaluation set (Brown et al. 2020, appendix C)."""

    kind: Literal["contamination"]
    """By what the evaluation sets hold."""
    words: int = Field(default=13, ge=3)
    """So many words in a row count as shared. Shorter evaluation prompts count where they stand word for word: of six
    words anywhere, of four where a user says just that. In Chinese, Japanese or Thai a character is a word of a run."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """A row is dropped when more than this share of its runs is shared; 0: a single one is enough."""
    against: tuple[str, ...] = ()
    """Further files to protect, JSON in the usual forms, that are not sets of the recipe."""


def _looked_at(example: Example, of: str) -> list[str]:
    prompt = [turn["content"] for turn in example.prompt] if of != "completion" else []
    return prompt + (example.completions if of != "prompt" or not example.prompt else [])
