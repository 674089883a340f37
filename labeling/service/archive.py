"""The backup file: one JSON document per line, compressed with gzip, told apart by `kind` and closed by an `end` line.

It is read as a stream of lines and holds no paths: a hostile one can neither write anywhere nor fill the memory.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labeling.comparison import LabelingError

Progress = Callable[[int, int], None]
"""(records done, records in all)"""

VERSION = 1
LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one line; a record with all its answers and vectors is far smaller."""

PARTS_OF = {
    "fields": "datasets/{}/fields",
    "questions": "datasets/{}/questions",
    "metadata_properties": "me/datasets/{}/metadata-properties",
    "vectors_settings": "datasets/{}/vectors-settings",
}
"""What a dataset is made of, in the order it is made, and where to read it."""

_NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "backup": {"version": int},
    "workspace": {"id": str, "name": str, "users": list},
    "user": {"id": str, "username": str, "first_name": str, "role": str},
    "dataset": {
        "id": str,
        "workspace": str,
        "name": str,
        "status": str,
        "distribution": dict,
        "fields": list,
        "questions": list,
        "metadata_properties": list,
        "vectors_settings": list,
    },
    "record": {"id": str, "dataset": str, "fields": dict, "responses": list, "suggestions": list, "vectors": dict},
    "end": {"counts": dict},
}
"""Kind of line -> what it must hold."""
COUNTED = {"workspace": "workspaces", "user": "users", "dataset": "datasets", "record": "records"}


class Writer:
    """Appends lines and counts them."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self.counts = dict.fromkeys((*COUNTED.values(), "responses"), 0)

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps({"kind": kind, **row}).encode() + b"\n")
        if kind in COUNTED:
            self.counts[COUNTED[kind]] += 1
            self.counts["responses"] += len(row.get("responses", ()))


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A writer to `path`, which appears whole or not at all, and for this user only. It holds what people said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
            writer = Writer(file)
            writer.add("backup", {"version": VERSION})
            yield writer
            writer.add("end", {"counts": writer.counts})
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check(path: Path) -> dict[str, int]:
    """Read the whole file and return its counts. Raises `LabelingError` when it is no backup, or not all of one."""
    counts = dict.fromkeys((*COUNTED.values(), "responses"), 0)
    told: dict[str, int] | None = None
    for number, row in enumerate(lines(path)):
        if told is not None or (number == 0) != (row["kind"] == "backup"):
            raise _bad(path, f"line {number + 1} is out of place")
        if row["kind"] == "backup" and row["version"] > VERSION:
            raise LabelingError(f"{path} was made by a newer version; restore it with that one.")
        if row["kind"] in COUNTED:
            counts[COUNTED[row["kind"]]] += 1
            counts["responses"] += len(row.get("responses", ()))
        if row["kind"] == "end":
            told = row["counts"]
    if told != counts:
        raise _bad(path, "it ends early" if told is None else "lines are missing")
    return counts


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every line as a document that holds what its kind needs. Raises `LabelingError` at the first that does not."""
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise _bad(path, f"line {number} is longer than {LONGEST_LINE >> 20} MiB")
                yield _document(path, number, line)
    except FileNotFoundError as error:
        raise LabelingError(f"There is no file {path}; name the backup to restore.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _bad(path, str(error) or type(error).__name__) from error


def _document(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"line {number} is no JSON") from error
    needed = _NEEDED.get(str(row.get("kind"))) if isinstance(row, dict) else None
    if needed is None or not all(isinstance(row.get(name), kind) for name, kind in needed.items()):
        raise _bad(path, f"line {number} is not what a backup holds")
    lists = [value for name, value in row.items() if isinstance(value, list) and name != "users"]
    if not all(isinstance(item, dict) for each in lists for item in each):
        raise _bad(path, f"line {number} is not what a backup holds")
    return row


def _bad(path: Path, why: str) -> LabelingError:
    return LabelingError(f"{path} is not a whole backup ({why}); nothing was restored from it, use another file.")
