"""Looks at a policy in training: win rates on held-out prompts over the model it started from, and what follows.

What was seen is part of the updates' figures, so a checkpoint that holds those holds all: the best update and whether
training is over are functions of the history alone, the same after a kill.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.artifact import InputError, Row, Work, read_jsonl
from tasks.evaluation.winrate import bootstrap, win_rates
from tasks.models.adapters import save
from tasks.models.chat import encode_prompt
from tasks.sampling.folded import folded
from tasks.sampling.local import CausalLM, generate
from tasks.training.hyperparameters import OnlineHyperparameters, WatchRecipe
from tasks.training.rewards import FunctionReward, Rewards, Score

PREFIX = "watch/"
WIN_RATE, LOW, HIGH, JUDGE = "watch/win_rate", "watch/win_rate_low", "watch/win_rate_high", "watch/judge"
BOOTSTRAP_SAMPLES = 1000
BATCH = 128
"""Rows decoded at once."""

History = Sequence[Mapping[str, float]]
"""What was logged of each update so far."""


def watched_rows(recipe: WatchRecipe, data: Path) -> list[Row]:
    """The prompts a policy is watched on: a fixed draw of the split whose judgements are held out; none when it is off.

    Raises `InputError` where the split is empty.
    """
    if not recipe.every:
        return []
    rows = read_jsonl(data / "reward_validation.jsonl")
    if not rows:
        raise InputError(
            "There are no prompts to watch a policy on; raise data.shares.reward_validation or set watch.every = 0."
        )
    return rows if len(rows) <= recipe.prompts else random.Random(0).sample(rows, recipe.prompts)


def best_update(history: History) -> int:
    """The first update with the highest win rate. Raises `ValueError` where none was looked at."""
    rates = {update: metrics[WIN_RATE] for update, metrics in enumerate(history, 1) if WIN_RATE in metrics}
    return max(rates, key=lambda update: rates[update])


def ended(recipe: OnlineHyperparameters, history: History) -> bool:
    """Whether training is over: all updates made, the KL over `stop_kl`, or `patience` looks without a higher rate."""
    if len(history) >= recipe.updates:
        return True
    if recipe.stop_kl is not None and history and history[-1]["kl"] > recipe.stop_kl:
        return True
    rates = [metrics[WIN_RATE] for metrics in history if WIN_RATE in metrics]
    patience = recipe.watch.patience
    return patience is not None and bool(rates) and len(rates) - 1 - rates.index(max(rates)) >= patience


class Watch:
    """One policy's watch. `begin` before the first update, `look` after each, `prune` after each checkpoint."""

    def __init__(
        self,
        recipe: OnlineHyperparameters,
        model: CausalLM,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        score: Score,
        work: Work,
    ) -> None:
        self.training, self.recipe = recipe, recipe.watch
        self.model, self.tokenizer, self.rows, self.work = model, tokenizer, rows, work
        self.ids = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
        judge = self.recipe.judge
        self.judge = score if judge is None else _scoring(judge, rows)
        self.checks = {PREFIX + check.partition(":")[2]: _scoring(check, rows) for check in self.recipe.checks}
        self.first: list[list[float]] = []

    def begin(self) -> None:
        """Judge the answers of the model as it is now, the start; after a kill take what was judged then."""
        kept = self.work.scratch / "watch-start.json"
        if not kept.exists():
            judged, figures = self._ask()
            draft = kept.with_suffix(".part")
            draft.write_text(json.dumps(judged))
            os.replace(draft, kept)
            self.work.log({WIN_RATE: 0.5} | figures, step=0)
        self.first = json.loads(kept.read_text())

    def look(self, history: History) -> dict[str, float]:
        """What is seen after the last update of the history; nothing where it is not looked at. Keeps its policy where
        it is the best so far and the best is wanted."""
        if len(history) % self.recipe.every and not ended(self.training, history):
            return {}
        judged, figures = self._ask()
        rate = bootstrap(win_rates(judged, self.first), BOOTSTRAP_SAMPLES, seed=0)
        seen = {WIN_RATE: rate["mean"], LOW: rate["low"], HIGH: rate["high"]} | figures
        if self.recipe.keep == "best" and best_update([*history[:-1], {**history[-1], **seen}]) == len(history):
            self._keep(len(history))
        return seen

    def folder(self, update: int) -> Path:
        """Where the policy of an update lies that was the best then."""
        return self.work.scratch / f"best-{update:06d}"

    def prune(self, history: History) -> None:
        """Remove policies that a run which goes on from this history cannot end with."""
        if not any(WIN_RATE in metrics for metrics in history):
            return
        for folder in self.work.scratch.glob("best-*"):
            if folder != self.folder(best_update(history)):
                shutil.rmtree(folder)

    def _keep(self, update: int) -> None:
        final = self.folder(update)
        partial = final.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # of a run that was killed after it
        save(self.model, partial)
        partial.rename(final)

    def _ask(self) -> tuple[list[list[float]], dict[str, float]]:
        """The judge's values of the model's answers, by prompt, and the means that are logged of them."""
        n = self.recipe.samples_per_prompt
        with folded(self.model) as model:
            groups = generate(
                model, self.tokenizer, self.ids, n=n, max_new_tokens=self.training.max_new_tokens,
                seed=self.work.seed, batch_size=BATCH,
            )  # fmt: skip
        prompts = [row["prompt"] for row in self.rows for _ in range(n)]
        answers = [answer for group in groups for answer in group]
        texts, finished = [answer.text for answer in answers], [answer.finished for answer in answers]
        values = self.judge(prompts, texts, finished)
        asked = {JUDGE: values} | {name: check(prompts, texts, finished) for name, check in self.checks.items()}
        figures = {name: sum(found) / len(found) for name, found in asked.items()}
        return [values[start : start + n] for start in range(0, len(values), n)], figures


def _scoring(function: str, rows: Sequence[Row]) -> Score:
    """A user's judge or check as a reward: it is asked with the prompt's row, and its faults are named."""
    return Rewards([FunctionReward(function=function, name="watch")], rows, None)
