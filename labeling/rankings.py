"""Judgements become weighted preferences.

The rule, for each pair of completions of one record:

1. Every submitted judgement gives one vote: to the completion it ranks higher, or to none (a tie) when the ranks are
   equal. Discarded judgements give no vote.
2. The side with more votes is chosen. With as many votes for one as for the other there is no preference: the pair is
   left out and counted as undecided.
3. The weight is `(votes for - votes against) / judgements`, in (0, 1]: 1 when all agree, and each dissenting vote or
   tie takes from it.
4. Completions with the same text never form a pair: there is nothing to prefer.

Every preference keeps the ids of the judgements that voted or tied on its pair.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from labeling.comparison import Comparison, Judgement


@dataclass(frozen=True)
class Preference:
    """One completion of a record is preferred to another."""

    record: str
    chosen: str
    """Completion id."""
    rejected: str
    """Completion id."""
    weight: float
    """In (0, 1]: how far the annotators agree."""
    judgements: tuple[str, ...]
    """Ids of the judgements behind it, sorted."""


@dataclass(frozen=True)
class Outcome:
    """All preferences of a round, and what did not become one."""

    preferences: list[Preference] = field(default_factory=list)
    undecided: int = 0
    """Pairs without a majority, ties of everybody included."""
    identical: int = 0
    """Pairs of completions with the same text."""
    discarded: int = 0
    """Judgements that were discarded."""
    unjudged: int = 0
    """Records without one submitted judgement."""


def to_preferences(comparisons: Iterable[Comparison], judgements: Iterable[Judgement]) -> Outcome:
    """The preferences of a round by the rule above, in the order of the comparisons and their completions."""
    by_record: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_record[judgement.record].append(judgement)
    preferences: list[Preference] = []
    undecided = identical = discarded = unjudged = 0
    for comparison in comparisons:
        answers = by_record.get(comparison.id, [])
        submitted = [judgement for judgement in answers if judgement.ranks is not None]
        discarded += len(answers) - len(submitted)
        if not submitted:
            unjudged += 1
            continue
        for left, right in combinations(comparison.completions, 2):
            if left.text.strip() == right.text.strip():
                identical += 1
            elif preference := decide(comparison.id, left.id, right.id, submitted):
                preferences.append(preference)
            else:
                undecided += 1
    return Outcome(preferences, undecided, identical, discarded, unjudged)


def decide(record: str, left: str, right: str, judgements: Sequence[Judgement]) -> Preference | None:
    """The preference between two completions, or None without a majority."""
    votes = {
        judgement.id: judgement.ranks[right] - judgement.ranks[left] for judgement in judgements if judgement.ranks
    }
    balance = sum((vote > 0) - (vote < 0) for vote in votes.values())
    if balance == 0:
        return None
    chosen, rejected = (left, right) if balance > 0 else (right, left)
    return Preference(record, chosen, rejected, abs(balance) / len(votes), tuple(sorted(votes)))
