"""The round's report: figures, biases and effort by hand, advice by its rules, and nothing untrusted that acts."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy import stats

from labeling.comparison import Comparison, Completion, Judgement, LabelingError, compare
from labeling.measures.agreement import agreement
from labeling.measures.biases import PositionBias, length_bias, position_bias, tie_share
from labeling.measures.bootstrap import Estimate
from labeling.measures.effort import Budget, Effort, effort_by_annotator, total_effort
from labeling.quality.reliability import annotator_quality
from labeling.report.advice import advice
from labeling.report.figures import annotator_heatmap
from labeling.report.findings import Findings, measure_round
from labeling.report.round_report import annotator_rows, hardest_rows, round_report
from labeling.report.writing import plain

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://x/y.png) | cell\n"
    "# head\n`code` **bold** https://evil.example www.evil.example a@b.example &lt; \\| $x$ \u202etxt"
)


def comparison(id: str, *texts: str, shown: tuple[int, ...] = (), stratum: str = "", **more: str) -> Comparison:
    completions = tuple(Completion(f"{id}-{place}", text) for place, text in enumerate(texts))
    order = tuple(f"{id}-{place}" for place in (shown or range(len(texts))))
    return Comparison(id, ({"role": "user", "content": "Say hi"},), completions, order, stratum, **more)  # type: ignore[arg-type]


def judgement(record: str, annotator: str, *ranks: int, at: str = "t") -> Judgement:
    named = {f"{record}-{place}": rank for place, rank in enumerate(ranks)} or None
    status = "submitted" if named else "discarded"
    return Judgement(f"{record}/{annotator}", record, annotator, status, named, "v1", at, at)


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high)


def test_position_bias_is_friedmans_test_on_positions() -> None:
    rng = np.random.default_rng(0)
    comparisons, judgements, by_position = [], [], []
    for record in range(40):
        shown = tuple(rng.permutation(4).tolist())
        ranks = rng.integers(1, 4, size=4).tolist()
        comparisons.append(comparison(f"r{record}", *"abcd", shown=shown))
        judgements.append(judgement(f"r{record}", "x", *ranks))
        by_position.append([ranks[place] for place in shown])
    found = position_bias(comparisons, judgements)
    expected = stats.friedmanchisquare(*np.array(by_position).T)
    assert found.chi2 == pytest.approx(expected.statistic) and found.p_value == pytest.approx(expected.pvalue)
    assert found.degrees == 3 and found.records == 40
    wins = [
        sum((row[place] < other) + (row[place] == other) / 2 for row in by_position for other in row) - 40 / 2
        for place in range(4)
    ]
    assert found.win_rates == pytest.approx([win / (40 * 3) for win in wins])


def test_position_bias_by_hand_and_at_its_ends() -> None:
    pairs = [comparison(f"r{n}", "a", "b", shown=(n % 2, 1 - n % 2)) for n in range(8)]
    first = [judgement(f"r{n}", "x", *((1, 2) if n % 2 == 0 else (2, 1))) for n in range(8)]
    found = position_bias(pairs, first)
    assert found.win_rates == (1, 0) and found.chi2 == pytest.approx(8), "8 of 8: (8 - 0)^2 / 8"
    # A second annotator of the same records, who says the same, tells nothing new about positions.
    again = position_bias(pairs, first + [replace(each, id=each.id + "y", annotator="y") for each in first])
    assert again.chi2 == pytest.approx(8)
    tied = position_bias(pairs, [judgement("r0", "x", 1, 1)])
    assert tied.win_rates == (0.5, 0.5) and math.isnan(tied.p_value)
    assert position_bias(pairs, []).records == 0
    gold = [replace(each, kind="gold") for each in pairs]
    assert position_bias(gold, first).records == 0, "checks do not count"
    with pytest.raises(LabelingError, match="not in the round"):
        position_bias(pairs[1:], first)


def test_position_bias_raises_no_alarm_without_a_reason() -> None:
    """Three annotators who agree about quality share each record's order: p must still be uniform."""
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(200):
        comparisons = [compare(f"r{n}", [], [Completion(f"r{n}-{k}", "x") for k in range(3)], seed) for n in range(30)]
        judgements = []
        for each in comparisons:
            ranks = rng.permutation(3) + 1
            judgements += [judgement(each.id, name, *ranks.tolist()) for name in "xyz"]
        alarms += position_bias(comparisons, judgements).p_value < 0.05
    assert alarms <= 20, "about 10 of 200 by chance"


def test_length_bias_and_ties_by_hand() -> None:
    comparisons = [comparison("a", "long answer", "short", "brief"), comparison("b", "x", "yy")]
    # a: long beats short, long loses to brief, short and brief are as long; b: tied.
    judgements = [judgement("a", "x", 2, 3, 1), judgement("b", "x", 1, 1)]
    assert length_bias(comparisons, judgements).value == pytest.approx(1 / 2)
    assert tie_share(judgements) == pytest.approx(1 / 4)
    assert math.isnan(length_bias(comparisons, []).value) and math.isnan(tie_share([]))


