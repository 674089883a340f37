"""What to do next in a round, derived from its figures by rules that are stated here."""

import math
from collections.abc import Iterable

from labeling.report.findings import Findings
from labeling.report.writing import plain

LOW_ALPHA = 0.4
"""Below this the labels say little. Krippendorff asks for .667 before any conclusion; rankings seldom get there."""
WIDE = 0.2
"""An interval wider than this tells too little."""
APART = 0.1
"""Agreement that is this far lower is worth a talk, besides being surely lower."""
FEW_RECORDS = 10
"""Shared records below which an annotator is not judged by agreement."""
SIGNIFICANT = 0.01
TOO_MANY = 0.1
"""Share of judgements that are discarded, or cannot be judged, above which prompts need a look."""
MANY_TIES = 0.5
LENGTH = (0.4, 0.6)
"""Share of preferences for the longer completion outside which length may be what is judged."""
GOLD = 0.65
"""Accuracy on gold below which an annotator needs training, of at least `FEW_RECORDS` pairs."""
STRAIGHT = 0.9


def advice(found: Findings) -> list[str]:
    """Sentences of Markdown, the weightiest first; one that says so when nothing stands out."""
    told = [
        *_of_annotators(found),
        *_of_agreement(found),
        *_of_parts(found),
        *_of_biases(found),
        *_of_answers(found),
        *_of_budget(found),
    ]
    return told or ["Nothing stands out: go on."]


def _of_agreement(found: Findings) -> Iterable[str]:
    alpha = found.agreement.alpha
    if not found.agreement.records:
        yield "No record was ranked by two annotators, so agreement is not known: set an overlap of two or more."
    elif math.isnan(alpha.value):
        yield "Everybody tied everything, so agreement is not defined: sample completions that differ more."
    elif alpha.high < LOW_ALPHA:
        yield (
            f"Annotators agree little (alpha at most {alpha.high:.2f}, below {LOW_ALPHA}): revise the guidelines with "
            "examples from the hardest records, then go on with a new version."
        )
    elif alpha.low < LOW_ALPHA and alpha.high - alpha.low > WIDE:
        more = math.ceil(found.agreement.records * (((alpha.high - alpha.low) / WIDE) ** 2 - 1))
        yield (
            f"Agreement is not sure yet (alpha {alpha.low:.2f} to {alpha.high:.2f}): about {more} more records ranked "
            f"by two or more make the interval {WIDE} wide; look at the hardest records meanwhile."
        )
    elif alpha.low < LOW_ALPHA:
        yield (
            f"Agreement may be below {LOW_ALPHA} (alpha's lower bound is {alpha.low:.2f}): look at the hardest records "
            "and add an example of each kind of dispute to the guidelines."
        )


def _of_annotators(found: Findings) -> Iterable[str]:
    for annotator, own in found.annotators.items():
        rest = found.without.get(annotator, math.nan)
        if rest - own.pairwise.value >= APART and own.pairwise.high < rest and own.records >= FEW_RECORDS:
            yield (
                f"{plain(annotator)} agrees with others on {own.pairwise.value:.0%} of pairs, the others among "
                f"themselves on {rest:.0%}: go through some records together, or set `preferences.held_out`."
            )
    for row in found.quality:
        name = plain(str(row.get("annotator", "")))
        gold, count = row.get("gold"), row.get("gold_count") or 0
        if gold is not None and gold < GOLD and count >= FEW_RECORDS:
            yield (
                f"{name} orders only {gold:.0%} of {count} gold pairs as expected: train them (who is surely below "
                "`preferences.bar` is not learnt from; `preferences.held_out` takes out others)."
            )
        if (row.get("straight") or 0) > STRAIGHT and (row.get("straight_count") or 0) >= FEW_RECORDS:
            yield f"{name} nearly always ranks in the order shown: ask whether the answers are read."
        if row.get("speed") == "fast":
            yield f"{name} is far faster than the others: look at some of their judgements."


def _of_parts(found: Findings) -> Iterable[str]:
    whole = found.agreement.alpha
    for stratum, own in found.strata.items():
        if own.alpha.high < whole.low and whole.value - own.alpha.value >= APART:
            yield (
                f"Stratum {plain(stratum)} is disputed more than the rest (alpha {own.alpha.value:.2f} against "
                f"{whole.value:.2f}): give the guidelines an example of it."
            )
    for criterion, own in found.criteria.items():
        if own.alpha.low < LOW_ALPHA:
            yield (
                f"Ratings of {plain(criterion)} may agree little (alpha's lower bound is {own.alpha.low:.2f}): say in "
                "the guidelines what the ends and the middle of its scale mean."
            )


def _of_biases(found: Findings) -> Iterable[str]:
    if found.position.p_value < SIGNIFICANT:
        best = max(range(len(found.position.win_rates)), key=found.position.win_rates.__getitem__)
        yield (
            f"Where an answer is shown matters (p = {found.position.p_value:.1g}; position {best + 1} wins "
            f"{found.position.win_rates[best]:.0%}): positions are shuffled, so it is noise and no slant, but ask "
            "annotators to read every answer before they rank."
        )
    if found.length.low > LENGTH[1] or found.length.high < LENGTH[0]:
        side = "longer" if found.length.value > 0.5 else "shorter"
        share = max(found.length.value, 1 - found.length.value)
        yield f"The {side} answer wins {share:.0%} of pairs: check that this is what the guidelines ask for."


def _of_answers(found: Findings) -> Iterable[str]:
    for count, what in ((found.discarded, "discarded"), (found.cannot_judge, "flagged as impossible to judge")):
        if found.judgements and count / found.judgements > TOO_MANY:
            share = f"{count / found.judgements:.0%}"
            yield f"{share} of the judgements are {what}: look at these prompts before asking more."
    if found.ties > MANY_TIES:
        yield f"{found.ties:.0%} of pairs are tied: sample completions that differ more, at a higher temperature."


def _of_budget(found: Findings) -> Iterable[str]:
    if found.budget is None:
        return
    for limit, spent, unit in (
        (found.budget.judgements, float(found.effort.judgements), "judgements"),
        (found.budget.hours, found.effort.hours, "hours"),
    ):
        if limit is not None and spent >= limit:
            yield f"The budget of {limit:g} {unit} is spent ({spent:.4g}): stop here, or raise it."
