"""How well each annotator works: right on gold, at one with themselves and with others, biased, hasty, or not reading.

Counts come with Wilson's interval (1927). The pairs of one ranking are not independent, so a ranking of K completions
counts as K - 1 pairs for the interval, and agreement with others as one look per record. Discarded judgements count for
speed only; judgements flagged `cannot_judge` likewise.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from labeling.comparison import CANNOT_JUDGE, Comparison, Judgement, LabelingError, Ranks
from labeling.measures.agreement import agreement_by_annotator
from labeling.measures.shares import Share, share_of
from labeling.quality.aggregation import checked, votes
from labeling.quality.habits import Speed, in_time, longer, longest_run, pace, position, straight_lined, unusual


@dataclass(frozen=True)
class AnnotatorQuality:
    """What a labeling lead knows about one annotator."""

    annotator: str
    submitted: int
    discarded: int
    cannot_judge: int
    gold: Share
    """Pairs of gold comparisons ordered as expected; pairs that are expected to be tied do not count."""
    self_consistency: Share
    """Pairs ordered alike when the same comparison came again, a tie being an order of its own."""
    agreement: Share
    """(another annotator, pair) ordered alike; counted in records, see `agreement_by_annotator`."""
    first: Share
    """Judgements with one best answer in which that was shown first."""
    first_p: float
    """Probability of a share as far from chance when the place does not matter."""
    last: Share
    last_p: float
    by_chance: float
    """What either share is when the place does not matter."""
    longer: Share
    """Ordered pairs of different length in which the longer completion is preferred."""
    longer_others: float
    """The same share of all others together."""
    seconds: float
    """Median time between two judgements, breaks left out; NaN where it is not known."""
    speed: Speed
    """Whether that is far from the others."""
    straight: Share
    """Judgements whose ranks follow the order shown, or are all equal."""
    longest_run: int
    """The most such judgements one after another."""

    def row(self) -> dict[str, Any]:
        """The figures for a table; what is not known is None."""
        row: dict[str, Any] = {name: getattr(self, name) for name in ("annotator", "submitted", "discarded")}
        row["cannot_judge"] = self.cannot_judge
        for name in ("gold", "self_consistency", "agreement", "first", "last", "longer", "straight"):
            share: Share = getattr(self, name)
            row[name] = _rounded(share.value)
            row[f"{name}_interval"] = f"{share.low:.2f} to {share.high:.2f}" if share.count else None
            row[f"{name}_count"] = share.count
        for name in ("first_p", "last_p", "by_chance", "longer_others", "seconds"):
            row[name] = _rounded(getattr(self, name))
        return row | {"speed": self.speed, "longest_run": self.longest_run}


@dataclass(frozen=True)
class Bar:
    """What an annotator must reach; None: not asked for. An annotator is below it when the whole interval is."""

    gold_accuracy: float | None = 0.65
    self_consistency: float | None = 0.6
    agreement: float | None = None
    """With others: they may be wrong, so it is not asked for by default."""
    straight_lining: float | None = 0.9
    """The most, not the least. Two completions are in the order shown half of the time by chance."""
    at_least: int = 10
    """What must have been counted before a figure is held against anybody."""

    def __post_init__(self) -> None:
        for name in ("gold_accuracy", "self_consistency", "agreement", "straight_lining"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise LabelingError(f"The bar's {name} is {value}; give a share from 0 to 1.")
        if self.at_least < 1:
            raise LabelingError(f"The bar's at_least is {self.at_least}; give a count of 1 or more.")


def annotator_quality(comparisons: Iterable[Comparison], judgements: Iterable[Judgement]) -> list[AnnotatorQuality]:
    """Every annotator of a round, by name.

    Raises `LabelingError` for a judgement of a record, or of completions, that is not among the comparisons.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    given = list(judgements)
    for judgement in given:
        if judgement.record not in by_id:
            raise LabelingError(
                f"Judgement {judgement.id} is of record '{judgement.record}', which is not in the round; "
                "give the comparisons it belongs to."
            )
        checked(judgement, by_id[judgement.record])
    by_annotator: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in given:
        by_annotator[judgement.annotator].append(judgement)
    saying = [each for each in given if votes(each) and by_id[each.record].kind == "asked"]
    alike = agreement_by_annotator(saying)
    shared = _shared_records(saying)
    lengths = {name: longer(_voting(own), by_id) for name, own in by_annotator.items()}
    seconds = {name: pace(own) for name, own in by_annotator.items()}
    return [
        _quality(name, own, by_id, _agreement(alike.get(name), shared.get(name, 0)), lengths, seconds)
        for name, own in sorted(by_annotator.items())
    ]


