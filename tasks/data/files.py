"""One file of the user's, whatever it is: lines or arrays of JSON, a table, Parquet, told by name and content."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tasks.artifact import InputError, Row
from tasks.data.arrow_sources import ParquetSet
from tasks.data.families import without_made
from tasks.data.forms import read_row
from tasks.data.json_reading import json_rows
from tasks.data.reading import Line, begins
from tasks.data.rows import BadRow, Example, answer_text, check_characters, checked
from tasks.data.sources import CsvSet
from tasks.data.templates import ChatTemplate, choose, converse


def file_rows(path: Path) -> Iterator[Line]:
    """The rows of a file. Raises `InputError` when it is missing or cannot be read."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return CsvSet(name="file", kind="csv", path=str(path)).lines()
    if path.is_dir() or begins(path, b"PAR1"):
        return ParquetSet(name="file", kind="parquet", path=str(path)).lines()
    return json_rows(path)


def read_examples(
    path: Path, on_bad_row: Literal["refuse", "drop"], templates: Sequence[ChatTemplate] = (), per_row: int = 1
) -> tuple[list[Example], list[Row]]:
    """The examples of a file, and the dropped rows as `{"line", "reason", "excerpt"}`.

    Raises `InputError` when the file is missing or empty, when no row can be used, or at the first bad row if bad rows
    are refused.
    """
    examples: list[Example] = []
    dropped: list[Row] = []
    for number, row in file_rows(path):
        try:
            if isinstance(row, str):
                raise BadRow(row)
            check_characters(row)
            row, made = without_made(row)
            found = _templated(row, number, templates, per_row) if templates else _as_it_is(row, number)
            examples += [replace(each, made=made) for each in found] if made else found
        except BadRow as bad:
            if on_bad_row == "refuse":
                what = f"{path} row {number} {' '.join(bad.args)}"
                raise InputError(f"{what}; mend or remove it, or set data.on_bad_row = 'drop'.") from bad
            dropped.append({"line": number, "reason": bad.args[0], "excerpt": excerpt_of(row)})
    if not examples and not dropped:
        raise InputError(f"{path} is empty; one JSON object per line is expected.")
    if not examples:
        reason, count = Counter(row["reason"] for row in dropped).most_common(1)[0]
        raise InputError(f"{path} has no usable row: {count} of {len(dropped)} {reason}; check the file's format.")
    return examples, dropped


def excerpt_of(row: Row | str) -> str:
    """The beginning of a dropped row as it can be written; empty where it was none."""
    text = "" if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
    return text[:120].encode("utf-8", "replace").decode()


def _as_it_is(row: Row, number: int) -> list[Example]:
    found = read_row(row)
    if len(found) == 1:
        return found
    return [Example(each.prompt, each.completions, each.reference, number, calls=each.calls) for each in found]


def _templated(row: Row, number: int, templates: Sequence[ChatTemplate], per_row: int) -> list[Example]:
    examples: list[Example] = []
    for template in choose(templates, number - 1, per_row):
        try:
            prompt, completion = converse(template, row)
        except InputError as error:
            raise BadRow("does not fit a template", f"({error})") from error
        examples.append(Example(checked(prompt), answer_text(completion), row.get("reference", row), number))
    return examples
