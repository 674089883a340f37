"""What a labeling lead reads about a judge model held against people, as Markdown."""

import math

from labeling.ai.validation import Validation
from labeling.measures.bootstrap import Estimate


def validation_report(
    validation: Validation,
    *,
    judge: str,
    minimum: float,
    at_least: int,
    unvalidated: bool = False,
    assisted: bool = False,
) -> str:
    """What a labeling lead reads before a judge's labels are used, as Markdown."""
    verdict = _verdict(validation, minimum, at_least, unvalidated)
    lines = [f"## AI judge {judge} against people", "", f"**{verdict}**", ""]
    if assisted:
        lines += ["People saw the judge's ranks before they gave theirs, so this agreement is too high.", ""]
    lines += [
        "| | judge and people | people among themselves |",
        "|---|---|---|",
        *(
            f"| {title} | {_shown(getattr(validation.agreement, name))} | {_shown(getattr(validation.people, name))} |"
            for name, title in TITLES.items()
        ),
        f"| records | {validation.records} | {validation.people.records} |",
        "",
        "In brackets: 95 % intervals of the bootstrap over records.",
        "",
    ]
    if validation.strata:
        lines += ["| stratum | records | tie-discounted agreement |", "|---|---|---|"]
        lines += [
            f"| {name.replace('|', '/')} | {found.records} | {_shown(found.tie_discounted)} |"
            for name, found in validation.strata.items()
        ]
        lines.append("")
    return "\n".join([*lines, *_position_lines(validation), *_invalid_lines(validation)]).rstrip() + "\n"


TITLES = {
    "tie_discounted": "tie-discounted agreement",
    "pairwise": "pairwise agreement",
    "alpha": "Krippendorff's alpha",
    "cohen_kappa": "Cohen's kappa",
}


def _verdict(validation: Validation, minimum: float, at_least: int, unvalidated: bool) -> str:
    if not validation.records:
        end = "its labels are used UNVALIDATED" if unvalidated else "its labels are not used"
        return f"NOT VALIDATED: no record was judged by people too; {end}."
    bound = held_against(validation, minimum, at_least)
    if validation.reaches(minimum, at_least):
        return f"Validated: {bound}."
    return f"NOT VALIDATED: {bound}." + (" Its labels are used UNVALIDATED." if unvalidated else "")


def held_against(validation: Validation, minimum: float, at_least: int) -> str:
    """What the judge reached, which bound that is, and what is asked for: a clause."""
    bootstrap, few = validation.agreement.tie_discounted.low, at_least - validation.records
    which = f"Wilson's {validation.wilson:.2f}" + (
        "" if math.isnan(bootstrap) else f" and the bootstrap's {bootstrap:.2f}"
    )
    return (
        f"the lower bound of its tie-discounted agreement with people is {validation.low:.2f} on {validation.records} "
        f"records (the lower of {which}, a record being one look), and {minimum:.2f} on {at_least} records or more is "
        f"asked for" + (f": {few} records too few" if few > 0 else "")
    )


def _position_lines(validation: Validation) -> list[str]:
    found = validation.position
    if not found.pairs:
        return []
    rest = found.pairs - found.alike - found.first - found.last
    return [
        f"Of {found.pairs} pairs asked in both orders it told {found.alike} alike ({found.consistency:.0%}); "
        f"{found.first} went to whichever stood first, {found.last} to whichever stood last, {rest} were a tie in one "
        "order. What was not told alike counts as a tie.",
    ]


def _invalid_lines(validation: Validation) -> list[str]:
    if not validation.invalid:
        return [f"All {validation.opinions} records have valid answers."]
    why = ", ".join(f"{reason}: {count}" for reason, count in sorted(validation.reasons.items()))
    return [f"{validation.invalid} of {validation.opinions} records have no judgement of its ({why})."]


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not defined"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"
