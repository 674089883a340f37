"""When a round is enough."""

from datetime import UTC, datetime, timedelta

import pytest

from labeling.collection.sufficiency import Enough, missing, overdue
from labeling.comparison import Comparison, Completion, compare
from labeling.measures.agreement import Estimate

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SURE = Estimate(0.8, 0.7, 0.9)


def asked(count: int, stratum: str = "") -> list[Comparison]:
    options = [Completion("a", "a"), Completion("b", "b")]
    return [
        compare(f"{stratum}{n}", [{"role": "user", "content": "?"}], options, 0, stratum=stratum) for n in range(count)
    ]


def test_a_share_of_the_records() -> None:
    ten = asked(10)
    ids = [comparison.id for comparison in ten]
    assert missing(Enough(records=0.7), ten, ids[:6], SURE, NOW) == ["1 of 7 records"]
    assert missing(Enough(records=0.7), ten, ids[:7], SURE, NOW) == []
    assert missing(Enough(), ten, ids[:9], None, NOW) == ["1 of 10 records"]


def test_agreement_counts_by_its_lower_bound() -> None:
    ids = [comparison.id for comparison in asked(3)]
    rule = Enough(alpha_low=0.75)
    assert missing(rule, asked(3), ids, SURE, NOW) == ["agreement (alpha's lower bound 0.75, now 0.70)"]
    assert missing(rule, asked(3), ids, None, NOW) == ["agreement (alpha's lower bound 0.75, now nothing yet)"]
    nan = float("nan")
    assert missing(rule, asked(3), ids, Estimate(nan, nan, nan), NOW)
    assert missing(Enough(alpha_low=0.7), asked(3), ids, SURE, NOW) == []


def test_quotas_of_strata() -> None:
    both = [*asked(4, "law"), *asked(4, "med")]
    rule = Enough(records=0.1, strata={"law": 2, "med": 1})
    assert missing(rule, both, ["law0", "law1"], SURE, NOW) == ["1 of 1 records of stratum 'med'"]
    many = Enough(records=0.1, strata={"law": 9})
    assert missing(many, both, ["law0"], SURE, NOW) == ["3 of 4 records of stratum 'law'"], "a judge has the other five"


@pytest.mark.parametrize(("then", "lacks"), [("use", []), ("extend", ["2 of 3 records"])])
def test_a_deadline(then, lacks: list[str]) -> None:
    rule = Enough(deadline=NOW, at_deadline=then)
    assert missing(rule, asked(3), ["0"], SURE, NOW - timedelta(seconds=1)) == ["2 of 3 records"]
    assert missing(rule, asked(3), ["0"], SURE, NOW) == lacks


def test_a_deadline_that_ends_the_run() -> None:
    rule = Enough(deadline=NOW, at_deadline="fail")
    lacks = missing(rule, asked(3), ["0"], SURE, NOW)
    assert lacks == ["2 of 3 records"] and overdue(rule, lacks, ["0"], NOW - timedelta(seconds=1)) == ""
    said = "The round's deadline has passed and it lacks 2 of 3 records; move it or lower the rule."
    assert overdue(rule, lacks, ["0"], NOW) == said
    assert missing(rule, asked(3), ["0", "1", "2"], SURE, NOW) == [] and overdue(rule, [], ["0", "1", "2"], NOW) == ""
    assert "no record is done" in overdue(
        Enough(deadline=NOW), missing(Enough(deadline=NOW), asked(3), [], None, NOW), [], NOW
    )
