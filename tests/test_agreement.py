"""Agreement statistics against published and hand-computed values."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.agreement import (
    agreement,
    agreement_by_annotator,
    alpha_estimate,
    disagreement,
    kendalls_w,
    krippendorff_alpha,
    midranks,
    pairwise_agreement,
)
from labeling.comparison import Judgement

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
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


def test_pandalm_labels() -> None:
    """The three annotators of 200 pairs; alpha by the definition, pair by pair, without any matrix."""
    path = SHARED / "pandalm" / "testset-v1-first200.json"
    if not path.exists():
        pytest.skip("shared/data/pandalm is not here")
    rows = json.loads(path.read_text(encoding="utf-8"))
    ratings = np.array([[row[f"annotator{number}"] for row in rows] for number in (1, 2, 3)], dtype=float)

    found = alpha_estimate(ratings, np.arange(len(rows)), "nominal")

    within = np.mean([ratings[i] != ratings[j] for i in range(3) for j in range(3) if i != j])
    flat = ratings.ravel()
    between = (flat[:, None] != flat).sum() / (flat.size * (flat.size - 1))
    assert found.value == pytest.approx(1 - within / between)
    assert found.low < found.value < found.high


def test_squality_rankings() -> None:
    """Three reviewers rank the same summaries; W per question against the textbook formula without ties."""
    path = SHARED / "squality" / "human-eval-first5.jsonl"
    if not path.exists():
        pytest.skip("shared/data/squality is not here")
    round, expected = [], []
    for line in path.open(encoding="utf-8"):
        passage = json.loads(line)
        for number, question in passage["questions"].items():
            systems = sorted(question)
            ranks: dict[str, list[int]] = {}
            for system in systems:
                for review in question[system]["reviews"]:
                    ranks.setdefault(review["worker_id"], []).append(review["overall-rank"])
            record = f"{passage['passage-id']}-{number}"
            round += [judgement(record, worker, *given) for worker, given in ranks.items()]
            table = np.array(list(ranks.values()))
            if all(len(set(row)) == len(row) for row in table):
                sums = table.sum(axis=0)
                m, n = table.shape
                expected.append((record, 12 * ((sums - sums.mean()) ** 2).sum() / (m**2 * (n**3 - n))))
    by_record = {record: [j for j in round if j.record == record] for record, _ in expected}
    for record, value in expected:
        assert agreement(by_record[record]).kendalls_w.value == pytest.approx(value)
    found = agreement(round)
    assert found.records == 25
    assert found.alpha.low < found.alpha.value < found.alpha.high
