"""Two models blind: from judgements of pairs to a win rate with its interval, a sign test and what the positions did.

A record holds one completion of each model. It counts once, however many people judged it: their votes are averaged,
and intervals and tests are over records, because votes on one record are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labeling.comparison import CANNOT_JUDGE, Comparison, Judgement, LabelingError
from labeling.measures.agreement import agreement
from labeling.measures.bootstrap import Estimate, Resampling

Side = Literal["a", "b"]


@dataclass(frozen=True)
class Tally:
    """Records by who won them: by the mean of their votes, a tie being half a vote for either."""

    wins: int
    ties: int
    losses: int

    @property
    def p_value(self) -> float:
        """How likely records split this unevenly when neither is better (`sign_test`)."""
        return sign_test(self.wins, self.losses)


@dataclass(frozen=True)
class Blind:
    """What people said of model A against model B."""

    records: int
    """Records that count: judged ones, and ones whose completions are the same text."""
    identical: int
    """Of these, both completions say the same: ties that nobody was asked about."""
    unjudged: int
    """Records that got no vote; they do not count."""
    votes: int
    tally: Tally
    """A's wins, ties and losses."""
    win_rate: Estimate
    """A's mean share of the votes over records, ties counting half."""
    first: Tally
    """The same judged records by position: wins of what was shown first."""
    a_first: int
    """Judged records that showed A first."""
    agreement: Mapping[str, float]

    def row(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "records": self.records,
            "identical": self.identical,
            "unjudged": self.unjudged,
            "votes": self.votes,
            "win_rate": {"mean": self.win_rate.value, "low": self.win_rate.low, "high": self.win_rate.high},
            "sign_test": {**vars(self.tally), "p_value": self.tally.p_value},
            "position": {**vars(self.first), "p_value": self.first.p_value, "a_first": self.a_first},
            "agreement": dict(self.agreement),
        }


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p value of the sign test (Dixon and Mood, "The statistical sign test", JASA 41, 1946).

    Ties are left out. With n = wins + losses it is `2 P(X <= min(wins, losses))` of X binomial(n, 1/2), at most 1.
    """
    n = wins + losses
    ways, term = 0, 1
    for k in range(min(wins, losses) + 1):
        ways += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * ways / 2**n)


def vote(judgement: Judgement, ours: str, theirs: str) -> float | None:
    """1 for our completion, 0 for theirs, 0.5 for a tie; None when nothing was said about the two."""
    ranks = judgement.ranks
    if ranks is None or CANNOT_JUDGE in judgement.flags or ours not in ranks or theirs not in ranks:
        return None
    return 0.5 if ranks[ours] == ranks[theirs] else float(ranks[ours] < ranks[theirs])


def votes_of(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement], sides: Mapping[str, Side]
) -> dict[str, list[float]]:
    """Per asked record the votes for A. `sides` says whose each completion id is.

    Raises `LabelingError` for a record that does not hold one completion of each model.
    """
    places = {comparison.id: _by_side(comparison, sides) for comparison in comparisons if comparison.kind == "asked"}
    votes: dict[str, list[float]] = {record: [] for record in places}
    for judgement in judgements:
        if judgement.record in places:
            given = vote(judgement, places[judgement.record]["a"], places[judgement.record]["b"])
            if given is not None:
                votes[judgement.record].append(given)
    return votes


def compare_blind(
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    sides: Mapping[str, Side],
    *,
    identical: int = 0,
    samples: int = 2000,
    seed: int = 0,
) -> Blind:
    """The result of a blind round; `identical` records were never asked about, both models having said the same.

    The interval is the 95 % percentile bootstrap over records (`labeling.measures.bootstrap`). Raises `LabelingError`
    when nothing was judged and nothing is identical.
    """
    votes = votes_of(comparisons, judgements, sides)
    shares = {record: sum(given) / len(given) for record, given in votes.items() if given}
    if not shares and not identical:
        raise LabelingError("No record of the blind round has a vote; let annotators rank, then run again.")
    shown = {each.id: sides[each.shown[0]] for each in comparisons if each.id in shares}
    by_first = [share if shown[record] == "a" else 1 - share for record, share in shares.items()]
    asked = [judgement for judgement in judgements if judgement.record in votes]
    values = [*shares.values(), *[0.5] * identical]
    return Blind(
        records=len(values),
        identical=identical,
        unjudged=len(votes) - len(shares),
        votes=sum(map(len, votes.values())),
        tally=_tally(values),
        win_rate=_mean(values, samples, seed),
        first=_tally(by_first),
        a_first=sum(side == "a" for side in shown.values()),
        agreement=agreement(asked, seed=seed).figures(),
    )


def _by_side(comparison: Comparison, sides: Mapping[str, Side]) -> dict[str, str]:
    found: dict[str, str] = {sides.get(each.id, ""): each.id for each in comparison.completions}
    if found.keys() != {"a", "b"} or len(comparison.completions) != 2:
        raise LabelingError(
            f"Record {comparison.id} does not hold one completion of each model; sample the pairs again."
        )
    return found


def _tally(shares: Sequence[float]) -> Tally:
    wins, losses = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    return Tally(wins, len(shares) - wins - losses, losses)


def _mean(values: Sequence[float], samples: int, seed: int) -> Estimate:
    drawn, records = Resampling(len(values), samples=samples, seed=seed), np.arange(len(values))
    return drawn.ratio(drawn.sums(records, np.array(values)), drawn.sums(records))
