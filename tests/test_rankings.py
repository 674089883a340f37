"""Judgements to preferences, by the stated rule."""

from dataclasses import replace
from itertools import combinations
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.comparison import Completion, Judgement, LabelingError, compare, comparison_from, judgement_from
from labeling.quality.aggregation import Belief
from labeling.rankings import Method, Preference, believe, decide, to_preferences


def judgement(annotator: str, ranks: dict[str, int] | None, record: str = "r") -> Judgement:
    status = "discarded" if ranks is None else "submitted"
    return Judgement(f"{record}-{annotator}", record, annotator, status, ranks, "v1", "t", "t")


def comparison(record: str = "r", **texts: str):
    completions = [Completion(name, text) for name, text in texts.items()]
    return compare(record, [{"role": "user", "content": "Hi"}], completions, seed=0)


def test_majority_ties_weights_and_judgements_by_hand() -> None:
    round = [
        judgement("x", {"a": 1, "b": 2, "c": 3}),
        judgement("y", {"a": 2, "b": 1, "c": 2}),
        judgement("z", {"a": 1, "b": 2, "c": 2}),
        judgement("w", None),
    ]
    outcome = to_preferences([comparison(a="A", b="B", c="C")], round)

    found = {(each.chosen, each.rejected): each for each in outcome.preferences}
    assert found.keys() == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"].weight == pytest.approx(1 / 3)  # two for, one against
    assert found["a", "c"].weight == pytest.approx(2 / 3)  # two for, one tie
    assert found["b", "c"].weight == pytest.approx(2 / 3)
    assert found["a", "b"].judgements == ("r-x", "r-y", "r-z")
    assert outcome.discarded == 1
    assert outcome.undecided == 0


def test_no_majority_is_no_preference() -> None:
    split = [judgement("x", {"a": 1, "b": 2}), judgement("y", {"a": 2, "b": 1}), judgement("z", {"a": 1, "b": 1})]
    outcome = to_preferences([comparison(a="A", b="B")], split)
    assert outcome.preferences == []
    assert outcome.undecided == 1


def test_same_text_and_unjudged_records_form_no_pair() -> None:
    outcome = to_preferences(
        [comparison(a="A", b="A ", c="C"), comparison("other", a="A", b="B")],
        [judgement("x", {"a": 1, "b": 2, "c": 3}), judgement("x", None, "other")],
    )
    assert [(each.chosen, each.rejected) for each in outcome.preferences] == [("a", "c"), ("b", "c")]
    assert (outcome.identical, outcome.unjudged, outcome.discarded) == (1, 1, 1)


ranks = st.fixed_dictionaries({name: st.integers(1, 4) for name in "abcd"})


@given(st.lists(ranks, min_size=1, max_size=5))
def test_properties_of_every_outcome(answers: list[dict[str, int]]) -> None:
    round = [judgement(str(number), answer) for number, answer in enumerate(answers)]
    outcome = to_preferences([comparison(a="A", b="B", c="C", d="D")], round)

    assert len(outcome.preferences) + outcome.undecided == 6
    for each in outcome.preferences:
        assert 0 < each.weight <= 1
        assert len(each.judgements) == len(answers)
        swapped = decide("r", each.rejected, each.chosen, round)
        assert swapped == each, "the order in which a pair is looked at does not matter"
    unanimous = [
        (left, right)
        for left, right in combinations("abcd", 2)
        if all(answer[left] < answer[right] for answer in answers)
    ]
    weights = {(each.chosen, each.rejected): each.weight for each in outcome.preferences}
    assert all(weights[pair] == 1 for pair in unanimous)


def test_order_shown_is_drawn_from_seed_and_record_and_kept() -> None:
    texts = [Completion(str(number), str(number)) for number in range(4)]
    orders = [compare(f"r{number}", [], texts, seed=1).shown for number in range(200)]
    first = [order[0] for order in orders]
    assert all(30 < first.count(str(number)) < 70 for number in range(4)), "every completion is shown first as often"
    assert compare("r7", [], texts, seed=1).shown == orders[7]

    original = compare("r7", [{"role": "user", "content": "Hi"}], texts, seed=1)
    assert comparison_from(original.row()) == original
    assert [completion.id for completion in original.options.values()] == list(original.shown)
    answer = judgement("x", {"0": 1, "1": 1})
    assert judgement_from(answer.row()) == answer


