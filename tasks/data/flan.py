"""FLAN's template table: phrasings of many tasks, as Python source that is read as text and never run.

Wei et al. 2022, "Finetuned Language Models Are Zero-Shot Learners": ten phrasings per task, some of which turn the task
round. A table is a top-level dictionary of literals, from a task's name to (input, target) pairs.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tasks.artifact import InputError, Message
from tasks.data.rows import BadRow
from tasks.data.sandbox import is_null
from tasks.data.templates import Kind
from tasks.recipe import Part

_FIELD = re.compile(r"\{\{|\}\}|\{(\w+)\}")
OPTIONS = ("options_", "options_str")
"""Fields that stand for the list of options."""


class FlanTable(Part):
    """Phrasings of one task of a FLAN table; its fields are columns of the rows (`rename` gives them FLAN's names)."""

    path: str
    """The file, Python source such as FLAN's `templates.py`."""
    task: str
    """Which task's phrasings, for example `rte`."""
    table: str = "PATTERNS"
    """The name of the dictionary in the file."""
    options: str = "options"
    """The column with the list of a row's options, for `{options_}`."""
    choices: tuple[str, ...] = ()
    """The options of every row, where no column lists them."""
    label: str | None = None
    """The column with the number of the right option; it gives `{answer}`. None: the rows have a column `answer`."""
    heading: str = "OPTIONS:\n- "
    """What stands before the options, one on a line."""

    def phrasings(self) -> list["FlanPhrasing"]:
        """The task's phrasings. Raises `InputError` when the file or the task is not there."""
        table = read_flan(Path(self.path).expanduser(), self.table)
        if self.task not in table:
            near = ", ".join(sorted(table))
            raise InputError(f"{self.path} has no task '{self.task}'; its tasks are {near}.")
        pairs = table[self.task]
        kinds = kinds_of(pairs)
        return [
            FlanPhrasing(self, f"flan {self.task} {number}", kind, *pair)
            for number, (pair, kind) in enumerate(zip(pairs, kinds, strict=True), 1)
        ]


@dataclass(frozen=True)
class FlanPhrasing:
    """One pair of patterns."""

    part: FlanTable
    name: str
    kind: Kind
    source: str
    target: str

    def say(self, row: Mapping[str, Any], rng: Random) -> tuple[list[Message], str | None]:
        """Prompt and completion of a row. Raises `BadRow` when a column is missing."""
        values = self._values(row)
        return [{"role": "user", "content": fill(self.source, values)}], fill(self.target, values)

    def _values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(row)
        options = list(self.part.choices) or row.get(self.part.options)
        if isinstance(options, Sequence) and not isinstance(options, str):
            for name in OPTIONS:
                values.setdefault(name, self.part.heading + "\n- ".join(map(str, options)))
            if self.part.label is not None:
                values["answer"] = _option(options, row.get(self.part.label))
        return values


def _option(options: Sequence[Any], label: Any) -> str:
    if not (isinstance(label, int) or (isinstance(label, str) and label.isdecimal())) or int(label) < 0:
        raise BadRow("has a label that is not the number of an option")
    if int(label) >= len(options):
        raise BadRow("has a label that is not the number of an option")
    return str(options[int(label)])


def fill(pattern: str, values: Mapping[str, Any]) -> str:
    """A pattern with its `{fields}` replaced, as `str.format` does for plain names and for nothing else: a pattern
    cannot reach into a value. Raises `BadRow` naming the column that is missing."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group()[0]
        found = values.get(name)
        if is_null(found) or (isinstance(found, (list, tuple)) and any(map(is_null, found))):
            raise BadRow(f"has no column '{name}'" if found is None else f"has no value in the column '{name}'")
        return ", ".join(map(str, found)) if isinstance(found, (list, tuple)) else str(found)

    return _FIELD.sub(value, pattern).strip()


def fields(pattern: str) -> set[str]:
    """The names of the fields in a pattern."""
    return {name for name in _FIELD.findall(pattern) if name}


def kinds_of(pairs: Sequence[tuple[str, str]]) -> list[Kind]:
    """Which phrasings turn the task round: those whose target asks for something else than most targets do, or whose
    input already holds all of what most targets ask for."""
    usual = Counter(frozenset(fields(target)) for _, target in pairs).most_common(1)[0][0]
    return [
        "direct" if fields(target) == usual and not (usual and usual <= fields(source)) else "inverted"
        for source, target in pairs
    ]


def read_flan(path: Path, table: str = "PATTERNS") -> dict[str, list[tuple[str, str]]]:
    """The (input, target) pairs of every task of a table.

    Entries are pairs, or dictionaries with `inputs` and `targets`. Raises `InputError` when the file cannot be read or
    parsed, or holds no such table of literals.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path of the FLAN table in the recipe.") from error
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"{path} is not Python source ({error}); give FLAN's table as it is published.") from error
    found: dict[str, list[tuple[str, str]]] | None = None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == table for target in targets)
        if named and isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            found = _tasks(node.value, path, table)
    if not found:
        raise InputError(f"{path} has no dictionary {table} at its top level; set flan.table to the name of one.")
    return found


def _tasks(node: ast.Dict, path: Path, table: str) -> dict[str, list[tuple[str, str]]]:
    tasks: dict[str, list[tuple[str, str]]] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        try:
            name = ast.literal_eval(key) if key is not None else None
            pairs = [_pair(entry) for entry in ast.literal_eval(value)]
        except (ValueError, TypeError, SyntaxError, KeyError, RecursionError) as error:
            place = getattr(value, "lineno", "?")
            raise InputError(
                f"{path} line {place}: {table} has an entry that is not a list of (input, target) texts; mend it."
            ) from error
        if isinstance(name, str) and pairs:
            tasks[name] = pairs
    return tasks


def _pair(entry: Any) -> tuple[str, str]:
    source, target = (entry["inputs"], entry["targets"]) if isinstance(entry, dict) else entry
    if not isinstance(source, str) or not isinstance(target, str):
        raise TypeError
    return source, target
