"""Looks at a policy in training: win rates on held-out prompts over the model it started from, and what follows.

Every method logs the same of a look: judge, win rate, checks, KL to the start, entropy, length, share ended by EOS.
What was seen is part of the updates' figures, so a checkpoint that holds those holds all: the best update and whether
training is over are functions of the history alone, the same after a kill.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.artifact import InputError, Row, Work, link_tree, read_jsonl
from tasks.evaluation.winrate import bootstrap, win_rates
from tasks.models.adapters import save
from tasks.models.chat import encode_prompt
from tasks.models.loading import positions, save_model
from tasks.sampling.folded import folded
from tasks.sampling.local import CausalLM, Completion, generate, output_layer
from tasks.sampling.room import with_room
from tasks.training.engine_batches import completion_logps, pad
from tasks.training.hyperparameters import OnlineHyperparameters, WatchRecipe
from tasks.training.rewards import FunctionReward, Rewards, Score
from tasks.training.rollouts import Reference

if TYPE_CHECKING:
    from tasks.training.direct import DirectRecipe
    from tasks.training.rejection import RejectionRecipe

PREFIX = "watch/"
WIN_RATE, LOW, HIGH, JUDGE = "watch/win_rate", "watch/win_rate_low", "watch/win_rate_high", "watch/judge"
BOOTSTRAP_SAMPLES = 1000
BATCH = 128
"""Rows decoded at once."""
ROWS = 32
"""Rows computed at once."""

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


def ended(recipe: "OnlineHyperparameters | Limits", history: History) -> bool:
    """Whether training is over: all updates made, the KL over `stop_kl`, or `patience` looks without a higher rate."""
    if len(history) >= recipe.updates:
        return True
    if recipe.stop_kl is not None and history and history[-1]["kl"] > recipe.stop_kl:
        return True
    rates = [metrics[WIN_RATE] for metrics in history if WIN_RATE in metrics]
    patience = recipe.watch.patience
    return patience is not None and bool(rates) and len(rates) - 1 - rates.index(max(rates)) >= patience


@dataclass(frozen=True)
class Limits:
    """What a watch goes by in a training that samples nothing itself; its updates are optimiser steps."""

    watch: WatchRecipe
    max_new_tokens: int
    updates: int = 0
    """Known when training begins."""
    stop_kl: None = None


class Watch:
    """One policy's watch. `begin` before the first update, `look` after each, `prune` after each checkpoint."""

    def __init__(
        self,
        recipe: OnlineHyperparameters | Limits,
        model: CausalLM,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        score: Score | None,
        work: Work,
    ) -> None:
        """score: who judges where the recipe names nobody."""
        self.training, self.recipe = recipe, recipe.watch
        rows = with_room(rows, tokenizer, recipe.max_new_tokens, positions(model), work, "watched")
        self.model, self.tokenizer, self.rows, self.work = model, tokenizer, rows, work
        self.ids = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
        judge = self.recipe.judge
        if judge is None and score is None:
            raise InputError("A watch needs somebody to compare answers by; set watch.judge.")
        self.judge: Score = _scoring(judge, rows) if judge is not None else score  # type: ignore[assignment]
        self.checks = {PREFIX + check.partition(":")[2]: _scoring(check, rows) for check in self.recipe.checks}
        self.start = Reference(model)
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

    def kept(self, history: History) -> tuple[int, Path | None]:
        """The update whose policy is handed over, and where that one lies where it is the best seen and not the last;
        logs which was the best."""
        best = best_update(history)
        self.work.log({"best_update": best})
        return (best, self.folder(best)) if self.recipe.keep == "best" else (len(history), None)

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
        asked |= {PREFIX + "length": [len(each.token_ids) for each in answers], PREFIX + "finished_share": finished}
        asked[PREFIX + "entropy"] = [-value for each in answers for value in each.logprobs]  # per token, as sampled
        asked[PREFIX + "kl"] = self._divergences(answers)
        figures = {name: sum(found) / len(found) for name, found in asked.items()}
        return [values[start : start + n] for start in range(0, len(values), n)], figures

    @torch.no_grad()
    def _divergences(self, answers: Sequence[Completion]) -> list[float]:
        """log p - log q of each answer, q being the model it started from: its mean estimates the KL, in nats."""
        found: list[float] = []
        training = self.model.training
        self.model.eval()  # dropout would make the start another model at every look
        ids = [own for own in self.ids for _ in range(self.recipe.samples_per_prompt)]
        with self.start.of(self.model) as start:
            for begin in range(0, len(answers), ROWS):
                some = list(zip(ids, answers, strict=True))[begin : begin + ROWS]
                rows = pad([[*prompt, *each.token_ids] for prompt, each in some], 0).to(start.device)
                mask = pad([[0] * len(prompt) + [1] * len(each.token_ids) for prompt, each in some], 0).bool()
                logps, _ = completion_logps(start, output_layer(start), rows, mask.to(start.device))
                found += [sum(each.logprobs) - q for (_, each), q in zip(some, logps.tolist(), strict=True)]
        self.model.train(training)
        return found


class Watching(TrainerCallback):
    """A watch of one of our trainers on transformers': what is seen stands in its state, which a checkpoint holds."""

    def __init__(self, watch: Watch, limits: Limits) -> None:
        self.watch, self.limits = watch, limits

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watch.training = replace(self.limits, updates=state.max_steps)
        self.watch.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        seen = self.watch.look(history_of(state))
        if seen:
            state.log_history.append({"step": state.global_step, **seen})
            self.watch.work.log(seen, state.global_step)
        if seen and ended(self.watch.training, history_of(state)):
            control.should_training_stop, control.should_save = True, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.watch.prune(history_of(state))


def watching(
    recipe: "DirectRecipe | RejectionRecipe",
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    work: Work,
    score: Score | None = None,
) -> list[Watching]:
    """The callback that watches a policy on these rows; none where there are none."""
    limits = Limits(recipe.watch, recipe.max_new_tokens)
    return [Watching(Watch(limits, model, tokenizer, rows, score, work), limits)] if rows else []


def history_of(state: TrainerState) -> list[dict[str, float]]:
    """What was seen, by optimiser step."""
    history: list[dict[str, float]] = [{} for _ in range(state.global_step)]
    for row in state.log_history:
        if WIN_RATE in row:
            history[int(row["step"]) - 1] = row
    return history


def hand_over(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: Sequence[Watching],
    state: TrainerState,
    work: Work,
) -> None:
    """Write the policy of one of our trainers on transformers' (the best one where it was watched and that is wanted),
    and log what was seen of it."""
    folder = None
    if callbacks:
        history = history_of(state)
        update, folder = callbacks[0].watch.kept(history)
        work.log({name: value for name, value in history[update - 1].items() if name.startswith(PREFIX)})
        work.log({"updates": len(history)})
    if folder is None:
        save_model(model, tokenizer, work.out)
    else:
        link_tree(folder, work.out)


def _scoring(function: str, rows: Sequence[Row]) -> Score:
    """A user's judge or check as a reward: it is asked with the prompt's row, and its faults are named."""
    return Rewards([FunctionReward(function=function, name="watch")], rows, None)
