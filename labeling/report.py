"""What a labeling lead reads about a round: every judgement in the letters its annotator saw, and every annotator."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from labeling.agreement import agreement_by_annotator, disagreement
from labeling.comparison import Comparison, Judgement
from labeling.question import prompt_text


def judgement_rows(comparisons: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """One row per judgement: the prompt, the answers as shown, and the order given, as in `B > A = D > C`."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    return [_judgement_row(judgement, by_id[judgement.record]) for judgement in judgements]


def annotator_rows(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """One row per annotator: how much they did and how far they agree with the others (see `pairwise` agreement)."""
    shares = agreement_by_annotator(judgements)
    return [
        {
            "annotator": annotator,
            "submitted": sum(each.annotator == annotator and each.ranks is not None for each in judgements),
            "discarded": sum(each.annotator == annotator and each.ranks is None for each in judgements),
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
