"""What the columns of a table of texts hold, where that is plain: whole numbers, numbers, yes and no."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tasks.artifact import Row

Read = Callable[[str], Any]
"""The value that a text stands for."""


def _truth(text: str) -> bool:
    return text.casefold() == "true"


_KINDS: tuple[tuple[re.Pattern[str], Read], ...] = (
    (re.compile(r"true|false", re.IGNORECASE), _truth),
    (re.compile(r"0|-?[1-9]\d{0,17}"), int),
    (re.compile(r"-?(?:0|[1-9]\d{0,14})\.\d{1,15}|0|-?[1-9]\d{0,14}"), float),
)
"""Numbers as they are written out again: `007` is a text."""


def column_types(rows: Iterable[Row]) -> dict[str, Read]:
    """How to read each column of which every text is a number, or yes or no; empty ones do not count."""
    kinds: dict[str, set[int]] = defaultdict(lambda: set(range(len(_KINDS))))
    filled: set[str] = set()
    for row in rows:
        for name, text in row.items():
            if text and kinds[name]:
                filled.add(name)
                kinds[name] = {kind for kind in kinds[name] if _KINDS[kind][0].fullmatch(text)}
    return {name: _KINDS[min(kinds[name])][1] for name in filled if kinds[name]}


def typed(row: Mapping[str, Any], types: Mapping[str, Read]) -> Row:
    """A row with the values that its texts stand for; an empty text is None, and one of another kind stays."""
    return {name: _value(value, types.get(name)) for name, value in row.items()}


def _value(value: Any, read: Read | None) -> Any:
    if read is None or not isinstance(value, str):
        return value
    if not value:
        return None
    return read(value) if any(read is each and pattern.fullmatch(value) for pattern, each in _KINDS) else value
