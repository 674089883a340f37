"""Agreement statistics against published and hand-computed values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.comparison import Judgement
from labeling.measures import kappa
from labeling.measures.agreement import (
    agreement,
    agreement_by_annotator,
    agreement_without,
    alpha_estimate,
    disagreement,
    kendalls_w,
    krippendorff_alpha,
    midranks,
    pairwise_agreement,
)
from labeling.measures.bootstrap import GROUPS, Resampling
from labeling.measures.ratings import flag_agreement, label_agreement, rating_agreement

N = math.nan

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section E: four observers, twelve units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)


def judgement(record: str, annotator: str, *ranks: int) -> Judgement:
    named = {f"c{place}": rank for place, rank in enumerate(ranks)} or None
    status = "submitted" if named else "discarded"
    return Judgement(f"{record}-{annotator}", record, annotator, status, named, "v1", "t", "t")


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_example_with_missing_data(metric: str, published: float) -> None:
    assert krippendorff_alpha(KRIPPENDORFF, metric) == pytest.approx(published, abs=0.0005)  # type: ignore[arg-type]


def test_alpha_of_krippendorffs_two_observer_examples() -> None:
    binary = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], dtype=float)  # section A
    assert krippendorff_alpha(binary, "nominal") == pytest.approx(0.095, abs=0.0005)
    letters = ["aabbdcccedda", "babbbccceddd"]  # section B: Meg and Owen
    nominal = np.array([[ord(letter) for letter in row] for row in letters], dtype=float)
    assert krippendorff_alpha(nominal, "nominal") == pytest.approx(0.692, abs=0.0005)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]]), "ordinal") == 1
    assert math.isnan(krippendorff_alpha(np.array([[1.0, 1], [1, 1]]), "nominal")), "no variation: not defined"
    # Two raters who always swap two values: o_12 = 4, n = 4, n_1 = n_2 = 2: alpha = 1 - 3 * 4 / (2 * 2 * 2) = -0.5.
    assert krippendorff_alpha(np.array([[1.0, 2], [2, 1]]), "nominal") == pytest.approx(-0.5)


# Siegel and Castellan, "Nonparametric Statistics" (1956, chapter 9): three executives rank six applicants (W = .16);
# three rankings of ten with ties, from Kendall (W = .828, .818 uncorrected).
def test_kendalls_w_of_textbook_examples() -> None:
    executives = np.array([[1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]], dtype=float)
    assert kendalls_w(executives) == pytest.approx(25.5 / 157.5)
    tied = np.array(
        [
            [1, 4.5, 2, 4.5, 3, 7.5, 6, 9, 7.5, 10],
            [2.5, 1, 2.5, 4.5, 4.5, 8, 9, 6.5, 10, 6.5],
            [2, 1, 4.5, 4.5, 4.5, 4.5, 8, 8, 8, 10],
        ]
    )
    assert kendalls_w(tied) == pytest.approx(0.828, abs=0.0005)


def test_kendalls_w_at_its_ends() -> None:
    assert kendalls_w(np.array([[1, 2.5, 2.5, 4], [1, 2.5, 2.5, 4]])) == pytest.approx(1)
    assert kendalls_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == 0
    assert math.isnan(kendalls_w(np.array([[2.0, 2, 2], [2, 2, 2]])))


def test_midranks_do_not_care_about_gaps() -> None:
    assert midranks({"a": 1, "b": 1, "c": 2}) == midranks({"a": 1, "b": 1, "c": 3}) == {"a": 1.5, "b": 1.5, "c": 3}
    assert midranks({"a": 4, "b": 2, "c": 4, "d": 4}) == {"a": 3, "b": 1, "c": 3, "d": 3}


def test_pairwise_agreement_counts_ties_as_an_order() -> None:
    ranks = np.array([[1, 2, 3], [1, 2.5, 2.5], [3, 2, 1]])
    # Pairs (ab, ac, bc): rater 1 < < <, rater 2 < < =, rater 3 > > >: two of nine alike.
    assert pairwise_agreement(ranks) == (2, 9)


def test_agreement_of_a_round_by_hand() -> None:
    round = [
        judgement("r1", "x", 1, 2, 3),
        judgement("r1", "y", 1, 2, 2),
        judgement("r2", "x", 1, 1, 1),
        judgement("r2", "y", 1, 1, 1),
        judgement("r3", "x", 2, 1, 3),
        judgement("r4", "x", 1, 2, 3),
        judgement("r4", "y"),
    ]
    found = agreement(round)
    # r1: x = 1 2 3, y = 1 2.5 2.5: W = 12 * 6.5 / (4 * 24 - 2 * 6) = 78 / 84; r2 is undefined and left out.
    assert found.kendalls_w.value == pytest.approx(78 / 84)
    assert found.pairwise.value == pytest.approx((2 + 3) / 6)
    assert found.records == 2, "records ranked by one annotator do not count"
    units = np.array([[1, 2, 3, 2, 2, 2], [1, 2.5, 2.5, 2, 2, 2]])
    assert found.alpha.value == pytest.approx(krippendorff_alpha(units, "ordinal"))
    assert disagreement(round) == {"r1": pytest.approx(1 / 3), "r2": 0}
    assert agreement_by_annotator(round) == {"x": pytest.approx(5 / 6), "y": pytest.approx(5 / 6)}


def test_a_careless_annotator_stands_out() -> None:
    rng = np.random.default_rng(0)
    round = []
    for number in range(100):
        truth = rng.permutation(4) + 1
        round += [judgement(f"r{number}", name, *map(int, truth)) for name in ("x", "y")]
        round.append(judgement(f"r{number}", "careless", *map(int, rng.permutation(4) + 1)))
    shares = agreement_by_annotator(round)
    assert shares["careless"] < 0.6 < shares["x"]


def test_undefined_agreement_has_no_figures() -> None:
    assert agreement([judgement("r1", "x", 1, 2)]).figures() == {}
    assert agreement([]).figures() == {}


def test_interval_resamples_records() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(1, 5, size=400).astype(float)
    ratings = np.stack([np.clip(truth + rng.integers(-1, 2, size=400), 1, 4) for _ in range(3)])
    records = np.repeat(np.arange(100), 4)
    found = alpha_estimate(ratings, records, "ordinal", seed=2)
    assert found.value == pytest.approx(krippendorff_alpha(ratings, "ordinal"))
    assert found.low < found.value < found.high
    assert found == alpha_estimate(ratings, records, "ordinal", seed=2), "the same seed gives the same interval"
    # Four copies of every unit within a record tell nothing new, so the interval must not get narrower.
    copied = alpha_estimate(np.tile(ratings[:, ::4], 4), np.tile(np.arange(100), 4), "ordinal", seed=2)
    single = alpha_estimate(ratings[:, ::4], np.arange(100), "ordinal", seed=2)
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.05)


@given(st.lists(st.integers(1, 5), min_size=6, max_size=6), st.permutations(range(3)))
def test_figures_do_not_depend_on_the_order_of_annotators(values: list[int], order: list[int]) -> None:
    ratings = np.array(values, dtype=float).reshape(3, 2)
    for figure in (lambda r: krippendorff_alpha(r, "ordinal"), kendalls_w, lambda r: pairwise_agreement(r)[0]):
        assert figure(ratings) == pytest.approx(figure(ratings[order]), nan_ok=True)


def test_a_later_answer_of_the_same_annotator_takes_the_place_of_the_first() -> None:
    twice = [judgement("r", "x", 1, 2), judgement("r", "y", 1, 2), judgement("r", "x", 2, 1)]
    assert disagreement(twice) == {"r": 1}


def test_who_cannot_judge_has_no_vote() -> None:
    lost = Judgement("j", "r", "y", "submitted", {"c0": 2, "c1": 1}, "v", "t", "t", flags=("cannot_judge",))
    assert agreement([judgement("r", "x", 1, 2), lost]).records == 0


def test_unranked_completions_are_missing() -> None:
    partial = Judgement("j", "r", "y", "submitted", {"c0": 1, "c2": 2}, "v", "t", "t")
    other = Judgement("k", "r", "z", "submitted", {"c1": 1}, "v", "t", "t")
    found = agreement([judgement("r", "x", 1, 2, 3), partial, other])
    assert found.pairwise.value == 1, "only c0 against c2 was ordered by two"
    assert math.isnan(found.kendalls_w.value), "nobody but x ranked all"
    # Mid-ranks 1, 2, 3 and 1, -, 2: units (1, 1), (2), (3, 2).
    units = np.array([[1, 2, 3], [1, N, 2]])
    assert found.alpha.value == pytest.approx(krippendorff_alpha(units, "ordinal"))


def test_kappas_do_not_change_when_completions_are_renamed() -> None:
    rng = np.random.default_rng(3)
    round, renamed = [], []
    for record in range(30):
        names = rng.permutation(3)
        for annotator in "xyz":
            ranks = rng.integers(1, 4, size=3).tolist()
            round.append(judgement(f"r{record}", annotator, *ranks))
            renamed.append(judgement(f"r{record}", annotator, *(ranks[name] for name in names)))
    one, other = agreement(round), agreement(renamed)
    assert one.figures() == pytest.approx(other.figures())
    # One tie in every second answer of x, none of y: chance is t_1 t_2 + (1 - t_1) (1 - t_2) / 2.
    pairs = [judgement("a", "x", 1, 1), judgement("a", "y", 1, 2), judgement("b", "x", 1, 2), judgement("b", "y", 1, 2)]
    assert agreement(pairs).cohen_kappa.value == pytest.approx((0.5 - 0.25) / (1 - 0.25))


def test_agreement_without_an_annotator_is_the_others() -> None:
    round = [judgement("r", "x", 1, 2, 3), judgement("r", "y", 1, 2, 3), judgement("r", "z", 3, 2, 1)]
    assert agreement_without(round) == {"x": 0, "y": 0, "z": 1}
    assert agreement_without(round[:2]) == {}


def test_records_beyond_the_number_of_groups_give_the_same_interval() -> None:
    """The share of records with a property: its standard error is known, sqrt(p (1 - p) / n)."""
    rng = np.random.default_rng(4)
    records = 3 * GROUPS + 17
    hits = (rng.random(records) < 0.2).astype(float)
    resampling = Resampling(records, samples=2000, seed=1)
    everything = np.arange(records)
    found = resampling.ratio(resampling.sums(everything, hits), resampling.sums(everything))
    assert found.value == pytest.approx(hits.mean())
    width = 2 * 1.96 * math.sqrt(found.value * (1 - found.value) / records)
    assert found.high - found.low == pytest.approx(width, rel=0.08)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Two annotators who agree on 70 % of records: 95 % intervals miss that in about one round of twenty."""
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(200):
        alike = rng.random(150) < 0.7
        ones = [judgement(f"r{number}", "x", 1, 2) for number in range(150)]
        others = [judgement(f"r{number}", "y", *((1, 2) if same else (2, 1))) for number, same in enumerate(alike)]
        found = agreement(ones + others, samples=400, seed=seed).pairwise
        held += found.low <= 0.7 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_ratings_flags_and_labels_at_their_ends() -> None:
    def rated(annotator: str, **given: int) -> Judgement:
        return Judgement(annotator, "r", annotator, "submitted", None, "v", "t", "t", ratings={"helpful": given})

    [found] = rating_agreement([rated("x", a=1, b=5), rated("y", a=1, b=5)]).values()
    assert found.alpha.value == found.alpha_interval.value == found.exact.value == found.order.pairwise.value == 1
    assert found.kappa_quadratic.value == 1
    [single] = rating_agreement([rated("x", a=3), rated("y", a=4)]).values()
    assert single.exact.value == 0 and math.isnan(single.order.pairwise.value), "one completion has no order"
    assert rating_agreement([rated("x", a=3)]) == {} and flag_agreement([rated("x", a=3)]) == {}
    assert label_agreement([]).figures() == {}
    assert label_agreement([("r", "x", "yes"), ("r", "y", None)]).records == 0
    assert label_agreement([("r", "x", "yes"), ("r", "y", "yes")]).exact.value == 1


def test_a_crowd_of_annotators_gives_the_same_kappa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of many pairs of annotators are kept sparse."""
    rng = np.random.default_rng(8)
    crowd = [
        judgement(f"r{record}", f"a{annotator}", *rng.integers(1, 4, size=3).tolist())
        for record in range(60)
        for annotator in rng.permutation(12)[:3]
    ]
    dense = agreement(crowd, samples=50).cohen_kappa
    monkeypatch.setattr(kappa, "MOST_SUMS", 0)
    sparse = agreement(crowd, samples=50).cohen_kappa
    assert [*sparse.parts().values()] == pytest.approx([*dense.parts().values()])
