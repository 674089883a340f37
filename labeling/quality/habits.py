"""What annotators do whatever the answers say: prefer a place or length, hurry, or not read at all."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations, pairwise
from statistics import median
from typing import Literal

from labeling.comparison import Comparison, Judgement
from labeling.measures.effort import PAUSE_SECONDS
from labeling.measures.shares import Share, chance_of_count, share_of

OUTLIER = 3.5
"""Deviations from the others' median that make a speed an outlier (Iglewicz and Hoaglin 1993)."""
LEAST_SPREAD = math.log(1.5)
"""Speeds this close are never told apart, however alike the others are."""
LEAST_OTHERS = 2
"""Annotators with a speed of their own it takes to call somebody's unusual."""

Speed = Literal["", "fast", "slow"]


def position(
    judgements: Iterable[Judgement], comparisons: Mapping[str, Comparison], place: int
) -> tuple[Share, float, float]:
    """How often what was shown at a place is the one best, how likely that is by chance, and chance's own share."""
    hits, chances = 0, []
    for judgement in judgements:
        ranks = judgement.ranks or {}
        shown = [name for name in comparisons[judgement.record].shown if name in ranks]
        best = [name for name in shown if ranks[name] == min(ranks.values())]
        if len(best) == 1 and len(shown) > 1:
            hits += best[0] == shown[place]
            chances.append(1 / len(shown))
    usual = sum(chances) / len(chances) if chances else math.nan
    return share_of(hits, len(chances), len(chances)), chance_of_count(hits, chances), usual


def longer(judgements: Iterable[Judgement], comparisons: Mapping[str, Comparison]) -> tuple[int, int, int]:
    """Pairs in which the longer completion is preferred, all ordered pairs of unlike length, and independent looks."""
    hits = count = looks = 0
    for judgement in judgements:
        comparison, ranks = comparisons[judgement.record], judgement.ranks or {}
        sizes = {each.id: len(each.text.strip()) for each in comparison.completions}
        pairs = [
            (ranks[a] < ranks[b]) == (sizes[a] > sizes[b])
            for a, b in combinations(ranks, 2)
            if ranks[a] != ranks[b] and sizes[a] != sizes[b]
        ]
        hits += sum(pairs)
        count += len(pairs)
        looks += min(len(pairs), len(ranks) - 1)
    return hits, count, looks


def pace(judgements: Iterable[Judgement]) -> float:
    """Median gap between two judgements; NaN without two readable times less than a break apart."""
    times = sorted(time for each in judgements if (time := _time(each)) is not None)
    gaps = [later - earlier for earlier, later in pairwise(times) if later - earlier <= PAUSE_SECONDS]
    return median(gaps) if gaps else math.nan


def _time(judgement: Judgement) -> float | None:
    """When it was given, in seconds; None when that cannot be read. Times without a zone are UTC, as Argilla's are."""
    try:
        time = datetime.fromisoformat(judgement.inserted_at)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def in_time(judgements: Sequence[Judgement]) -> list[Judgement]:
    """In the order given; those without a readable time come first, in their own order."""
    return sorted(judgements, key=lambda each: _time(each) or 0.0)


def unusual(own: float, everybody_else: Iterable[float]) -> Speed:
    """Whether a pace is far from the others' on a log scale, by their median and median deviation."""
    others = [math.log(max(value, 0.1)) for value in everybody_else if not math.isnan(value)]
    if math.isnan(own) or len(others) < LEAST_OTHERS:
        return ""
    middle = median(others)
    spread = max(LEAST_SPREAD, 1.4826 * median(abs(value - middle) for value in others))
    away = (math.log(max(own, 0.1)) - middle) / spread
    return "fast" if away < -OUTLIER else "slow" if away > OUTLIER else ""


def straight_lined(judgement: Judgement, comparison: Comparison) -> bool:
    ranks = judgement.ranks or {}
    shown = [ranks[name] for name in comparison.shown if name in ranks]
    return len(set(shown)) == 1 or all(before < after for before, after in pairwise(shown))


def longest_run(straight: Iterable[bool]) -> int:
    longest = run = 0
    for each in straight:
        run = run + 1 if each else 0
        longest = max(longest, run)
    return longest
