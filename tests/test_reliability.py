"""Annotator quality by hand: gold, repeats, places, lengths, pace, straight lines, and who is held out."""

import math
from itertools import combinations
from typing import Any

import pytest

from labeling.comparison import Comparison, Completion, Judgement, Kind, LabelingError, Ranks
from labeling.measures.shares import chance_of_count, wilson
from labeling.quality.habits import unusual
from labeling.quality.reliability import AnnotatorQuality, Bar, annotator_quality, held_out

HI = ({"role": "user", "content": "Hi"},)


def comparison(
    record: str,
    texts: str = "a bb ccc",
    shown: str = "abc",
    kind: Kind = "asked",
    source: str | None = None,
    expected: Ranks | None = None,
) -> Comparison:
    """Completions named a, b, c by place, of these texts."""
    completions = tuple(Completion(name, text) for name, text in zip("abcdefgh", texts.split(), strict=False))
    return Comparison(record, HI, completions, tuple(shown), kind=kind, source=source, expected=expected)


def judgement(record: str, annotator: str, ranks: str | None, time: str = "", **more: Any) -> Judgement:
    """`ranks` are those of a, b, c in turn; None: discarded."""
    given = None if ranks is None else dict(zip("abcdefgh", map(int, ranks), strict=False))
    status = "submitted" if given else "discarded"
    return Judgement(f"{record}-{annotator}", record, annotator, status, given, "v1", time, time, **more)


def only(comparisons: list[Comparison], judgements: list[Judgement]) -> AnnotatorQuality:
    [found] = annotator_quality(comparisons, judgements)
    return found


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(count - hits, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_interval_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0, 1)


def test_chance_of_a_count() -> None:
    assert chance_of_count(9, [0.5] * 10) == pytest.approx(2 * 11 / 1024), "the sign test"
    assert chance_of_count(5, [0.5] * 10) == 1
    assert chance_of_count(2, [0.5, 0.25]) == pytest.approx(2 * 0.125), "unlike chances"
    assert chance_of_count(0, [0.5, 0.25]) == pytest.approx(2 * 0.375)
    exact, approximate = chance_of_count(1050, [0.5] * 2000), chance_of_count(1050, [0.5] * 2000 + [0.0])
    assert approximate == pytest.approx(exact, rel=0.01), "beyond 2,000 the normal distribution"
    assert math.isnan(chance_of_count(0, []))


def test_gold_counts_pairs_that_are_expected_to_be_ordered() -> None:
    gold = [
        comparison("g1", kind="gold", expected={"a": 1, "b": 2, "c": 2}),  # two pairs to order
        comparison("g2", kind="gold", expected={"a": 3, "b": 2, "c": 1}),  # three
    ]
    # g1: a > b right, a = c is not a > c; g2: all right but a and b, who are tied
    found = only(gold, [judgement("g1", "x", "121"), judgement("g2", "x", "221")])
    assert (found.gold.hits, found.gold.count) == (3, 5)
    # two rankings of three completions are worth four pairs
    assert (found.gold.low, found.gold.high) == pytest.approx(wilson(0.6 * 4, 4))
    assert math.isnan(only([comparison("r")], [judgement("r", "x", "123")]).gold.value)


def test_pairs_of_two_have_their_wilson_interval_as_it_is() -> None:
    gold = [comparison(f"g{n}", "a bb", "ab", kind="gold", expected={"a": 1, "b": 2}) for n in range(29)]
    found = only(gold, [judgement(each.id, "x", "12" if each.id == "g0" else "21") for each in gold])
    assert (found.gold.low, found.gold.high) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_self_consistency_compares_a_repeat_with_its_source() -> None:
    round = [comparison("r"), comparison("again", shown="cab", kind="repeat", source="r"), comparison("other")]
    # 1 2 3 and then 1 3 2: a is first both times, b and c change places
    found = only(round, [judgement("again", "x", "132"), judgement("r", "x", "123"), judgement("other", "x", "321")])
    assert (found.self_consistency.hits, found.self_consistency.count) == (2, 3)
    tied = only(round, [judgement("again", "x", "112"), judgement("r", "x", "123")])
    assert (tied.self_consistency.hits, tied.self_consistency.count) == (2, 3), "a tie is an order of its own"
    alone = only(round, [judgement("again", "x", "123")])
    assert alone.self_consistency.count == 0, "nothing to compare with"


