"""Where the rows of an instruction set come from: files of the usual kinds and the hub, read row by row.

Only as much of a file is in memory as its format needs: lines, a row group, a record of an array (reading.py).
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.artifact import InputError
from tasks.data.columns import Read, column_types
from tasks.data.phrasings import PhrasedSet
from tasks.data.reading import (
    Line,
    first_line,
    json_rows,
    opened,
    read_text,
    table_rows,
    unescaped,
)


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
            quotes = delimiter != "\t" if self.quotes is None else self.quotes
            rows = table_rows(file, path, delimiter, quotes)
            names = list(self.header) or next(rows, [])
            _check_names(names, path)
            for number, values in enumerate(rows, 1):
                if len(values) != len(names):
                    yield number, f"has another number of values than there are columns ({len(names)})"
                else:
                    values = [unescaped(value) for value in values] if self.escapes else values
                    yield number, dict(zip(names, values, strict=True))


def _check_names(names: list[str], path: Path) -> None:
    if not any(names):
        raise InputError(f"{path} does not begin with the names of its columns; name them with header = [...].")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"{path} does not begin with the names of its columns: '{twice[0]}' is there twice; mend that line, or "
            "name them with header = [...] if it is a row already."
        )


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
                raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}); check the file.") from error


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
                where = str(folder) if folder.is_dir() else self.path
                # plain files in a folder are the one configuration there is, whatever the hub calls it
                known = not folder.is_dir() or self.config in datasets.get_dataset_config_names(where)
                rows = datasets.load_dataset(
                    where,
                    self.config if known else None,
                    split=self.split,
                    revision=self.revision,
                    streaming=True,
                )
            for number, row in enumerate(rows, 1):
                yield number, dict(row)
        except Exception as error:  # whatever the library, a server or a file of theirs raises
            raise InputError(
                f"The data set '{self.path}' cannot be read ({first_line(error)}); check its name, config, split "
                f"('{self.split}') and the network, or give a folder."
            ) from error


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
        """Rows `{"text"}`, one for each piece of a document."""
        number, rest = 0, ""
        with opened(Path(self.path).expanduser()) as file:
            while block := read_text(file, Path(self.path)):
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
