"""A short report on annotators: who is learnt from, and why others are not."""

from collections.abc import Mapping, Sequence
from typing import Any

from labeling.report.writing import plain, table

FIGURES = {
    "gold": "gold",
    "self_consistency": "self-consistency",
    "agreement": "agrees with others",
    "straight": "in order shown",
}


def quality_report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown from rows of `AnnotatorQuality` with `accuracy` (as learnt) and `held_out` (why; empty: is not)."""
    lines = [
        (
            plain(row["annotator"]),
            "held out" if row["held_out"] else "",
            row["submitted"],
            *(_share(row, name) for name in FIGURES),
            row["accuracy"],
            row["speed"] or None,
        )
        for row in rows
    ]
    head = ["annotator", "", "judgements", *FIGURES.values(), "votes right, as learnt", "pace"]
    reasons = [f"- {plain(row['held_out'], 1000)}" for row in rows if row["held_out"]]
    parts = [
        "# Annotators",
        f"{len(reasons)} of {len(rows)} held out: their judgements are kept, and not learnt from.",
        "\n".join(reasons),
        table(head, lines),
        "Shares, and of how many. `rlhf annotators list` says who is who.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _share(row: Mapping[str, Any], name: str) -> str | None:
    return None if row[name] is None else f"{row[name]:.2f} ({row[f'{name}_count']})"
