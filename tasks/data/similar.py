"""Texts of which many share most of what they say: which of them are similar all the same.

MinHash tells texts apart by what they do not share; where a long instruction stands before every short question, all
look alike to it. Here only pairs are compared that share one of their rarest shingles (the prefix filter of Chaudhuri
et al. 2006, "A primitive operator for similarity joins in data cleaning") and could still have enough in common behind
it (the positions of Xiao et al. 2008, "Efficient similarity joins for near duplicate detection"), which misses none.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from xxhash import xxh3_64_intdigest

from tasks.data.words import normalise, shingles

_TABLE = 1 << 20
_COMMON = 4096
"""So many texts that hold a shingle among their rarest are compared by it; further ones by their others."""
_CACHE = 256
"""Texts whose shingles are kept in memory."""


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """What two sets share of what they have together; 1 where both are empty."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if a or b else 1.0


class Similar:
    """Texts by their number, asked for those that are at least as similar as `threshold` to another one.

    `ascending`: they are added and asked for in the order of their sizes, which needs less of each to be held.
    """

    def __init__(
        self, threshold: float, of: Callable[[int], frozenset[str]], among: Iterable[int], ascending: bool = False
    ) -> None:
        self._threshold, self._of = threshold, of
        self._held: dict[int, array[int]] = {}
        """By shingle: the texts, where it stands in their order of rarity, and their sizes, one after another."""
        self._indexed = 2 * threshold / (1 + threshold) if ascending else threshold
        self._frequency = np.zeros(_TABLE, np.uint32)
        self.sizes = array("I")
        """Of `among`, in that order."""
        for text in among:
            found = self._of(text)
            self.sizes.append(len(found))
            np.add.at(self._frequency, _hashes(found) % _TABLE, 1)

    def add(self, text: int, rarest: Sequence[int]) -> None:
        """A text that later ones are compared with."""
        for place, shingle in enumerate(rarest[: _prefix(len(rarest), self._indexed)]):
            if self._frequency[shingle % _TABLE] > 1:  # or no other text has it
                held = self._held.setdefault(shingle, array("I"))
                if len(held) < 3 * _COMMON:
                    held.extend((text, place, len(rarest)))

    def rarest(self, text: int) -> list[int]:
        """The shingles of a text, the rarest first, as numbers."""
        hashed = _hashes(self._of(text))
        return hashed[np.lexsort((hashed, self._frequency[hashed % _TABLE]))].tolist()

    def like(self, text: int, rarest: Sequence[int], apart: Callable[[np.ndarray], np.ndarray]) -> Iterator[int]:
        """Those added that are as similar to a text as the threshold; only what `apart` leaves of them is looked at,
        which is asked again after each that is found."""
        own, size = self._of(text), len(rarest)
        met: set[int] = set()
        for place, shingle in enumerate(rarest[: _prefix(size, self._threshold)]):
            left = apart(self._possible(shingle, place, size))
            while len(left):
                other, left = int(left[0]), left[1:]
                if other not in met and jaccard(own, self._of(other)) >= self._threshold:
                    yield other
                    left = apart(left)
                met.add(other)

    def _possible(self, shingle: int, place: int, size: int) -> np.ndarray:
        """Texts that can have enough in common with one of this size from this shingle on."""
        if shingle not in self._held:
            return np.zeros(0, np.int32)
        texts, at, their = np.array(self._held[shingle], np.int64).reshape(-1, 3).T
        needed = self._threshold / (1 + self._threshold) * (size + their) - 1e-9
        return texts[np.minimum(size - place, their - at) >= needed]


def join_similar(texts: np.ndarray, of: Callable[[int], frozenset[str]], threshold: float, parent: np.ndarray) -> None:
    """Join all pairs of texts that are as similar as the threshold."""
    similar = Similar(threshold, of, map(int, texts), ascending=True)
    for text in texts[np.argsort(np.frombuffer(similar.sizes, np.uint32), kind="stable")].tolist():
        rarest = similar.rarest(text)

        def apart(others: np.ndarray, text: int = text) -> np.ndarray:
            root = find_root(parent, text)
            others = others[parent[others] != root]
            while len(others) and find_root(parent, int(others[0])) == root:
                others = others[1:]
            return others

        for other in similar.like(text, rarest, apart):
            join(parent, other, text)
        similar.add(text, rarest)


def find_root(parent: np.ndarray, index: int) -> int:
    """The first member of a group."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index


def join(parent: np.ndarray, a: int, b: int) -> None:
    """Make one group of two."""
    first, second = sorted((find_root(parent, a), find_root(parent, b)))
    parent[second] = first


def flattened(parent: np.ndarray) -> np.ndarray:
    """Of each member the first of its group."""
    for index in range(len(parent)):  # a parent comes before its children
        parent[index] = parent[parent[index]]
    return parent


def shingles_of(text_of: Callable[[int], str]) -> Callable[[int], frozenset[str]]:
    """What texts are compared by; of the latest it is kept."""
    return lru_cache(_CACHE)(lambda text: shingles(normalise(text_of(text))))


def _hashes(found: frozenset[str]) -> np.ndarray:
    """Numbers of shingles, the same in every process: among equally rare ones they decide the order."""
    return np.fromiter((xxh3_64_intdigest(each.encode()) for each in found), np.uint64, len(found))


def _prefix(size: int, share: float) -> int:
    return size - math.ceil(share * size - 1e-9) + 1