@pytest.mark.parametrize("names", [["a"], list("abcdefghi"), ["a", "a"]])
def test_comparisons_that_cannot_be_ranked_are_refused(names: list[str]) -> None:
    with pytest.raises(LabelingError):
        compare("r", [], [Completion(name, name) for name in names], seed=0)


def test_only_asked_comparisons_become_pairs() -> None:
    completions = [Completion("a", "A"), Completion("b", "B")]
    gold = compare("gold", [], completions, seed=0, kind="gold", expected={"a": 1, "b": 2})
    repeat = compare("repeat", [], completions, seed=0, kind="repeat", source="asked")
    round = [compare("asked", [], completions, seed=0), gold, repeat]
    answers = [judgement("x", {"a": 1, "b": 2}, each.id) for each in round]
    for method in get_args(Method):
        outcome = to_preferences(round, answers, method)
        assert [each.record for each in outcome.preferences] == ["asked"]
        assert outcome.unjudged == 0


def test_who_cannot_judge_gives_no_vote() -> None:
    unable = judgement("y", {"a": 2, "b": 1})
    answers = [judgement("x", {"a": 1, "b": 2}), replace(unable, flags=("cannot_judge",))]
    for method in get_args(Method):
        outcome = to_preferences([comparison(a="A", b="B")], answers, method)
        assert [(each.chosen, each.judgements) for each in outcome.preferences] == [("a", ("r-x",))]
        assert outcome.discarded == 1
    nobody = to_preferences([comparison(a="A", b="B")], answers[1:])
    assert (nobody.preferences, nobody.unjudged) == ([], 1)


def test_margins_and_missing_ranks_by_hand() -> None:
    answers = [judgement("x", {"a": 1, "b": 2, "c": 3}), judgement("y", {"a": 1, "c": 2})]
    outcome = to_preferences([comparison(a="A", b="B", c="C")], answers)
    found = {(each.chosen, each.rejected): each for each in outcome.preferences}
    assert found["a", "b"].judgements == ("r-x",) and found["a", "c"].judgements == ("r-x", "r-y")
    assert [found[pair].margin for pair in (("a", "b"), ("a", "c"), ("b", "c"))] == [0.5, 1.0, 0.5]


def test_a_belief_becomes_a_preference_by_hand() -> None:
    answers = [judgement("x", {"a": 1, "b": 2}), judgement("y", {"a": 1, "b": 1})]
    found = believe("r", "a", "b", Belief(0.2, -0.4), answers)
    assert found == Preference("r", "b", "a", weight=0.6, judgements=("r-x", "r-y"), margin=0.4)
    assert believe("r", "a", "b", Belief(0.5001, 0.0), answers) is None, "a coin's throw"
    assert believe("r", "a", "b", Belief(0.9, 1.0), answers[1:]) is None, "only ties"


def test_reliability_weighs_people_where_majority_counts_heads() -> None:
    """Two agree on forty records, the third is against them; then the third is alone with one of them."""
    agreed = [comparison(f"r{number}", a="A", b="B") for number in range(40)]
    answers = [judgement(name, {"a": 1, "b": 2}, each.id) for each in agreed for name in "xy"]
    answers += [judgement("z", {"a": 2, "b": 1}, each.id) for each in agreed]
    split = comparison("split", a="A", b="B")
    answers += [judgement("x", {"a": 1, "b": 2}, "split"), judgement("z", {"a": 2, "b": 1}, "split")]
    by_majority, by_reliability = (to_preferences([*agreed, split], answers, each) for each in get_args(Method))
    assert by_majority.undecided == 1 and by_majority.reliability == []
    [found] = [each for each in by_reliability.preferences if each.record == "split"]
    assert found.chosen == "a" and found.weight > 0.8
    signs = {each.annotator: each.sensitivity > 0 for each in by_reliability.reliability}
    assert signs == {"x": True, "y": True, "z": False}
