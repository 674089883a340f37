"""The annotator-aware aggregation: its likelihood against sums and integrals, and annotators of known quality."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, get_args

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from labeling.comparison import Comparison, Completion, Judgement, LabelingError, compare
from labeling.quality.aggregation import Aggregation, aggregate
from labeling.quality.choices import Block, choices, grid
from labeling.quality.plackett_luce import Model
from labeling.rankings import Method, to_preferences
from labeling.simulated import SimulatedAnnotator

Truth = Mapping[str, Mapping[str, float]]


def worth(records: int, completions: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Record -> completion -> standard normal utility."""
    draw = random.Random(seed)
    return {f"r{n}": {f"r{n}-{k}": draw.gauss(0, 1) for k in range(completions)} for n in range(records)}


def comparisons_of(truth: Truth, **more: Any) -> list[Comparison]:
    return [compare(record, [], [Completion(name, name) for name in each], 0, **more) for record, each in truth.items()]


def judged(truth: Truth, *annotators: SimulatedAnnotator) -> list[Judgement]:
    return [said(record, who.name, who.rank(record, each)) for record, each in truth.items() for who in annotators]


def said(record: str, annotator: str, ranks: Mapping[str, int] | None, **more: Any) -> Judgement:
    status = "discarded" if ranks is None else "submitted"
    return Judgement(f"{record}/{annotator}", record, annotator, status, ranks, "v1", "", "", **more)


def someone(name: str, noise: float = 0.5, **how: Any) -> SimulatedAnnotator:
    return SimulatedAnnotator(name, noise=noise, **how)


def sensitivities(found: Aggregation) -> dict[str, float]:
    return {each.annotator: each.sensitivity for each in found.annotators}


def right(found: Aggregation, truth: Truth) -> float:
    """Share of pairs whose better completion is the more probable one."""
    hits = [
        (belief.probability > 0.5) == (truth[record][left] > truth[record][right])
        for record, pairs in found.beliefs.items()
        for (left, right), belief in pairs.items()
    ]
    return sum(hits) / len(hits)


def block_of(size: int, rows: Sequence[tuple[int, int, tuple[int | None, ...]]]) -> Block:
    """(record, annotator, ranks) as a block."""
    told = [(record, annotator, choices(ranks)) for record, annotator, ranks in rows]
    met = np.array([(record, who, left) for record, who, (_, _, lefts) in told for left in lefts])
    return Block(
        size=size,
        records=max(record for record, _, _ in told) + 1,
        record=np.array([record for record, _, _ in told]),
        annotator=np.array([who for _, who, _ in told]),
        shares=np.array([each[0] for _, _, each in told]),
        tied=np.array([each[1] for _, _, each in told], dtype=float),
        choice_record=met[:, 0],
        choice_annotator=met[:, 1],
        choice_left=met[:, 2],
    )


def log_likelihood(model: Model, parameters: np.ndarray) -> float:
    return model.climb(parameters)[0] - model.prior(parameters)[0]


def test_a_ranking_is_a_row_of_choices() -> None:
    assert choices((1, 2, 3)) == ((1, 1, 0), 0, (0b111, 0b110))
    assert choices((2, 1, 1)) == ((0, 0.5, 0.5), 1, (0b111,)), "the last one left is no choice"
    assert choices((1, 1, 1)) == ((1 / 3, 1 / 3, 1 / 3), 2, (0b111,))
    assert choices((1, None, 4)) == ((1, 0, 0), 0, (0b101,)), "not ranked is not there, and gaps say nothing"


@pytest.mark.parametrize(("size", "orders"), [(2, 3), (3, 13), (4, 75)])
def test_the_probabilities_of_all_rankings_with_ties_are_one(size: int, orders: int) -> None:
    parameters = np.array([[1.3, -0.4]])
    rankings = {
        tuple(sorted(set(ranks)).index(rank) + 1 for rank in ranks) for ranks in product(range(size), repeat=size)
    }
    assert len(rankings) == orders  # Fubini's numbers
    total = sum(np.exp(log_likelihood(Model([block_of(size, [(0, 0, ranks)])], 1), parameters)) for ranks in rankings)
    assert total == pytest.approx(1, abs=1e-5)


