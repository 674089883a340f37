"""Until tasks/label.py has them: publish a round, and see how far it is."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeling import argilla
from labeling.accounts import create_annotators
from labeling.comparison import LabelingError
from labeling.connection import connect
from labeling.question import Round
from tasks import label
from tasks.artifact import PipelineError, read_jsonl
from tasks.label import LabelRecipe


@dataclass(frozen=True)
class Standing:
    """How far a round is."""

    sufficient: bool
    sentence: str
    datasets: list[str]


def _prepare(recipe: LabelRecipe, completions: Path, key: str, seed: int) -> tuple[Any, Round]:
    comparisons = label._comparisons(read_jsonl(completions / "completions.jsonl"), seed)
    return comparisons, Round(
        name=f"{recipe.round}-{key[:8]}",
        workspace=recipe.workspace,
        guidelines=recipe.guidelines,
        options=len(comparisons[0].completions),
        min_submitted=recipe.min_submitted,
        markdown=recipe.markdown,
    )


def publish_round(
    recipe: LabelRecipe, completions: Path, key: str, seed: int, progress: Callable[[int, int], None]
) -> None:
    """Put the round before people; again adds nothing."""
    url, api_key = label._address()
    comparisons, campaign = _prepare(recipe, completions, key, seed)
    try:
        with closing(connect(url, api_key)) as client:
            argilla.publish(client, campaign, comparisons, progress)
            passwords = label._passwords(client, url, recipe)
            create_annotators(client, recipe.workspace, recipe.annotators, passwords)
    except LabelingError as error:
        raise PipelineError(str(error)) from error


def round_standing(recipe: LabelRecipe, completions: Path, key: str, seed: int) -> Standing:
    """Count now."""
    url, api_key = label._address()
    comparisons, campaign = _prepare(recipe, completions, key, seed)
    try:
        with closing(connect(url, api_key)) as client:
            dataset = argilla.find_dataset(client, campaign.workspace, campaign.name)
            if dataset is None:
                return Standing(False, "The round is not published.", [])
            judgements = argilla.fetch_judgements(client, dataset["id"], campaign, comparisons, label.pseudonym)
    except LabelingError as error:
        raise PipelineError(str(error)) from error
    done = label._done(judgements, recipe.min_submitted, len(recipe.annotators))
    needed = math.ceil(recipe.records_completed * len(comparisons))
    return Standing(done >= needed, f"{done} of {needed} records are done.", [dataset["id"]])
