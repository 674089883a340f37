"""Runs of words that training rows share with evaluation sets (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C)."""

from collections.abc import Iterable, Iterator, Sequence

from tasks.data.rows import Example
from tasks.data.splits import normalise


class Protected:
    """The runs of words of evaluation texts, as 64-bit hashes, and whole texts that are shorter than a run."""

    def __init__(self, words: int) -> None:
        self._words = words
        self._runs: set[int] = set()
        self._short: set[str] = set()

    def __len__(self) -> int:
        return len(self._runs) + len(self._short)

    def add(self, texts: Iterable[str]) -> None:
        """Texts that no training row may hold."""
        for text in texts:
            words = normalise(text).split()
            if len(words) >= self._words:
                self._runs.update(self._hashed(words))
            elif words:
                self._short.add(" ".join(words))

    def share(self, texts: Sequence[str], whole: Sequence[str] | None = None) -> float:
        """The share of the runs of words in the texts that are protected; 1 when a text of `whole` (none: of `texts`)
        is a short text whole."""
        if any(" ".join(normalise(text).split()) in self._short for text in (texts if whole is None else whole)):
            return 1.0
        runs = found = 0
        for text in texts:
            words = normalise(text).split()
            if len(words) < self._words:
                continue
            hashed = self._hashed(words)
            runs += len(hashed)
            found += sum(run in self._runs for run in hashed)
        return found / runs if runs else 0.0

    def _hashed(self, words: Sequence[str]) -> list[int]:
        return [hash(tuple(words[place : place + self._words])) for place in range(len(words) - self._words + 1)]


class Phrases:
    """Texts of at least four words, found anywhere in others, word by word."""

    def __init__(self) -> None:
        self._lengths: dict[int, set[int]] = {}
        """By the hash of a text's first four words: how many words the texts have that begin so."""
        self._whole: set[int] = set()

    def add(self, text: str) -> None:
        """A text to look for."""
        words = normalise(text).split()
        if len(words) >= 4:
            self._lengths.setdefault(hash(tuple(words[:4])), set()).add(len(words))
            self._whole.add(hash(tuple(words)))

    def within(self, text: str) -> bool:
        """Whether the text holds one of them."""
        words = normalise(text).split()
        return any(
            place + length <= len(words) and hash(tuple(words[place : place + length])) in self._whole
            for place in range(len(words) - 3)
            for length in self._lengths.get(hash(tuple(words[place : place + 4])), ())
        )


def says_enough(text: str) -> bool:
    """Whether a text is long enough to be known by: a label is not."""
    return len(text.split()) > 3


class Asked:
    """What evaluation rows ask: users' turns, and texts of columns that are one row's own.

    A text that several different rows have, such as an instruction, says nothing of any of them.
    """

    def __init__(self) -> None:
        self._turns: set[str] = set()
        self._columns: dict[str, int | None] = {}

    def add(self, asked: Sequence[str], example: Example) -> None:
        """The next evaluation row's texts, and how it is told; the same row again changes nothing."""
        texts = list(map(normalise, filter(says_enough, asked)))
        if not example.kind:
            self._turns.update(texts)
            return
        row = hash(tuple(texts))
        for text in texts:
            self._columns[text] = row if self._columns.get(text, row) == row else None

    def texts(self) -> Iterator[str]:
        """What must not be trained on."""
        yield from self._turns
        yield from (text for text, row in self._columns.items() if row is not None)
