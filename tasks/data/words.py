"""What a word is, in any script: by it texts are compared, counted and searched for one another."""

import re
import unicodedata
from itertools import pairwise


def _class_of(*categories: str) -> str:
    """The characters of some Unicode categories, as ranges inside a regular expression's brackets."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0xFFFF):
        if unicodedata.category(chr(code)) in categories:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


MARKS = _class_of("Mn", "Mc")
"""Vowel signs and accents that stand on the letter before them: part of a word, which Python's `\\w` denies."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Japanese, Chinese
)
"""Scripts that put no space between words: each character counts as one, and as half a word where words are counted."""
_SIGNS = (
    r"(?=[<>!=+^#*$€£¥₹%/\-×÷±≤≥≠≈∈∉⊂∪∩∧∨→⇒])(?:"
    r"(?:(?<=[\w)\]])|(?<=[\w)\]] ))(?:[<>!=]=|[<>=+^×÷±≤≥≠≈∈∉⊂∪∩∧∨→⇒])(?= ?[\w(\[-])"
    r"|(?<=\w)[+#]+|(?<=[\w)])\*\*?(?=[\w(])|(?<=[\w)] )\*\*?(?= [\w(])"
    r"|[$€£¥₹](?= ?\d)|(?:(?<=\d)|(?<=\d ))[%€£¥₹]|-(?= ?\d)|(?<=\d)/(?=\d)|(?<=\d )/(?= \d))"
)
"""What joins terms of a formula or a program, money, per cent, minus."""
_TOKEN = re.compile(rf"[^\W{_UNSPACED}]+(?:[{MARKS}]+[^\W{_UNSPACED}]*)*|[{_UNSPACED}][{MARKS}]*|{_SIGNS}")
_PLAIN = re.compile(r"\w+")
_SPECIAL = re.compile(rf"[<>=+^#*$€£¥₹%/×÷±≤≥≠≈∈∉⊂∪∩∧∨→⇒{_UNSPACED}{MARKS}]")
_MINUS = re.compile(r"- ?\d")
"""Without any of these a text is what the plain pattern finds, several times as fast."""
_CHARACTER = re.compile(f"[{_UNSPACED}]")


def normalise(text: str) -> str:
    """A text without the differences that do not make another prompt: case, width, punctuation, spacing.

    Signs that change what is said stay: those of formulas and programs, amounts of money, minus, `C++` and `C#`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    found = (_TOKEN if _SPECIAL.search(folded) or _MINUS.search(folded) else _PLAIN).findall(folded)
    return " ".join(found) or folded.strip()


def shingles(text: str) -> frozenset[str]:
    """The words and the pairs of neighbouring words of a normalised text."""
    words = text.split()
    return frozenset(words) | {f"{a} {b}" for a, b in pairwise(words)}


def count_words(text: str) -> int:
    """How many words a text has: what stands between spaces, and half as many as characters in scripts without them."""
    if text.isascii():
        return len(text.split())
    spaced, characters = _CHARACTER.subn(" ", text)
    return len(spaced.split()) + (characters + 1) // 2
