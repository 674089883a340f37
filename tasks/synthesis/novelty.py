"""How alike instructions are: ROUGE-L, fast enough to hold each against all others.

ROUGE-L (Lin 2004, "ROUGE", section 3) with equal weights is 2 LCS / (m + n), where LCS is the length of the longest
common subsequence of words; that is one minus the normalised distance of insertions and deletions. So words are
written as single characters and compared by rapidfuzz's bit-parallel `Indel`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from tasks.data.words import normalise
from tasks.synthesis.rules import words_in

_BLOCK = 256


class Vocabulary:
    """Words as characters."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def encode(self, text: str) -> str:
        """A text with one character for each word, upper and lower case and punctuation left out."""
        known = self._known
        return "".join(chr(known.setdefault(word, len(known)) % 0x110000) for word in words_in(normalise(text)))


class Known:
    """Texts that new ones are held against."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._vocabulary = Vocabulary()
        self._texts: list[str] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """One more."""
        self._texts.append(self._vocabulary.encode(text))

    def nearest(self, text: str) -> float:
        """The highest ROUGE-L to any of them; 0 without any."""
        found = process.extractOne(
            self._vocabulary.encode(text), self._texts, scorer=Indel.normalized_similarity, processor=None
        )
        return float(found[1]) if found else 0.0


def nearest_scores(texts: Sequence[str], others: Sequence[str] | None = None) -> np.ndarray:
    """For each text its highest ROUGE-L to any of `others`; without `others` to any other of the texts.

    Float32 `[texts]`; 0 where there is none to compare with.
    """
    vocabulary = Vocabulary()
    encoded = [vocabulary.encode(text) for text in texts]
    against = encoded if others is None else [vocabulary.encode(text) for text in others]
    nearest = np.zeros(len(texts), np.float32)
    if not against:
        return nearest
    for start in range(0, len(texts), _BLOCK):
        block = encoded[start : start + _BLOCK]
        scores = process.cdist(block, against, scorer=Indel.normalized_similarity, dtype=np.float32)
        if others is None:
            scores[np.arange(len(block)), np.arange(start, start + len(block))] = 0
        nearest[start : start + len(block)] = scores.max(axis=1)
    return nearest