def test_the_likelihood_of_two_judgements_is_davidsons_integrated() -> None:
    """x prefers the first, y ties: an integral over the difference of the scores, normal with variance 2."""
    parameters = np.array([[2.0, -1.0], [0.7, 0.5]])

    def both(apart: float) -> float:
        logs = [np.array([sensitivity * apart / 2, -sensitivity * apart / 2, ties]) for sensitivity, ties in parameters]
        x, y = (np.exp(each) / np.exp(each).sum() for each in logs)
        return float(x[0] * y[2] * norm.pdf(apart, scale=np.sqrt(2)))

    expected, higher = quad(both, -12, 12)[0], quad(both, 0, 12)[0]
    block = block_of(2, [(0, 0, (1, 2)), (0, 1, (1, 1))])
    model = Model([block], 2)
    assert log_likelihood(model, parameters) == pytest.approx(np.log(expected), abs=2e-3)
    means, probabilities = model.beliefs(block, parameters)
    assert probabilities[0, 0, 1] == pytest.approx(higher / expected, abs=2e-3)
    assert means[0].sum() == pytest.approx(0, abs=1e-5)


def test_the_gradient_is_that_of_the_evidence() -> None:
    rows = [(0, 0, (1, 2, 3)), (0, 1, (2, 1, 1)), (1, 0, (3, 1, 2)), (1, 1, (3, None, 1)), (2, 1, (1, 1, 1))]
    model = Model([block_of(3, rows)], 2)
    at = np.array([[1.2, -0.5], [-0.6, 0.8]])
    gradient = model.climb(at)[1]
    for place in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[place] = 0.02
        slope = (model.climb(at + step)[0] - model.climb(at - step)[0]) / 0.04
        assert gradient[place] == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize("size", range(2, 9))
def test_points_are_spread_like_normals_and_prefer_nobody(size: int) -> None:
    points = grid(size, 4800)
    assert np.allclose(points.sum(axis=0), 0)
    assert np.allclose(points.mean(axis=1), 0), "with every point comes its opposite"
    expected = np.eye(size) - 1 / size
    assert np.abs(np.cov(points, bias=True) - expected).max() < 1e-6
    if size <= 4:
        assert np.allclose(np.sort(points[0]), np.sort(points[-1])), "and every order of it"


def test_turning_everybody_round_fits_as_well() -> None:
    block = block_of(3, [(0, 0, (1, 2, 3)), (0, 1, (2, 1, 1)), (1, 0, (3, 1, 2)), (1, 1, (3, 1, 1))])
    at = np.array([[1.2, -0.5], [-0.6, 0.8]])
    turned = at * [-1, 1]
    model = Model([block], 2)
    found = [log_likelihood(model, each) for each in (at, turned)]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_sensitivities_of_simulated_annotators_are_recovered() -> None:
    """Their Gumbel noise of scale s is Plackett-Luce with the sensitivity 1 / s."""
    truth = worth(1500, 3)
    noises = {"a": 0.5, "b": 0.8, "c": 1.25, "d": 2.5}
    found = aggregate(comparisons_of(truth), judged(truth, *(someone(*each) for each in noises.items())))
    estimated = sensitivities(found)
    assert estimated == pytest.approx({name: 1 / noise for name, noise in noises.items()}, rel=0.15)
    accuracies = [each.accuracy for each in found.annotators]
    assert accuracies == sorted(accuracies, reverse=True) and 0.5 < accuracies[-1] < accuracies[0] < 1


def test_careless_annotators_count_for_nothing_and_contrary_ones_are_turned_round() -> None:
    truth = worth(300, 4)
    careless, contrary = someone("careless", careless=True), someone("contrary", contrary=True)
    found = aggregate(comparisons_of(truth), judged(truth, someone("a"), someone("b"), careless, contrary))
    estimated = sensitivities(found)
    assert abs(estimated["careless"]) < 0.15
    assert estimated["contrary"] < -1.3 and min(estimated["a"], estimated["b"]) > 1.3
    [accuracy] = [each.accuracy for each in found.annotators if each.annotator == "contrary"]
    assert accuracy < 0.25
    assert right(found, truth) > 0.86
    by_majority = to_preferences(comparisons_of(truth), judged(truth, someone("a"), someone("b"), careless, contrary))
    hits = sum(truth[each.record][each.chosen] > truth[each.record][each.rejected] for each in by_majority.preferences)
    assert hits / (300 * 6) < 0.7


def test_probabilities_are_as_often_right_as_they_say() -> None:
    truth = worth(800, 3)
    crowd = [someone("a", 0.4), someone("b", 1.0), someone("c", careless=True), someone("d", 1.5)]
    found = aggregate(comparisons_of(truth), judged(truth, *crowd))
    stated = np.array([each.probability for pairs in found.beliefs.values() for each in pairs.values()])
    happened = np.array([truth[r][a] > truth[r][b] for r, pairs in found.beliefs.items() for a, b in pairs])
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1)):
        here = (stated >= low) & (stated < high)
        error = 3 * np.sqrt(0.25 / here.sum())
        assert stated[here].mean() == pytest.approx(happened[here].mean(), abs=error)