def test_places_are_counted_where_there_is_one_best() -> None:
    shown = {"r1": "abc", "r2": "bca", "r3": "cab", "r4": "abc"}
    round = [comparison(record, shown=order) for record, order in shown.items()]
    given = {"r1": "123", "r2": "213", "r3": "321", "r4": "112"}  # the first shown wins thrice, and once it ties
    found = only(round, [judgement(record, "x", ranks) for record, ranks in given.items()])
    assert (found.first.hits, found.first.count, found.last.hits) == (3, 3, 0)
    assert found.first_p == pytest.approx(2 / 27) and found.last_p == pytest.approx(2 * 8 / 27)
    assert found.by_chance == pytest.approx(1 / 3)


def test_the_longer_completion_beside_what_others_make_of_it() -> None:
    round = [comparison("r1"), comparison("r2", "aaa bbb cc")]
    judgements = [
        judgement("r1", "x", "321"),  # the longer one wins thrice
        judgement("r2", "x", "112"),  # twice; a and b are equally long (and tied)
        judgement("r1", "y", "132"),  # c before b only
        judgement("r2", "y", "221"),  # never
    ]
    x, y = annotator_quality(round, judgements)
    assert (x.longer.hits, x.longer.count, x.longer_others) == (5, 5, pytest.approx(1 / 5))
    assert (y.longer.hits, y.longer.count, y.longer_others) == (1, 5, 1)


def test_pace_leaves_breaks_out() -> None:
    times = ["09:00:00", "09:00:20", "09:00:50", "10:00:00", "10:00:40"]  # 20, 30, a break, 40
    round = [comparison(f"r{n}") for n in range(5)]
    found = only(round, [judgement(f"r{n}", "x", "123", f"2026-01-01T{time}") for n, time in enumerate(times)])
    assert found.seconds == 30
    assert math.isnan(only(round, [judgement("r0", "x", "123", "no time")]).seconds)


def test_a_pace_is_unusual_far_from_the_others_only() -> None:
    assert unusual(2, [30, 35, 40]) == "fast"
    assert unusual(400, [30, 35, 40]) == "slow"
    assert unusual(20, [30, 30, 30]) == "", "all others alike: a third less is nothing yet"
    assert unusual(2, [30]) == "", "one other is no measure"
    assert unusual(2, [3, 30, 300]) == "", "others differ as much"
    assert unusual(math.nan, [30, 30, 30]) == "" and unusual(0, [30, 30, math.nan]) == "fast"


def test_straight_lines_and_the_longest_run() -> None:
    round = [comparison(f"r{n}", shown="cba") for n in range(6)]
    ranks = ["321", "111", "123", "321", "222", "321"]  # shown c, b, a: only 1 2 3 is another order
    times = [f"2026-01-01T09:0{n}:00" for n in (5, 4, 3, 2, 1, 0)]  # given the other way round
    judgements = [judgement(f"r{n}", "x", *each) for n, each in enumerate(zip(ranks, times, strict=True))]
    found = only(round, judgements)
    assert (found.straight.hits, found.straight.count, found.longest_run) == (5, 6, 3)


def test_agreement_counts_records_others_judged_too() -> None:
    round = [comparison("r1"), comparison("r2"), comparison("g", kind="gold", expected={"a": 1, "b": 2, "c": 3})]
    judgements = [
        judgement("r1", "x", "123"),
        judgement("r1", "y", "132"),
        judgement("r2", "x", "123"),
        judgement("g", "x", "123"),
        judgement("g", "y", "321"),
    ]
    x, _ = annotator_quality(round, judgements)
    assert x.agreement.value == pytest.approx(2 / 3), "the gold comparison does not count"
    assert x.agreement.count == 1


