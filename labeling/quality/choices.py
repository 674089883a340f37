"""Rankings as choices of the best from what is left, and the points that hidden scores are integrated over."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Block:
    """Records of one number of completions, and their judgements as choices."""

    size: int
    """Completions per record."""
    records: int
    record: Array
    """[judgements] -> record."""
    annotator: Array
    """[judgements] -> annotator."""
    shares: Array
    """[judgements, size]: a chosen set's members share one unit."""
    tied: Array
    """[judgements]: how many more completions were chosen than sets."""
    choice_record: Array
    """[choices] -> record."""
    choice_annotator: Array
    """[choices] -> annotator."""
    choice_left: Array
    """[choices] -> what was left to choose from, as the bits of a number."""

    @cached_property
    def cells(self) -> tuple[Array, Array]:
        """(annotator, what was left) of all choices, each once."""
        return np.divmod(self._cells[0], 1 << self.size)

    @cached_property
    def _cells(self) -> tuple[Array, Array]:
        found, places = np.unique(self.choice_annotator * (1 << self.size) + self.choice_left, return_inverse=True)
        return found, places

    @cached_property
    def counts(self) -> Any:
        """[records, cells]: how often each was met."""
        from scipy.sparse import csr_matrix

        places = self._cells[1]
        shape = (self.records, len(self._cells[0]))
        return csr_matrix((np.ones(len(places), dtype=np.float32), (self.choice_record, places)), shape=shape)


@lru_cache
def choices(ranks: tuple[int | None, ...]) -> tuple[tuple[float, ...], int, tuple[int, ...]]:
    """A ranking (None: not ranked) as choices: shares, ties and what was left each time, two or more."""
    shares, tied, left = [0.0] * len(ranks), 0, []
    remaining = [place for place, rank in enumerate(ranks) if rank is not None]
    while len(remaining) > 1:
        left.append(sum(1 << place for place in remaining))
        best = min(ranks[place] for place in remaining)  # type: ignore[type-var]
        chosen = [place for place in remaining if ranks[place] == best]
        for place in chosen:
            shares[place] += 1 / len(chosen)
        tied += len(chosen) - 1
        remaining = [place for place in remaining if ranks[place] != best]
    return tuple(shares), tied, tuple(left)


@lru_cache
def grid(size: int, points: int) -> Array:
    """Points [size, points] spread as independent standard normals less their mean are.

    A recurrence sequence (Roberts 2018) through the inverse of the distribution, stretched so that the covariance is
    exact. With every point comes its opposite, and up to four completions every order of it, so that nobody is
    believed, and nothing preferred, by where it stands.
    """
    from scipy.special import ndtri

    orders = [list(order) for order in permutations(range(size))] if size <= 4 else [list(range(size))]
    count = max(1, round(points / len(orders) / 2))
    ratio = 2.0
    for _ in range(64):  # the root of x^size = x + 1 (dimension size - 1)
        ratio = (1 + ratio) ** (1 / size)
    uniform = (0.5 + np.outer(np.arange(1, count + 1), ratio ** -np.arange(1.0, size))) % 1
    basis = np.array([[1.0] * k + [-k] + [0.0] * (size - k - 1) for k in range(1, size)])
    normal = ndtri(uniform).T
    normal = np.linalg.solve(np.linalg.cholesky(normal @ normal.T / count), normal)
    scores = (basis / np.linalg.norm(basis, axis=1, keepdims=True)).T @ normal
    return np.concatenate([sign * scores[order] for order in orders for sign in (1, -1)], axis=1)


@lru_cache
def subsets(size: int) -> tuple[Array, Array, Array]:
    """Of all non-empty subsets: members [subsets, size] each divided by their number, that number less one, and which
    subset [row] holds which [column]. Subset number b has the members of b + 1's bits."""
    numbers = np.arange(1, 1 << size)
    members = (numbers[:, None] >> np.arange(size)) & 1
    count = members.sum(axis=1)
    holds = (numbers[:, None] & numbers[None, :]) == numbers[None, :]
    return members / count[:, None], count - 1.0, holds.astype(float)
