"""What a labeling lead reads about a round: a report of how it stands, and tables of its judgements and annotators."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from labeling.comparison import Comparison, Judgement
from labeling.measures.agreement import agreement_by_annotator, disagreement
from labeling.measures.effort import Budget
from labeling.question import prompt_text
from labeling.report import sections
from labeling.report.advice import advice
from labeling.report.findings import asked_of_people, measure_round

HARDEST = 10


def round_report(
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    quality_rows: Sequence[Mapping[str, Any]] = (),
    budget: Budget | None = None,
    left_out: int = 0,
    seed: int = 0,
) -> str:
    """The round in Markdown, for MLflow and Prefect. Texts and names are untrusted and escaped.

    Agreement and biases are those of people on what was asked: gold and repeated comparisons and AI judgements are
    counted and left out. `quality_rows` are the rows of `AnnotatorQuality`, `left_out` counts the
    answers of people whom the round does not list. Raises `LabelingError` for a judgement of a
    record that is not among the comparisons.
    """
    found = measure_round(
        comparisons, judgements, quality_rows=quality_rows, budget=budget, left_out=left_out, seed=seed
    )
    asked = asked_of_people(comparisons, judgements)
    parts = {
        "What to do next": "\n".join(f"- {sentence}" for sentence in advice(found)),
        "Progress": sections.progress(found),
        "Guidelines": sections.guidelines(found),
        "Agreement": sections.agreement(found),
        "Annotators": sections.annotators(found),
        "Annotators against each other": sections.matrix(asked),
        "Checks": sections.quality(found),
        "Biases": sections.biases(found),
        "Hardest records": sections.hardest(hardest_rows(comparisons, asked, HARDEST), _rationales(asked)),
        "Label budget": sections.budget(found),
    }
    return "\n\n".join(["# Round report", *(f"## {title}\n\n{text}" for title, text in parts.items() if text)]) + "\n"


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


def _rationales(judgements: Sequence[Judgement]) -> dict[str, list[str]]:
    """Record -> what annotators said about it."""
    said: dict[str, list[str]] = {}
    for judgement in judgements:
        if judgement.rationale.strip():
            said.setdefault(judgement.record, []).append(judgement.rationale)
    return said


def _judgement_row(judgement: Judgement, comparison: Comparison) -> dict[str, Any]:
    return {
        "record": judgement.record,
        "annotator": judgement.annotator,
        "status": judgement.status,
        "prompt": prompt_text(comparison.prompt),
        **{option: completion.text for option, completion in comparison.options.items()},
        "ranking": ranking_text(judgement, comparison),
    }
