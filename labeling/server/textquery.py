"""Text search with the meaning of Elasticsearch's simple_query_string (operator AND), which Argilla's UI expects."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

_TOKEN = re.compile(r'(?P<neg>-)?(?:"(?P<phrase>[^"]*)"|(?P<or>\|)|(?P<word>[^\s"|]+))')
_WORD = re.compile(r"\w+")

Term = tuple[bool, re.Pattern[str]]
"""(negated, what to find in case-folded text)"""


@functools.lru_cache(maxsize=256)
def parse(query: str) -> tuple[tuple[Term, ...], ...]:
    """An OR of ANDs: `bread milk | "aisle 4" -cheese pas*` has the two groups its bar separates."""
    groups: list[list[Term]] = [[]]
    for match in _TOKEN.finditer(query):
        if match["or"]:
            groups.append([])
            continue
        text = match["phrase"] if match["phrase"] is not None else match["word"]
        prefix = match["phrase"] is None and text.endswith("*")
        words = [re.escape(word) for word in _WORD.findall(text.casefold())]
        if words:
            pattern = r"\b" + r"\W+".join(words) + ("" if prefix else r"\b")
            groups[-1].append((bool(match["neg"]), re.compile(pattern)))
    return tuple(tuple(group) for group in groups if group)


def score(fields_json: str | None, field: str | None, query: str) -> float:
    """Relevance of a record's fields for a query: 0.0 for no match, else positive, more for more hits in less text.

    `field` restricts the search to one field. Registered as an SQLite function by `engine`.
    """
    fields = json.loads(fields_json) if fields_json else {}
    text = "\n".join(_texts(fields.get(field) if field else fields)).casefold()
    hits = [hits for group in parse(query) if (hits := _hits(group, text)) is not None]
    return (1 + max(hits)) / (1 + len(text) ** 0.5) if hits else 0.0


def _hits(group: tuple[Term, ...], text: str) -> int | None:
    """How often the group's terms occur, or None where one is missing or a negated one is there."""
    total = 0
    for negated, pattern in group:
        found = len(pattern.findall(text))
        if bool(found) == negated:
            return None
        total += found
    return total


def _texts(value: Any) -> Iterator[str]:
    """Every string inside a field's value: plain text, a chat's messages, a custom field's object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
