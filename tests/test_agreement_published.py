"""Statistics of agreement: published values, and real people's answers against the definitions, to the last digit."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from labeling.comparison import Judgement
from labeling.measures.agreement import (
    agreement,
    agreement_by_annotator,
    agreement_by_stratum,
    annotator_agreement,
    annotator_matrix,
    disagreement,
    kendalls_w,
    krippendorff_alpha,
    tie_discounted_agreement,
)
from labeling.measures.kappa import Weights, cohen_kappa, fleiss_kappa
from labeling.measures.ratings import flag_agreement, label_agreement, rating_agreement
from tests import statistics_by_definition as definition
from tests.test_real_inputs import shared

DIGITS = 1e-12
DISTANCES: dict[Weights | None, Callable[[Any, Any], float]] = {
    None: lambda left, right: float(left != right),
    "linear": lambda left, right: abs(left - right),
    "quadratic": lambda left, right: (left - right) ** 2,
}

# Fleiss, "Measuring nominal scale agreement among many raters" (1971), table 1: how many of six psychiatrists called
# each of thirty patients depressed, personality disorder, schizophrenic, neurotic, other.
FLEISS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def spread(table: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The labels of two annotators behind a table of counts."""
    cells = [(row, column) for row, counts in enumerate(table) for column, n in enumerate(counts) for _ in range(n)]
    return [row for row, _ in cells], [column for _, column in cells]


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    """Equal to twelve digits; what is not defined is left out."""
    defined = {name: value for name, value in expected.items() if not math.isnan(value)}
    assert {name: found.get(name) for name in expected if name in found} == pytest.approx(defined, abs=DIGITS)


def test_cohens_kappa_of_published_tables() -> None:
    # Cohen 1960 and 1968: two judges, 200 cases.
    assert cohen_kappa(*spread([[88, 14, 18], [10, 40, 10], [2, 6, 12]])) == pytest.approx(0.492, abs=0.0005)
    # Agresti, "Categorical Data Analysis" (2002), section 10.5: two pathologists, 118 slides (Landis and Koch 1977).
    pathologists = spread([[22, 2, 2, 0], [5, 7, 14, 0], [0, 2, 36, 0], [0, 1, 17, 10]])
    assert cohen_kappa(*pathologists) == pytest.approx(0.493, abs=0.0005)
    assert cohen_kappa(*pathologists, "quadratic") == pytest.approx(0.78, abs=0.005)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_cohens_kappa_is_scikit_learns(weights: Weights | None) -> None:
    rng = np.random.default_rng(0)
    for categories in (2, 3, 7):
        left = rng.integers(categories, size=60)
        right = np.where(rng.random(60) < 0.5, left, rng.integers(categories, size=60))
        assert cohen_kappa(left, right, weights) == pytest.approx(
            cohen_kappa_score(left, right, weights=weights), abs=DIGITS
        )


def test_cohens_kappa_by_hand() -> None:
    # Both say yes to 20 and no to 15 of 50: p_o = .7, p_e = .5 * .6 + .5 * .4 = .5.
    assert cohen_kappa(*spread([[20, 5], [10, 15]])) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"])), "one label only: not defined"
    # A missing label takes its unit away. On the scale 1 to 5 the step from 2 to 5 is three, without it one.
    assert cohen_kappa([1, 2, None, 5], [1, 5, 2, 5], "linear", categories=range(1, 6)) == pytest.approx(
        definition.cohen([1, 2, 5], [1, 5, 5], DISTANCES["linear"])
    )
    with pytest.raises(Exception, match="not among the categories"):
        cohen_kappa([1, 9], [1, 1], categories=[1, 2])
    with pytest.raises(Exception, match="unequal numbers of labels"):
        cohen_kappa([1, 2], [1])


def test_fleiss_kappa_of_his_own_example() -> None:
    patients = [[label for label, n in enumerate(map(int, row)) for _ in range(n)] for row in FLEISS.split()]
    labels = np.array(patients).T
    assert labels.shape == (6, 30)
    shares = [float((labels == label).mean()) for label in range(5)]
    assert shares == pytest.approx([0.144, 0.144, 0.167, 0.306, 0.239], abs=0.0005), "his table's last row"
    assert fleiss_kappa(labels) == pytest.approx(0.430, abs=0.0005)