def held_out(qualities: Iterable[AnnotatorQuality], bar: Bar) -> dict[str, str]:
    """Annotators below the bar -> why, in a sentence. Their judgements are kept, and not learnt from."""
    reasons = {}
    for quality in qualities:
        found = [
            f"{said} {share.value:.0%} of {share.count} {what} ({share.low:.0%} to {share.high:.0%}), "
            f"and at {'most' if name == 'straight_lining' else 'least'} {limit:.0%} is asked for"
            for name, said, share, what in (
                ("gold_accuracy", "orders as expected", quality.gold, "gold pairs"),
                ("self_consistency", "repeats their order in", quality.self_consistency, "repeated pairs"),
                ("agreement", "agrees with others on", quality.agreement, "shared records"),
                ("straight_lining", "ranks in the order shown, or all alike, in", quality.straight, "judgements"),
            )
            if (limit := getattr(bar, name)) is not None
            and share.count >= bar.at_least
            and (share.low > limit if name == "straight_lining" else share.high < limit)
        ]
        if found:
            reasons[quality.annotator] = f"{quality.annotator} {'; '.join(found)}."
    return reasons


def _quality(
    name: str,
    own: list[Judgement],
    comparisons: Mapping[str, Comparison],
    agreement: Share,
    lengths: Mapping[str, tuple[int, int, int]],
    seconds: Mapping[str, float],
) -> AnnotatorQuality:
    voting = _voting(own)
    first, first_p, by_chance = position(voting, comparisons, 0)
    last, last_p, _ = position(voting, comparisons, -1)
    others = [counted for other, counted in lengths.items() if other != name]
    pairs = sum(count for _, count, _ in others)
    straight = [straight_lined(each, comparisons[each.record]) for each in in_time(voting)]
    return AnnotatorQuality(
        annotator=name,
        submitted=sum(each.ranks is not None for each in own),
        discarded=sum(each.ranks is None for each in own),
        cannot_judge=sum(CANNOT_JUDGE in each.flags for each in own),
        gold=_gold(voting, comparisons),
        self_consistency=_self_consistency(voting, comparisons),
        agreement=agreement,
        first=first,
        first_p=first_p,
        last=last,
        last_p=last_p,
        by_chance=by_chance,
        longer=share_of(*lengths[name]),
        longer_others=sum(hits for hits, _, _ in others) / pairs if pairs else math.nan,
        seconds=seconds[name],
        speed=unusual(seconds[name], [value for other, value in seconds.items() if other != name]),
        straight=share_of(sum(straight), len(straight), len(straight)),
        longest_run=longest_run(straight),
    )


def _voting(judgements: Iterable[Judgement]) -> list[Judgement]:
    return [judgement for judgement in judgements if votes(judgement)]


def _agreement(value: float | None, records: int) -> Share:
    return Share(0, 0, 0.0, 1.0) if value is None else share_of(value * records, records, records)


def _shared_records(judgements: Iterable[Judgement]) -> dict[str, int]:
    """Annotator -> records that somebody else judged too."""
    by_record: dict[str, set[str]] = defaultdict(set)
    for judgement in judgements:
        by_record[judgement.record].add(judgement.annotator)
    counts: dict[str, int] = defaultdict(int)
    for names in by_record.values():
        for name in names if len(names) > 1 else ():
            counts[name] += 1
    return counts


def _gold(judgements: Iterable[Judgement], comparisons: Mapping[str, Comparison]) -> Share:
    hits = count = looks = 0
    for judgement in judgements:
        comparison = comparisons[judgement.record]
        if comparison.kind != "gold" or comparison.expected is None:
            continue
        orders = _orders(judgement.ranks or {}, comparison.expected)
        told = [(given, expected) for given, expected in orders if expected]
        hits += sum(given == expected for given, expected in told)
        count += len(told)
        looks += min(len(told), len(comparison.expected) - 1)
    return share_of(hits, count, looks)


def _self_consistency(judgements: Iterable[Judgement], comparisons: Mapping[str, Comparison]) -> Share:
    given = {judgement.record: judgement for judgement in judgements}
    hits = count = looks = 0
    for again in given.values():
        comparison = comparisons[again.record]
        before = given.get(comparison.source or "") if comparison.kind == "repeat" else None
        if before is None:
            continue
        orders = _orders(again.ranks or {}, before.ranks or {})
        hits += sum(now == then for now, then in orders)
        count += len(orders)
        looks += min(len(orders), len(comparison.completions) - 1)
    return share_of(hits, count, looks)


def _orders(left: Ranks, right: Ranks) -> list[tuple[int, int]]:
    """How each pair of completions that both rank is ordered by either: -1, 0 or 1."""
    common = sorted(set(left) & set(right))
    return [(_sign(left[a] - left[b]), _sign(right[a] - right[b])) for a, b in combinations(common, 2)]


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