def test_effort_leaves_pauses_out() -> None:
    times = ["2026-01-01T10:00:00", "2026-01-01T10:00:30", "2026-01-01T10:01:40", "2026-01-01T12:00:00Z"]
    judgements = [judgement(f"r{n}", "x", 1, 2, at=time) for n, time in enumerate(times)]
    judgements += [judgement("r0", "y", at="no time"), replace(judgement("r1", "y", 1, 2), by="ai")]
    efforts = effort_by_annotator(judgements)
    assert efforts["x"].seconds == pytest.approx(50), "median of 30 and 70 seconds"
    assert efforts["x"].judgements == 4 and efforts["x"].hours == pytest.approx(4 * 50 / 3600)
    assert efforts["y"].judgements == 1 and math.isnan(efforts["y"].hours), "no pace; AI is no work"
    assert total_effort(efforts.values()).hours == pytest.approx(5 * 50 / 3600)
    assert math.isnan(total_effort([]).hours)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "Nothing stands out"),
        ({"discarded": 11}, "11% of the judgements are discarded"),
        ({"cannot_judge": 20}, "impossible to judge"),
        ({"ties": 0.6}, "60% of pairs are tied"),
        ({"position": PositionBias((0.6, 0.4), 20.0, 1, 0.0001, 9)}, "position 1 wins 60%"),
        ({"length": estimate(0.7, 0.65, 0.75)}, "longer answer wins 70%"),
        ({"length": estimate(0.2, 0.15, 0.25)}, "shorter answer wins 80%"),
        ({"effort": Effort(100, 9, 0.25), "budget": Budget(judgements=100)}, "budget of 100 judgements is spent"),
        ({"effort": Effort(100, 9, 0.25), "budget": Budget(hours=0.2)}, "budget of 0.2 hours is spent (0.25)"),
        ({"quality": [{"annotator": "x", "gold": 0.5, "gold_count": 20}]}, "x orders only 50% of 20 gold pairs"),
        ({"quality": [{"annotator": "x", "straight": 0.95, "straight_count": 20}]}, "in the order shown"),
        ({"quality": [{"annotator": "x", "speed": "fast"}]}, "far faster"),
    ],
)
def test_advice_follows_its_rules(changed: dict[str, object], said: str) -> None:
    agreeing = agreement([judgement(f"r{n}", name, 1, 2, 3) for n in range(20) for name in "xy"])
    calm = Findings(agreement=agreeing, judgements=100)
    [only] = advice(replace(calm, **changed))  # type: ignore[arg-type]
    assert said in only


def test_advice_about_agreement() -> None:
    none = agreement([judgement("r", "x", 1, 2)])
    assert "overlap of two" in advice(Findings(none))[0]
    one = agreement([judgement(f"r{n}", name, 1, 2, 3) for n in range(20) for name in "xy"])

    def told(low: float, high: float) -> str:
        return advice(Findings(replace(one, alpha=estimate((low + high) / 2, low, high))))[0]

    assert "revise the guidelines" in told(0.1, 0.3)
    assert "about 60 more records" in told(0.2, 0.6), "twice as narrow takes four times the 20 records"
    assert "look at the hardest records" in told(0.35, 0.5)
    assert "Nothing stands out" in told(0.5, 0.9)
    stratum = replace(one, alpha=estimate(0.45, 0.4, 0.5))
    whole = replace(one, alpha=estimate(0.7, 0.6, 0.8))
    assert "Stratum poems is disputed" in advice(Findings(whole, strata={"poems": stratum}))[0]


def test_the_careless_annotator_is_named_and_nobody_else() -> None:
    rng = np.random.default_rng(2)
    orders = list(permutations((1, 2, 3)))
    comparisons = [comparison(f"r{n}", "a", "b", "c") for n in range(60)]
    judgements = []
    for each in comparisons:
        judgements += [judgement(each.id, name, 1, 2, 3) for name in ("good", "fine")]
        judgements.append(judgement(each.id, "careless", *orders[rng.integers(6)]))
    told = [sentence for sentence in advice(measure_round(comparisons, judgements)) if "agrees with others" in sentence]
    assert len(told) == 1 and told[0].startswith("careless ") and "on 100%" in told[0]


def round_of(text: str, name: str = "x") -> tuple[list[Comparison], list[Judgement]]:
    comparisons = [
        replace(
            comparison(f"r{n}", text, "b", "c", shown=(2, 0, 1)), prompt=({"role": "user", "content": text},), stratum=s
        )
        for n, s in enumerate((text, "other", text))
    ]
    judgements = [
        replace(
            judgement(each.id, annotator, *ranks),
            rationale=text,
            flags=(text,) if annotator == name else (),
            ratings={text: {f"{each.id}-0": ranks[0], f"{each.id}-1": ranks[1]}},
        )
        for each in comparisons
        for annotator, ranks in ((name, (1, 2, 3)), ("y", (3, 2, 1)), ("z", (1, 1, 2)))
    ]
    return comparisons, judgements


