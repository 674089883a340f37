"""What is worth people's time: a label budget, and draws from a pool that fill it.

Everything here is decided by the pool, the count and the seed. Draws are nested: a larger budget keeps what a smaller
one chose and adds to it (`stratified` by equal parts and proportional ones excepted where parts are rounded).
Which records a model is unsure about is in `information.py`.
"""

import hashlib
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from labeling.comparison import LabelingError
from labeling.measures.bootstrap import Floats

BUCKETS = 1024
"""Dimensions that n-grams are hashed into."""
EVEN = 1e-9
"""Values this close are equal: the earlier record is taken."""


@dataclass(frozen=True)
class Budget:
    """What people have time for. Gold comparisons, and further opinions on disputed records, come on top of it."""

    judgements: int | None = None
    hours: float | None = None
    """Of all people together. With both, the smaller one counts."""
    seconds: float = 60.0
    """What one judgement takes."""
    overlap: int = 1
    """Judgements a record gets."""
    repeats: float = 0.0
    """Share of the records that come a second time."""

    def total(self) -> int | None:
        """The judgements there is time for; None without a budget."""
        limits = [] if self.judgements is None else [self.judgements]
        if self.hours is not None:
            limits.append(math.floor(self.hours * 3600 / self.seconds + EVEN))
        return min(limits, default=None)

    def cost(self, records: int) -> int:
        """The judgements that so many records and their repeats take."""
        return self.overlap * (records + math.ceil(self.repeats * records))

    def records(self, pool: int) -> int:
        """How many of a pool's records the budget pays for.

        Raises `LabelingError` when it does not pay for one.
        """
        total = self.total()
        if total is None:
            return pool
        count = min(pool, total // self.overlap)
        while count and self.cost(count) > total:
            count -= 1
        if pool and not count:
            raise LabelingError(
                f"The budget of {total} judgements does not pay for one record, which takes {self.cost(1)}; "
                "raise it or lower the overlap."
            )
        return count


@dataclass(frozen=True)
class Pick:
    """One record that was chosen."""

    place: int
    """Its place in the pool."""
    score: float | None
    why: str


def shuffled(ids: Sequence[str], seed: int) -> list[int]:
    """The places of ids in an order drawn from the seed; an id's draw depends on nothing else, so the pool may grow."""
    return sorted(range(len(ids)), key=lambda place: hashlib.sha256(f"{seed}/{ids[place]}".encode()).digest())


def at_random(ids: Sequence[str], count: int, seed: int) -> list[Pick]:
    """A simple random sample without replacement."""
    return [Pick(place, None, "drawn at random") for place in shuffled(ids, seed)[:count]]


def stratified(ids: Sequence[str], strata: Sequence[str], count: int, seed: int, *, equal: bool = False) -> list[Pick]:
    """A random sample from each stratum: in proportion to its size, or as many from each as it has."""
    members: dict[str, list[int]] = defaultdict(list)
    for place in shuffled(ids, seed):
        members[strata[place]].append(place)
    sizes = {name: len(members[name]) for name in sorted(members)}
    parts = equal_parts(sizes, count) if equal else proportional_parts(sizes, count)
    return [
        Pick(place, None, f"drawn at random: one of {part} of the {sizes[name]} of stratum '{name}'")
        for name, part in parts.items()
        for place in members[name][:part]
    ]


def proportional_parts(sizes: dict[str, int], count: int) -> dict[str, int]:
    """`count` things over strata in proportion to their sizes, by largest remainders (Hamilton's method)."""
    total = sum(sizes.values())
    count = min(count, total)
    parts = {name: count * size // total for name, size in sizes.items()}
    remainders = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), name))
    for name in remainders[: count - sum(parts.values())]:
        parts[name] += 1
    return parts


def equal_parts(sizes: dict[str, int], count: int) -> dict[str, int]:
    """`count` things over strata, as many from each; what a small stratum lacks the others share."""
    parts = dict.fromkeys(sizes, 0)
    for number, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        fair = math.ceil((count - sum(parts.values())) / (len(sizes) - number))
        parts[name] = min(sizes[name], fair)
    return parts


