"""How much a template that is not trusted may write and do, counted before it is done."""

import re
from collections.abc import Iterator, Mapping, MappingView, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from time import thread_time
from typing import Any

from jinja2.exceptions import SecurityError

LONGEST = 1_000_000
"""Characters that a template may pad or repeat a text to, items of a list, and characters of a list as text."""
WRITTEN = 10_000_000
"""Characters that one filling of a template may write and join, all its parts and steps together."""
STEPS = 1_000_000
"""Turns of loops, calls, and items that filters go through, in one filling."""
SECONDS = 5.0
"""CPU time of one filling: steps are not all alike, and usual templates take less than a thousandth of it."""
LOOK = 50
"""Steps between two looks at the clock, which takes longer than a step."""
WRAPPED = 10_000
"""Characters moved to a step of a text that is wrapped: what is left of a long word is copied at each line."""
_left: ContextVar[list[float]] = ContextVar("_left")
"""Characters and steps that this filling has left, and the CPU time at which it ends."""
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_WIDE_FIELD = re.compile(r"\{[^{}]*:[^{}]*(?:\d{5}|\{)")
_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "tojson"}
"""Filters, and methods of texts, whose numbers say how much is written."""
_BY_ITEM = {
    "list", "sort", "unique", "groupby", "batch", "slice", "map", "select", "reject", "selectattr", "rejectattr",
    "split", "rsplit", "splitlines", "wordcount", "max", "min", "sum", "join",
}  # fmt: skip
"""What goes through a text letter by letter, or makes a list of it."""
_COMPARING = {"sort", "unique", "groupby", "max", "min"}
"""What compares items with one another, which does not end where they are nested without end."""
FILTERS = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower",
    "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
    "slice", "sort", "string", "striptags", "sum", "title", "tojson", "trim", "truncate", "unique", "upper",
    "urlencode", "wordcount", "wordwrap",
)  # fmt: skip
"""Jinja's filters that are allowed: not those whose size nothing tells, nor `random`, which no seed draws."""
_OF_TEXT = (
    "capitalize casefold center count endswith expandtabs find format index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip "
    "swapcase title upper zfill"
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_OF_TEXT.split()),
    bytes: frozenset(),
    bool: frozenset(),
    int: frozenset(),
    float: frozenset({"is_integer"}),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
"""Methods of values that templates may call; of other kinds all that the sandbox takes for safe."""


@contextmanager
def limits() -> Iterator[None]:
    """One filling, with all of what it may write and do."""
    token = _left.set([WRITTEN, STEPS, thread_time() + SECONDS])
    try:
        yield
    finally:
        _left.reset(token)


def spend(characters: int) -> None:
    """Count what is written. Raises jinja2's `SecurityError` where it is too much."""
    left = _left.get(None)
    if left is None:  # a constant, when the template is compiled
        left = [LONGEST, STEPS, inf]
    left[0] -= characters
    if left[0] < 0:
        raise SecurityError("it writes too much")


def step(count: int = 1) -> None:
    """Count what is done. Raises jinja2's `SecurityError` where it is too much."""
    left = _left.get(None)
    if left is None:
        left = [LONGEST, LONGEST, inf]
    left[1] -= count
    if left[1] < 0:
        raise SecurityError("it goes round too often")
    if left[1] % LOOK < count and thread_time() > left[2]:
        raise SecurityError("it takes too long")


def size(value: Any, most: int = LONGEST) -> int:
    """About how many characters a value has as a text. Raises jinja2's `SecurityError` beyond `most`."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        parts: Any = (each for pair in value.items() for each in pair)
    elif isinstance(value, (list, tuple, set, frozenset, MappingView)):
        parts = value
    else:
        return 24
    total = 2
    for each in parts:
        total += 2 + size(each, most - total)
        if total > most:
            raise SecurityError("a value is too large")
    return total


def check_product(left: Any, right: Any) -> None:
    """Raise jinja2's `SecurityError` for a product of numbers, or of a text and a number, that is too large."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 10_000:
        raise SecurityError("a product is too large")
    for times, text in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(text, Sized) and times * len(text) > LONGEST:
            raise SecurityError("a repeated text is too long")


def check(name: str, value: Any, given: Sequence[Any]) -> None:
    """Raise jinja2's `SecurityError` where a filter or a text's method would write or do too much."""
    text = value if isinstance(value, str) else ""
    step(len(value) if isinstance(value, Sized) and (name in _BY_ITEM or not text) else 1)
    if name in _COMPARING:
        size(value, WRITTEN)
    if name in ("format", "format_map"):
        if _WIDE.search(text) or _WIDE_FIELD.search(text):
            raise SecurityError("a text is padded too far")
        spend(len(text) + (text.count("%") + text.count("{")) * max(map(size, given), default=0))
    if name in _PADDING:
        sizes = [len(each) if isinstance(each, str) else each for each in given if isinstance(each, (int, str))]
        if any(each * (1 + text.count("\n") + text.count("\t")) > LONGEST for each in sizes):
            raise SecurityError("a text is padded too far")
    if name == "replace" and len(given) > 1:
        spend(text.count(str(given[0])) * len(str(given[1])))
    if name == "wordwrap":
        spend(len(text) * (1 + sum(len(each) for each in given if isinstance(each, str))))
        width = next((each for each in given if isinstance(each, int)), 79)
        step(len(text) ** 2 // (max(width, 1) * WRAPPED))
    if name == "sum" and not all(isinstance(each, (int, float, str)) for each in given):
        raise SecurityError("only numbers are added up")
    if name in ("string", "tojson", "escape", "e", "forceescape", "urlencode"):
        spend(6 * size(value))
    if name == "join":
        apart = len(given[0]) if given and isinstance(given[0], str) else 0
        spend(sum(map(size, value)) + apart * len(value))  # type: ignore[arg-type]
