"""Text to words as Elasticsearch's standard analyzer cuts it: Unicode word boundaries (UAX #29), lower case.

Approximated: `don't`, `3.5`, `example.com` and `snake_case` are one word, every Chinese character and hiragana is one,
accents count (`cafe` is not `café`), nothing is stemmed and nothing is left out.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

BREAK = "\ue000"
"""A word no text holds: phrases do not reach over it."""
ROLE = "\ue001"
"""Begins the word that stands for the role of a chat message, which is compared whole and as it is written."""


def _marks() -> str:
    """Characters that belong to the letter before them, as a regular expression's set."""
    kinds = ("Mn", "Mc", "Me", "Cf")
    return "".join(chr(n) for n in range(0x300, min(sys.maxunicode, 0xFFFF)) if unicodedata.category(chr(n)) in kinds)


_SINGLE = (
    "\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # hiragana, Chinese characters
    "\u2600-\u27bf\U0001f000-\U0001faff"  # pictures
)
_LETTER = rf"(?:(?![{_SINGLE}\d])[\w])"
_MARK = f"[{_marks()}]*"
_WORD = re.compile(
    rf"[{_SINGLE}]|(?:{_LETTER}|\d){_MARK}"
    rf"(?:(?:{_LETTER}|\d){_MARK}|(?<=[^\W\d_])[.:'’·‧](?=[^\W\d_])|(?<=\d)[.,;'’](?=\d))*"
)


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return [word for word in _WORD.findall(text.lower()) if word.strip("_")]


def indexed(value: Any, kind: str) -> str:
    """What is found of a field's value, as words between spaces: of images nothing, of custom fields Python's text."""
    if value is None or kind == "image":
        return ""
    if kind == "chat" and isinstance(value, list):
        return f" {BREAK} ".join(_messages(value))
    return " ".join(words(value if isinstance(value, str) else str(value)))


def role(name: str) -> str:
    """The word that stands for a role."""
    return ROLE + re.sub(r"\s", "\ue002", name.encode("utf-8", "ignore").decode())


def _messages(value: list[Any]) -> Iterator[str]:
    for message in value:
        if isinstance(message, dict):
            yield f"{role(str(message.get('role', '')))} {BREAK} {' '.join(words(str(message.get('content', ''))))}"
