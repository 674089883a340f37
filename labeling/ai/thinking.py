"""The block of thinking that some models write before their answer."""

import re

_OPEN = re.compile(r"\s*<(think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSED = re.compile(r"^[ \t]*</(?:think|thinking|thought|reasoning)>[ \t]*$", re.IGNORECASE | re.MULTILINE)
"""An end on a line of its own: chat templates that begin the block themselves leave only that in the answer."""


def without_thinking(text: str) -> str | None:
    """The answer after the thinking that stands before it; None where that does not end, so that there is no answer."""
    opened = _OPEN.match(text)
    if opened:
        _, closed, answer = text[opened.end() :].partition(f"</{opened[1]}>")
        return answer.lstrip() if closed else None
    ended = _CLOSED.search(text)
    return text[ended.end() :].lstrip() if ended else text
