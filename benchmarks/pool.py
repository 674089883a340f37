"""What the benchmark of selection selects from: the demo's base and SFT model, and 8 completions for each prompt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import ROOT
from flows.recipe import LifecycleRecipe
from labeling.information import principal
from labeling.selection import ngram_vectors
from tasks.artifact import Row, Work, read_jsonl
from tasks.data.prepare import prepare_data
from tasks.data.shop import utility
from tasks.models.pretrain import build_base
from tasks.recipe import load_recipe
from tasks.sampling.completions import sample_completions
from tasks.training.sft import train_sft

RECIPE = ROOT / "deployments" / "recipes" / "demo.toml"
SAMPLED = 8
CHANGES = (
    'policy=[{method="dpo"}]',
    "data.shares={sft=0.25,reward_train=0.5,reward_validation=0.2,rl=0.0,evaluation=0.05}",
    f"sample.completions_per_prompt={SAMPLED}",
)


@dataclass
class Pool:
    """What is selected from, and the pairs that reward models are judged by."""

    recipe: LifecycleRecipe
    base: Path
    sft: Path
    rows: list[Row]
    features: np.ndarray
    """[rows, completions, dimensions]"""
    similar: np.ndarray
    """Unit vectors of the prompts' n-grams."""
    held_out: list[Row]
    """Preference rows by true utility."""
    margins: np.ndarray
    """Features of the better less those of the worse completion of each held-out pair."""

    @property
    def overlap(self) -> int:
        return len(self.recipe.label.simulated)


def build_pool(folder: Path) -> Pool:
    """The demo's base and SFT model and 8 completions per prompt."""
    import torch

    from tasks.models.features import text_features

    torch.set_num_threads(1)
    recipe = load_recipe(LifecycleRecipe, RECIPE, CHANGES)
    made: dict[str, Path] = {}

    def stage(name: str, function: Callable[..., None], part: Any, *needs: str) -> Path:
        work = work_in(folder / name, recipe.seed)
        function(part, {need: made[need] for need in needs}, work)
        return made.setdefault(name, work.out)

    stage("base", build_base, recipe.base)
    stage("data", prepare_data, recipe.data)
    stage("sft", train_sft, recipe.sft, "base", "data")
    sampled = stage("sample", sample_completions, recipe.sample, "base", "sft", "data") / "completions.jsonl"
    rows = [row for row in read_jsonl(sampled) if len({each["text"] for each in row["completions"]}) > 1]
    features = text_features(
        [made["base"], made["sft"]],
        [(row["prompt"], each["text"], each["finished"]) for row in rows for each in row["completions"]],
    ).reshape(len(rows), SAMPLED, -1)
    train = np.array([row["split"] == "train" for row in rows])
    own, others = principal(features[train], [features[~train]], 128)
    pairs = [(n, *pair) for n, row in enumerate(r for r in rows if r["split"] != "train") for pair in true_pairs(row)]
    outside = [row for row in rows if row["split"] != "train"]
    inside = [row for row in rows if row["split"] == "train"]
    return Pool(
        recipe,
        made["base"],
        made["sft"],
        inside,
        own,
        ngram_vectors([row["prompt"][-1]["content"] for row in inside]),
        [preference_row(outside[n], better, worse) for n, better, worse in pairs],
        np.array([others[n, better] - others[n, worse] for n, better, worse in pairs]),
    )


def true_pairs(row: Row) -> Iterator[tuple[int, int]]:
    """Places of two completions of different true utility, the better one first."""
    worth = [utility(row, each["text"]) for each in row["completions"]]
    for one, other in combinations(range(SAMPLED), 2):
        if worth[one] != worth[other]:
            yield (one, other) if worth[one] > worth[other] else (other, one)


def preference_row(row: Row, better: int, worse: int, weight: float = 1.0) -> Row:
    """A pair as the trainers take it."""
    chosen, rejected = row["completions"][better], row["completions"][worse]
    return {
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen["text"]}],
        "rejected": [{"role": "assistant", "content": rejected["text"]}],
        "chosen_finished": chosen["finished"],
        "rejected_finished": rejected["finished"],
        "weight": weight,
    }


def work_in(folder: Path, seed: int) -> Work:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    return Work(folder / "out", folder / "scratch", seed=seed)
