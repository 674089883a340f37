"""Files of text, row by row: lines of JSON, an array of objects, tables; compressed or not.

Only as much of a file is in memory as its format needs: a line, a record.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tasks.artifact import InputError, Row

_CHUNK = 1 << 20
_LINE = 1 << 26
"""Characters of the longest line, and of the longest object of an array."""
_BETWEEN = re.compile(r"[\s,]*")
Line = tuple[int, Row | str]
"""The number of a row, counted from 1, and the row, or why it is none."""


@contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """A text file, decompressed; a byte that is no UTF-8 becomes half a character, which rows are checked for."""
    try:
        open_ = gzip.open if path.suffix == ".gz" else open
        with open_(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file  # type: ignore[misc]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path in the recipe.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); check the file.") from error


def read_text(file: IO[str], path: Path) -> str:
    text = file.read(_CHUNK)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} is not UTF-8 text; convert it first.") from error
    return text


def table_rows(file: IO[str], path: Path, delimiter: str, quotes: bool) -> Iterator[list[str]]:
    """The records of a table, but for empty ones. Raises `InputError` naming the line of one that is garbled."""
    csv.field_size_limit(1 << 24)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    read = csv.reader(text_lines(file, path), delimiter=delimiter, quoting=quoting, strict=quotes)
    while True:
        begin = read.line_num + 1
        try:
            values = next(read)
        except StopIteration:
            return
        except csv.Error as error:
            hint = " or, where quotation marks are plain characters, set quotes = false" if quotes else ""
            raise InputError(
                f"{path}: the record that begins in line {begin} is garbled ({_garbled(error)}); mend it{hint}."
            ) from error
        if values:
            yield values


def _garbled(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quotation mark is never closed"
    if "expected after" in str(error):
        return "a value goes on after its closing quotation mark"
    return f"{first_line(error)}, as where a quotation mark is never closed or the delimiter is another"


def unescaped(value: str) -> str:
    return value.replace("\\n", "\n").replace("\\t", "\t")


def text_lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines, each with its end. Raises `InputError` at one that does not end in time."""
    number = 0
    while line := file.readline(_LINE + 1):
        number += 1
        if len(line) > _LINE:
            raise InputError(f"{path} has a line of more than {_LINE} characters, its line {number}; check the file.")
        yield line


def json_rows(path: Path) -> Iterator[Line]:
    """The rows of a file of JSON, lines or (`.json`) an array, perhaps compressed. Raises `InputError` when it is
    missing or no JSON at all."""
    with opened(path) as file:
        read = json_array if path.name.removesuffix(".gz").endswith(".json") else json_lines
        yield from read(file, path)


def json_lines(file: IO[str], path: Path) -> Iterator[Line]:
    for number, line in enumerate(text_lines(file, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = "is not JSON"
        yield number, row if isinstance(row, (dict, str)) else "is not a JSON object"


def json_array(file: IO[str], path: Path) -> Iterator[Line]:
    """The objects of one JSON array, decoded one after another; a file of lines under this name is read as lines."""
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK).lstrip()
    if text[:1] == "{":
        file.seek(0)
        yield from json_lines(file, path)
        return
    if text[:1] != "[":
        raise InputError(f"{path} is not a JSON array of objects; mend it, or name a file of JSON lines .jsonl.")
    place, number = 1, 0
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == "]":
            return
        try:
            row, end = decode(text, place)
        except (ValueError, RecursionError):
            row, end = None, len(text)
        if row is None and len(text) - place > _LINE:
            raise InputError(f"{path} is not JSON after its row {number}, for {_LINE} characters; mend it.")
        if end == len(text):  # unfinished, or a number that may go on
            more = file.read(max(_CHUNK, len(text) - place))
            if not more:
                raise InputError(f"{path} is not whole JSON after its row {number}; mend it or fetch it again.")
            text, place = text[place:] + more, 0
            continue
        number += 1
        place = end
        yield number, row if isinstance(row, dict) else "is not a JSON object"


def first_line(error: BaseException) -> str:
    """The first line of a message, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
