"""What a writer puts around the text that it was asked for. Pure functions of untrusted text.

Answers are full of marks that look like this and are not: bold words at both ends, quoted speech, fenced code, colons
after "here is". So only what surely is none of the text is taken off, and never what the earlier text had as well.
"""

import re
from typing import Literal

from tasks.data.words import normalise

_MARKS = (("**", "**"), ("__", "__"), ('"', '"'), ("“", "”"), ("*", "*"), ("_", "_"))
_BOLD_START = re.compile(r"^(\*\*|__|\*|_)(?=\S)([^*_\n]*\S)\1")
_PLAIN = {"", "text", "txt", "plaintext", "markdown", "md"}
"""Languages of fences that hold no code."""
_WORDS = {
    "instruction": (
        r"(?:new|rewritten|evolved|revised|improved|final|updated|modified|enhanced|harder|deeper|more \w+)",
        r"(?:instruction|prompt|question|task|version|request|one)",
    ),
    "answer": (
        r"(?:new|rewritten|reworded|revised|improved|updated|corrected|edited|amended|refined)",
        r"(?:answer|response|reply|version|text|revision)",
    ),
}
_PREFACE = (
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok)\b[^\n:]{{0,60}}?[,.!]\s+)?"
    r"(?:(?:here(?: is|'s|’s)|below is)\b[^\n:]{{0,40}}?\b{named}\b[^\n:]{{0,60}}:[*_]*"
    r"|[#*_ ]*(?:the |my )?{named}[ #*_]*:[*_]*"
    r"|#+[ *_]*(?:the |my )?{named}[ #*_]*\n"
    r"|[*_]+(?:the |my )?{named}[*_]+[ ]*\n)\s*"
)
_PREFACES = {
    kind: re.compile(_PREFACE.format(named=rf"{how}(?: \w+){{0,2}} {what}"), re.IGNORECASE)
    for kind, (how, what) in _WORDS.items()
}
_OF_THE_TASK = re.compile(
    r"\bcritique|\b(?:this|the|your|given|stated) principle\b(?! (?:of|that|behind|is|by|for)\b)"
    r"|\b(?:original|previous|revised|earlier|initial) (?:answer|response)\b"
    r"|\bno (?:further )?(?:revisions?|changes?) (?:(?:is|are|was|were) )?(?:needed|necessary|required)\b"
    r"|\b(?:answer|response) (?:already )?(?:does not fall short|doesn t fall short|adheres|meets the principle)"
)


def tidy(text: str) -> str:
    """A text without the marks of emphasis and the quotes that stand around all of it, and nowhere in it."""
    text = text.strip()
    for begin, end in _MARKS:
        inner = text[len(begin) : -len(end)]
        if not (text.startswith(begin) and text.endswith(end) and inner.strip()) or begin in inner or end in inner:
            continue
        if inner[0] not in " \n" and (begin[0] != "_" or " " in inner):  # `* a` is a list, `__init__` a name
            return tidy(inner)
    return text


def plain_start(text: str) -> str:
    """A text without emphasis on its first words, as list items have it ("**Poetry**: write ...")."""
    return _BOLD_START.sub(r"\2", tidy(text), count=1)


def only_text(text: str, kind: Literal["instruction", "answer"] = "instruction", before: str = "") -> str:
    """What the writer was asked for, without a line that announces it and without quotes or a fence around it all.

    `before` is the text that it takes the place of: what that has around it stays.
    """
    text, before = text.strip(), before.strip()
    if not _PREFACES[kind].match(before):
        text = _PREFACES[kind].sub("", text, count=1) if _PREFACES[kind].match(text) else text
    if "```" not in before:
        text = _unfenced(text)
    return text if tidy(before) != before else tidy(text)


def _unfenced(text: str) -> str:
    """A text out of the one fence around it, unless that says that it is code."""
    lines = text.splitlines()
    if not (text.startswith("```") and text.endswith("```") and text.count("```") == 2):
        return text
    if len(lines) == 1:
        return text.strip("`").strip()
    return "\n".join(lines[1:-1]).strip() if lines[0][3:].strip().lower() in _PLAIN and lines[-1] == "```" else text


def same_text(one: str, other: str) -> bool:
    """Whether two answers say the same in the same letters, whatever stands around them and between their words."""
    return only_text(one, "answer").split() == only_text(other, "answer").split()


def words_of_the_task(text: str, *sources: str) -> str:
    """Words about the critique and the revision that an answer holds and its sources do not; empty without."""
    said = normalise(" ".join(sources))
    return next((found for found in _OF_THE_TASK.findall(normalise(text)) if found not in said), "")