def test_fleiss_kappa_with_labels_missing() -> None:
    # Units: a a | a b | b b b | b. P = (1 + 0 + 1) / 3; p_a = (1 + .5 + 0) / 3 = .5; P_e = .5; the last is left out.
    labels = [["a", "a", "b", "b"], ["a", "b", "b", None], [None, None, "b", None]]
    assert fleiss_kappa(labels) == pytest.approx((2 / 3 - 0.5) / 0.5)
    assert math.isnan(fleiss_kappa([["a", "a"], ["a", "a"]]))


def test_kendalls_w_is_friedmans_test() -> None:
    """chi2 = m (n - 1) W, ties corrected on both sides."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        ranks = np.array([stats.rankdata(rng.integers(4, size=5)) for _ in range(6)])
        chi2 = stats.friedmanchisquare(*ranks.T).statistic
        assert kendalls_w(ranks) == pytest.approx(chi2 / (6 * 4), abs=DIGITS)


def test_tie_discounted_agreement_by_hand() -> None:
    # a < b < c against a < b = c: alike, alike, a tie against a preference.
    assert tie_discounted_agreement(np.array([[1, 2, 3], [1, 2.5, 2.5]])) == pytest.approx(2.5 / 3)
    assert tie_discounted_agreement(np.array([[1.0, 2], [2, 1]])) == 0
    assert tie_discounted_agreement(np.array([[1.5, 1.5], [1.5, 1.5]])) == 1


def pandalm() -> list[Judgement]:
    """Pairs with ties: 0 is a tie, 1 and 2 the better answer. Any file of the format."""
    judgements = []
    for file in sorted(shared("pandalm").glob("*.json")):
        for place, row in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            for name in sorted(key for key in row if key.startswith("annotator") and row[key] in (0, 1, 2)):
                ranks = {0: (1, 1), 1: (1, 2), 2: (2, 1)}[row[name]]
                record = f"{file.stem}-{place}"
                named = {"response1": ranks[0], "response2": ranks[1]}
                judgements.append(Judgement(f"{record}-{name}", record, name, "submitted", named, "v", "t", "t"))
    return judgements


def squality() -> list[Judgement]:
    """Rankings of three and ratings from 0 to 100 of three criteria, by different reviewers per passage."""
    judgements = []
    for file in sorted(shared("squality").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            passage = json.loads(line)
            for number, question in passage["questions"].items():
                given: dict[str, dict[str, dict[str, int]]] = {}
                for system, answer in question.items():
                    for review in answer["reviews"]:
                        for key, value in review.items():
                            if key.endswith(("-rank", "-rating")) and isinstance(value, int):
                                given.setdefault(review["worker_id"], {}).setdefault(key, {})[system] = value
                record = f"{passage['passage-id']}-{number}"
                for worker, values in given.items():
                    ratings = {key[:-7]: rated for key, rated in values.items() if key.endswith("-rating")}
                    ranks = values["overall-rank"]
                    told = Judgement(
                        f"{record}-{worker}", record, worker, "submitted", ranks, "v", "t", "t", ratings=ratings
                    )
                    judgements.append(told)
    return judgements


@pytest.mark.parametrize("people", [pandalm, squality])
def test_rankings_of_real_people(people: Callable[[], list[Judgement]]) -> None:
    judgements = people()
    found = agreement(judgements)
    same(found.figures(), definition.of_rankings(judgements))
    for estimate in (found.alpha, found.pairwise, found.tie_discounted, found.fleiss_kappa, found.cohen_kappa):
        assert estimate.low < estimate.value < estimate.high
    rankings = definition.rankings_of(judgements)
    assert found.records == len(rankings)
    for record, share in disagreement(judgements).items():
        orders = [
            {who: definition.order(ranks, a, b) for who, ranks in rankings[record].items()}
            for a, b in combinations(sorted(next(iter(rankings[record].values()))), 2)
        ]
        pairs = [pair for unit in orders for pair in combinations(unit.values(), 2)]
        assert share == pytest.approx(sum(left != right for left, right in pairs) / len(pairs), abs=DIGITS)


@pytest.mark.parametrize("people", [pandalm, squality])
def test_breakdowns_of_real_people(people: Callable[[], list[Judgement]]) -> None:
    judgements = people()
    strata = {judgement.record: f"s{sum(map(ord, judgement.record)) % 3}" for judgement in judgements}
    by_stratum = agreement_by_stratum(judgements, strata, samples=10)
    assert set(by_stratum) == set(strata.values())
    for stratum, found in by_stratum.items():
        same(found.figures(), definition.of_rankings([j for j in judgements if strata[j.record] == stratum]))

    shares = agreement_by_annotator(judgements)
    for annotator, found in annotator_agreement(judgements, samples=10).items():
        # Every (this annotator, another, record) is a record of its own, judged by two.
        dyads = [
            Judgement("", f"{record}/{other}", who, "submitted", given[who], "v", "t", "t")  # type: ignore[arg-type]
            for record, given in definition.rankings_of(judgements).items()
            for other in given
            if annotator in given and other != annotator
            for who in (annotator, other)
        ]
        same(found.figures(), definition.of_rankings(dyads))
        assert found.pairwise.value == pytest.approx(shares[annotator], abs=DIGITS)

    names, agreeing, records = annotator_matrix(judgements)
    for (i, one), (j, other) in combinations(enumerate(names), 2):
        two = [judgement for judgement in judgements if judgement.annotator in (one, other)]
        count = len(definition.rankings_of(two))
        assert records[i, j] == records[j, i] == count
        if count:
            expected = definition.of_rankings(two)["pairwise_agreement"]
            assert agreeing[i, j] == agreeing[j, i] == pytest.approx(expected, abs=DIGITS)
        else:
            assert math.isnan(agreeing[i, j])


def test_pandalm_as_labels() -> None:
    """The same judgements as labels of a pair, 0, 1 and 2, of which the side is part."""
    labels = {"tie": 0, "better": 1, "worse": 2}
    rows = [
        (j.record, j.annotator, labels[definition.order(j.ranks or {}, "response1", "response2")]) for j in pandalm()
    ]
    units: dict[str, dict[str, int]] = {}
    for record, annotator, label in rows:
        units.setdefault(record, {})[annotator] = label
    found = label_agreement(rows)
    given = list(units.values())
    same(
        found.figures(),
        {
            "alpha": definition.alpha(given, "nominal"),
            "cohen_kappa": definition.light(given, DISTANCES[None]),
            "fleiss_kappa": definition.fleiss(given),
        },
    )
    names = sorted({name for unit in given for name in unit})
    matrix = [[unit.get(name) for unit in given] for name in names]
    assert fleiss_kappa(matrix) == pytest.approx(found.fleiss_kappa.value, abs=DIGITS)
    for left, right in combinations(matrix, 2):
        both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
        expected = cohen_kappa_score(*zip(*both, strict=True))
        assert cohen_kappa(left, right) == pytest.approx(expected, abs=DIGITS)


def test_xstest_as_labels() -> None:
    """Two people's labels of refusals, by what the record's two columns say."""
    for file in sorted(shared("xstest").glob("completions_*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        one, other = ([row[name] or None for row in rows] for name in ("annotation_1", "annotation_2"))
        units = [{str(n): label for n, label in enumerate(pair) if label} for pair in zip(one, other, strict=True)]
        found = label_agreement(
            (str(place), who, label) for place, unit in enumerate(units) for who, label in unit.items()
        )
        both = [unit for unit in units if len(unit) == 2]
        expected = cohen_kappa_score([unit["0"] for unit in both], [unit["1"] for unit in both])
        assert cohen_kappa(one, other) == pytest.approx(expected, abs=DIGITS)
        same(
            found.figures(),
            {
                "alpha": definition.alpha(units, "nominal"),
                "cohen_kappa": float(expected),
                "fleiss_kappa": definition.fleiss(units),
                "exact": sum(unit["0"] == unit["1"] for unit in both) / len(both),
            },
        )
        assert found.alpha.low <= found.alpha.value <= found.alpha.high


def test_squality_ratings() -> None:
    """Ratings from 0 to 100, per criterion, against the definitions and, for each two reviewers, scikit-learn."""
    judgements = squality()
    found = rating_agreement(judgements, samples=200)
    assert set(found) == {criterion for judgement in judgements for criterion in judgement.ratings}
    for criterion, own in found.items():
        units: dict[tuple[str, str], dict[str, int]] = {}
        for judgement in judgements:
            for completion, rating in judgement.ratings.get(criterion, {}).items():
                units.setdefault((judgement.record, completion), {})[judgement.annotator] = rating
        given = [unit for unit in units.values() if len(unit) > 1]
        pairs = [pair for unit in given for pair in combinations(unit.values(), 2)]
        same(
            own.figures(),
            {
                "alpha": definition.alpha(given, "ordinal"),
                "alpha_interval": definition.alpha(given, "interval"),
                "kappa_linear": definition.light(given, DISTANCES["linear"]),
                "kappa_quadratic": definition.light(given, DISTANCES["quadratic"]),
                "exact": sum(left == right for left, right in pairs) / len(pairs),
            },
        )
        by_rating = [
            Judgement(j.id, j.record, j.annotator, j.status, {n: -r for n, r in rated.items()}, "v", "t", "t")
            for j in judgements
            if (rated := j.ratings.get(criterion))
        ]
        same(own.order.figures(), definition.of_rankings(by_rating))
        one, other = sorted({name for unit in given for name in unit})[:2]
        both = [unit for unit in given if one in unit and other in unit]
        columns = [unit[one] for unit in both], [unit[other] for unit in both]
        if both:
            scale = range(101)
            expected = cohen_kappa_score(*columns, weights="quadratic", labels=list(scale))
            assert cohen_kappa(*columns, "quadratic", categories=scale) == pytest.approx(expected, abs=DIGITS)


def test_random_rankings_with_ties_and_everything_missing_that_may_be() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        judgements = []
        for record in range(12):
            size = int(rng.integers(2, 6))
            for annotator in rng.permutation(6)[: rng.integers(0, 6)].tolist():
                ranks = {f"{record}-{n}": int(rank) for n, rank in enumerate(rng.integers(1, 5, size=size))}
                discarded = rng.random() < 0.1
                judgements.append(
                    Judgement(
                        f"{record}-{annotator}",
                        str(record),
                        f"a{annotator}",
                        "discarded" if discarded else "submitted",
                        None if discarded else ranks,
                        "v",
                        "t",
                        "t",
                        flags=("unsafe",) if rng.random() < 0.3 else (),
                    )
                )
        same(agreement(judgements, samples=5).figures(), definition.of_rankings(judgements))
        flagged: dict[str, dict[str, bool]] = {}
        for judgement in judgements:
            if judgement.ranks or judgement.flags:
                flagged.setdefault(judgement.record, {})[judgement.annotator] = "unsafe" in judgement.flags
        found = flag_agreement(judgements, samples=5)["unsafe"]
        units = list(flagged.values())
        same(found.figures(), {"alpha": definition.alpha(units, "nominal"), "fleiss_kappa": definition.fleiss(units)})


def test_alpha_of_random_ratings_with_missing_data() -> None:
    rng = np.random.default_rng(6)
    for metric in ("nominal", "ordinal", "interval"):
        for _ in range(20):
            ratings = rng.integers(-2, 6, size=(4, 9)).astype(float)
            ratings[rng.random(ratings.shape) < 0.4] = np.nan
            units = [{str(n): v for n, v in enumerate(column) if v == v} for column in ratings.T.tolist()]
            expected = definition.alpha(units, metric)
            assert krippendorff_alpha(ratings, metric) == pytest.approx(expected, abs=DIGITS, nan_ok=True)
