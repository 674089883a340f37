"""Where the rows of an instruction set come from: files of the usual kinds and the hub, read row by row.

Only as much of a file is in memory as its format needs: lines, a row group, a record of an array.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field, model_validator

from tasks.artifact import InputError, Row
from tasks.data.phrasings import PhrasedSet

_CHUNK = 1 << 20
_LINE = 1 << 26
"""Characters of the longest line, and of the longest object of an array."""
_BETWEEN = re.compile(r"[\s,]*")
Line = tuple[int, Row | str]
"""The number of a row, counted from 1, and the row, or why it is none."""


class JsonSet(PhrasedSet):
    """Lines of JSON (`.jsonl`), or one array of objects (`.json`); either may be compressed (`.gz`)."""

    kind: Literal["json"] = "json"
    """A file of JSON."""
    path: str
    """The file."""

    def source_files(self) -> list[Path]:
        """What is read."""
        return [Path(self.path).expanduser()]

    def lines(self) -> Iterator[Line]:
        """The rows. Raises `InputError` when the file is missing or no JSON at all."""
        path = Path(self.path).expanduser()
        with _opened(path) as file:
            yield from _array(file, path) if path.name.removesuffix(".gz").endswith(".json") else _lines(file, path)


class CsvSet(PhrasedSet):
    """A table as text, with a header or with the columns named here."""

    kind: Literal["csv"]
    """A file of separated values."""
    path: str
    """The file; it may be compressed (`.gz`)."""
    delimiter: str = Field(default="", max_length=1)
    """What separates values; empty: a tab for `.tsv`, else a comma."""
    header: tuple[str, ...] = ()
    """Names of the columns of a file that has no header line; none: its first line names them."""
    quotes: bool | None = None
    """Whether a value may stand in quotation marks; none: not in a table separated by tabs."""
    escapes: bool = False
    """Two characters `\\n` or `\\t` in a value stand for a line break or a tab, as in FLAN's files."""

    def source_files(self) -> list[Path]:
        """What is read."""
        return [Path(self.path).expanduser()]

    def lines(self) -> Iterator[Line]:
        """The rows, every value a string. Raises `InputError` when the file is missing or has no header."""
        path = Path(self.path).expanduser()
        csv.field_size_limit(1 << 24)
        delimiter = self.delimiter or ("\t" if path.name.removesuffix(".gz").endswith(".tsv") else ",")
        with _opened(path) as file:
            quotes = delimiter != "\t" if self.quotes is None else self.quotes
            quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
            rows = _rows_of(csv.reader(_text_lines(file, path), delimiter=delimiter, quoting=quoting), path)
            names = list(self.header) or next(rows, [])
            if len(set(names)) < len(names) or not any(names):
                raise InputError(f"{path} does not begin with the names of its columns; name them with header = [...].")
            for number, values in enumerate(rows, 1):
                if len(values) != len(names):
                    yield number, f"has another number of values than there are columns ({len(names)})"
                else:
                    values = [_unescaped(value) for value in values] if self.escapes else values
                    yield number, dict(zip(names, values, strict=True))


