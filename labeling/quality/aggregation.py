"""Unequal annotators' rankings become beliefs: how likely one completion of a record is better than another.

The model and its papers are in `plackett_luce.py`. A record is judged by few, so what can be learnt about an annotator
is pooled over all records; gold comparisons count as one more judgement, by somebody who knows. Completions with the
same text are one completion: their place is the best that the annotator gave to either. Repeats are left out, for the
same annotator saying the same twice is no second opinion.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from labeling.comparison import CANNOT_JUDGE, Comparison, Judgement, LabelingError, Ranks
from labeling.quality.choices import Block, choices
from labeling.quality.plackett_luce import Model

SPREAD = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326, 6: 2.534, 7: 2.704, 8: 2.847}
"""Mean distance of the highest from the lowest of so many standard normals (Tippett 1925): the unit of a margin."""
GOLD = ""
"""Whom expected ranks are put down to; no annotator has an empty name."""


@dataclass(frozen=True)
class Belief:
    """What all judgements say about two completions of a record."""

    probability: float
    """That the first is better."""
    margin: float
    """Expected difference of their scores; 1 is about the first against the last of the record."""


@dataclass(frozen=True)
class Reliability:
    """What the model made of one annotator."""

    annotator: str
    judgements: int
    sensitivity: float
    """0 answers at random, below 0 the wrong way round, 1 to 2 is usual, from 4 on hardly ever wrong."""
    ties: float
    """Log of how readily they tie."""
    accuracy: float
    """Probability that they put the better of two random completions first, a tie counting half."""

    def row(self) -> dict[str, Any]:
        """The figures for a table."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Aggregation:
    """The beliefs of a round and the annotators behind them."""

    beliefs: Mapping[str, Mapping[tuple[str, str], Belief]]
    """Record -> (completion, completion), in their order -> belief. Pairs of one text are left out."""
    annotators: list[Reliability]


def aggregate(comparisons: Iterable[Comparison], judgements: Iterable[Judgement]) -> Aggregation:
    """Fit the model to a round's asked and gold comparisons; beliefs are about the asked ones that were judged.

    Deterministic. Raises `LabelingError` for ranks of completions that are not in the comparison.
    """
    asked = {each.id: each for each in comparisons if each.kind != "repeat"}
    opinions = [each for each in judgements if each.record in asked and votes(each)]
    names = sorted({each.annotator for each in opinions})
    if not names:
        return Aggregation({}, [])
    given = [(each.record, each.annotator, ranks) for each in opinions if (ranks := checked(each, asked[each.record]))]
    judged = {record for record, _, _ in given}
    given += [(each.id, GOLD, each.expected) for each in asked.values() if each.id in judged and each.expected]
    everybody = [*names, GOLD]
    sized = _blocks(asked, given, {name: place for place, name in enumerate(everybody)})
    model = Model([block for block, _ in sized], len(everybody), experts=[len(names)])
    shares, solved = zip(*model.solutions(), strict=True)
    beliefs: dict[str, dict[tuple[str, str], Belief]] = {}
    for block, records in sized:
        found = [model.beliefs(block, parameters) for parameters in solved]
        means, higher = (np.tensordot(shares, np.stack(each), 1) for each in zip(*found, strict=True))
        for place, record in enumerate(records):
            if asked[record].kind == "asked":
                beliefs[record] = _beliefs(asked[record], means[place] / SPREAD[block.size], higher[place])
    parameters = np.tensordot(shares, np.stack(solved), 1)
    counts = Counter(annotator for _, annotator, _ in given)
    people = [_reliability(name, counts[name], *parameters[place]) for place, name in enumerate(names)]
    return Aggregation(beliefs, people)


def votes(judgement: Judgement) -> bool:
    """Whether a judgement says anything: it was submitted, and its annotator could judge."""
    return judgement.ranks is not None and CANNOT_JUDGE not in judgement.flags


def checked(judgement: Judgement, comparison: Comparison) -> Ranks:
    """The ranks of a judgement. Raises `LabelingError` when they are of something else than the comparison."""
    ranks = judgement.ranks or {}
    strange = sorted(set(ranks) - {completion.id for completion in comparison.completions})
    if strange:
        raise LabelingError(
            f"Judgement {judgement.id} ranks '{strange[0]}', which is no completion of {comparison.id}; remove it."
        )
    return ranks


def texts_of(comparison: Comparison) -> dict[str, int]:
    """Completion id -> which of the comparison's different texts it has."""
    numbers: dict[str, int] = {}
    return {each.id: numbers.setdefault(each.text.strip(), len(numbers)) for each in comparison.completions}


def _blocks(
    comparisons: Mapping[str, Comparison], given: list[tuple[str, str, Ranks]], places: Mapping[str, int]
) -> list[tuple[Block, list[str]]]:
    """Blocks by the number of different texts, each with the ids of its records."""
    by_size: dict[int, dict[str, int]] = {}
    columns: dict[int, list[tuple[int, int, tuple[Any, ...]]]] = {}
    texts = {record: texts_of(comparisons[record]) for record in dict.fromkeys(record for record, _, _ in given)}
    for record, annotator, ranks in given:
        size = max(texts[record].values()) + 1
        if size < 2:
            continue
        best: list[int | None] = [None] * size
        for completion, rank in ranks.items():
            text = texts[record][completion]
            known = best[text]
            best[text] = rank if known is None else min(known, rank)
        known_records = by_size.setdefault(size, {})
        place = known_records.setdefault(record, len(known_records))
        columns.setdefault(size, []).append((place, places[annotator], choices(tuple(best))))
    return [(_block(size, len(by_size[size]), columns[size]), list(by_size[size])) for size in sorted(by_size)]


def _block(size: int, records: int, rows: list[tuple[int, int, tuple[Any, ...]]]) -> Block:
    met = [(record, annotator, left) for record, annotator, (_, _, lefts) in rows for left in lefts]
    choice = np.array(met, dtype=int).reshape(-1, 3)
    return Block(
        size=size,
        records=records,
        record=np.array([row[0] for row in rows]),
        annotator=np.array([row[1] for row in rows]),
        shares=np.array([row[2][0] for row in rows]),
        tied=np.array([row[2][1] for row in rows], dtype=float),
        choice_record=choice[:, 0],
        choice_annotator=choice[:, 1],
        choice_left=choice[:, 2],
    )


def _beliefs(comparison: Comparison, means: np.ndarray, higher: np.ndarray) -> dict[tuple[str, str], Belief]:
    texts = texts_of(comparison)
    return {
        (left, right): Belief(float(higher[texts[left], texts[right]]), float(means[texts[left]] - means[texts[right]]))
        for left, right in combinations(texts, 2)
        if texts[left] != texts[right]
    }


def _reliability(name: str, judgements: int, sensitivity: float, ties: float) -> Reliability:
    from scipy.special import ndtri

    apart = np.sqrt(2) * ndtri(0.5 + (np.arange(1000) + 0.5) / 2000)  # distances of two standard normals
    logs = np.stack([sensitivity * apart / 2, -sensitivity * apart / 2, np.full(1000, ties)])
    right, wrong, tie = np.exp(logs - logs.max(axis=0))
    accuracy = float(((right + tie / 2) / (right + wrong + tie)).mean())
    return Reliability(name, judgements, float(sensitivity), float(ties), accuracy)
