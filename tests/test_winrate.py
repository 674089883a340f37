"""Win rates, intervals and distinct-n against values worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.best_of import best_of_n, curve
from tasks.evaluation.text import distinct_n
from tasks.evaluation.winrate import bootstrap, win_rates


def test_win_rate_counts_all_pairs_and_ties_half() -> None:
    # prompt 0: (1 v 0) win, (1 v 1) tie, (2 v 0) win, (2 v 1) win -> 3.5 / 4; prompt 1: one loss
    assert win_rates([[1, 2], [0]], [[0, 1], [3]]).tolist() == [0.875, 0]
    assert win_rates([[1.0]], [[1.0, 1.0, 1.0]]).tolist() == [0.5]


scores = st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=4), min_size=1, max_size=6)


@given(scores, st.randoms())
def test_the_two_sides_of_a_comparison_add_up_to_one(ours: list[list[int]], rng) -> None:
    theirs = [rng.choices(range(-2, 3), k=rng.randint(1, 4)) for _ in ours]
    assert win_rates(ours, theirs) + win_rates(theirs, ours) == pytest.approx(np.ones(len(ours)))
    assert win_rates(ours, ours) == pytest.approx(np.full(len(ours), 0.5))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts cannot be compared with 1"):
        win_rates([[1], [2]], [[1]])
    with pytest.raises(ValueError, match="prompt 1 has no completion"):
        win_rates([[1], []], [[1], [1]])


def test_bootstrap_of_a_coin_has_the_binomial_interval() -> None:
    # 100 prompts, 40 won: mean .4, standard error sqrt(.4 * .6 / 100) = .049, interval .4 -+ 1.96 * .049
    interval = bootstrap([1.0] * 40 + [0.0] * 60, 20_000, seed=0)
    assert interval["mean"] == pytest.approx(0.4)
    assert (interval["low"], interval["high"]) == pytest.approx((0.304, 0.496), abs=0.011)
    assert interval == bootstrap([1.0] * 40 + [0.0] * 60, 20_000, seed=0)


def test_bootstrap_narrows_with_prompts_and_with_confidence() -> None:
    few, many = bootstrap([0, 1] * 10, 2000, 0), bootstrap([0, 1] * 1000, 2000, 0)
    assert few["high"] - few["low"] > 5 * (many["high"] - many["low"])
    half = bootstrap([0, 1] * 10, 2000, 0, confidence=0.5)
    assert few["low"] < half["low"] <= half["mean"] <= half["high"] < few["high"]


def test_bootstrap_draws_in_blocks_as_it_draws_at_once() -> None:
    values = np.random.default_rng(1).normal(size=3_000)
    interval = bootstrap(values, 1500, seed=2)  # 4.5 million indices: three blocks
    error = values.std() / 3000**0.5
    assert interval["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert interval["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_bootstrap_of_one_prompt_nothing_and_not_a_number() -> None:
    assert bootstrap([0.7], 100, 0) == pytest.approx({"mean": 0.7, "low": 0.7, "high": 0.7})
    with pytest.raises(ValueError, match="nothing to average"):
        bootstrap([], 100, 0)
    assert all(np.isnan(bootstrap([0.5, float("nan")], 100, 0)[bound]) for bound in ("mean", "low", "high"))


@pytest.mark.parametrize(
    ("texts", "n", "value"),
    [
        (["the tea is here", "The tea is there"], 1, 5 / 8),
        (["the tea is here", "The tea is there"], 2, 4 / 6),
        (["a a a a"], 2, 1 / 3),
        (["one"], 2, 0.0),
        ([], 2, 0.0),
    ],
)
def test_distinct_n(texts: list[str], n: int, value: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(value)


def test_best_of_n_by_hand() -> None:
    proxy, truth = [3.0, 1.0, 2.0], [0.0, 10.0, 20.0]
    assert best_of_n(proxy, truth, 1) == pytest.approx((2.0, 10.0))
    # Of two: {1, 2} gives the 2, {1, 3} and {2, 3} give the 3.
    assert best_of_n(proxy, truth, 2) == pytest.approx((8 / 3, 20 / 3))
    assert best_of_n(proxy, truth, 3) == pytest.approx((3.0, 0.0))
    assert best_of_n([1.0, 1.0, 0.0], [0.0, 4.0, 9.0], 3) == pytest.approx((1.0, 2.0)), "a tie is settled by chance"
    for n in (0, 4):
        with pytest.raises(ValueError, match="cannot be drawn"):
            best_of_n(proxy, truth, n)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    rng = np.random.default_rng(n)
    proxy, truth = rng.integers(0, 4, 7).astype(float), rng.normal(size=7)
    values = []
    for some in combinations(range(7), n):
        best = [i for i in some if proxy[i] == max(proxy[list(some)])]
        values.append((proxy[best[0]], truth[best].mean()))
    assert best_of_n(list(proxy), list(truth), n) == pytest.approx(tuple(np.mean(values, axis=0)))


def test_the_curve_goes_as_far_as_the_fewest_completions() -> None:
    rows = curve([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], 100, 0)
    assert [row["n"] for row in rows] == [1, 2, 3] and all(row["proxy"] == row["truth"] for row in rows)
    assert [row["kl"] for row in rows] == pytest.approx([0.0, np.log(2) - 1 / 2, np.log(3) - 2 / 3])
