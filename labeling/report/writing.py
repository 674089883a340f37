"""Markdown from figures and from text that nobody vouches for."""

import math
import re
from collections.abc import Iterable, Sequence

from labeling.measures.bootstrap import Estimate

_MARKUP = re.compile(r"[\\`*_\[\]#|~$@&<>]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(text: str, limit: int = 200) -> str:
    """Untrusted text on one line of at most `limit` characters, as Markdown that shows it and does nothing else.

    Everything that could become markup, a link, an image, HTML or another table cell is a character reference, which
    CommonMark never takes for structure.
    """
    line = re.sub(r"\s+", " ", "".join(" " if _invisible(each) else each for each in text[: 4 * limit])).strip()
    shown = line if len(line) <= limit else f"{line[: limit - 1]}…"
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", shown)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are trusted: `plain` makes text so. Empty without rows."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])


def with_interval(estimate: Estimate) -> str:
    """`0.71 [0.68, 0.74]`, or that it is not defined."""
    if math.isnan(estimate.value):
        return "not defined"
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _invisible(character: str) -> bool:
    """Control characters, and those that turn the direction of a line."""
    return (
        ord(character) < 32
        or 0x7F <= ord(character) < 0xA0
        or character in "\u200e\u200f\u2028\u2029"
        or ("\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069")
    )