def test_report_has_every_part() -> None:
    comparisons, judgements = round_of("Hi")
    gold = replace(comparison("g", "a", "b"), kind="gold", expected={"g-0": 1, "g-1": 2})
    checks = [judgement("g", "x", 1, 2), replace(judgement("r0", "bot", 1, 2, 3), by="ai"), judgement("r0", "w")]
    quality = [each.row() for each in annotator_quality([*comparisons, gold], judgements + checks[:1])]
    budget = Budget(judgements=5, hours=2)
    report = round_report([*comparisons, gold], judgements + checks, quality_rows=quality, budget=budget, left_out=4)
    for title in ("What to do next", "Progress", "Agreement", "Checks", "Biases", "Hardest records", "Label budget"):
        assert f"\n## {title}\n" in report
    for line in (
        "| records asked | 3 |",
        "| records ranked by 3 | 3 |",
        "| judgements by people | 11 |",
        "| of these discarded | 1 |",
        "| of these on gold and repeated comparisons | 1 |",
        "| judgements by AI | 1 |",
        "| answers left out, of people whom the round does not list | 4 |",
        "| judgements | 5 | 220% |",
        "| hours | 2 | not known |",
        "| x | – | 0.00 (3) | 0.67 (3) |",
        "| r0 | 0.78 |",
    ):
        assert line in report, line
    assert "bot" not in report, "an AI is no annotator here"


def test_the_report_tells_versions_of_the_guidelines_apart() -> None:
    comparisons, judgements = round_of("Hi")
    assert "Guidelines" not in round_report(comparisons, judgements), "one version says nothing"
    dated = [
        replace(each, updated_at=f"2026-11-2{n % 3}T10:00:0{n}.5", guidelines="old" if n % 3 == 0 else "new")
        for n, each in enumerate(judgements)
    ]
    report = round_report(comparisons, [*dated, replace(dated[0], by="ai", guidelines="the-judge's")])
    assert "\n## Guidelines\n\nPeople judged under 2 versions;" in report
    assert "| old | 3 | 2026-11-20 10:00:00 | 2026-11-20 10:00:06 |\n| new | 6 | 2026-11-21 10:00:01 |" in report
    assert "the-judge's" not in report


def test_report_of_nothing() -> None:
    report = round_report([comparison("r", "a", "b")], [])
    assert "| records ranked by 0 | 1 |" in report and "set an overlap" in report
    assert "not defined" in report and "nan" not in report


def test_nothing_untrusted_acts_in_the_report() -> None:
    comparisons, judgements = round_of(HOSTILE, name=HOSTILE)
    quality = [each.row() for each in annotator_quality(comparisons, judgements)]
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    hostile = renderer.parse(round_report(comparisons, judgements, quality_rows=quality))
    tame = renderer.parse(
        round_report(*(calm := round_of("Hi", name="Hi")), quality_rows=[e.row() for e in annotator_quality(*calm)])
    )
    assert [token.type for token in hostile] == [token.type for token in tame], "the same headings, tables and cells"
    inside = {child.type for token in hostile for child in token.children or []}
    assert inside <= {"text", "text_special"}, "no HTML, link, image, code or emphasis"
    assert any("<script>alert(1)</script>" in token.content or "&#60;script" in token.content for token in hostile)


def test_plain_text_is_one_line_and_bounded() -> None:
    assert plain("a\n\n| b\tc") == "a &#124; b c"
    assert plain("x" * 500) == "x" * 199 + "…"
    assert "\u202e" not in plain(HOSTILE) and "<" not in plain(HOSTILE)
    shown = MarkdownIt().render(plain("1 < 2 & *so* [on](x)"))
    assert shown == "<p>1 &lt; 2 &amp; *so* [on](x)</p>\n", "what is read is what was written"


def test_rows_of_annotators_and_hardest_records() -> None:
    comparisons, judgements = round_of("Hi")
    rows = {row["annotator"]: row for row in annotator_rows([*judgements, judgement("r0", "w")])}
    assert rows["x"]["submitted"] == 3 and rows["w"] == {
        "annotator": "w",
        "submitted": 0,
        "discarded": 1,
        "agreement_with_others": None,
    }
    # x and y agree on none of 3 pairs, x and z on two, y and z on none.
    assert rows["x"]["agreement_with_others"] == pytest.approx(2 / 6, abs=1e-4)
    assert [row["record"] for row in hardest_rows(comparisons, judgements, 2)] == ["r0", "r1"]
    assert hardest_rows(comparisons, judgements, 1)[0]["disagreement"] == pytest.approx(7 / 9, abs=1e-4)


def test_heat_map_shows_who_agrees_with_whom() -> None:
    _, judgements = round_of("Hi", name="$x^2$")
    figure = annotator_heatmap(judgements)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$x^2$", "y", "z"]
    assert [text.get_text() for text in axes.texts] == [
        "0.00\n3",
        "0.67\n3",
        "0.00\n3",
        "0.00\n3",
        "0.67\n3",
        "0.00\n3",
    ]
    figure.canvas.draw()
    assert "no record" in annotator_heatmap([]).axes[0].texts[0].get_text()
