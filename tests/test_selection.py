"""What is worth people's time: budgets, strata, spread, and what a reward model does not know."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.comparison import LabelingError
from labeling.information import (
    Pairs,
    best_shown,
    bootstrap_heads,
    designs,
    disagreement,
    fit_head,
    likeliest,
    most_informative,
    principal,
    ranking_share,
    uncertainty,
)
from labeling.selection import (
    Budget,
    at_random,
    crowding,
    equal_parts,
    ngram_vectors,
    proportional_parts,
    shuffled,
    some_of,
    spread,
    stratified,
    unit,
)

IDS = [f"{number:04x}" for number in range(200)]


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "records"),
    [
        (Budget(), 50),
        (Budget(judgements=30, overlap=3), 10),
        (Budget(judgements=32, overlap=3), 10),
        (Budget(judgements=1000, overlap=3), 50),  # no more than there are
        (Budget(hours=1, seconds=90, overlap=2), 20),  # 40 judgements
        (Budget(judgements=30, hours=0.5, seconds=60, overlap=1), 30),
        (Budget(judgements=31, hours=0.5, seconds=60, overlap=1), 30),
        (Budget(hours=0.1, seconds=0.1, overlap=100), 36),  # 3600 judgements, not 3599 by rounding
        (Budget(judgements=30, overlap=2, repeats=0.2), 12),  # 12 + 3 repeats, 13 + 3 would be 32 judgements
        (Budget(judgements=3, overlap=3), 1),
    ],
)
def test_a_budget_pays_for_so_many_records(budget: Budget, records: int) -> None:
    assert budget.records(50) == records


def test_a_budget_that_pays_for_nothing_says_so() -> None:
    with pytest.raises(LabelingError, match="budget of 2 judgements does not pay for one record, which takes 3"):
        Budget(judgements=2, overlap=3).records(50)
    with pytest.raises(LabelingError, match="which takes 6"):  # its repeat too
        Budget(judgements=5, overlap=3, repeats=0.1).records(50)
    assert Budget(judgements=1, overlap=3).records(0) == 0


@given(st.integers(1, 300), st.integers(1, 5), st.floats(0, 0.5), st.integers(0, 80))
def test_a_budget_is_used_and_never_exceeded(judgements: int, overlap: int, repeats: float, pool: int) -> None:
    budget = Budget(judgements=judgements, overlap=overlap, repeats=repeats)
    if pool and budget.cost(1) > judgements:
        return
    count = budget.records(pool)
    assert budget.cost(count) <= judgements or count == 0
    assert count == pool or budget.cost(count + 1) > judgements


# --- random and stratified -------------------------------------------------------------------------------------------


def test_random_draws_are_nested_and_do_not_change_with_the_order_of_the_pool() -> None:
    few, many = ({IDS[each.place] for each in at_random(IDS, count, 7)} for count in (20, 60))
    assert len(few) == 20 and few < many
    assert {IDS[::-1][each.place] for each in at_random(IDS[::-1], 20, 7)} == few
    assert {IDS[each.place] for each in at_random(IDS, 20, 8)} != few
    assert sorted(shuffled(IDS, 0)) == list(range(200))
    assert at_random([], 5, 0) == [] and len(at_random(IDS, 500, 0)) == 200


def test_strata_in_proportion_by_largest_remainders() -> None:
    # 10 of 7 + 2 + 1 in 21 + 6 + 3: 7, 2 and 1; of 4: 2.8, 0.8, 0.4 -> 3, 1, 0
    assert proportional_parts({"a": 21, "b": 6, "c": 3}, 10) == {"a": 7, "b": 2, "c": 1}
    assert proportional_parts({"a": 21, "b": 6, "c": 3}, 4) == {"a": 3, "b": 1, "c": 0}
    assert proportional_parts({"a": 21, "b": 6, "c": 3}, 99) == {"a": 21, "b": 6, "c": 3}


def test_strata_by_equal_parts_share_what_a_small_one_lacks() -> None:
    assert equal_parts({"a": 21, "b": 6, "c": 1}, 9) == {"a": 4, "b": 4, "c": 1}
    assert equal_parts({"a": 21, "b": 6, "c": 1}, 99) == {"a": 21, "b": 6, "c": 1}
    assert equal_parts({}, 3) == {}


@given(st.dictionaries(st.text(max_size=2), st.integers(1, 30), max_size=6), st.integers(0, 120))
def test_parts_of_strata_add_up_and_fit(sizes: dict[str, int], count: int) -> None:
    for parts in (equal_parts(sizes, count), proportional_parts(sizes, count) if sizes else {}):
        assert sum(parts.values()) == min(count, sum(sizes.values()))
        assert all(0 <= parts[name] <= sizes[name] for name in sizes)
    if sizes:
        total = sum(sizes.values())
        for name, part in proportional_parts(sizes, count).items():
            assert abs(part - min(count, total) * sizes[name] / total) < 1


def test_a_stratified_sample_holds_its_parts() -> None:
    strata = ["common" if number % 4 else "rare" for number in range(200)]
    picked = stratified(IDS, strata, 40, 3)
    assert sum(strata[each.place] == "rare" for each in picked) == 10
    assert sum(strata[each.place] == "rare" for each in stratified(IDS, strata, 40, 3, equal=True)) == 20
    assert len({each.place for each in picked}) == 40 and "stratum" in picked[0].why
    assert picked == stratified(IDS, strata, 40, 3) != stratified(IDS, strata, 40, 4)


# --- diversity -------------------------------------------------------------------------------------------------------

ONE_QUESTION = [
    "Which aisle has the bread?", "Which aisle has the bread, please?", "which aisle has the bread",
    "Please, which aisle has the bread?", "Which aisle is the bread in?", "In which aisle is the bread?",
    "Which aisle has bread?", "Hello, which aisle has the bread?", "The bread, which aisle is it in?",
    "What aisle has the bread?",
]  # fmt: skip
OTHERS = [
    "When is the milk delivered?", "How much do I pay for honey?", "May dogs come in?", "Who owns this shop?",
]  # fmt: skip


def test_a_batch_is_not_one_question_ten_times() -> None:
    vectors = ngram_vectors([*ONE_QUESTION, *OTHERS])
    chosen = [place for place, _ in spread(vectors, 5)]
    assert {10, 11, 12, 13} < set(chosen)
    assert crowding(vectors, chosen) < 0.3 < crowding(vectors, range(5))


def test_what_was_taken_before_is_kept_away_from() -> None:
    vectors = ngram_vectors([*ONE_QUESTION, *OTHERS])
    chosen = [place for place, _ in spread(vectors, 3, taken=vectors[[10, 12]])]
    assert not {10, 12} & set(chosen) and {11, 13} < set(chosen)


def test_worth_and_unlikeness_are_weighed() -> None:
    vectors = unit(np.array([[1.0, 0], [1, 0.01], [0.9, 0.1], [0, 1]]))
    worth = np.array([4.0, 3, 2, 1])
    assert [place for place, _ in spread(vectors, 3, worth=worth, diversity=0)] == [0, 1, 2]
    assert [place for place, _ in spread(vectors, 2, worth=worth, diversity=0.6)] == [0, 3]
    assert spread(vectors, 1, worth=worth)[0] == (0, -1.0)
    # the farthest first: 0, then 3 (similarity 0), then the one least like both
    assert [place for place, _ in spread(vectors, 4)] == [0, 3, 2, 1]
    assert spread(vectors, 4)[1][1] == pytest.approx(0)


def test_only_the_order_of_worth_counts_and_equal_worth_is_equal() -> None:
    vectors = unit(np.array([[1.0, 0], [1, 0.1], [0, 1]]))
    for worth in ([1, 2, 3], [1, 2, 1000], [-5, 0, 0.1]):
        found = spread(vectors, 3, worth=np.array(worth, dtype=float), diversity=0.3)
        assert [place for place, _ in found] == [2, 1, 0]
    same = spread(vectors, 3, worth=np.ones(3), diversity=0.3)
    assert [place for place, _ in same] == [place for place, _ in spread(vectors, 3)]


def test_identical_records_are_all_chosen_in_the_end() -> None:
    vectors = ngram_vectors(["the same"] * 6)
    assert sorted(place for place, _ in spread(vectors, 10)) == list(range(6))
    assert spread(vectors, 10)[1][1] == pytest.approx(1.0)
    assert spread(ngram_vectors([]), 3) == [] and crowding(vectors, [0]) == 0
    assert crowding(vectors, range(6)) == pytest.approx(1)
    assert np.isfinite(ngram_vectors(["", "?!"])).all()


def test_different_completions_are_shown_before_equal_ones() -> None:
    texts = ["a", "a ", "b", "a", "c", "b"]
    for seed in range(20):
        shown = some_of(texts, 3, seed, "row")
        assert {texts[place].strip() for place in shown} == {"a", "b", "c"} and shown == sorted(shown)
    assert len({tuple(some_of(texts, 2, seed, "row")) for seed in range(20)}) > 3
    assert len(some_of(texts, 5, 0, "row")) == 5


# --- heads -----------------------------------------------------------------------------------------------------------


def some_pairs(prompts: int = 60, dimensions: int = 4, seed: int = 0) -> tuple[Pairs, np.ndarray]:
    """Pairs drawn from a known head."""
    generator = np.random.default_rng(seed)
    head = generator.standard_normal(dimensions) * 3
    apart = generator.standard_normal((prompts * 2, dimensions))
    likely = 1 / (1 + np.exp(-(apart @ head)))
    apart *= np.where(generator.random(len(apart)) < likely, 1, -1)[:, None]
    return Pairs(apart, np.ones(len(apart)), np.repeat(np.arange(prompts), 2)), head


def test_one_pair_by_hand() -> None:
    # -log sigmoid(w) + w^2 / 2 is least where 1 - sigmoid(w) = w
    posterior = fit_head(Pairs(np.array([[1.0]]), np.ones(1), np.zeros(1, dtype=int)), 1.0)
    [w] = posterior.head
    assert w == pytest.approx(1 / (1 + math.exp(w)), abs=1e-6) == pytest.approx(0.401058, abs=1e-5)
    assert posterior.covariance[0, 0] == pytest.approx(1 / (1 + w * (1 - w)), rel=1e-6)
    log_likelihood = math.log(1 - w) - w * w / 2
    assert posterior.evidence == pytest.approx(log_likelihood - math.log(1 + w * (1 - w)) / 2, abs=1e-6)


def test_the_head_is_found_and_its_slope_is_zero() -> None:
    pairs, head = some_pairs(400)
    found = fit_head(pairs, 0.1).head
    assert found @ head / np.linalg.norm(found) / np.linalg.norm(head) > 0.97
    slope = pairs.apart.T @ (1 / (1 + np.exp(pairs.apart @ found))) - 0.1 * found
    assert abs(slope).max() < 1e-2
    everything = fit_head(Pairs(np.full((5, 1), 1e4), np.ones(5), np.arange(5)), 1e-6)  # separable, far out
    assert np.isfinite(everything.head).all()


def test_a_weight_of_two_is_a_pair_twice() -> None:
    pairs, _ = some_pairs(10)
    twice = Pairs(np.concatenate([pairs.apart] * 2), np.ones(40), np.concatenate([pairs.prompts] * 2))
    heavy = Pairs(pairs.apart, 2 * pairs.weights, pairs.prompts)
    np.testing.assert_allclose(fit_head(twice, 1).head, fit_head(heavy, 1).head, atol=1e-8)


def test_strong_preferences_speak_for_a_wide_prior_and_coins_for_a_narrow_one() -> None:
    pairs, _ = some_pairs(100)
    generator = np.random.default_rng(1)
    coins = Pairs(generator.standard_normal((200, 4)), np.ones(200), np.arange(200))
    assert likeliest(pairs).precision <= 1 < likeliest(coins).precision


def test_heads_are_judged_by_pairs_they_have_not_seen() -> None:
    pairs, _ = some_pairs(100)
    ensemble = bootstrap_heads(pairs, 6, 0, 0.3)
    assert ensemble.heads.shape == (6, 4) and 0.7 < ensemble.accuracy < 1
    assert len(np.unique(ensemble.heads[:, 0])) == 6
    np.testing.assert_array_equal(ensemble.heads, bootstrap_heads(pairs, 6, 0, 0.3).heads)
    generator = np.random.default_rng(1)
    coins = Pairs(generator.standard_normal((300, 4)), np.ones(300), np.arange(300))
    assert 0.35 < bootstrap_heads(coins, 6, 0, 0.3).accuracy < 0.65
    alone = Pairs(pairs.apart[:2], pairs.weights[:2], pairs.prompts[:2])
    assert math.isnan(bootstrap_heads(alone, 3, 0, 0.3).accuracy)


# --- disagreement and information ------------------------------------------------------------------------------------


def test_disagreement_by_hand() -> None:
    rewards = np.array([[[0.0, math.log(3), 0.0], [0.0, -math.log(3), 0.0]]])  # two members, three completions
    apart = disagreement(rewards)
    assert apart[0, 0, 1] == pytest.approx(0.25)  # probabilities 1/4 and 3/4
    assert apart[0, 0, 2] == 0 and apart[0, 1, 2] == pytest.approx(0.25)
    np.testing.assert_allclose(apart, np.swapaxes(apart, 1, 2), atol=1e-12)


def test_the_pair_the_ensemble_disagrees_on_is_shown() -> None:
    # all members agree that completion 0 is best; about 1 and 3 they do not
    rewards = np.array([[[9.0, 1, 0, -1], [9, -1, 0, 1], [9, 2, 0, -2]]])
    assert best_shown(disagreement(rewards), 2).tolist() == [[1, 3]]
    assert best_shown(disagreement(rewards), 3).tolist() == [[1, 2, 3]]
    assert best_shown(disagreement(rewards), 4).tolist() == [[0, 1, 2, 3]]
    assert best_shown(np.zeros((2, 4, 4)), 3).shape == (2, 3)  # nothing to tell: any three different ones
    assert len(set(best_shown(np.zeros((1, 4, 4)), 3)[0])) == 3
    alike = np.eye(4, dtype=bool)[None]
    alike[0, 1, 0] = alike[0, 0, 1] = alike[0, 3, 1] = alike[0, 1, 3] = alike[0, 0, 3] = alike[0, 3, 0] = True
    assert best_shown(np.array([[[0.0, 0, 1, 0], [0, 0, 3, 0], [1, 3, 0, 2], [0, 0, 2, 0]]]), 2, alike).tolist() == [
        [1, 2]
    ]
    assert best_shown(np.ones((1, 4, 4)), 3, alike).shape == (1, 3)  # two texts, three to show


def test_a_pair_tells_most_where_it_is_open_and_in_an_unknown_direction() -> None:
    posterior = fit_head(some_pairs(200, 2)[0], 1.0)
    sure, unsure = np.linalg.eigh(posterior.covariance)[1].T
    level = np.array([-posterior.head[1], posterior.head[0]]) / np.linalg.norm(
        posterior.head
    )  # no difference in reward
    told = uncertainty(np.array([[0 * sure, sure], [0 * sure, unsure]]), posterior)[:, 0, 1]
    expected = [v @ posterior.covariance @ v * _open(v @ posterior.head) for v in (sure, unsure)]
    np.testing.assert_allclose(told, expected, rtol=1e-9)
    features = np.array([[0 * level, level], [0 * level, level + 20 * posterior.head]])
    open_, decided = uncertainty(features, posterior)[:, 0, 1]
    assert open_ > decided


def _open(reward: float) -> float:
    return math.exp(reward) / (1 + math.exp(reward)) ** 2


def test_information_of_a_pair_and_of_a_ranking_by_hand() -> None:
    assert [ranking_share(k) for k in (2, 3, 4)] == pytest.approx([1, 7 / 9, 23 / 36])
    head = np.array([0.5, -0.2, 0.1])
    features = np.random.default_rng(0).standard_normal((1, 4, 3))
    [design] = designs(features, head)
    expected = np.zeros((3, 3))
    for a, b in itertools.combinations(features[0], 2):
        expected += _open((a - b) @ head) * np.outer(a - b, a - b) * 23 / 36
    np.testing.assert_allclose(design.T @ design, expected, atol=1e-12)


def test_the_information_of_a_ranking_is_that_of_its_probabilities() -> None:
    # Plackett and Luce with equal utilities: the expected outer product of the score, over all 24 orders
    features = np.random.default_rng(1).standard_normal((4, 2))
    fisher = np.zeros((2, 2))
    for order in itertools.permutations(range(4)):
        score = sum(features[order[k]] - features[list(order[k:])].mean(axis=0) for k in range(3))
        fisher += np.outer(score, score) / 24
    [design] = designs(features[None], np.zeros(2))
    np.testing.assert_allclose(design.T @ design, fisher, atol=1e-12)


def test_lazy_greedy_is_greedy() -> None:
    records = np.random.default_rng(0).standard_normal((30, 2, 5))
    covariance = np.diag([3.0, 2, 1, 1, 0.5])
    found = most_informative(records, covariance, 8)
    precision, left = np.linalg.inv(covariance), list(range(30))
    for place, nats in found:
        gains = {
            each: (np.linalg.slogdet(precision + records[each].T @ records[each])[1] - np.linalg.slogdet(precision)[1])
            / 2
            for each in left
        }
        assert place == max(gains, key=lambda each: gains[each]) and nats == pytest.approx(gains[place])
        precision += records[place].T @ records[place]
        left.remove(place)
    assert covariance[0, 0] == 3.0  # the caller's is left alone


def test_a_second_record_of_one_kind_tells_less() -> None:
    twins = np.array([[[2.0, 0]]] * 10 + [[[0, 1.0]]])
    found = most_informative(twins, np.eye(2), 3)
    assert [place for place, _ in found] == [0, 10, 1]
    assert found[0][1] == pytest.approx(math.log(5) / 2) and found[2][1] == pytest.approx(math.log(9 / 5) / 2)
    assert len(most_informative(twins, np.eye(2), 99)) == 11
    assert most_informative(twins[:0], np.eye(2), 3) == []


def test_principal_directions_are_those_within_records() -> None:
    generator = np.random.default_rng(0)
    between = generator.standard_normal((50, 1, 6)) * [100, 0, 0, 0, 0, 0]  # between prompts only
    within = generator.standard_normal((50, 4, 6)) * [0, 3, 1, 1e-3, 1e-3, 1e-3]
    features, apart = principal(between + within, [within[:, 0] - within[:, 1]], 2)
    assert features.shape == (50, 4, 2)
    np.testing.assert_allclose(features[:, 0] - features[:, 1], apart, atol=1e-9)
    squares = [((features[:, a] - features[:, b]) ** 2).sum(-1).mean() for a, b in itertools.combinations(range(4), 2)]
    assert np.mean(squares) == pytest.approx(1, rel=1e-6)
    assert np.isfinite(principal(np.ones((3, 2, 4)), [], 2)[0]).all()  # all alike