def spread(
    vectors: Floats,
    count: int,
    *,
    worth: Floats | None = None,
    diversity: float = 1.0,
    taken: Floats | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[int, float]]:
    """Greedily the places of records that are worth much and are unlike each other, each with its similarity to the
    nearest one before it.

    The next is that of the highest (1 - diversity) * worth - diversity * (greatest cosine similarity to the chosen and
    to `taken`): maximal marginal relevance (Carbonell and Goldstein 1998). With `diversity` 1 it is the farthest from
    all before, which covers the pool within twice the best possible radius (k-center, Gonzalez 1985).
    vectors: [records, dimensions] of length one, worth: [records], of which only the order counts. Where values are
    equal the earlier place is taken.
    """
    records = len(vectors)
    value = np.zeros(records) if worth is None else _standing(worth)
    near = (vectors @ taken.T).max(axis=1) if taken is not None and len(taken) else np.full(records, -1.0)
    free = np.ones(records, dtype=bool)
    chosen: list[tuple[int, float]] = []
    for done in range(min(count, records)):
        marginal = np.where(free, (1 - diversity) * value - diversity * near, -np.inf)
        place = int(np.flatnonzero(marginal >= marginal.max() - EVEN)[0])
        chosen.append((place, float(near[place])))
        free[place] = False
        near = np.maximum(near, vectors @ vectors[place])
        progress(done + 1, min(count, records))
    return chosen


def _standing(worth: Floats) -> Floats:
    """Values as their place in the order, 0 (least) to 1; equal ones share the middle of theirs."""
    _, inverse, counts = np.unique(worth, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return middle[inverse] / max(1, len(worth) - 1)


def ngram_vectors(texts: Sequence[str]) -> Floats:
    """Unit vectors [texts, `BUCKETS`] of the words, word pairs and letter triples, rare ones counting more (tf-idf).

    N-grams are hashed with a sign, which keeps inner products right on average (Weinberger et al. 2009).
    """
    counted = [Counter(_ngrams(text)) for text in texts]
    documents = Counter(gram for counts in counted for gram in counts)
    weights = {
        gram: (digest % BUCKETS, (1 if digest >> 31 else -1) * (math.log((1 + len(texts)) / (1 + seen)) + 1))
        for gram, seen in documents.items()
        for digest in [zlib.crc32(gram.encode())]
    }
    vectors = np.zeros((len(texts), BUCKETS))
    for row, counts in zip(vectors, counted, strict=True):
        for gram, count in counts.items():
            bucket, weight = weights[gram]
            row[bucket] += (1 + math.log(count)) * weight
    return unit(vectors)


def unit(vectors: Floats) -> Floats:
    """Each row with length one; rows of nothing stay so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _ngrams(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.casefold())
    yield from words
    yield from (f"{one} {two}" for one, two in pairwise(words))
    for word in words:
        yield from (f"#{edged[start : start + 3]}" for edged in [f"^{word}$"] for start in range(len(edged) - 2))


def crowding(vectors: Floats, places: Iterable[int]) -> float:
    """Mean similarity of the chosen records to the nearest other chosen one: 1 when each has a twin."""
    chosen = vectors[list(places)]
    if len(chosen) < 2:
        return 0.0
    nearest = []
    for start in range(0, len(chosen), 1024):
        similar = chosen[start : start + 1024] @ chosen.T
        rows = np.arange(len(similar))
        similar[rows, rows + start] = -1.0
        nearest.append(similar.max(axis=1))
    return float(np.concatenate(nearest).mean())


def some_of(texts: Sequence[str], show: int, seed: int, id: str) -> list[int]:
    """Places of `show` of a record's completions, at random and different texts first, in their order."""
    seen: set[str] = set()
    fresh, again = [], []
    for place in shuffled([f"{id}/{number}" for number in range(len(texts))], seed):
        (again if texts[place].strip() in seen else fresh).append(place)
        seen.add(texts[place].strip())
    return sorted([*fresh, *again][:show])