def test_what_is_not_said_is_not_counted() -> None:
    round = [comparison("r1"), comparison("r2"), comparison("r3")]
    judgements = [
        judgement("r1", "x", None),
        judgement("r2", "x", "123", flags=("cannot_judge",)),
        judgement("r3", "x", "321", flags=("unsafe",)),
    ]
    found = only(round, judgements)
    assert (found.submitted, found.discarded, found.cannot_judge) == (2, 1, 1)
    assert (found.first.count, found.straight.count) == (1, 1)
    row = found.row()
    assert row["gold"] is None and row["gold_interval"] is None and row["straight"] == 0.0
    assert annotator_quality(round, []) == []


def gold_worker(name: str, right: int, count: int) -> tuple[list[Comparison], list[Judgement]]:
    gold = [comparison(f"g{n}", "a bb", "ba", kind="gold", expected={"a": 1, "b": 2}) for n in range(count)]
    return gold, [judgement(each.id, name, "12" if n < right else "21") for n, each in enumerate(gold)]


def test_below_the_bar_is_who_is_surely_below_it() -> None:
    gold, careless = gold_worker("careless", 19, 40)  # interval .33 to .63
    _, unlucky = gold_worker("unlucky", 6, 12)  # half right, but .25 to .75
    _, few = gold_worker("few", 0, 5)
    _, good = gold_worker("good", 36, 40)
    qualities = annotator_quality(gold, careless + unlucky + few + good)
    out = held_out(qualities, Bar(straight_lining=None))
    assert list(out) == ["careless"]
    assert out["careless"] == (
        "careless orders as expected 48% of 40 gold pairs (33% to 63%), and at least 65% is asked for."
    )
    assert list(held_out(qualities, Bar(straight_lining=None, at_least=5))) == ["careless", "few"]
    assert held_out(qualities, Bar(gold_accuracy=None, straight_lining=None)) == {}


def test_each_figure_has_its_bar() -> None:
    round = [comparison(f"r{n}") for n in range(60)]
    again = [comparison(f"again{n}", shown="cba", kind="repeat", source=f"r{n}") for n in range(60)]
    lazy = [judgement(each.id, "lazy", "123" if each.kind == "asked" else "321") for each in round + again]
    careful = [judgement(each.id, "careful", "213") for each in round + again]
    qualities = annotator_quality(round + again, lazy + careful)
    out = held_out(qualities, Bar(agreement=0.9))
    assert list(out) == ["careful", "lazy"], "they agree on two pairs of three, less than .9"
    assert "agrees with others on 67% of 60 shared records" in out["careful"]
    assert "repeats their order in 0% of 180 repeated pairs" in out["lazy"]
    assert "ranks in the order shown, or all alike, in 100% of 120 judgements" in out["lazy"]
    assert "at most 90% is asked for" in out["lazy"]
    assert list(held_out(qualities, Bar())) == ["lazy"]


@pytest.mark.parametrize("wrong", [{"gold_accuracy": 1.5}, {"straight_lining": -0.1}, {"at_least": 0}])
def test_impossible_bars_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LabelingError, match=next(iter(wrong))):
        Bar(**wrong)


def test_judgements_of_something_else_are_refused() -> None:
    with pytest.raises(LabelingError, match="r9-x is of record 'r9', which is not in the round"):
        annotator_quality([comparison("r")], [judgement("r9", "x", "123")])
    with pytest.raises(LabelingError, match="r-x ranks 'd', which is no completion of r"):
        annotator_quality([comparison("r")], [judgement("r", "x", "1234")])


def test_every_figure_is_in_the_row() -> None:
    round = [comparison("r1"), comparison("r2")]
    judgements = [judgement(record, name, "123") for record in ("r1", "r2") for name in "xyz"]
    rows = [each.row() for each in annotator_quality(round, judgements)]
    assert all(left.keys() == right.keys() for left, right in combinations(rows, 2))
    assert rows[0]["agreement"] == 1 and rows[0]["agreement_count"] == 2 and rows[0]["annotator"] == "x"
