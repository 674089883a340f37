"""Judgements become the preferences that models are trained on, or an imported file's pairs take their place."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from labeling.comparison import Comparison, Judgement, LabelingError, comparison_from, judgement_from
from labeling.measures.agreement import agreement
from labeling.quality.reliability import AnnotatorQuality, Bar, annotator_quality, held_out
from labeling.quality.summary import quality_report
from labeling.rankings import Method, Outcome, Preference, by_rating, to_preferences
from labeling.report.round_report import hardest_rows
from tasks.artifact import InputError, Row, Work, read_jsonl, write_jsonl
from tasks.recipe import Part, stable_hash

SPLITS = ("train", "validation")
PSEUDONYM = re.compile(r"annotator-[0-9a-f]{8}")
HARDEST = 25
"""Records shown in the table of most disagreement."""


Fraction = Annotated[float, Field(ge=0, le=1)]


class BarRecipe(Part):
    """What an annotator must reach for their judgements to be learnt from. Below it is whose whole 95 % interval is."""

    gold_accuracy: Fraction | None = 0.65
    """Least share of gold pairs ordered as expected; 0 holds nobody out."""
    self_consistency: Fraction | None = 0.6
    """Least share of repeated pairs ordered as before; 0 holds nobody out."""
    agreement: Fraction | None = None
    """Least share of (another annotator, pair) ordered alike; not asked for by default, as the others may be wrong."""
    straight_lining: Fraction | None = 0.9
    """Greatest share of judgements in the order shown, or all tied; 1 holds nobody out."""
    at_least: int = Field(default=10, ge=1)
    """What must have been counted before a figure is held against anybody."""


class PreferencesRecipe(Part):
    """Where preferences come from."""

    source: Literal["judgements", "data"] = "judgements"
    """Annotators' ranks, or the pairs of the preference file that the data stage imported."""
    aggregation: Method = "reliability"
    """Each vote counts for what its annotator's are worth, as learnt from all votes, or `majority`: all count alike."""
    bar: BarRecipe = BarRecipe()
    """Annotators below it are held out: their judgements are kept, and no pair is made of them."""
    held_out: tuple[str, ...] = ()
    """Annotators who are held out whatever the bar says, by the pseudonyms that reports show."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """With several rounds all judgements are pooled; each round that has passed since multiplies a pair's weight by
    this."""
    min_weight: float = Field(default=0.0, ge=0, le=1)
    """Pairs of less weight are left out; see `labeling/rankings.py` for what a weight is."""


def build_preferences(recipe: PreferencesRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Write `train.jsonl` and `validation.jsonl`: rows with prompt, chosen, rejected, weight and the judgements behind;
    `chosen_finished` and `rejected_finished` say whether a completion ended by itself or was cut, `agreement` is the
    weight before `decay`. Where completions
    were rated, `rated_train.jsonl` and `rated_validation.jsonl` hold the like for each `criterion`.

    Raises `InputError` when a split gets no pair.
    """
    rows = _imported(recipe, inputs["data"]) if recipe.source == "data" else _judged(recipe, inputs, work)
    for split in SPLITS:
        if not rows[split]:
            raise InputError(
                f"There is no {split} preference; label or import more prompts, or lower preferences.min_weight."
            )
    for name, found in rows.items():
        write_jsonl(work.out / f"{name}.jsonl", found)
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
    """The pairs by split, `rated_` before those of ratings."""
    pool = _pool(inputs)
    comparisons, judgements = pool.comparisons, pool.judgements
    by_id = {comparison.id: comparison for comparison in comparisons}
    try:
        qualities = annotator_quality(comparisons, judgements)
        out = _by_hand(recipe, qualities, work) | held_out(qualities, Bar(**recipe.bar.model_dump()))
        kept = [judgement for judgement in judgements if judgement.annotator not in out]
        outcome = to_preferences(comparisons, kept, recipe.aggregation)
        asked = [comparison for comparison in comparisons if comparison.kind == "asked"]  # gold says who ranks well
        criteria = sorted({criterion for judgement in kept for criterion in judgement.ratings})
        of_criteria = {each: to_preferences(asked, by_rating(kept, each), recipe.aggregation) for each in criteria}
    except LabelingError as error:
        raise InputError(str(error)) from error
    if out and not kept:
        told = " ".join(out.values())
        raise InputError(
            f"Every annotator is held out ({told}); lower preferences.bar or shorten preferences.held_out."
        )
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for criterion, own in [("", outcome), *of_criteria.items()]:
        for preference in own.preferences:
            aged = replace(preference, weight=preference.weight * recipe.decay ** pool.age[preference.record])
            if aged.weight < recipe.min_weight:
                continue
            split, row = pool.split[aged.record], _row(aged, by_id[aged.record], pool.finished)
            row["agreement"] = preference.weight
            if criterion:
                row |= {"id": stable_hash([row["id"], criterion])[:16], "criterion": criterion}
                split = f"rated_{split}"
            rows.setdefault(split, []).append(row)
    _report(outcome, comparisons, judgements, qualities, out, work)
    return rows


