"""Simulated annotators: noise of the stated law, ties, carelessness, discards, all reproducible."""

import math
from collections import Counter

import pytest

from labeling.simulated import SimulatedAnnotator


def test_without_noise_the_order_is_the_utility() -> None:
    annotator = SimulatedAnnotator("x", noise=0, tie_margin=0)
    assert annotator.rank("r", {"a": 0.1, "b": 2.0, "c": -1.0, "d": 0.1}) == {"b": 1, "a": 2, "d": 2, "c": 4}


def test_ties_are_measured_from_the_best_of_the_group() -> None:
    annotator = SimulatedAnnotator("x", noise=0, tie_margin=0.5)
    # b is 0.4 below a and ties; c is 0.8 below a, the best of its group, and does not, though 0.4 below b.
    assert annotator.rank("r", {"a": 2.0, "b": 1.6, "c": 1.2, "d": 1.0}) == {"a": 1, "b": 1, "c": 3, "d": 3}


@pytest.mark.parametrize("noise", [0.2, 0.5, 1.0])
def test_pairs_follow_bradley_terry(noise: float) -> None:
    """The difference of two Gumbel draws is logistic: P(a before b) = 1 / (1 + exp(-difference / noise))."""
    annotator = SimulatedAnnotator("x", noise=noise, tie_margin=0)
    wins = sum(annotator.rank(f"r{number}", {"a": 0.5, "b": 0.0})["a"] == 1 for number in range(4000))
    assert wins / 4000 == pytest.approx(1 / (1 + math.exp(-0.5 / noise)), abs=0.03)


def test_careless_annotators_ignore_the_utility() -> None:
    annotator = SimulatedAnnotator("x", careless=True)
    first = Counter(
        min(r := annotator.rank(f"r{n}", {"a": 9, "b": 0, "c": -9}), key=lambda k: r[k]) for n in range(3000)
    )
    assert all(900 < first[name] < 1100 for name in "abc")


def test_answers_depend_on_seed_name_and_record_only() -> None:
    utilities = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}
    annotator = SimulatedAnnotator("x", noise=1, seed=3)
    ranks = [annotator.rank(f"r{number}", utilities) for number in range(30)]
    assert ranks == [annotator.rank(f"r{number}", dict(reversed(utilities.items()))) for number in range(30)]
    for other in (SimulatedAnnotator("y", noise=1, seed=3), SimulatedAnnotator("x", noise=1, seed=4)):
        assert ranks != [other.rank(f"r{number}", utilities) for number in range(30)]


def test_discards_come_at_their_rate() -> None:
    annotator = SimulatedAnnotator("x", discard_rate=0.1)
    assert sum(annotator.discards(f"r{number}") for number in range(5000)) == pytest.approx(500, abs=80)
    assert not any(SimulatedAnnotator("x").discards(f"r{number}") for number in range(1000))
