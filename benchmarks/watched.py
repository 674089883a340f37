"""Whether the best policy seen in training is better than the last one: by the reward, and by a check that knows facts.

python -m benchmarks.watched [--seeds N] [--every N]

PPO and GRPO as in the demo, and again without the SFT model's likelihood in the reward and twice as long, where they
lose facts. At every look the policy also answers the evaluation prompts, so one training shows what every rule would
have handed over. (A win rate by a check is .5 and half of what the share correct has gained, so the best policy by the
check is the one with the highest share correct.)
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from benchmarks.learning import DEMO
from benchmarks.measured import fresh_home, keep, rlhf, show
from tasks.artifact import Row, Work, read_jsonl
from tasks.data import shop
from tasks.evaluation.winrate import bootstrap, win_rates
from tasks.models.adapters import attach
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.sampling.folded import folded
from tasks.sampling.local import generate
from tasks.training.grpo import GrpoRecipe
from tasks.training.grpo_trainer import Grpo, fit
from tasks.training.ppo import PpoRecipe
from tasks.training.ppo_trainer import Ppo
from tasks.training.rewards import rewards_of
from tasks.training.rl_loop import run
from tasks.training.rollouts import encode_prompts
from tasks.training.watch import WIN_RATE, History, Watch, watched_rows

REGIMES: dict[str, dict[str, Any]] = {
    "demo": {"updates": 30},
    "unheld": {"updates": 60, "likelihood_coefficient": 0.0},
}
CORRECT = "watch/correct"
HEAD = ["seed", "policy", "kept", "update", "wins vs SFT (utility)", "correct", "slice: wins by reward", "correct"]


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--seeds", type=int, default=2)
    given.add_argument("--every", type=int, default=5, help="updates between two looks")
    options = given.parse_args()
    found: list[dict[str, Any]] = []
    with fresh_home() as environment:
        rlhf(environment, "up")
        for seed in range(options.seeds):
            changes = [f"seed={seed}", f"name=watched-{seed}", 'policy=[{method = "ppo", updates = 1}]']
            document, _ = rlhf(environment, "run", DEMO, *(word for each in changes for word in ("--set", each)))
            keys = {stage["name"]: stage["artifact"] for stage in document["stages"]}
            store = Path(environment["RLHF_HOME"]) / "store"
            inputs = {name: store / keys[name] for name in ("base", "sft", "data", "reward")}
            found += curves(inputs, seed, options.every)
            keep("watched", found)
    show("what each rule hands over", HEAD, [row for curve in found for row in _rows(curve)])


def curves(inputs: Mapping[str, Path], seed: int, every: int) -> list[dict[str, Any]]:
    """The looks of every method in every regime."""
    found: list[dict[str, Any]] = []
    for regime, settings in REGIMES.items():
        for kind in (PpoRecipe, GrpoRecipe):
            watch = {"every": every, "checks": ["tasks.data.shop:correct"]}
            recipe = kind.model_validate(settings | {"watch": watch})
            looks = _train(recipe, inputs, seed)
            found.append({"seed": seed, "policy": f"{recipe.method}, {regime}", "looks": looks})
            show(f"{recipe.method}, {regime}", HEAD, _rows(found[-1]))
    return found


class Judged(Watch):
    """A watch that asks the evaluation prompts too, which no rule may go by."""

    evaluation: Sequence[Row] = ()

    def begin(self) -> None:
        super().begin()
        self.before, self.correct = self._evaluate()
        self.looks: list[Row] = []

    def look(self, history: History) -> dict[str, float]:
        seen = super().look(history)
        if seen:
            utilities, correct = self._evaluate()
            rate = bootstrap(win_rates(utilities, self.before), 2000, seed=0)
            row = {"update": len(history), "win_rate": rate, "correct": correct, "correct_before": self.correct}
            self.looks.append(row | {"kl": history[-1]["kl"], **seen})
        return seen

    def _evaluate(self) -> tuple[list[list[float]], float]:
        ids = [encode_prompt(self.tokenizer, row["prompt"]) for row in self.evaluation]
        with folded(self.model) as model:
            groups = generate(model, self.tokenizer, ids, n=4, max_new_tokens=48, seed=1, batch_size=128)
        answers = [(row, [each.text for each in group]) for row, group in zip(self.evaluation, groups, strict=True)]
        right = [shop.correct(row, text) for row, texts in answers for text in texts]
        return [[shop.utility(row, text) for text in texts] for row, texts in answers], sum(right) / len(right)


def _train(recipe: PpoRecipe | GrpoRecipe, inputs: Mapping[str, Path], seed: int) -> list[Row]:
    set_seed(seed)
    tokenizer, rows = load_tokenizer(inputs["base"]), read_jsonl(inputs["data"] / "rl.jsonl")
    watched = watched_rows(recipe.watch, inputs["data"])
    score = rewards_of(recipe.rewards, inputs, [*rows, *watched])
    policy = attach(load_causal_lm([inputs["base"], inputs["sft"]]), recipe.adapter)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), Path(folder), seed, checkpoint_seconds=float("inf"))
        watch = Judged(recipe, policy, tokenizer, watched, score, work)
        watch.evaluation = read_jsonl(inputs["data"] / "evaluation.jsonl")
        if isinstance(recipe, PpoRecipe):
            ppo = Ppo(recipe, policy, tokenizer, encode_prompts(tokenizer, rows), score, seed)
            run(recipe, ppo.step, work, ppo.modules, ppo.optimizers, watch)
        else:
            fit(Grpo(recipe, policy, tokenizer, rows, score, work, watch), work)
    return watch.looks


def _rows(curve: Mapping[str, Any]) -> list[list[Any]]:
    """What is handed over by keeping the last policy, the (first) best by the reward, and the best by the check."""
    looks: list[Row] = curve["looks"]
    kept = {
        "last": looks[-1],
        "best by reward": max(looks, key=lambda look: look[WIN_RATE]),
        "best by check": max(looks, key=lambda look: look[CORRECT]),
    }
    rows: list[list[Any]] = []
    for rule, look in kept.items():
        rate = look["win_rate"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        rows.append([curve["seed"], curve["policy"], rule, look["update"], interval, look["correct"]])
        rows[-1] += [look[WIN_RATE], look[CORRECT]]
    return rows


if __name__ == "__main__":
    main()
