"""Near-duplicates among many texts, by MinHash: what can be alike is found by signatures and checked by the texts.

Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec et al., "Mining of Massive
Datasets", chapter 3. A text takes 512 bytes on disk and a few in memory, so sets larger than memory can be compared.
"""

import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from rensa import RMinHash  # type: ignore[attr-defined]

from tasks.data.words import normalise, shingles

PERMUTATIONS = 128
MISSED = 1e-3
"""At most this share of the pairs that are just as similar as the threshold is never compared."""
_LEADERS = 64
_BYTES = 4 * PERMUTATIONS
_BLOCK = 4096
"""Signatures read at once."""
_MARGIN = 0.12
"""Signatures tell a similarity to about 0.035 (one standard deviation at 0.8): only within this of the threshold are
texts read."""


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the words and word pairs of two texts."""
    first, second = shingles(normalise(a)), shingles(normalise(b))
    return len(first & second) / len(first | second) if first or second else 1.0


def rows_per_band(threshold: float) -> int:
    """How many values of a signature make a band: the most that still finds what is as similar as the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSED:
            return rows
    return 1


class Signatures:
    """MinHash signatures of texts, numbered as they are added, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self.count = 0
        self._read: IO[bytes] | None = None

    def add(self, text: str) -> None:
        """The signature of the next text."""
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=0)
        sketch.update(list(shingles(normalise(text))))
        array("I", sketch.digest()).tofile(self._file)
        self.count += 1

    def groups(self, threshold: float, text_of: Callable[[int], str], among: np.ndarray | None = None) -> np.ndarray:
        """For each text the number of the first text of its group; a pair of at least `threshold` is in one group.

        `among` (bool) leaves out texts, which are then groups of their own.
        """
        parent = np.arange(self.count, dtype=np.int32)
        taken = parent.copy() if among is None else np.flatnonzero(among).astype(np.int32)
        rows = rows_per_band(threshold)
        self._file.flush()
        for begin in range(0, PERMUTATIONS - rows + 1, rows):
            for bucket in _buckets(self._keys(taken, begin, rows), taken):
                _join_bucket(bucket, self.signature, parent, threshold, text_of)
        return _flattened(parent)

    def repeats(self, threshold: float, text_of: Callable[[int], str], among: np.ndarray) -> np.ndarray:
        """For each text the number of the earlier one that it repeats, its own where it repeats none.

        What a text is held against stays itself: a chain of small changes is not dropped whole, as its group would be.
        """
        groups = self.groups(threshold, text_of, among)
        found = np.arange(self.count, dtype=np.int32)
        several = groups != found
        several[groups[several]] = True
        in_company = np.flatnonzero(several).astype(np.int32)
        group, leaders = -1, list[int]()
        for index in map(int, in_company[np.argsort(groups[in_company], kind="stable")]):
            if groups[index] != group:
                group, leaders = groups[index], []
            signature = self.signature(index)
            for leader in leaders:
                if _alike(_agreement(self.signature(leader), signature), threshold, leader, index, text_of):
                    found[index] = leader
                    break
            else:
                leaders.append(index)
        return found

    def signature(self, index: int) -> np.ndarray:
        """One text's signature. Read and not mapped: pages of a mapped file would count as memory."""
        return np.frombuffer(os.pread(self._reading(), _BYTES, index * _BYTES), np.uint32)

    def _keys(self, taken: np.ndarray, begin: int, rows: int) -> np.ndarray:
        """One key of a band of every text, read a block at a time: its upper bits are a hash, the others the place in
        `taken`, so that one array can be sorted where it lies."""
        keys = np.empty(len(taken), np.uint64)
        places = _place_bits(len(taken))
        done = 0
        for start in range(0, self.count, _BLOCK):
            here = taken[np.searchsorted(taken, start) : np.searchsorted(taken, start + _BLOCK)] - start
            block = np.frombuffer(os.pread(self._reading(), _BLOCK * _BYTES, start * _BYTES), np.uint32)
            key = np.zeros(len(here), np.uint64)
            for column in block.reshape(-1, PERMUTATIONS)[here, begin : begin + rows].T:
                key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            keys[done : done + len(here)] = key >> places << places | np.arange(done, done + len(here), dtype=np.uint64)
            done += len(here)
        return keys

    def _reading(self) -> int:
        if self._read is None:
            self._read = self._path.open("rb")
        return self._read.fileno()


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of two signatures that is the same: an estimate of the texts' similarity."""
    return np.count_nonzero(a == b) / PERMUTATIONS


def _place_bits(count: int) -> np.uint64:
    return np.uint64(max(count - 1, 1).bit_length())


def _buckets(keys: np.ndarray, taken: np.ndarray) -> Iterator[np.ndarray]:
    """The texts that share a hash, at least two, in their order. Hashes of 40 bits and more: few meet by chance, and
    what meets is compared anyway."""
    keys.sort()
    places = _place_bits(len(taken))
    again = np.zeros(len(keys) + 1, bool)
    for start in range(1, len(keys), _BLOCK):
        block = keys[start - 1 : start + _BLOCK] >> places
        again[start : start + len(block) - 1] = block[1:] == block[:-1]
    starts = np.flatnonzero(~again[:-1] & again[1:])
    ends = np.flatnonzero(again[:-1] & ~again[1:])
    mask = (np.uint64(1) << places) - np.uint64(1)
    for start, end in zip(starts, ends, strict=True):
        yield taken[(keys[start : end + 1] & mask).astype(np.int64)]


def _join_bucket(
    bucket: np.ndarray,
    read: Callable[[int], np.ndarray],
    parent: np.ndarray,
    threshold: float,
    text_of: Callable[[int], str],
) -> None:
    """Join what is alike: each text is compared with those before it that are unlike each other (at most 64)."""
    leaders: list[int] = []
    signatures: list[np.ndarray] = []
    roots: set[int] = set()
    for index in map(int, bucket):
        root = find_root(parent, index)
        if root in roots:
            continue
        signature = read(index)
        for leader, other in zip(leaders, signatures, strict=True):
            if _alike(_agreement(signature, other), threshold, leader, index, text_of):
                join(parent, leader, index)
                roots.add(find_root(parent, index))
                break
        else:
            if len(leaders) < _LEADERS:
                leaders.append(index)
                signatures.append(signature)
                roots.add(root)


def _alike(estimate: float, threshold: float, a: int, b: int, text_of: Callable[[int], str]) -> bool:
    if threshold < 1 and abs(estimate - threshold) > _MARGIN:
        return estimate > threshold
    return similarity(text_of(a), text_of(b)) >= threshold


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


def _flattened(parent: np.ndarray) -> np.ndarray:
    for index in range(len(parent)):  # a parent comes before its children
        parent[index] = parent[parent[index]]
    return parent
