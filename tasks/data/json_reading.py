"""Files of JSON, row by row: lines of objects, one array, several, an object that holds the rows.

Which of these a file is its first characters tell, whatever it is called.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from tasks.artifact import InputError, Row
from tasks.data.reading import CHUNK, LONGEST_LINE, Line, after_spaces, opened, text_lines

NO_JSON, NO_OBJECT = "is not JSON", "is not a JSON object"
_ROW = {
    "messages", "conversations", "conversation", "dialogue", "dialog", "contents", "prompt", "instruction", "question",
    "query", "inputs", "input", "problem", "chosen", "turns", "instances", "text",
}  # fmt: skip
"""Columns of which a lone object with one of them is a row."""


def json_rows(path: Path) -> Iterator[Line]:
    """The rows of a file of JSON, perhaps compressed. Raises `InputError` when it is missing or no JSON at all."""
    with opened(path) as file:
        first = ""
        while not first and (chunk := file.read(CHUNK)):
            first = chunk.lstrip()[:1]
        file.seek(0)
        name = path.name.removesuffix(".gz")
        if first and first not in "[{" and name.endswith(".json"):
            raise InputError(f"{path} is not a JSON array of objects; mend it, or name a file of JSON lines .jsonl.")
        if first and first not in "[{" and name.endswith((".csv", ".tsv")):
            raise InputError(f'{path} is a table, not JSON; set kind = "csv".')
        spread = first == "[" or (first == "{" and _first_line(file) == "{")
        yield from (_values if spread else _lines)(file, path)


def _first_line(file: IO[str]) -> str:
    found = ""
    while not found and (line := file.readline(LONGEST_LINE)):
        found = line.strip()
    file.seek(0)
    return found


def _lines(file: IO[str], path: Path) -> Iterator[Line]:
    numbered = ((number, line) for number, line in enumerate(text_lines(file, path), 1) if line.strip())
    begin = [pair for pair in (next(numbered, None), next(numbered, None)) if pair]
    if len(begin) == 1 and isinstance(row := _parsed(begin[0][1]), dict):
        yield from _lone(row, path, begin[0][0])
        return
    for number, line in chain(begin, numbered):
        yield number, _parsed(line)


def _parsed(line: str) -> Row | str:
    try:
        return _row(json.loads(line))
    except (ValueError, RecursionError):
        return NO_JSON


def _row(value: Any) -> Row | str:
    """A value as a row; a list of turns is a conversation."""
    if isinstance(value, list) and value and all(map(_is_turn, value)):
        return {"messages": value}
    return value if isinstance(value, dict) else NO_OBJECT


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _values(file: IO[str], path: Path) -> Iterator[Line]:
    """The items of arrays, and objects over several lines, one after another."""
    stream = _Stream(file, path)
    while begin := stream.next():
        if begin != "[":
            value = stream.value()
            if not stream.count and isinstance(value, dict) and not stream.next():
                yield from _lone(value, path, 1)
                return
            yield stream.counted(), _row(value)
            continue
        stream.place += 1
        turns: list[Any] = []
        first = True
        while (mark := stream.next()) != "]":
            if not mark:
                raise stream.cut()
            item = stream.value()
            if turns or (first and _is_turn(item)):
                turns.append(item)  # the array is one conversation
            else:
                yield stream.counted(), _row(item)
            first = False
        stream.place += 1
        if turns:
            yield stream.counted(), _row(turns)


class _Stream:
    """Values of JSON in a file, one after another, with only as much in memory as one of them needs."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file, self._path, self._text = file, path, ""
        self._decode = json.JSONDecoder().raw_decode
        self.place = 0
        self.count = 0
        """Rows so far."""

    def counted(self) -> int:
        """The number of the next row."""
        self.count += 1
        return self.count

    def next(self) -> str:
        """The next character that is no space or comma; none at the end."""
        while True:
            self.place = after_spaces(self._text, self.place)
            if self.place < len(self._text):
                return self._text[self.place]
            self._text, self.place = self._file.read(CHUNK), 0
            if not self._text:
                return ""

    def value(self) -> Any:
        """The value that begins here. Raises `InputError` where it is none."""
        while True:
            try:
                value, end = self._decode(self._text, self.place)
                whole = True
            except (ValueError, RecursionError):
                value, end, whole = None, len(self._text), False
            if end < len(self._text):
                self.place = end
                return value
            if len(self._text) - self.place > LONGEST_LINE:
                raise InputError(
                    f"{self._path} is not JSON after its row {self.count}, for {LONGEST_LINE} characters; mend it."
                )
            more = self._file.read(max(CHUNK, len(self._text) - self.place))
            if not more:
                if not whole:
                    raise self.cut()
                self.place = end
                return value
            self._text, self.place = self._text[self.place :] + more, 0

    def cut(self) -> InputError:
        """What is said of a file that ends too early."""
        return InputError(f"{self._path} is not whole JSON after its row {self.count}; mend it or fetch it again.")


def _lone(value: Row, path: Path, number: int) -> Iterator[Line]:
    """The rows of a file that is one object: a list in it, objects by their ids, columns; else it is a row itself."""
    columns = [each for each in value.values() if isinstance(each, list)]
    inner = [each for each in value.values() if isinstance(each, dict)]
    if len(value) == len(columns) > 0 and _are_columns(columns):
        rows: list[Any] = [dict(zip(value, each, strict=True)) for each in zip(*columns, strict=True)]
    elif len(value) == len(inner) > 0 and _are_indexed(inner):
        rows = [{name: each[place] for name, each in value.items()} for place in inner[0]]
    elif value.keys() & _ROW:
        rows = []
    elif lists := [name for name, each in value.items() if _are_objects(each)]:
        if len(lists) > 1:
            raise InputError(
                f"{path} is one JSON object with several lists of rows ({', '.join(lists)}); save the one that is "
                "meant in a file of its own."
            )
        rows = value[lists[0]]
    else:
        rows = inner if len(inner) == len(value) > 1 else []
    if rows:
        yield from enumerate(map(_row, rows), 1)
    else:
        yield number, value


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value) and not all(
        map(_is_turn, value)
    )  # fmt: skip


def _are_columns(lists: list[list[Any]]) -> bool:
    """Whether lists are columns of a table: equally long, several of plain values, or one of lists."""
    same = len({len(each) for each in lists}) == 1 and bool(lists[0])
    plain = not any(isinstance(item, dict) for each in lists for item in each)
    return same and plain and (len(lists) > 1 or isinstance(lists[0][0], list))


def _are_indexed(columns: list[Row]) -> bool:
    """Whether objects are columns by the numbers of the rows, as pandas writes them."""
    return bool(columns[0]) and all(
        each.keys() == columns[0].keys() and all(map(str.isdecimal, each)) for each in columns
    )
