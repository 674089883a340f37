"""What is read out of a writer's text, and why some of it is not used. Pure functions of untrusted text.

The rules on instructions are those of Self-Instruct (Wang et al. 2023, section 2.2 and its code), those on evolved
instructions and their answers the elimination of Evol-Instruct (Xu et al. 2023, "WizardLM", section 2.2).
"""

import json
import re
from collections.abc import Sequence

from tasks.data.words import normalise
from tasks.synthesis.cleaning import plain_start

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
_VERDICT = re.compile(r"^[\s*_`#\"]*verdict[\s*_`\"]*:[\s*_`\"]*(keep|revise)\b.*$", re.IGNORECASE | re.MULTILINE)
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
            return [plain_start(each) for each in found if isinstance(each, str) and each.strip()]
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
    return [tidied for item in (items if whole else items[:-1]) if (tidied := plain_start(item))]


def yes_or_no(text: str) -> bool | None:
    """The verdict at the beginning of a text; None where there is none."""
    first = normalise(text).split()[:1]
    return {"yes": True, "no": False}.get(first[0]) if first else None


def verdict_of(critique: str) -> tuple[str, bool]:
    """A critique without its verdict, and whether that is to keep the answer; without a verdict it is not."""
    verdicts = {found.lower() for found in _VERDICT.findall(critique)}
    return _VERDICT.sub("", critique).strip(), verdicts == {"keep"}


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
