"""Reward models of the demo's domain, each trained from other preferences: base, SFT and completions are made once.

The held-out prompts are those that the demo keeps for RL and evaluation, so that a difference of a few per cent shows.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measured import ROOT
from flows.recipe import LifecycleRecipe
from labeling.comparison import Comparison, Completion, compare
from labeling.rankings import Preference
from tasks.artifact import Row, Work, read_jsonl, write_jsonl
from tasks.data.prepare import prepare_data
from tasks.data.shop import utility
from tasks.models.pretrain import build_base
from tasks.recipe import load_recipe
from tasks.sampling.completions import sample_completions
from tasks.training.reward import train_reward
from tasks.training.reward_scoring import RewardScorer
from tasks.training.sft import train_sft

RECIPE = ROOT / "deployments" / "recipes" / "demo.toml"
HELD_OUT = {"sft": 0.25, "reward_train": 0.33, "reward_validation": 0.37, "rl": 0.0, "evaluation": 0.05}


@contextmanager
def work_folder(description: str | None) -> Iterator[tuple[Path, Path]]:
    """A temporary folder to work in, and one for a `Domain`: in the former, or `--domain`'s, which is kept."""
    given = argparse.ArgumentParser(description=description)
    given.add_argument("--domain", type=Path, help="keep the demo's base and SFT model here, for other benchmarks")
    with tempfile.TemporaryDirectory(prefix="rlhf-benchmark-") as name:
        yield Path(name), given.parse_args().domain or Path(name) / "domain"


class Domain:
    """The demo up to its completions, in a folder; what is there already is taken as it is."""

    def __init__(self, folder: Path) -> None:
        changes = [f"data.shares.{split}={share}" for split, share in HELD_OUT.items()]
        self.recipe = load_recipe(LifecycleRecipe, RECIPE, [*changes, 'policy=[{method="dpo"}]'])
        self.folder = folder
        base = self._stage("base", build_base, self.recipe.base)
        data = self._stage("data", prepare_data, self.recipe.data)
        sft = self._stage("sft", train_sft, self.recipe.sft, base=base, data=data)
        made = self._stage("completions", sample_completions, self.recipe.sample, base=base, sft=sft, data=data)
        self.start = {"base": base, "sft": sft}
        self.rows: dict[str, Row] = {row["id"]: row for row in read_jsonl(made / "completions.jsonl")}
        self.finished = {
            (name, each["text"]): bool(each["finished"])
            for name, row in self.rows.items()
            for each in row["completions"]
        }

    def utilities(self, split: str) -> dict[str, dict[str, float]]:
        """Prompt -> text of each different completion -> what it is truly worth."""
        return {
            name: {each["text"]: utility(row, each["text"]) for each in row["completions"]}
            for name, row in self.rows.items()
            if row["split"] == split
        }

    def comparisons(self, split: str, seed: int) -> list[Comparison]:
        """The prompts of a split with their different completions, a text being its own id."""
        return [
            compare(name, self.rows[name]["prompt"], [Completion(text, text) for text in utilities], seed)
            for name, utilities in self.utilities(split).items()
            if len(utilities) > 1
        ]

    def reward_model(self, preferences: Sequence[Preference], seed: int) -> dict[str, dict[str, float]]:
        """Train one by the demo's own recipe; returns its score of every held-out completion's text, by prompt."""
        pairs = self.folder / "preferences"
        write_jsonl(pairs / "train.jsonl", [self._row(each) for each in preferences])
        write_jsonl(pairs / "validation.jsonl", [])
        made = self._stage("reward", train_reward, self.recipe.reward, seed=seed, **self.start, preferences=pairs)
        held_out = [(name, text) for name, texts in self.utilities("validation").items() for text in texts]
        scores = RewardScorer(self.start["base"], made).score(
            [self.rows[name]["prompt"] for name, _ in held_out],
            [text for _, text in held_out],
            [self.finished[each] for each in held_out],
        )
        result: dict[str, dict[str, float]] = {}
        for (name, text), score in zip(held_out, scores, strict=True):
            result.setdefault(name, {})[text] = score
        return result

    def _row(self, preference: Preference) -> Row:
        name = preference.record
        sides = {"chosen": preference.chosen, "rejected": preference.rejected}
        return {
            "prompt": self.rows[name]["prompt"],
            **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()},
            **{f"{side}_finished": self.finished[name, text] for side, text in sides.items()},
            "weight": preference.weight,
            "margin": preference.margin,
        }

    def _stage(self, name: str, function: Callable[..., None], part: Any, seed: int = 0, **inputs: Path) -> Path:
        """Build what is not there, and reward models always."""
        out, building, scratch = (self.folder / f"{name}{end}" for end in ("", ".building", ".scratch"))
        if out.exists() and name != "reward":
            return out
        for folder in (out, building, scratch):
            shutil.rmtree(folder, ignore_errors=True)
        building.mkdir(parents=True)
        scratch.mkdir()
        function(part, inputs, Work(building, scratch, seed=seed))
        return building.rename(out)
