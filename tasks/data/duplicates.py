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

from tasks.data.similar import Similar, find_root, flattened, jaccard, join, join_similar, shingles_of
from tasks.data.words import normalise, shingles

PERMUTATIONS = 128
MISSED = 1e-3
"""At most this share of the pairs that are just as similar as the threshold is never compared."""
_LEADERS = 32
"""More texts than these that are unlike each other in one bucket: signatures tell them apart too badly."""
_BYTES = 4 * PERMUTATIONS
_BLOCK = 4096
"""Signatures read at once."""
_MARGIN = 0.12
"""Signatures tell a similarity to about 0.035 (one standard deviation at 0.8): only within this of the threshold are
texts read."""


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

    def close(self) -> None:
        """Close what is open."""
        self._file.close()
        if self._read is not None:
            self._read.close()

    def groups(self, threshold: float, text_of: Callable[[int], str], among: np.ndarray | None = None) -> np.ndarray:
        """For each text the number of the first text of its group; a pair of at least `threshold` is in one group.

        `among` (bool) leaves out texts, which are then groups of their own.
        """
        parent = np.arange(self.count, dtype=np.int32)
        taken = parent.copy() if among is None else np.flatnonzero(among).astype(np.int32)
        dense = np.zeros(self.count, bool)
        rows, of = rows_per_band(threshold), shingles_of(text_of)
        self._file.flush()
        for begin in range(0, PERMUTATIONS - rows + 1, rows):
            for bucket in _buckets(self._keys(taken, begin, rows), taken):
                if dense[bucket].any() or not _join_bucket(bucket, self.signature, parent, threshold, of):
                    dense[bucket] = True
        join_similar(np.flatnonzero(dense), of, threshold, parent)
        return flattened(parent)

    def repeats(self, threshold: float, text_of: Callable[[int], str], among: np.ndarray) -> np.ndarray:
        """For each text the number of the earlier one that it repeats, its own where it repeats none.

        What a text is held against stays itself: a chain of small changes is not dropped whole, as its group would be.
        """
        groups = self.groups(threshold, text_of, among)
        found = np.arange(self.count, dtype=np.int32)
        several = groups != found
        several[groups[several]] = True
        in_company = np.flatnonzero(several).astype(np.int32)
        in_company = in_company[np.argsort(groups[in_company], kind="stable")]
        begins = np.flatnonzero(np.diff(groups[in_company], prepend=-1))
        of = shingles_of(text_of)
        for group in np.split(in_company, begins[1:]):
            self._repeats_in(group.tolist(), threshold, of, found)
        return found

    def _repeats_in(
        self, group: list[int], threshold: float, of: Callable[[int], frozenset[str]], found: np.ndarray
    ) -> None:
        """Say of each text of a group which earlier one it repeats that repeats none itself."""
        leaders: list[int] = []
        for place, index in enumerate(group):
            signature = self.signature(index)
            for leader in leaders:
                if _alike(_agreement(self.signature(leader), signature), threshold, leader, index, of):
                    found[index] = leader
                    break
            else:
                leaders.append(index)
            if len(leaders) > _LEADERS:
                rest = group[place + 1 :]
                break
        else:
            return
        similar = Similar(threshold, of, group)
        for index in leaders:
            similar.add(index, similar.rarest(index))
        for index in rest:
            rarest = similar.rarest(index)
            found[index] = next(similar.like(index, rarest, lambda others: others), index)
            if found[index] == index:
                similar.add(index, rarest)

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
    of: Callable[[int], frozenset[str]],
) -> bool:
    """Join what is alike: each text is compared with those before it that are unlike each other. False where too many
    of them are."""
    leaders: list[int] = []
    signatures: list[np.ndarray] = []
    roots: set[int] = set()
    for index in map(int, bucket):
        root = find_root(parent, index)
        if root in roots:
            continue
        signature = read(index)
        for leader, other in zip(leaders, signatures, strict=True):
            if _alike(_agreement(signature, other), threshold, leader, index, of):
                join(parent, leader, index)
                roots.add(find_root(parent, index))
                break
        else:
            if len(leaders) == _LEADERS:
                return False
            leaders.append(index)
            signatures.append(signature)
            roots.add(root)
    return True


def _alike(estimate: float, threshold: float, a: int, b: int, of: Callable[[int], frozenset[str]]) -> bool:
    if threshold < 1 and abs(estimate - threshold) > _MARGIN:
        return estimate > threshold
    return jaccard(of(a), of(b)) >= threshold
