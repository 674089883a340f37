"""What a labeling lead reads about a round: a report of how it stands, and tables of its judgements and annotators."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from labeling.advice import SIGNIFICANT, advice
from labeling.agreement import Agreement, agreement_by_annotator, annotator_matrix, disagreement
from labeling.comparison import Comparison, Judgement
from labeling.effort import Budget
from labeling.findings import Findings, asked_of_people, measure_round
from labeling.question import prompt_text
from labeling.writing import plain, table, with_interval

HARDEST = 10
MATRIX = 20
"""Annotators in the table of everybody against everybody; the figure has them all."""
STATISTICS = {
    "alpha": ("Krippendorff's alpha (ordinal)", "1 perfect, 0 chance"),
    "kendalls_w": ("Kendall's W", "1 perfect; chance is 1 / annotators of a record"),
    "pairwise": ("pairwise agreement", "share of pairs ordered alike, a tie being an order"),
    "tie_discounted": ("tie-discounted agreement", "the same, a tie against a preference counting half"),
    "cohen_kappa": ("Cohen's kappa (mean of pairs)", "1 perfect, 0 chance"),
    "fleiss_kappa": ("Fleiss' kappa", "1 perfect, 0 chance"),
}


def round_report(
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    quality_rows: Sequence[Mapping[str, Any]] = (),
    budget: Budget | None = None,
    seed: int = 0,
) -> str:
    """The round in Markdown, for MLflow and Prefect. Texts and names are untrusted and escaped.

    Agreement and biases are those of people on what was asked: gold and repeated comparisons and AI judgements are
    counted and left out. `quality_rows` are the rows of `labeling.reliability.AnnotatorQuality`. Raises `LabelingError`
    for a judgement of a record that is not among the comparisons.
    """
    found = measure_round(comparisons, judgements, quality_rows=quality_rows, budget=budget, seed=seed)
    asked = asked_of_people(comparisons, judgements)
    sections = {
        "What to do next": "\n".join(f"- {sentence}" for sentence in advice(found)),
        "Progress": _progress(found),
        "Agreement": _agreement(found),
        "Annotators": _annotators(found),
        "Annotators against each other": _matrix(asked),
        "Checks": _quality(found),
        "Biases": _biases(found),
        "Hardest records": _hardest(comparisons, asked),
        "Label budget": _budget(found),
    }
    return (
        "\n\n".join(["# Round report", *(f"## {title}\n\n{text}" for title, text in sections.items() if text)]) + "\n"
    )


def judgement_rows(comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """One row per judgement: the prompt, the answers as shown, and the order given, as in `B > A = D > C`."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    return [_judgement_row(judgement, by_id[judgement.record]) for judgement in judgements]


