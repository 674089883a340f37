"""Where the rows of an instruction set come from: files of text, read row by row. Others: arrow_sources.py.

Only as much of a file is in memory as its format needs: a line, a record of an array (reading.py, json_reading.py).
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tasks.artifact import InputError, Row
from tasks.data.columns import Read, column_types
from tasks.data.json_reading import json_rows
from tasks.data.phrasings import PhrasedSet
from tasks.data.reading import CHUNK, Line, check_names, opened, read_text, table_rows, unescaped


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
        return json_rows(Path(self.path).expanduser())


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

    def column_types(self) -> dict[str, Read]:
        """How to read columns whose values all stand for numbers, or yes or no, by the first 1000 rows: promptsource's
        templates were written for typed columns."""
        first = (row for _, row in islice(self.lines(), 1000) if isinstance(row, dict))
        types = column_types(first)
        return {self.rename.get(name, name): read for name, read in types.items()}

    def lines(self) -> Iterator[Line]:
        """The rows, every value a string. Raises `InputError` when the file is missing, garbled or has no header."""
        path = Path(self.path).expanduser()
        delimiter = self.delimiter or ("\t" if path.name.removesuffix(".gz").endswith(".tsv") else ",")
        with opened(path) as file:
            if file.read(CHUNK).lstrip()[:1] in ("{", "["):
                raise InputError(f'{path} is JSON, not a table; set kind = "json".')
            file.seek(0)
            quotes = delimiter != "\t" if self.quotes is None else self.quotes
            rows = table_rows(file, path, delimiter, quotes)
            names = list(self.header) or next(rows, [])
            check_names(names, path)
            if len(names) == 1 and (other := next((each for each in ";\t|," if each in names[0]), "")):
                told = "\\t" if other == "\t" else other
                raise InputError(
                    f"{path} has one column, {_short(names[0])}, by its delimiter {delimiter!r}; set delimiter = "
                    f'"{told}", or name the column with header = [...].'
                )
            for number, values in enumerate(rows, 1):
                if number == 1 and values == list(self.header):
                    raise InputError(f"{path} begins with the names of its columns already; leave 'header' out.")
                if len(values) != len(names):
                    yield number, f"has another number of values than there are columns ({len(names)})"
                else:
                    values = [unescaped(value) for value in values] if self.escapes else values
                    yield number, dict(zip(names, values, strict=True))


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:60]}...")


class SynthesisSet(PhrasedSet):
    """Rows that a synthesis of the recipe wrote."""

    kind: Literal["synthesis"]
    """Rows of the recipe's own making."""
    of: str
    """Which `synthesis`, by its name."""

    def source_files(self) -> list[Path]:
        """None: the rows are an artifact."""
        return []

    def lines(self) -> Iterator[Line]:
        """Raises `InputError`: they are read by `made`."""
        raise InputError(f"The set '{self.name}' has no rows before the synthesis '{self.of}' is made.")

    def made(self, inputs: Mapping[str, Path]) -> JsonSet:
        """The set with the rows of the synthesis among the inputs. Raises `InputError` when it is not there."""
        artifact = inputs.get(f"synthesis.{self.of}")
        if artifact is None:
            raise InputError(
                f"The set '{self.name}' holds what the synthesis '{self.of}' writes, which only `rlhf run` and "
                "`rlhf data synthesise` make; take a set of files here."
            )
        told = {name: getattr(self, name) for name in type(self).model_fields if name not in ("kind", "of")}
        return JsonSet(kind="json", path=str(artifact / "rows.jsonl"), **told)


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
        """Rows `{"text"}`, one for each piece of a document; `goes_on` where it is not the last."""
        yield from enumerate(self._all_pieces(), 1)

    def _all_pieces(self) -> Iterator[Row]:
        rest, separator = "", self.separator.replace("\r\n", "\n")
        with opened(Path(self.path).expanduser()) as file:
            while block := read_text(file, Path(self.path)):
                *whole, rest = (rest + block).replace("\r\n", "\n").split(separator)
                for document in whole:
                    yield from self._pieces(document)
                while len(rest) > 4 * self.characters and separator[0] not in rest[-len(separator) :]:
                    piece, rest = _cut(rest, self.characters)
                    if piece.strip():
                        yield {"text": piece.strip(), "goes_on": True}
        yield from self._pieces(rest)

    def _pieces(self, document: str) -> Iterator[Row]:
        rest = document.strip()
        while rest:
            piece, rest = _cut(rest, self.characters)
            if piece.strip():
                yield {"text": piece.strip(), "goes_on": True} if rest else {"text": piece.strip()}


def _cut(text: str, limit: int) -> tuple[str, str]:
    """A piece of at most `limit` characters that ends where a word does, if there is such a place, and what follows."""
    if len(text) <= limit:
        return text, ""
    end = max(text.rfind(" ", 0, limit + 1), text.rfind("\n", 0, limit + 1))
    end = end if end > limit // 2 else limit
    return text[:end], text[end:].lstrip()