def opposition(size: int) -> tuple[dict[str, dict[str, float]], list[Judgement]]:
    truth = worth(150, size)
    judgements = []
    for record, each in truth.items():
        ranks = someone("a", 0.3).rank(record, each)
        judgements += [said(record, "a", ranks), said(record, "z", {name: -rank for name, rank in ranks.items()})]
    return truth, judgements


def test_two_in_perfect_opposition_cancel_out() -> None:
    truth, judgements = opposition(2)
    found = aggregate(comparisons_of(truth), judgements)
    assert all(abs(2 * pair.probability - 1) < 0.02 for pairs in found.beliefs.values() for pair in pairs.values())


@pytest.mark.parametrize("size", [2, 3])
def test_gold_tells_who_of_two_opposites_is_right(size: int) -> None:
    truth, judgements = opposition(size)
    gold = {f"g{n}": each for n, each in enumerate(worth(8, size, seed=1).values())}
    comparisons = comparisons_of(truth)
    for record, each in gold.items():
        expected = {name: place for place, name in enumerate(sorted(each, key=lambda name: -each[name]), 1)}
        comparisons += comparisons_of({record: each}, kind="gold", expected=expected)
        for name, turn in (("a", -1), ("z", 1)):  # here z is right
            judgements.append(said(record, name, {completion: turn * rank for completion, rank in expected.items()}))
    found = aggregate(comparisons, judgements)
    assert sensitivities(found)["z"] > 1 and sensitivities(found)["a"] < -1
    assert right(found, truth) < 0.2, "z's order, which is the wrong way round, is believed"
    assert not set(gold) & set(found.beliefs), "gold comparisons are for annotators, not for learning"


def test_one_annotator_is_believed_and_never_surely() -> None:
    truth = worth(100, 4)
    judgements = judged(truth, someone("a"))
    alone = to_preferences(comparisons_of(truth), judgements, "reliability")
    majority = to_preferences(comparisons_of(truth), judgements)
    pairs = [{(each.record, each.chosen, each.rejected) for each in found.preferences} for found in (alone, majority)]
    assert pairs[0] == pairs[1]
    assert all(0.1 < each.weight < 0.97 for each in alone.preferences)
    first_to_last = [each.weight for each in alone.preferences if each.margin > 0.8]
    next_to_next = [each.weight for each in alone.preferences if each.margin < 0.4]
    assert min(first_to_last) > max(next_to_next)


@pytest.mark.parametrize("crowd", ["abc", "abcde"])
def test_all_careless_are_hardly_believed(crowd: str) -> None:
    truth = worth(300, 4)
    judgements = judged(truth, *(someone(name, careless=True) for name in crowd))
    weights = {
        method: sum(each.weight for each in to_preferences(comparisons_of(truth), judgements, method).preferences)
        for method in get_args(Method)
    }
    assert weights["reliability"] < 0.6 * weights["majority"]


def test_ties_and_missing_ranks() -> None:
    """In every record: a above b for both; c tied with d for both; e is ranked by y only."""
    truth = {f"r{n}": dict.fromkeys("abcde", 0.0) for n in range(30)}
    judgements = []
    for record in truth:
        judgements.append(said(record, "x", {"a": 1, "b": 2, "c": 3, "d": 3}))
        judgements.append(said(record, "y", {"a": 1, "b": 2, "c": 3, "d": 3, "e": 5}))
    outcome = to_preferences(comparisons_of(truth), judgements, "reliability")
    found = {(each.chosen, each.rejected): each for each in outcome.preferences if each.record == "r0"}
    assert set(found) == {*combinations("abc", 2), ("a", "d"), ("b", "d"), *((name, "e") for name in "abcd")}
    assert outcome.undecided == 30, "c and d, tied by everybody"
    assert found["a", "b"].judgements == ("r0/x", "r0/y") and found["a", "e"].judgements == ("r0/y",)
    assert found["a", "d"].weight == pytest.approx(found["a", "c"].weight, abs=0.03)
    assert found["a", "d"].margin > found["a", "b"].margin > 0
    learnt = {each.annotator: each for each in outcome.reliability}
    assert learnt["x"].judgements == 30 and learnt["x"].ties > -2


