"""Judgements become the preferences that models are trained on, or an imported file's pairs take their place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from labeling.agreement import agreement
from labeling.comparison import Comparison, comparison_from, judgement_from
from labeling.rankings import Preference, to_preferences
from labeling.report import hardest_rows
from tasks.artifact import InputError, Row, Work, read_jsonl, write_jsonl
from tasks.recipe import Part, stable_hash

SPLITS = ("train", "validation")
HARDEST = 25
"""Records shown in the table of most disagreement."""


class PreferencesRecipe(Part):
    """Where preferences come from."""

    source: Literal["judgements", "data"] = "judgements"
    """Annotators' ranks, or the pairs of the preference file that the data stage imported."""
    min_weight: float = Field(default=0.0, ge=0, le=1)
    """Pairs whose annotators agree less than this are left out; see `labeling/rankings.py` for the weight."""


def build_preferences(recipe: PreferencesRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Write `train.jsonl` and `validation.jsonl`: rows with prompt, chosen, rejected, weight and the judgements behind;
    `chosen_finished` and `rejected_finished` say whether a completion ended by itself or was cut.

    Raises `InputError` when a split gets no pair.
    """
    rows = _imported(recipe, inputs["data"]) if recipe.source == "data" else _judged(recipe, inputs, work)
    for split in SPLITS:
        if not rows[split]:
            raise InputError(
                f"There is no {split} preference; label or import more prompts, or lower preferences.min_weight."
            )
        write_jsonl(work.out / f"{split}.jsonl", rows[split])
    weights = [row["weight"] for split in SPLITS for row in rows[split]]
    work.log(
        {
            "pairs": len(weights),
            "pairs_train": len(rows["train"]),
            "pairs_validation": len(rows["validation"]),
            "weight_mean": sum(weights) / len(weights),
        }
    )


def _imported(recipe: PreferencesRecipe, data: Path) -> dict[str, list[Row]]:
    """The pairs the data stage took from a file, each with full weight."""
    return {
        split: [row for row in read_jsonl(data / f"preferences_{split}.jsonl") if row["weight"] >= recipe.min_weight]
        for split in SPLITS
    }


def _judged(recipe: PreferencesRecipe, inputs: Mapping[str, Path], work: Work) -> dict[str, list[Row]]:
    comparisons = [comparison_from(row) for row in read_jsonl(inputs["judgements"] / "comparisons.jsonl")]
    judgements = [judgement_from(row) for row in read_jsonl(inputs["judgements"] / "judgements.jsonl")]
    sampled = read_jsonl(inputs["completions"] / "completions.jsonl")
    splits = {row["id"]: row["split"] for row in sampled}
    finished = {each["id"]: bool(each["finished"]) for row in sampled for each in row["completions"]}
    by_id = {comparison.id: comparison for comparison in comparisons}
    ranks = {judgement.id: judgement.ranks for judgement in judgements if judgement.ranks}
    outcome = to_preferences(comparisons, judgements)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for preference in outcome.preferences:
        if preference.weight >= recipe.min_weight:
            rows[splits[preference.record]].append(_row(preference, by_id[preference.record], finished, ranks))
    work.log(
        {
            "undecided": outcome.undecided,
            "identical": outcome.identical,
            "discarded": outcome.discarded,
            "unjudged": outcome.unjudged,
            **agreement(judgements, seed=work.seed).figures(),
        }
    )
    work.table("hardest", hardest_rows(comparisons, judgements, HARDEST))
    return rows


def _row(
    preference: Preference,
    comparison: Comparison,
    finished: Mapping[str, bool],
    ranks: Mapping[str, Mapping[str, int]],
) -> Row:
    """A pair as trainers take it; its margin is the mean rank difference, 1 for first against last."""
    behind = [ranks[name] for name in preference.judgements]
    apart = sum(each[preference.rejected] - each[preference.chosen] for each in behind) / len(behind)
    texts = {completion.id: completion.text for completion in comparison.completions}
    return {
        "id": stable_hash([preference.record, preference.chosen, preference.rejected])[:16],
        "prompt": [dict(message) for message in comparison.prompt],
        "chosen": [{"role": "assistant", "content": texts[preference.chosen]}],
        "rejected": [{"role": "assistant", "content": texts[preference.rejected]}],
        "chosen_finished": finished[preference.chosen],
        "rejected_finished": finished[preference.rejected],
        "weight": preference.weight,
        "margin": round(apart / (len(comparison.completions) - 1), 4),
        "judgements": list(preference.judgements),
        "prompt_id": preference.record,
        "chosen_id": preference.chosen,
        "rejected_id": preference.rejected,
    }
