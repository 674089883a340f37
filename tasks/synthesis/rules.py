"""What is read out of a writer's text, and why some of it is not used. Pure functions of untrusted text.

The rules on instructions are those of Self-Instruct (Wang et al. 2023, section 2.2 and its code), those on evolved
instructions and their answers the elimination of Evol-Instruct (Xu et al. 2023, "WizardLM", section 2.2).
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise

from tasks.data.words import normalise

APOLOGY_WORDS = 80
"""An answer that says sorry in fewer words than this is one of a writer that could not do it."""
_STOP_WORDS = """
a about after all also am an and any are as at be because been but by can could did do does for from had has have he her
here him his how i if in into is it its just me my no not of on one only or other our out she so some such than that the
their them then there these they this to up us very was we were what when which who will with would yes you your"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
COPIED = (
    *("given prompt", "rewritten prompt", "new prompt", "created prompt", "given instruction", "rewritten instruction"),
    *("new instruction", "old instruction", "evolved instruction"),
)
"""Words of the writer's task that its text must not hold, unless what it was made from holds them."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_ITEM = re.compile(r"^\s*(?:[*_#>]*\s*)(?:(?:task|instruction)\s*)?(\d{1,4})\s*[.):\-][*_]*\s*(.*)$", re.IGNORECASE)
_BULLET = re.compile(r"^\s*[-*•]\s+(.*)$")
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_PART = r"^[ \t]*(?:[*_#]+[ \t]*)?(input|{other})(?:[ \t]*[*_]+)?[ \t]*:(?:[ \t]*[*_]+)?"
_PARTS = {
    first: re.compile(_PART.format(other=other), re.IGNORECASE | re.MULTILINE)
    for first, other in ((False, "output"), (True, "class label|label"))
}
"""Where a part of an instance begins, by whether the label comes first."""
_HEADING = re.compile(r"\n+[ \t]*[*_#]*[ \t]*(?:example|instance)[ \t]*\d*[ \t]*[:.]?[*_]*[ \t]*$", re.IGNORECASE)
_NOTHING = {"", "none", "n a", "no input", "not needed", "none needed", "empty", "noinput"}
_PREFACE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)\b[^\n]{0,60}?[,.!:]\s+)?"
    r"(?:here(?: is|'s|’s)\b[^\n:]{0,80}:|[#*]*\s*(?:the )?(?:new|rewritten|evolved|revised|improved|final)"
    r" (?:instruction|prompt|question|answer|version|task)\s*[#*]*\s*:[*_]*)\s*",
    re.IGNORECASE,
)
_NO_TEXT = re.compile(r"[^\w]|_")


def words_in(text: str) -> list[str]:
    """The words between spaces; in Chinese and Japanese, which have none, every character is one."""
    return _WORD.findall(text)


def listed(text: str, whole: bool) -> list[str]:
    """The items of a list: numbered lines with what follows each, else bullets, or an array of JSON strings.

    Text before the first item is no item; the last one of a text that was cut is left out.
    """
    text = _FENCE.sub("", text).strip()
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list):
            return [tidy(each) for each in found if isinstance(each, str) and each.strip()]
    lines = text.splitlines()
    pattern = _ITEM if any(_ITEM.match(line) for line in lines) else _BULLET
    items: list[str] = []
    within = False
    for line in lines:
        if found := pattern.match(line):
            items.append(found[found.re.groups])
        elif within and line.strip():
            items[-1] += f" {line.strip()}"
        within = bool(items) and bool(line.strip())  # what follows an empty line is about the list, not in it
    return [tidied for item in (items if whole else items[:-1]) if (tidied := tidy(item))]


def tidy(text: str) -> str:
    """A text without the marks of emphasis and the quotes that stand around all of it."""
    text = text.strip()
    while len(text) > 2 and (pair := (text[0], text[-1])) and pair in (("*", "*"), ('"', '"'), ("“", "”"), ("_", "_")):
        text = text[1:-1].strip()
    return text


def only_text(text: str) -> str:
    """What the writer was asked for, without a line that announces it and without quotes or a fence around it all."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and text.count("```") == 2:
        text = "\n".join(text.splitlines()[1:-1]).strip() if "\n" in text else text.strip("`").strip()
    return tidy(_PREFACE.sub("", text, count=1))


def yes_or_no(text: str) -> bool | None:
    """The verdict at the beginning of a text; None where there is none."""
    first = normalise(text).split()[:1]
    return {"yes": True, "no": False}.get(first[0]) if first else None


def instances_in(text: str, whole: bool, label_first: bool) -> list[tuple[str, str]]:
    """The (input, output) pairs of a text of `Input:` and `Output:` parts, or of `Label:` and `Input:` parts.

    A part without its partner is left out, and so is the last pair of a text that was cut.
    """
    parts: list[tuple[bool, str]] = []
    marks = list(_PARTS[label_first].finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=False):  # without a mark there is no end either
        content = text[mark.end() : end]
        content = _HEADING.sub("", content.rstrip()).strip()
        is_input = mark[1].lower() == "input"
        parts.append((is_input, "" if is_input and normalise(content) in _NOTHING else content))
    first_is_input = not label_first
    pairs = [
        (one[1], other[1]) if first_is_input else (other[1], one[1])
        for one, other in pairwise(parts)
        if one[0] == first_is_input and other[0] != first_is_input
    ]
    return pairs if whole or not pairs else pairs[:-1]


def instruction_fault(
    text: str, words: tuple[int, int], forbidden: Sequence[str], forbidden_starts: Sequence[str], ascii_start: bool
) -> str:
    """Why an instruction is not used; empty where it is."""
    count = len(words_in(text))
    if count < words[0]:
        return f"has fewer than {words[0]} words"
    if count > words[1]:
        return f"has more than {words[1]} words"
    said = f" {normalise(text)} "
    for word in forbidden:
        if f" {normalise(word)} " in said:
            return f"says '{word}', which is not for text"
    for start in forbidden_starts:
        if said.startswith(f" {normalise(start)} "):
            return f"begins with '{start}'"
    if _NO_TEXT.match(text[0]):
        return "begins with punctuation"
    if ascii_start and not text[0].isascii():
        return "begins with a letter outside ASCII"
    return ""


def copied_words(text: str, source: str) -> str:
    """The words of the writer's own task that a text holds and its source does not; empty where there are none."""
    said, before = f" {normalise(text)} ", f" {normalise(source)} "
    return next((each for each in COPIED if f" {each} " in said and f" {each} " not in before), "")


def says_nothing(text: str) -> bool:
    """Whether a text is all punctuation and stop words."""
    return not set(normalise(text).split()) - STOP_WORDS or not _NO_TEXT.sub("", text)


def apologises(text: str) -> bool:
    """Whether a text is short and says sorry."""
    words = normalise(text).split()
    return "sorry" in words and len(words) < APOLOGY_WORDS


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
