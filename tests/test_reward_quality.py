"""How good a reward model is, by hand; and the bar it must reach before anything is optimised against it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tasks.artifact import PipelineError
from tasks.training.reward import RewardBar, RewardRecipe, check_bar
from tasks.training.reward_quality import HeldOut, bootstrap, by_part, length_bias, quality, reliability


def test_quality_by_hand() -> None:
    report, _ = quality([[2.0, -1.0], [0.5, 0.0]], seed=0)
    assert report["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    confidences = [1 / (1 + math.exp(-x)) for x in (2.0, 1.0, 0.5, 0.0)]
    error = sum(abs(c - right) for c, right in zip(confidences, (1, 0, 1, 0.5), strict=True)) / 4  # each in its own bin
    assert report["calibration_error"] == pytest.approx(error)
    assert report["log_loss"] == pytest.approx(sum(math.log1p(math.exp(-x)) for x in (2.0, -1.0, 0.5, 0.0)) / 4)
    stated, happened, counts = reliability(np.array([0.1, 0.1, -0.1]))
    assert (
        counts.tolist() == [3] and happened[0] == pytest.approx(2 / 3) and stated[0] == pytest.approx(0.52498, abs=1e-4)
    )


def test_accuracy_by_part_by_hand() -> None:
    def pair(apart: float, weight: float, stratum: str, lengths: tuple[int, int], prompt: int = 0) -> HeldOut:
        return HeldOut(prompt, apart, weight, stratum, *lengths)

    pairs = [
        pair(1.0, 1.0, "price", (10, 10)),
        pair(-1.0, 0.3, "price", (20, 10), 1),
        pair(2.0, 0.5, "aisle", (5, 9), 2),
        pair(0.0, 0.5, "aisle", (20, 19), 3),
    ]
    found = {(row["part"], row["value"]): (row["pairs"], row["accuracy"]) for row in by_part(pairs, seed=0)}
    assert found == {
        ("stratum", "aisle"): (2, 0.75),
        ("stratum", "price"): (2, 0.5),
        ("agreement", "hardly"): (1, 0.0),
        ("agreement", "mostly"): (2, 0.75),
        ("agreement", "clearly"): (1, 1.0),
        ("length", "alike"): (2, 0.75),
        ("length", "the better is longer"): (1, 0.0),
        ("length", "the better is shorter"): (1, 1.0),
    }
    one = [replace(each, stratum="") for each in pairs]
    assert not [row for row in by_part(one, seed=0) if row["part"] == "stratum"], "one part is no part"


def test_length_bias_is_within_prompts() -> None:
    assert length_bias([[1.0, 2.0, 3.0], [9.0, 8.0]], [[5, 6, 7], [50, 49]]) == pytest.approx(1.0)
    assert length_bias([[2.0, 1.0], [4.0, 3.0]], [[5, 6], [7, 8]]) == pytest.approx(-1.0)
    assert length_bias([[2.0, 1.0]], [[5, 5]]) is None, "lengths that do not differ say nothing"
    assert length_bias([[1.0], [2.0]], [[5], [9]]) is None, "nor do single completions"


@pytest.mark.parametrize(
    ("bar", "words"),
    [
        (RewardBar(), "its accuracy on held-out pairs is 0.450, below 0.5"),
        (RewardBar(accuracy=0.4, accuracy_low=0.42), "the lower bound of its accuracy on held-out pairs is 0.410"),
        (RewardBar(accuracy=0, calibration_error=0.1), "its calibration error is 0.200, over 0.1"),
        (RewardBar(accuracy=0, length_correlation=0.5), "its correlation with length is -0.700, over 0.5 either way"),
    ],
)
def test_a_reward_model_below_its_bar_is_told(bar: RewardBar, words: str) -> None:
    figures = {"accuracy": 0.45, "accuracy_low": 0.41, "calibration_error": 0.2, "length_correlation": -0.7}
    found = {f"validation/{name}": value for name, value in figures.items()}
    with pytest.raises(PipelineError, match=words):
        check_bar(bar, found)
    check_bar(RewardBar(accuracy=0.45, accuracy_low=0.4, calibration_error=0.2, length_correlation=0.7), found)
    with pytest.raises(PipelineError, match="there is no held-out pair"):
        check_bar(RewardBar(), {})


def test_the_bar_is_no_part_of_what_is_trained() -> None:
    strict = RewardRecipe(bar=RewardBar(accuracy=0.9), epochs=2)
    assert strict.trained == RewardRecipe(epochs=2) and strict.trained != RewardRecipe()


def test_one_prompt_says_nothing_of_others() -> None:
    report, _ = quality([[2.0, 1.0, 0.5]], seed=0)
    assert (report["accuracy"], report["accuracy_low"], report["accuracy_high"]) == (1, 0, 1)


def test_the_interval_is_over_prompts_not_pairs() -> None:
    same = [np.array([float(n % 2)] * 50) for n in range(10)]
    low, high = bootstrap(same, seed=0)
    assert high - low > 0.5  # ten prompts, not five hundred pairs
