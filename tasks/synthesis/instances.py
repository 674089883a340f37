"""Inputs and answers of one task in a writer's text, and why some are not used. Pure functions of untrusted text."""

import re
from collections.abc import Sequence
from itertools import pairwise

from tasks.data.words import normalise

_PART = r"^[ \t]*(?:[*_#]+[ \t]*)?(input|{other})(?:[ \t]*[*_]+)?[ \t]*:(?:[ \t]*[*_]+)?"
_PARTS = {
    first: re.compile(_PART.format(other=other), re.IGNORECASE | re.MULTILINE)
    for first, other in ((False, "output"), (True, "class label|label"))
}
"""Where a part of an instance begins, by whether the label comes first."""
_NEXT_TASK = re.compile(
    r"\n[ \t]*\n[*_# \t]*task\b[ \t]*\d*[*_ \t]*:|\n[*_# \t]*task\b[ \t]*\d*[*_ \t]*:[^\n]*\n[*_# \t]*"
    r"(?:input|output|label|class label)\b[*_ \t]*:",
    re.IGNORECASE,
)
"""Where a writer goes on with another task."""
_NO_INPUT = re.compile(
    r"(?:n a|empty|noinput|not (?:needed|required|applicable|necessary)"
    r"|(?:(?:there is|this task (?:has|needs|requires)|the task (?:has|needs|requires)) )?"
    r"(?:none|no (?:(?:further|additional|specific) )?inputs?)"
    r"(?: (?:is|are))?(?: (?:needed|required|necessary|given|provided))?(?: (?:for|by) (?:this|the) task)?)?"
)
_AROUND = re.compile(
    r"(?:-{3,}|\*{3,}|_{3,}|={3,}|#+|\d{1,3}[.)]|[*_#]*[ \t]*(?:example|instance)[ \t]*\d*[ \t]*[:.]?[*_]*)",
    re.IGNORECASE,
)
"""A line that stands between two instances."""


def instances_in(text: str, whole: bool, label_first: bool) -> list[tuple[str, str]]:
    """The (input, output) pairs of a text of `Input:` and `Output:` parts, or of `Label:` and `Input:` parts.

    A part without its partner is left out, and so is the last pair of a text that was cut. What follows as another
    task is no instance of this one, and an answer may hold a line like `Output:` itself.
    """
    first = _PARTS[label_first].search(text)
    if first and (other := _NEXT_TASK.search(text, first.end())):
        text, whole = text[: other.start()], True
    marks: list[tuple[bool, re.Match[str]]] = []
    for mark in _PARTS[label_first].finditer(text):
        begins = (mark[1].lower() == "input") != label_first
        if begins or not marks or marks[-1][0]:  # else it is a line of the part before
            marks.append((begins, mark))
    limits = [mark.start() for _, mark in marks[1:]] + [len(text)]
    parts = [(begins, _content(text[mark.end() : end])) for (begins, mark), end in zip(marks, limits, strict=False)]
    pairs = [
        (given_in(two), one) if label_first else (given_in(one), two)
        for (begins, one), (goes_on, two) in pairwise(parts)
        if begins and not goes_on
    ]
    return pairs if whole or not pairs else pairs[:-1]


def given_in(text: str) -> str:
    """An input; empty where it says that there is none."""
    return "" if _NO_INPUT.fullmatch(normalise(text)) else text.strip()


def _content(text: str) -> str:
    """A part without the lines that only lead on to the next instance."""
    lines = text.strip().splitlines()
    while len(lines) > 1:
        last = lines[-1].strip()
        open_fence = last == "```" and sum(line.strip().startswith("```") for line in lines) % 2
        if last and not open_fence and not _AROUND.fullmatch(last):
            break
        lines.pop()
    return "\n".join(lines).strip()


def instance_faults(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Of each instance of one instruction why it is not used, empty where it is: empty, repeating, contradictory."""
    outputs: dict[str, set[str]] = {}
    for given, output in pairs:
        outputs.setdefault(normalise(given), set()).add(normalise(output))
    seen: set[tuple[str, str]] = set()
    faults: list[str] = []
    for given, output in pairs:
        key = (normalise(given), normalise(output))
        if not output.strip():
            fault = "has an empty answer"
        elif key[0] and key[0] == key[1]:
            fault = "has an answer that repeats the input"
        elif len(outputs[key[0]]) > 1:
            fault = "has different answers to the same input"
        else:
            fault = "is there twice" if key in seen else ""
        seen.add(key)
        faults.append(fault)
    return faults
