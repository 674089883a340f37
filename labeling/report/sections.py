"""The parts of a round's report as Markdown. Empty where there is nothing to say."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labeling.comparison import Judgement
from labeling.measures.agreement import Agreement, annotator_matrix
from labeling.report.advice import SIGNIFICANT
from labeling.report.findings import Findings
from labeling.report.writing import plain, table, with_interval

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


def progress(found: Findings) -> str:
    """How many records were asked and ranked, and what became of the judgements."""
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
        *([("answers left out, of people whom the round does not list", found.left_out)] if found.left_out else ()),
    ]
    return table(["", "count"], counts)


def guidelines(found: Findings) -> str:
    """How many judgements were made under which version, and when; empty where there is only one."""
    if len(found.guidelines) < 2:
        return ""
    rows = [
        (plain(version), len(times), *(plain(time[:19].replace("T", " ")) for time in (times[0], times[-1])))
        for version, times in found.guidelines.items()
    ]
    told = f"People judged under {len(rows)} versions; a judgement that was changed counts where it was changed last."
    return f"{told}\n\n{table(['version', 'judgements', 'first (UTC)', 'last (UTC)'], rows)}"


def agreement(found: Findings) -> str:
    """The statistics of the round, by stratum, criterion and flag."""
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


def annotators(found: Findings) -> str:
    """What each annotator did, and how far they agree with the others."""
    done = [(plain(name), effort.judgements, effort.seconds, effort.hours) for name, effort in found.efforts.items()]
    work = table(["annotator", "judgements", "seconds each (median)", "hours"], done)
    return "\n\n".join(part for part in (work, _slices("annotator, with the others", found.annotators.items())) if part)


def matrix(asked: Sequence[Judgement]) -> str:
    """Everybody against everybody; the figure of it is in `labeling.report.figures`."""
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


def quality(found: Findings) -> str:
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


def biases(found: Findings) -> str:
    """Position, length and ties."""
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


def hardest(rows: Sequence[Mapping[str, Any]], rationales: Mapping[str, Sequence[str]]) -> str:
    """The rows of `hardest_rows` in which anybody disagrees, with what annotators said about these records."""
    cells = [
        [
            plain(row["record"]),
            row["disagreement"],
            plain(row["prompt"]),
            *(plain(text, 400) for text in (row["completions"], " / ".join(rationales.get(row["record"], ())))),
        ]
        for row in rows
        if row["disagreement"] > 0
    ]
    return table(["record", "pairs ordered differently", "prompt", "answers", "reasons given"], cells)


def budget(found: Findings) -> str:
    """What was spent, and what may be."""
    hours = found.effort.hours
    spent = f"{hours:.1f} hours" if not math.isnan(hours) else "hours that cannot be told from the times"
    told = (
        f"Spent: {found.effort.judgements} judgements (checks and further opinions included), {spent} (median time "
        "between judgements, pauses left out)."
    )
    if found.budget is None:
        return told
    limits = [
        (found.effort.judgements, found.budget.judgements, "judgements"),
        (hours, found.budget.hours, "hours"),
    ]
    rows = [
        (unit, limit, "not known" if math.isnan(used) else f"{used / limit:.0%}")
        for used, limit, unit in limits
        if limit is not None
    ]
    return f"{told}\n\n{table(['', 'allowed', 'used'], rows)}"