def test_a_tie_takes_from_the_certainty_of_a_pair() -> None:
    truth = worth(200, 2)
    judgements = judged(truth, someone("a", tie_margin=0.5), someone("b", tie_margin=0.5))
    outcome = to_preferences(comparisons_of(truth), judgements, "reliability")
    by_record: dict[str, list[bool]] = {}
    for each in judgements:
        ranks = list((each.ranks or {}).values())
        by_record.setdefault(each.record, []).append(ranks[0] == ranks[1])
    ties = {each.record: sum(by_record[each.record]) for each in outcome.preferences}
    both = [each.weight for each in outcome.preferences if ties[each.record] == 0 and each.weight > 0.5]
    one = [each.weight for each in outcome.preferences if ties[each.record] == 1]
    assert one and max(one) < min(both)
    assert outcome.undecided >= sum(all(each) for each in by_record.values())


def test_same_texts_are_one_completion() -> None:
    completions = [Completion("a", "Yes."), Completion("b", "No."), Completion("c", "Yes. ")]
    comparison = compare("r", [], completions, 0)
    found = aggregate([comparison], [said("r", "x", {"a": 1, "b": 2, "c": 3})])
    assert set(found.beliefs["r"]) == {("a", "b"), ("b", "c")}
    assert found.beliefs["r"]["a", "b"].probability == pytest.approx(1 - found.beliefs["r"]["b", "c"].probability)
    assert found.beliefs["r"]["a", "b"].probability > 0.6, "the better place counts"
    same = compare("s", [], [Completion("a", "Yes."), Completion("b", "Yes.")], 0)
    assert aggregate([same], [said("s", "x", {"a": 1, "b": 2})]).beliefs == {}


def test_what_says_nothing_is_not_heard() -> None:
    truth = worth(3, 2)
    repeats = comparisons_of({"again": {"p": 0.0, "q": 0.0}}, kind="repeat", source="r0")
    judgements = [
        *judged({"r0": truth["r0"]}, someone("a")),
        said("r1", "a", None),
        said("r2", "b", {name: place for place, name in enumerate(truth["r2"], 1)}, flags=("cannot_judge",)),
        said("again", "c", {"p": 1, "q": 2}),
    ]
    found = aggregate([*comparisons_of(truth), *repeats], judgements)
    assert set(found.beliefs) == {"r0"} and set(sensitivities(found)) == {"a"}
    nothing = aggregate(comparisons_of(truth), [])
    assert nothing.beliefs == {} and nothing.annotators == []


def test_one_ranked_completion_is_no_order() -> None:
    truth = worth(2, 3)
    found = to_preferences(comparisons_of(truth), [said("r0", "x", {"r0-0": 1}), said("r1", "x", {})], "reliability")
    assert (found.preferences, found.undecided, found.unjudged, found.discarded) == ([], 3, 1, 1)


def test_the_same_judgements_give_the_same_beliefs() -> None:
    truth = worth(60, 3)
    judgements = judged(truth, someone("a"), someone("b", 1.0))
    first, second = (aggregate(comparisons_of(truth), judgements) for _ in range(2))
    assert first == second
    shuffled = aggregate(comparisons_of(truth), random.Random(0).sample(judgements, len(judgements)))
    assert sensitivities(shuffled) == pytest.approx(sensitivities(first), abs=0.01)


def test_records_of_two_to_eight_completions_go_together() -> None:
    truth = {f"{size}{name}": each for size in (2, 3, 5, 8) for name, each in worth(40, size, seed=size).items()}
    judgements = judged(truth, someone("a", 0.4), someone("b", 0.8), someone("x", careless=True))
    found = aggregate(comparisons_of(truth), judgements)
    assert set(found.beliefs) == set(truth)
    assert all(0 <= pair.probability <= 1 for pairs in found.beliefs.values() for pair in pairs.values())
    assert right(found, truth) > 0.82
    estimated = sensitivities(found)
    assert estimated["a"] > estimated["b"] > 0.6 and abs(estimated["x"]) < 0.3


def test_ranks_of_something_else_are_refused() -> None:
    comparisons = comparisons_of(worth(1, 2))
    with pytest.raises(LabelingError, match="Judgement r0/x ranks 'other', which is no completion of r0"):
        aggregate(comparisons, [said("r0", "x", {"r0-0": 1, "other": 2})])
    with pytest.raises(LabelingError, match="no completion of r0"):
        to_preferences(comparisons, [said("r0", "x", {"r0-0": 1, "other": 2})])