def annotator_rows(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """One row per annotator: how much they did and how far they agree with the others (see `pairwise` agreement)."""
    shares = agreement_by_annotator(judgements)
    counts = Counter((judgement.annotator, judgement.ranks is not None) for judgement in judgements)
    return [
        {
            "annotator": annotator,
            "submitted": counts[annotator, True],
            "discarded": counts[annotator, False],
            "agreement_with_others": round(shares[annotator], 4) if annotator in shares else None,
        }
        for annotator in sorted({judgement.annotator for judgement in judgements})
    ]


def hardest_rows(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement], limit: int
) -> list[dict[str, Any]]:
    """The records whose annotators disagree most: where guidelines or completions need a look."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    disputed = sorted(disagreement(judgements).items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [
        {
            "record": record,
            "disagreement": round(share, 4),
            "prompt": prompt_text(by_id[record].prompt),
            "completions": "\n---\n".join(completion.text for completion in by_id[record].completions),
        }
        for record, share in disputed
    ]


def ranking_text(judgement: Judgement, comparison: Comparison) -> str:
    """The order an annotator gave, best first, in the letters they saw; empty when discarded."""
    if judgement.ranks is None:
        return ""
    letters = {completion.id: option[-1].upper() for option, completion in comparison.options.items()}
    ordered = sorted((rank, letters[name]) for name, rank in judgement.ranks.items())
    steps = (f" {'=' if rank == before else '>'} {letter}" for (before, _), (rank, letter) in pairwise(ordered))
    return ordered[0][1] + "".join(steps)


def _judgement_row(judgement: Judgement, comparison: Comparison) -> dict[str, Any]:
    return {
        "record": judgement.record,
        "annotator": judgement.annotator,
        "status": judgement.status,
        "prompt": prompt_text(comparison.prompt),
        **{option: completion.text for option, completion in comparison.options.items()},
        "ranking": ranking_text(judgement, comparison),
    }


def _progress(found: Findings) -> str:
    records = sum(found.overlap.values())
    rows = [(f"records ranked by {people}", count) for people, count in found.overlap.items()]
    counts = [
        ("records asked", records),
        *rows,
        ("judgements by people", found.judgements),
        ("of these discarded", found.discarded),
        ("of these impossible to judge", found.cannot_judge),
        ("of these on gold and repeated comparisons", found.checks),
        ("judgements by AI", found.ai),
    ]
    return table(["", "count"], counts)


def _agreement(found: Findings) -> str:
    whole = [(title, with_interval(getattr(found.agreement, name)), read) for name, (title, read) in STATISTICS.items()]
    parts = [
        f"Over {found.agreement.records} records that two or more ranked; 95 % intervals by bootstrap over records.",
        table(["statistic", "value", "how to read it"], whole),
        _slices("stratum", found.strata.items()),
        _criteria(found),
        table(
            ["flag", "judgements", "alpha (nominal)", "Fleiss' kappa"],
            (
                (plain(flag), found.flagged[flag], with_interval(own.alpha), with_interval(own.fleiss_kappa))
                for flag, own in found.flags.items()
            ),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _criteria(found: Findings) -> str:
    statistics = ("alpha", "alpha_interval", "kappa_quadratic", "exact")
    rows = [
        (plain(criterion), own.order.records, *(with_interval(getattr(own, name)) for name in statistics))
        for criterion, own in found.criteria.items()
    ]
    titles = ["alpha (ordinal)", "alpha (interval)", "kappa (quadratic)", "rated the same"]
    return table(["criterion", "records", *titles], rows)


def _slices(what: str, slices: Iterable[tuple[str, Agreement]]) -> str:
    names = ("alpha", "kendalls_w", "pairwise", "tie_discounted", "cohen_kappa", "fleiss_kappa")
    rows = [
        (plain(name), own.records, *(with_interval(getattr(own, statistic)) for statistic in names))
        for name, own in slices
    ]
    return table([what, "records", "alpha", "W", "pairwise", "tie-discounted", "Cohen", "Fleiss"], rows)


def _annotators(found: Findings) -> str:
    done = [(plain(name), effort.judgements, effort.seconds, effort.hours) for name, effort in found.efforts.items()]
    work = table(["annotator", "judgements", "seconds each (median)", "hours"], done)
    return "\n\n".join(part for part in (work, _slices("annotator, with the others", found.annotators.items())) if part)


def _matrix(asked: Sequence[Judgement]) -> str:
    names, agreeing, records = annotator_matrix(asked)
    if len(names) < 2:
        return ""
    shown = range(min(len(names), MATRIX))
    rows = [
        (
            plain(names[row]),
            *(f"{agreeing[row, at]:.2f} ({records[row, at]})" if records[row, at] else None for at in shown),
        )
        for row in shown
    ]
    rest = f"\n\nThe first {MATRIX} of {len(names)} annotators." if len(names) > MATRIX else ""
    told = "Share of pairs ordered alike, and records in common."
    return f"{told}\n\n{table(['', *(plain(names[at]) for at in shown)], rows)}{rest}"


def _quality(found: Findings) -> str:
    """What is known of each annotator beside agreement, with the columns that were measured for somebody."""
    shares = ("gold", "self_consistency", "first", "last", "longer", "straight")
    titles = ("gold", "self-consistency", "prefers first", "prefers last", "prefers longer", "in order shown")
    rows = [
        (
            plain(str(row.get("annotator", ""))),
            *(
                f"{row[name]:.2f} ({row.get(f'{name}_count')})" if row.get(name) is not None else None
                for name in shares
            ),
            row.get("speed") or None,
        )
        for row in found.quality
    ]
    counted = "Shares, and of how many." if rows else ""
    return "\n\n".join(part for part in (counted, table(["annotator", *titles, "pace"], rows)) if part)


def _biases(found: Findings) -> str:
    position = found.position
    if not position.records:
        return ""
    places = [f"shown {place}." for place in range(1, len(position.win_rates) + 1)]
    stands = "matter" if position.p_value < SIGNIFICANT else "do not stand out"
    test = (
        f"Chi-square {position.chi2:.2f} with {position.degrees} degrees of freedom over {position.records} records, "
        f"p = {position.p_value:.3g}: positions {stands}."
    )
    parts = [
        "Share of the other answers that an answer beats, by where it was shown; .5 is fair.",
        table(places, [[f"{rate:.3f}" for rate in position.win_rates]]),
        "Everything is tied, so positions cannot be tested." if math.isnan(position.p_value) else test,
        f"Share of preferences for the longer of two answers: {with_interval(found.length)}.",
        "" if math.isnan(found.ties) else f"Share of pairs tied: {found.ties:.2f}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _hardest(comparisons: Sequence[Comparison], asked: Sequence[Judgement]) -> str:
    rows = [row for row in hardest_rows(comparisons, asked, HARDEST) if row["disagreement"] > 0]
    reasons: dict[str, list[str]] = {row["record"]: [] for row in rows}
    for judgement in asked:
        if judgement.rationale.strip() and judgement.record in reasons:
            reasons[judgement.record].append(judgement.rationale)
    cells = [
        [
            plain(row["record"]),
            row["disagreement"],
            plain(row["prompt"]),
            *(plain(text, 400) for text in (row["completions"], " / ".join(reasons[row["record"]]))),
        ]
        for row in rows
    ]
    return table(["record", "pairs ordered differently", "prompt", "answers", "reasons given"], cells)


def _budget(found: Findings) -> str:
    hours = found.effort.hours
    spent = f"{hours:.1f} hours" if not math.isnan(hours) else "hours that cannot be told from the times"
    told = f"Spent: {found.effort.judgements} judgements, {spent} (median time between judgements, pauses left out)."
    if found.budget is None:
        return told
    limits = [(found.budget.judgements, "judgements"), (found.budget.hours, "hours")]
    allowed = ", ".join(f"{limit:g} {unit}" for limit, unit in limits if limit is not None)
    return f"{told} Allowed: {allowed or 'no limit'}."