class ParquetSet(PhrasedSet):
    """A Parquet file, or a folder of them."""

    kind: Literal["parquet"]
    """Files of Parquet."""
    path: str
    """The file or folder."""

    def source_files(self) -> list[Path]:
        """What is read, in the order of the names."""
        path = Path(self.path).expanduser()
        return sorted(path.glob("*.parquet")) if path.is_dir() else [path]

    def lines(self) -> Iterator[Line]:
        """The rows. Raises `InputError` when there is no file or it is not Parquet."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        files = self.source_files()
        if not files:
            raise InputError(f"{self.path} holds no .parquet file; check the path in the recipe.")
        number = 0
        for path in files:
            try:
                with parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(1024):
                        for row in batch.to_pylist():
                            number += 1
                            yield number, row
            except (OSError, arrow.ArrowException) as error:
                raise InputError(f"{path} cannot be read as Parquet ({_first(error)}); check the file.") from error


class HubSet(PhrasedSet):
    """A data set of the Hugging Face hub, or a copy of its repository, streamed; or what `save_to_disk` wrote."""

    kind: Literal["hub"]
    """A data set of the `datasets` library."""
    path: str
    """A hub id such as `tatsu-lab/alpaca`, or a folder."""
    config: str | None = None
    """Which of several configurations."""
    split: str = "train"
    """Which split."""
    revision: str | None = None
    """Branch, tag or commit on the hub; give a commit to read the same rows tomorrow."""

    def source_files(self) -> list[Path]:
        """The files of a folder but for hidden ones, as version control and downloads leave them; none for the hub,
        whose id and revision say what it is."""
        folder = Path(self.path).expanduser()
        found = sorted(folder.rglob("*")) if folder.is_dir() else []
        hidden = [any(part.startswith(".") for part in file.relative_to(folder).parts) for file in found]
        return [file for file, out in zip(found, hidden, strict=True) if not out and file.is_file()]

    def lines(self) -> Iterator[Line]:
        """The rows; labels stay numbers. Raises `InputError` when the data set or its split is not there."""
        import datasets

        folder = Path(self.path).expanduser()
        if not folder.is_dir() and (self.path.startswith((".", "/", "~")) or self.path.count("/") > 1):
            raise InputError(f"The data set folder {self.path} does not exist; check the path, or give a hub id.")
        datasets.disable_progress_bars()  # its bars would write over the pipeline's own
        try:
            if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                rows: Any = datasets.load_from_disk(str(folder))
                if isinstance(rows, dict):
                    rows = rows[self.split]
            else:
                rows = datasets.load_dataset(
                    str(folder) if folder.is_dir() else self.path,
                    self.config,
                    split=self.split,
                    revision=self.revision,
                    streaming=True,
                )
            for number, row in enumerate(rows, 1):
                yield number, dict(row)
        except Exception as error:  # whatever the library, a server or a file of theirs raises
            raise InputError(
                f"The data set '{self.path}' cannot be read ({_first(error)}); check its name, config, split "
                f"('{self.split}') and the network, or give a folder."
            ) from error


class TextSet(PhrasedSet):
    """Plain text to go on pre-training on beside the instructions; every token of it counts in the loss."""

    kind: Literal["text"]
    """A file of plain text."""
    path: str
    """The file; it may be compressed (`.gz`)."""
    separator: str = Field(default="\n\n", min_length=1)
    """What stands between two documents, for example `<|endoftext|>`."""
    characters: int = Field(default=2000, ge=50)
    """Longer documents are cut into pieces of at most so many characters, where a word ends."""

    @model_validator(mode="after")
    def _only_text(self) -> "TextSet":
        if self.templates or self.flan or self.promptsource or self.fewshot or self.cot or self.rename or self.fill:
            raise ValueError(f"the set '{self.name}' is plain text, which takes no templates; remove them")
        if self.use == "evaluation":
            raise ValueError(f"the set '{self.name}' is plain text, which has no prompts to evaluate on")
        return self

    def source_files(self) -> list[Path]:
        """What is read."""
        return [Path(self.path).expanduser()]

    def lines(self) -> Iterator[Line]:
        """Rows `{"text"}`, one for each piece of a document."""
        number, rest = 0, ""
        with _opened(Path(self.path).expanduser()) as file:
            while block := _read(file, Path(self.path)):
                *whole, rest = (rest + block).split(self.separator)
                while len(rest) > 4 * self.characters and self.separator[0] not in rest[-len(self.separator) :]:
                    piece, rest = _cut(rest, self.characters)
                    whole.append(piece)
                for document in whole:
                    for piece in self._pieces(document):
                        number += 1
                        yield number, {"text": piece}
        for piece in self._pieces(rest):
            number += 1
            yield number, {"text": piece}

    def _pieces(self, document: str) -> Iterator[str]:
        rest = document.strip()
        while rest:
            piece, rest = _cut(rest, self.characters)
            if piece.strip():
                yield piece.strip()


def _cut(text: str, limit: int) -> tuple[str, str]:
    """A piece of at most `limit` characters that ends where a word does, if there is such a place, and what follows."""
    if len(text) <= limit:
        return text, ""
    end = max(text.rfind(" ", 0, limit + 1), text.rfind("\n", 0, limit + 1))
    end = end if end > limit // 2 else limit
    return text[:end], text[end:].lstrip()


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """A text file, decompressed; a byte that is no UTF-8 becomes half a character, which rows are checked for."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file  # type: ignore[misc]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path in the recipe.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({_first(error)}); check the file.") from error


def _read(file: IO[str], path: Path) -> str:
    text = file.read(_CHUNK)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} is not UTF-8 text; convert it first.") from error
    return text


def _rows_of(read: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        for values in read:
            if values:
                yield values
    except csv.Error as error:
        raise InputError(f"{path} is not a table of separated values ({error}); check its delimiter.") from error


def _unescaped(value: str) -> str:
    return value.replace("\\n", "\n").replace("\\t", "\t")


def _text_lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines, each with its end. Raises `InputError` at one that does not end in time."""
    number = 0
    while line := file.readline(_LINE + 1):
        number += 1
        if len(line) > _LINE:
            raise InputError(f"{path} has a line of more than {_LINE} characters, its line {number}; check the file.")
        yield line


def _lines(file: IO[str], path: Path) -> Iterator[Line]:
    for number, line in enumerate(_text_lines(file, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = "is not JSON"
        yield number, row if isinstance(row, (dict, str)) else "is not a JSON object"


def _array(file: IO[str], path: Path) -> Iterator[Line]:
    """The objects of one JSON array, decoded one after another; a file of lines under this name is read as lines."""
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK).lstrip()
    if text[:1] == "{":
        file.seek(0)
        yield from _lines(file, path)
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


def _first(error: BaseException) -> str:
    """The first line of a message, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