def _by_hand(recipe: PreferencesRecipe, qualities: Sequence[AnnotatorQuality], work: Work) -> dict[str, str]:
    """Who is held out by the recipe -> that it does so; somebody who judged nothing (in this round yet) is told.

    Raises `InputError` for what is no pseudonym.
    """
    there = [quality.annotator for quality in qualities]
    for name in recipe.held_out:
        if name in there:
            continue
        says = f"preferences.held_out names '{name}', who judged nothing here ({', '.join(there)} did)"
        if not PSEUDONYM.fullmatch(name):
            raise InputError(f"{says}; give pseudonyms, which `rlhf annotators list` shows.")
        work.notify(f"{says}.")
    return {name: f"{name} is held out by preferences.held_out." for name in recipe.held_out if name in there}


@dataclass
class _Pool:
    """The judgements of all rounds so far; what earlier rounds call the same is told apart."""

    comparisons: list[Comparison] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    split: dict[str, str] = field(default_factory=dict)
    """Split of each record's prompt."""
    age: dict[str, int] = field(default_factory=dict)
    """Rounds since each record was judged."""
    finished: dict[str, bool] = field(default_factory=dict)
    """Whether each completion ended by itself."""

    def add(self, judged: Path, sampled: Path, mark: str, age: int) -> None:
        """Take a round in, `mark` before the ids of its records and completions."""
        for each in map(comparison_from, read_jsonl(judged / "comparisons.jsonl")):
            self.comparisons.append(_marked(each, mark))
        for each in map(judgement_from, read_jsonl(judged / "judgements.jsonl")):
            ranks = each.ranks and {mark + name: rank for name, rank in each.ranks.items()}
            ratings = {name: {mark + id: value for id, value in given.items()} for name, given in each.ratings.items()}
            self.judgements.append(replace(each, record=mark + each.record, ranks=ranks, ratings=ratings))
        for row in read_jsonl(sampled / "completions.jsonl"):
            self.split[mark + row["id"]], self.age[mark + row["id"]] = row["split"], age
            self.finished |= {mark + each["id"]: bool(each["finished"]) for each in row["completions"]}


def _marked(comparison: Comparison, mark: str) -> Comparison:
    completions = tuple(replace(each, id=mark + each.id) for each in comparison.completions)
    return replace(
        comparison,
        id=mark + comparison.id,
        completions=completions,
        shown=tuple(mark + each for each in comparison.shown),
        source=comparison.source and mark + comparison.source,
        expected=comparison.expected and {mark + name: rank for name, rank in comparison.expected.items()},
    )


def _pool(inputs: Mapping[str, Path]) -> _Pool:
    """This round's judgements, and those of earlier rounds: inputs `judgements.1` and `completions.1`, and so on."""
    earlier = sorted(int(name.rpartition(".")[2]) for name in inputs if name.startswith("judgements."))
    pool = _Pool()
    for number in earlier:
        judged, sampled = inputs[f"judgements.{number}"], inputs[f"completions.{number}"]
        pool.add(judged, sampled, f"{number}/", len(earlier) + 1 - number)
    pool.add(inputs["judgements"], inputs["completions"], "", 0)
    return pool


def _report(
    outcome: Outcome,
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    qualities: Sequence[AnnotatorQuality],
    out: Mapping[str, str],
    work: Work,
) -> None:
    """Figures of the round, the records its annotators disagree on most, and one row per annotator."""
    asked = {comparison.id for comparison in comparisons if comparison.kind == "asked"}
    answers = [judgement for judgement in judgements if judgement.record in asked]
    work.log(
        {
            "undecided": outcome.undecided,
            "identical": outcome.identical,
            "discarded": outcome.discarded,
            "unjudged": outcome.unjudged,
            "held_out": len(out),
            "held_out_judgements": sum(judgement.annotator in out for judgement in judgements),
            **agreement(answers, seed=work.seed).figures(),
        }
    )
    learnt = {each.annotator: each for each in outcome.reliability}
    rows = []
    for quality in qualities:
        model = learnt.get(quality.annotator)
        worth = {
            "sensitivity": round(model.sensitivity, 4) if model else None,
            "accuracy": round(model.accuracy, 4) if model else None,
        }
        rows.append({**quality.row(), **worth, "held_out": out.get(quality.annotator, "")})
    work.text("quality", quality_report(rows))
    work.table("annotators", rows)
    work.table("hardest", hardest_rows(comparisons, answers, HARDEST))


def _row(preference: Preference, comparison: Comparison, finished: Mapping[str, bool]) -> Row:
    """A pair as trainers take it."""
    texts = {completion.id: completion.text for completion in comparison.completions}
    return {
        "id": stable_hash([preference.record, preference.chosen, preference.rejected])[:16],
        "prompt": [dict(message) for message in comparison.prompt],
        "chosen": [{"role": "assistant", "content": texts[preference.chosen]}],
        "rejected": [{"role": "assistant", "content": texts[preference.rejected]}],
        "chosen_finished": finished[preference.chosen],
        "rejected_finished": finished[preference.rejected],
        "weight": preference.weight,
        "margin": preference.margin,
        "judgements": list(preference.judgements),
        "prompt_id": preference.record,
        "stratum": comparison.stratum,
        "chosen_id": preference.chosen,
        "rejected_id": preference.rejected,
    }
