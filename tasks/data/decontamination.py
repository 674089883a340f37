"""Runs of words that training rows share with evaluation sets (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C)."""

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tasks.data.rows import Example
from tasks.data.words import count_words, normalise

PHRASE = 6
"""Evaluation prompts of so many words count wherever they stand word for word; shorter ones where they are all that is
said."""


class Whole:
    """Whole texts as 64-bit hashes."""

    def __init__(self) -> None:
        self._texts: set[int] = set()

    def add(self, texts: Iterable[str]) -> None:
        """Texts that no training row may say."""
        self._texts.update(hash(normalise(text)) for text in texts)

    def says(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts is one of them, but for case, punctuation and spacing."""
        return any(hash(normalise(text)) in self._texts for text in texts)


class Protected:
    """What evaluation texts say, as 64-bit hashes: their runs of words, and whole texts that are shorter than a run."""

    def __init__(self, words: int) -> None:
        self._words = words
        self._added = array("q")
        self._runs = np.zeros(0, np.int64)
        self._short = Whole()
        self._phrases = Phrases(PHRASE)

    def add(self, texts: Iterable[str]) -> None:
        """Texts that no training row may hold."""
        for text in texts:
            words = normalise(text).split()
            if len(words) >= self._words:
                self._added.extend(self._hashed(words))
            elif words:
                self._short.add([text])
                self._phrases.add(text)

    def says(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts is a short one, whole."""
        return self._short.says(texts)

    def holds(self, texts: Sequence[str]) -> bool:
        """Whether one of the texts has a short one in it that is long enough to be told by."""
        return any(self._phrases.within(text) for text in texts)

    def share(self, texts: Sequence[str]) -> float:
        """The share of the runs of words in the texts that are protected."""
        if self._added:
            self._runs = np.sort(np.concatenate([self._runs, np.frombuffer(self._added, np.int64)]))
            self._added = array("q")
        runs = found = 0
        for text in texts:
            words = normalise(text).split()
            if len(words) >= self._words and len(self._runs):
                hashed = np.array(self._hashed(words))
                places = np.searchsorted(self._runs, hashed)
                found += int(np.count_nonzero(self._runs[np.minimum(places, len(self._runs) - 1)] == hashed))
                runs += len(hashed)
        return found / runs if runs else 0.0

    def _hashed(self, words: Sequence[str]) -> list[int]:
        return [hash(tuple(words[place : place + self._words])) for place in range(len(words) - self._words + 1)]


class Phrases:
    """Texts of at least so many words (`words.count_words`), found anywhere in others, word by word."""

    def __init__(self, least: int = 4) -> None:
        self._least = least
        self._lengths: dict[int, set[int]] = {}
        """By the hash of a text's first four words: how many words the texts have that begin so."""
        self._whole: set[int] = set()

    def add(self, text: str) -> None:
        """A text to look for."""
        words = normalise(text).split()
        if len(words) >= 4 and count_words(text) >= self._least:
            self._lengths.setdefault(hash(tuple(words[:4])), set()).add(len(words))
            self._whole.add(hash(tuple(words)))

    def within(self, text: str) -> bool:
        """Whether the text holds one of them."""
        if not self._whole:
            return False
        words = normalise(text).split()
        return any(
            place + length <= len(words) and hash(tuple(words[place : place + length])) in self._whole
            for place in range(len(words) - 3)
            for length in self._lengths.get(hash(tuple(words[place : place + 4])), ())
        )


def says_enough(text: str) -> bool:
    """Whether a text is long enough to be known by: a label is not."""
    return count_words(text) > 3


class Asked:
    """What evaluation rows ask: users' turns, and texts of columns that are one row's own.

    A text that several different rows have, such as an instruction, says nothing of any of them. Only hashes of texts
    are held, so the rows come twice: all to `add`, then each to `of`.
    """

    def __init__(self) -> None:
        self._columns: dict[int, int | None] = {}

    def add(self, asked: Sequence[str], example: Example) -> None:
        """The next evaluation row's texts, and how it is told; the same row again changes nothing."""
        if not example.kind:
            return
        texts = [hash(normalise(text)) for text in filter(says_enough, asked)]
        row = hash(tuple(texts))
        for text in texts:
            self._columns[text] = row if self._columns.get(text, row) == row else None

    def of(self, asked: Sequence[str], example: Example) -> Iterator[str]:
        """What of a row must not be trained on."""
        for text in filter(says_enough, asked):
            if not example.kind or self._columns[hash(normalise(text))] is not None:
                yield text
