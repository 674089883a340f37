"""Rows between filters: on disk, with only a few numbers of each in memory."""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks.artifact import Message, Row
from tasks.data.rows import Example


@dataclass(frozen=True)
class Kept:
    """A row of a set that is still in, with its conversations."""

    set: int
    """Which set, by its place in the recipe."""
    line: int
    content: str
    """What the row says apart from its phrasing."""
    examples: list[Example]
    asked: list[str] = field(default_factory=list)
    """What of it must not be trained on where it is evaluated on."""


class Spool:
    """Rows in the order they were added, in a file; `dropped` and other per-row numbers are the caller's arrays."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self._offsets = array("Q")
        self.sets = array("H")
        self.without: dict[int, set[int]] = {}
        """Conversations that were taken out of rows that stay, by the row and their place in it."""
        self._reading: Any = None

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, kept: Kept) -> None:
        """Put a row at the end."""
        self._offsets.append(self._file.tell())
        self.sets.append(kept.set)
        examples = [
            [e.prompt, e.completions, e.reference, e.form, e.kind, e.calls, e.made] for e in kept.examples
        ]  # fmt: skip
        line = json.dumps(
            [kept.set, kept.line, kept.content, examples, kept.asked],
            ensure_ascii=False,
            separators=(",", ":"),
            default=str,
        )
        self._file.write(line.encode() + b"\n")

    def finish(self) -> None:
        """No more rows: they can be read."""
        self._file.flush()
        self._reading = self._path.open("rb")

    def close(self) -> None:
        """Close what is open."""
        self._file.close()
        if self._reading is not None:
            self._reading.close()

    def read(self, index: int) -> Kept:
        """One row, wherever it is."""
        self._reading.seek(self._offsets[index])
        return self._decoded(index, self._reading.readline())

    def rows(self, keep: Sequence[bool] | np.ndarray) -> Iterator[tuple[int, Kept]]:
        """The rows marked in `keep`, in order, with their numbers."""
        self._file.flush()
        with self._path.open("rb") as file:
            for index, line in enumerate(file):
                if keep[index]:
                    yield index, self._decoded(index, line)

    def _decoded(self, index: int, line: bytes) -> Kept:
        number, place, content, told, asked = json.loads(line)
        out = self.without.get(index, ())
        kept = [each for at, each in enumerate(told) if at not in out]
        examples = [Example(p, c, r, form=f, kind=k, calls=t, made=m) for p, c, r, f, k, t, m in kept]
        return Kept(number, place, content, examples, asked)


class Drops:
    """What was dropped and why: every row in a file of its own, and counts by set and filter."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self.counts: dict[tuple[str, str, str], int] = {}
        """By (set, filter, reason)."""
        self.first: list[Row] = []
        """The first rows, for the report."""

    def add(self, set_: str, line: int, filter_: str, reason: str, row: Any) -> None:
        """Keep a row that goes: its place, the filter and the reason, and what it said."""
        dropped = {"set": set_, "line": line, "filter": filter_, "reason": reason, "row": row}
        self._file.write(json.dumps(dropped, ensure_ascii=False, sort_keys=True, default=str) + "\n")
        key = (set_, filter_, reason)
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] <= 3 and len(self.first) < 300:
            excerpt = json.dumps(row, ensure_ascii=False, default=str)[:160]
            self.first.append({**dropped, "row": excerpt})

    def by_filter(self, filter_: str) -> int:
        """How many a filter dropped."""
        return sum(count for (_, name, _), count in self.counts.items() if name == filter_)

    def close(self) -> None:
        self._file.close()


def plain(example: Example) -> Row:
    """A conversation as it stands in the file of what was dropped."""
    turns = [*example.prompt, *(answer_of(example) for _ in example.completions)]
    return {"messages": turns, "form": example.form, **made_of(example)}


def made_of(example: Example) -> Row:
    """How a row was made, where a model wrote it, as rows say it."""
    return {"made": example.made} if example.made else {}


def answer_of(example: Example) -> Message:
    """The demonstrated answer as a message."""
    answer: Message = {"role": "assistant", "content": example.completions[0]}
    return {**answer, "tool_calls": example.calls} if example.calls else answer
