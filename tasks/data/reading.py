"""Files of text, compressed or not, and the records of tables. JSON: json_reading.py.

Only as much of a file is in memory as its format needs: a line, a record.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tasks.artifact import InputError, Row

CHUNK = 1 << 20
LONGEST_LINE = 1 << 26
"""Characters of the longest line, and of the longest object of an array."""
_BETWEEN = re.compile(r"[\s,]*")
Line = tuple[int, Row | str]
"""The number of a row, counted from 1, and the row, or why it is none."""


_GZIP = b"\x1f\x8b"
_NO_TEXT = {
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8",
    b"PAR1": 'Parquet; set kind = "parquet"',
    b"\x89HDF": "HDF5; save it as JSON, a table or Parquet",
    b"ARROW1": "an Arrow file; save it as Parquet, or give its folder as a set of the hub",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"BZh": "compressed by bzip2; unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or compress it by gzip",
}
"""What files of other kinds begin with, and what to do with them."""


@contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """A text file, decompressed; a byte that is no UTF-8 becomes half a character, which rows are checked for.

    Raises `InputError` where it is missing, damaged or of another kind.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(8)
        for mark, told in _NO_TEXT.items():
            if begin.startswith(mark):
                raise InputError(f"{path} is {told}.")
        if b"\0" in begin and not begin.startswith(_GZIP):
            raise InputError(f"{path} is no UTF-8 text; convert it, or name the file that is meant.")
        open_ = gzip.open if path.suffix == ".gz" or begin.startswith(_GZIP) else open
        with open_(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file  # type: ignore[misc]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path in the recipe.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); check the file.") from error


def begins(path: Path, mark: bytes) -> bool:
    """Whether a file is there and begins so."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def after_spaces(text: str, place: int) -> int:
    """Where in a text the spaces and commas from `place` on end."""
    return _BETWEEN.match(text, place).end()  # type: ignore[union-attr]


def read_text(file: IO[str], path: Path) -> str:
    text = file.read(CHUNK)
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


def check_names(names: list[str], path: Path) -> None:
    """Raise `InputError` for a table whose columns have no names, or two the same."""
    if not any(names):
        raise InputError(f"{path} does not begin with the names of its columns; name them with header = [...].")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"{path} has two columns '{twice[0]}'; mend their names, or, where a table begins with a row already, name "
            "them with header = [...]."
        )


def unescaped(value: str) -> str:
    return value.replace("\\n", "\n").replace("\\t", "\t")


def text_lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines, each with its end. Raises `InputError` at one that does not end in time."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{path} has a line of more than {LONGEST_LINE} characters, its line {number}; check the file."
            )
        yield line


def first_line(error: BaseException) -> str:
    """The first line of a message, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
