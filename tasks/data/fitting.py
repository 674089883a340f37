"""A row in one phrasing: the conversation it gives, or why it does not fit; and phrasings that fit no row of a set."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from random import Random
from typing import Any

from jinja2.exceptions import SecurityError

from tasks.artifact import InputError, Message, Row
from tasks.data.forms import read_row
from tasks.data.phrasings import FewShot, Phrasing
from tasks.data.rows import BadRow, Example, LacksReasons, PassedOver, checked

_MISSING = re.compile(r"no column '([^']+)'")
_ENOUGH = 20
"""A phrasing that fits none of so many rows fits no row, though they have its columns."""
_COLUMNS = 100
"""More columns than these are not told apart."""


class Fits:
    """Which phrasings of a set fit rows of it."""

    def __init__(self) -> None:
        self._columns: dict[str, None] = {}
        self._tried: Counter[str] = Counter()
        self._fitted: set[str] = set()
        self._why: dict[str, str] = {}
        self.hopeless = False
        """Whether the sandbox refused a phrasing on many rows, and it fitted none: each may take seconds."""

    def say(self, phrasing: Phrasing, row: Row, rng: Random) -> Example:
        """A row in a phrasing. Raises `BadRow` with the phrasing's name where it does not fit."""
        if len(self._columns) < _COLUMNS:
            self._columns.update(dict.fromkeys(row))
        try:
            example = say(phrasing, row, rng)
        except BadRow as bad:
            if isinstance(bad, PassedOver) and not isinstance(bad, LacksReasons):
                raise
            self._tried[phrasing.name] += 1
            self._why.setdefault(phrasing.name, " ".join(map(str, bad.args)))
            refused = bad.__cause__ is not None and isinstance(bad.__cause__.__cause__, SecurityError)
            many = phrasing.name not in self._fitted and self._tried[phrasing.name] >= _ENOUGH
            self.hopeless |= refused and many
            raise
        self._fitted.add(phrasing.name)
        return example

    def check(self, name: str) -> None:
        """Raise `InputError` for a phrasing that fitted no row of the set `name`: a column it asks for is in none, or
        it was tried on many."""
        for phrasing, why in self._why.items():
            missing = _MISSING.search(why)
            nowhere = missing is not None and missing[1] not in self._columns and len(self._columns) < _COLUMNS
            if phrasing not in self._fitted and (nowhere or self._tried[phrasing] >= _ENOUGH):
                raise InputError(
                    f"The set '{name}' has no row that fits '{phrasing}': tried on {self._tried[phrasing]}, the first "
                    f"{why}. Its rows have the columns {', '.join(self._columns)}; mend the template, or give a column "
                    "another name with 'rename'."
                )


def say(phrasing: Phrasing, row: Row, rng: Random) -> Example:
    """A row in a phrasing. Raises `BadRow` with the phrasing's name where it does not fit."""
    try:
        prompt, completion = phrasing.say(row, rng)
    except InputError as error:
        raise BadRow(f"does not fit '{phrasing.name}'", f"({error})") from error
    if completion is not None and not completion.strip():
        raise BadRow("has an empty completion")
    reference = row.get("reference", {name: value for name, value in row.items() if _plain(value)})
    reference = reference if isinstance(reference, dict) else {"value": reference}
    completions = [] if completion is None else [completion]
    return Example(checked(prompt), completions, reference, form=phrasing.name, kind=phrasing.kind)


def with_shots(example: Example, shots: FewShot, pool: list[Row], rng: Random, phrasing: Phrasing | None) -> Example:
    """The example after solved ones in the same phrasing; those of the pool that do not fit it are passed over."""
    wanted = rng.randint(*shots.shots)
    solved: list[tuple[str, str]] = []
    for row in rng.sample(pool, len(pool)):
        try:
            shown = read_row(row)[0] if phrasing is None else say(phrasing, row, rng)
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


def _plain(value: Any) -> bool:
    """Whether a value can stand in a reference, which is kept as JSON."""
    if isinstance(value, (list, tuple)):
        return all(_plain(each) for each in value)
    if isinstance(value, Mapping):
        return all(_plain(each) for each in value.values())
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and isfinite(value))
