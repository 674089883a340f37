"""Judgements become weighted preferences.

The rule `majority`, for each pair of completions of one record:

1. Every judgement that ranks both gives one vote: to the completion it ranks higher, or to none (a tie) when the ranks
   are equal. Discarded judgements, and those flagged `cannot_judge`, give no vote.
2. The side with more votes is chosen. With as many votes for one as for the other there is no preference: the pair is
   left out and counted as undecided.
3. The weight is `(votes for - votes against) / votes and ties`, in (0, 1]: 1 when all agree, and each dissenting vote
   or tie takes from it.
4. Completions with the same text never form a pair: there is nothing to prefer.

The rule `reliability` counts a vote for what its annotator's votes are worth (see `aggregation.py`): the completion
that is probably better is chosen, and the weight is `2 p - 1` of its probability p, 0 for a coin and 1 for certainty.
A pair that nobody orders is undecided.

Gold and repeated comparisons check annotators and never become preferences. Every preference keeps the ids of the
judgements that voted or tied on its pair.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

from labeling.comparison import Comparison, Judgement
from labeling.quality.aggregation import Belief, Reliability, aggregate, checked, votes

Method = Literal["majority", "reliability"]
LEAST_WEIGHT = 0.01
"""A pair believed less than this is undecided."""


@dataclass(frozen=True)
class Preference:
    """One completion of a record is preferred to another."""

    record: str
    chosen: str
    """Completion id."""
    rejected: str
    """Completion id."""
    weight: float
    """In (0, 1]: how far the annotators agree, or how sure it is."""
    judgements: tuple[str, ...]
    """Ids of the judgements behind it, sorted."""
    margin: float
    """How far apart they are, 1 for the first against the last: the mean rank difference, or that of the scores."""


@dataclass(frozen=True)
class Outcome:
    """All preferences of a round, and what did not become one."""

    preferences: list[Preference] = field(default_factory=list)
    undecided: int = 0
    """Pairs without a majority (or too close to call), ties of everybody included."""
    identical: int = 0
    """Pairs of completions with the same text."""
    discarded: int = 0
    """Judgements that were discarded, or flagged `cannot_judge`."""
    unjudged: int = 0
    """Records without one judgement that says anything."""
    reliability: list[Reliability] = field(default_factory=list)
    """What `reliability` made of the annotators; empty for `majority`."""


def by_rating(judgements: Iterable[Judgement], criterion: str) -> list[Judgement]:
    """The judgements with the ranks that their ratings of one criterion make, equal ratings tied; of those who rated
    two completions or more by it."""
    found = []
    for each in judgements:
        given = each.ratings.get(criterion, {})
        if each.ranks is not None and len(given) > 1:
            ranks = {id: 1 + sum(other > rating for other in given.values()) for id, rating in given.items()}
            found.append(replace(each, ranks=ranks))
    return found


def to_preferences(
    comparisons: Iterable[Comparison], judgements: Iterable[Judgement], method: Method = "majority"
) -> Outcome:
    """The preferences of a round by the rules above, in the order of the comparisons and their completions.

    Raises `LabelingError` for ranks of completions that are not in the comparison.
    """
    comparisons, judgements = list(comparisons), list(judgements)
    by_record: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_record[judgement.record].append(judgement)
    learnt = aggregate(comparisons, judgements) if method == "reliability" else None
    preferences: list[Preference] = []
    undecided = identical = discarded = unjudged = 0
    for comparison in comparisons:
        if comparison.kind != "asked":
            continue
        answers = by_record.get(comparison.id, [])
        saying = [judgement for judgement in answers if votes(judgement) and checked(judgement, comparison)]
        discarded += len(answers) - len(saying)
        if not saying:
            unjudged += 1
            continue
        for left, right in combinations(comparison.completions, 2):
            if left.text.strip() == right.text.strip():
                identical += 1
                continue
            if learnt:
                belief = learnt.beliefs[comparison.id][left.id, right.id]
                preference = believe(comparison.id, left.id, right.id, belief, saying)
            else:
                preference = decide(comparison.id, left.id, right.id, saying)
            if preference:
                preferences.append(preference)
            else:
                undecided += 1
    return Outcome(preferences, undecided, identical, discarded, unjudged, learnt.annotators if learnt else [])


def decide(record: str, left: str, right: str, judgements: Sequence[Judgement]) -> Preference | None:
    """The preference between two completions by majority, or None without one."""
    apart = _apart(left, right, judgements)
    balance = sum((vote > 0) - (vote < 0) for vote, _ in apart.values())
    if balance == 0:
        return None
    margin = sum(vote / most for vote, most in apart.values()) / len(apart)
    chosen, rejected = (left, right) if balance > 0 else (right, left)
    return Preference(
        record,
        chosen,
        rejected,
        weight=abs(balance) / len(apart),
        judgements=tuple(sorted(apart)),
        margin=round(margin if balance > 0 else -margin, 4),
    )


def believe(record: str, left: str, right: str, belief: Belief, judgements: Sequence[Judgement]) -> Preference | None:
    """The preference between two completions that a belief holds, or None for a coin's throw or only ties."""
    apart = _apart(left, right, judgements)
    weight = 2 * belief.probability - 1
    if abs(weight) < LEAST_WEIGHT or not any(vote for vote, _ in apart.values()):
        return None
    chosen, rejected = (left, right) if weight > 0 else (right, left)
    return Preference(
        record,
        chosen,
        rejected,
        weight=round(min(1.0, abs(weight)), 4),
        judgements=tuple(sorted(apart)),
        margin=round(max(0.0, belief.margin if weight > 0 else -belief.margin), 4),
    )


def _apart(left: str, right: str, judgements: Sequence[Judgement]) -> dict[str, tuple[int, int]]:
    """Per judgement that ranks both: how many ranks the first is above the second, and how many that can be."""
    return {
        judgement.id: (judgement.ranks[right] - judgement.ranks[left], len(judgement.ranks) - 1)
        for judgement in judgements
        if judgement.ranks and left in judgement.ranks and right in judgement.ranks
    }
