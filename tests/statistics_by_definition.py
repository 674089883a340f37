"""Statistics of agreement straight from their definitions: plain loops over pairs, no arrays, nothing of ours."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations, permutations
from statistics import mean
from typing import Any

Unit = Mapping[str, Any]
"""Annotator -> value."""


def alpha(units: Sequence[Unit], metric: str) -> float:
    """1 - D_o / D_e, each a mean of squared distances over ordered pairs of values."""
    pairable = [list(unit.values()) for unit in units if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    distance = _distance(values, metric)
    observed = sum(
        distance(left, right) / (len(unit) - 1) for unit in pairable for left, right in permutations(unit, 2)
    )
    counts = Counter(values)
    expected = sum(counts[left] * counts[right] * distance(left, right) for left in counts for right in counts)
    n = len(values)
    return 1 - (observed / n) / (expected / (n * (n - 1))) if expected else math.nan


def _distance(values: Sequence[Any], metric: str) -> Callable[[Any, Any], float]:
    if metric == "nominal":
        return lambda left, right: float(left != right)
    if metric == "interval":
        return lambda left, right: (left - right) ** 2
    counts = Counter(values)

    def ordinal(left: Any, right: Any) -> float:
        low, high = min(left, right), max(left, right)
        between = sum(count for value, count in counts.items() if low <= value <= high)
        return 0.0 if left == right else (between - (counts[left] + counts[right]) / 2) ** 2

    return ordinal


def cohen(left: Sequence[Hashable], right: Sequence[Hashable], distance: Callable[[Any, Any], float]) -> float:
    """1 - mean distance / mean distance of labels drawn independently from the two annotators' own."""
    n = len(left)
    observed = sum(distance(one, other) for one, other in zip(left, right, strict=True)) / n
    expected = sum(distance(one, other) for one in left for other in right) / n**2
    return 1 - observed / expected if expected else math.nan


def light(units: Sequence[Unit], distance: Callable[[Any, Any], float]) -> float:
    """Cohen's kappa of each two annotators, weighted by the units they share."""
    total = weight = 0.0
    for one, other in combinations(sorted({name for unit in units for name in unit}), 2):
        both = [unit for unit in units if one in unit and other in unit]
        kappa = cohen([u[one] for u in both], [u[other] for u in both], distance) if both else math.nan
        if not math.isnan(kappa):
            total, weight = total + len(both) * kappa, weight + len(both)
    return total / weight if weight else math.nan


def fleiss(units: Sequence[Unit]) -> float:
    """(P - P_e) / (1 - P_e), every unit with two or more labels counting once."""
    rated = [list(unit.values()) for unit in units if len(unit) > 1]
    labels = {label for unit in rated for label in unit}
    agreed = mean(mean(float(left == right) for left, right in permutations(unit, 2)) for unit in rated)
    shares = [mean(unit.count(label) / len(unit) for unit in rated) for label in labels]
    chance = sum(share**2 for share in shares)
    return (agreed - chance) / (1 - chance) if chance < 1 else math.nan


def midranks(ranks: Mapping[str, float]) -> dict[str, float]:
    """The mean place of everything ranked the same."""
    ordered = sorted(ranks.values())
    places = {rank: mean(place for place, other in enumerate(ordered, 1) if other == rank) for rank in ordered}
    return {name: places[rank] for name, rank in ranks.items()}


def concordance(rankings: Sequence[Mapping[str, float]]) -> float:
    """Kendall's W with ties of complete rankings of one record."""
    given = [midranks(ranks) for ranks in rankings]
    m, n = len(given), len(given[0])
    sums = [sum(ranks[name] for ranks in given) for name in given[0]]
    squares = sum((total - m * (n + 1) / 2) ** 2 for total in sums)
    ties = sum(t**3 - t for ranks in given for t in Counter(ranks.values()).values())
    spread = m**2 * (n**3 - n) - m * ties
    return 12 * squares / spread if spread else math.nan


def order(ranks: Mapping[str, float], one: str, other: str) -> str:
    return "better" if ranks[one] < ranks[other] else "worse" if ranks[one] > ranks[other] else "tie"


def rankings_of(judgements: Sequence[Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Record -> annotator -> ranks, for records with two annotators or more."""
    by_record: dict[str, dict[str, Mapping[str, float]]] = {}
    for judgement in judgements:
        if judgement.ranks:
            by_record.setdefault(judgement.record, {})[judgement.annotator] = judgement.ranks
    return {record: given for record, given in by_record.items() if len(given) > 1}


def of_rankings(judgements: Sequence[Any]) -> dict[str, float]:
    """Every figure of `labeling.measures.agreement.Agreement` whose rankings are complete."""
    rankings = rankings_of(judgements)
    by_completion, by_pair, both_ways = [], [], []
    for given in rankings.values():
        names = sorted(next(iter(given.values())))
        ranked = {annotator: midranks(ranks) for annotator, ranks in given.items()}
        by_completion += [{who: ranks[name] for who, ranks in ranked.items()} for name in names]
        by_pair += [{w: order(r, a, b) for w, r in given.items()} for a, b in combinations(names, 2)]
        both_ways += [{w: order(r, a, b) for w, r in given.items()} for a, b in permutations(names, 2)]
    compared = [pair for unit in by_pair for pair in combinations(unit.values(), 2)]
    concordances = [concordance(list(given.values())) for given in rankings.values()]
    return {
        "alpha": alpha(by_completion, "ordinal"),
        "kendalls_w": mean(value for value in concordances if not math.isnan(value)),
        "pairwise_agreement": mean(float(left == right) for left, right in compared),
        "tie_discounted_agreement": mean(
            1.0 if left == right else 0.5 if "tie" in (left, right) else 0.0 for left, right in compared
        ),
        "cohen_kappa": light(both_ways, lambda left, right: float(left != right)),
        "fleiss_kappa": fleiss(both_ways),
    }
