"""Reward model and DPO: pairs per second of ours and of TRL's own trainers, and what they reach, in one process.

python -m benchmarks.pairs [--domain FOLDER]

The demo's SFT model and its completions; a prompt's finished completions are paired by what the shop's customers want,
one pair in ten the wrong way round. The same rows, LoRA, epochs and learning rates, and as many pairs in a batch. CPU
seconds at one torch thread from rows in memory to the trained model, loading the start left out. Accuracy on held-out
pairs (none wrong) by one way of scoring; DPO's also with what completions of its policy are worth.
"""

import random
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from benchmarks.measured import in_turn, keep, show
from benchmarks.reward_arms import Domain, work_folder
from tasks.artifact import Row, Work
from tasks.data.shop import utility
from tasks.models.adapters import LoraRecipe, attach
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, load_tokenizer, start_reward_model
from tasks.sampling.local import generate
from tasks.training.direct import DpoRecipe
from tasks.training.direct_engine import fit_direct, group_logps
from tasks.training.engine_pairs import group_preferences
from tasks.training.reward_engine import fit_reward_model, start
from tasks.training.reward_report import by_group, head_values

REPEATS = 3
WRONG = 0.1
"""Share of the training pairs that are the wrong way round."""
LIGHTER = 0.25
"""Of DPO's SFT term: its mean is over a completion's tokens here, over a batch's in TRL, so ours holds closer."""
Outcome = tuple[float, dict[str, float]]
"""CPU seconds, and what was reached."""


def main() -> None:
    with work_folder(__doc__) as (folder, kept):
        sides = Sides(Domain(kept), folder)
        reward = in_turn({"TRL": sides.their_reward, "ours": sides.our_reward}, REPEATS)
        dpo = in_turn(
            {
                "TRL": lambda seed: sides.their_dpo(seed, precompute=False),
                "TRL, reference precomputed": lambda seed: sides.their_dpo(seed, precompute=True),
                "ours": sides.our_dpo,
                f"ours, sft_weight {LIGHTER}": lambda seed: sides.our_dpo(seed, sft_weight=LIGHTER),
            },
            REPEATS,
        )
    found: dict[str, Any] = {}
    for name, runs, epochs in (("reward", reward, sides.reward.epochs), ("dpo", dpo, sides.dpo.epochs)):
        outcomes = {side: [outcome for _, outcome in each] for side, each in runs.items()}
        found[name] = {side: _figures(each, len(sides.train) * epochs) for side, each in outcomes.items()}
        for figures in found[name].values():
            figures["ours_over"] = found[name]["ours"]["pairs_per_second"] / figures["pairs_per_second"]
    columns = ["pairs_per_second", "ours_over", "accuracy", "utility"]
    rows = [
        [name, side, *(figures.get(column, "") for column in columns)]
        for name, each in found.items()
        for side, figures in each.items()
    ]
    show(f"{len(sides.train)} pairs of {sides.prompts} prompts", ["", "", *columns], rows)
    keep("pairs", {"pairs": len(sides.train), "prompts": sides.prompts, **found})


class Sides:
    """The rows, and how each side learns from them."""

    def __init__(self, domain: Domain, folder: Path) -> None:
        self.domain, self.folder, self.inputs = domain, folder, domain.start
        [dpo] = domain.recipe.policy
        assert isinstance(dpo, DpoRecipe) and isinstance(dpo.adapter, LoraRecipe)
        self.reward, self.dpo = domain.recipe.reward, dpo
        self.tokenizer = load_tokenizer(self.inputs["base"])
        self.pad_id = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        self.train = preferences(domain, "train", WRONG)
        self.held_out = group_preferences(preferences(domain, "validation", 0.0), self.tokenizer)
        self.prompts = len(group_preferences(self.train, self.tokenizer))

    def our_reward(self, seed: int) -> Outcome:
        work = self._work("our-reward", seed)
        model, tokenizer = start(self.reward, self.inputs, work)
        began = time.process_time()
        fit_reward_model(model, tokenizer, self.train, self.reward, work)
        return time.process_time() - began, {"accuracy": self._reward_accuracy(model)}

    def their_reward(self, seed: int) -> Outcome:
        model = start_reward_model(self._start(), self.tokenizer)
        began = time.process_time()
        trainer = self._trl(
            RewardTrainer, RewardConfig, self.reward, model, "reward", seed,
            center_rewards_coefficient=self.reward.centering,
        )  # fmt: skip
        trainer.train()
        return time.process_time() - began, {"accuracy": self._reward_accuracy(trainer.model.eval())}

    def our_dpo(self, seed: int, **changes: float) -> Outcome:
        recipe = self.dpo.model_copy(update=changes)
        work, model = self._work(f"our-dpo-{recipe.sft_weight}", seed), self._start()
        began = time.process_time()
        policy = fit_direct(
            model, lambda each: attach(each, recipe.adapter, seed=seed), self.tokenizer, self.train, recipe, work
        )
        return time.process_time() - began, self._policy_quality(policy)

    def their_dpo(self, seed: int, precompute: bool) -> Outcome:
        model = self._start()
        began = time.process_time()
        trainer = self._trl(
            DPOTrainer, DPOConfig, self.dpo, model, f"dpo-{precompute}", seed,
            beta=self.dpo.beta, loss_type=["sigmoid", "sft"], loss_weights=[1.0, self.dpo.sft_weight],
            precompute_ref_log_probs=precompute,
        )  # fmt: skip
        trainer.train()
        return time.process_time() - began, self._policy_quality(trainer.model.eval())

    def _trl(
        self, trainer: Callable[..., Any], config: Callable[..., Any], recipe: Any, model: Any, name: str, seed: int,
        **settings: Any,
    ) -> Any:  # fmt: skip
        """TRL's trainer, told what our recipe says; its batches count pairs, ours count prompts."""
        scores = trainer is RewardTrainer
        made = trainer(
            model=model,
            args=config(
                output_dir=str(self.folder / f"trl-{name}-{seed}"),
                learning_rate=recipe.learning_rate,
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=round(recipe.batch_size * len(self.train) / self.prompts),
                gradient_checkpointing=False,
                bf16=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                seed=seed,
                **settings,
            ),
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list(self.train),
            peft_config=LoraConfig(
                r=recipe.adapter.rank,
                lora_alpha=int(recipe.adapter.alpha),
                target_modules=recipe.adapter.targets,
                task_type="SEQ_CLS" if scores else "CAUSAL_LM",
                modules_to_save=["score"] if scores else None,
            ),
        )
        made.remove_callback(PrinterCallback)
        return made

    def _start(self) -> Any:
        return load_causal_lm([self.inputs["base"], self.inputs["sft"]], trainable=True)

    def _reward_accuracy(self, model: Any) -> float:
        values = head_values(model, self.held_out, self.reward.heads, self.pad_id)
        return self._accuracy(by_group(self.held_out, values[:, 0].mean(-1)))

    def _policy_quality(self, policy: Any) -> dict[str, float]:
        """Accuracy of DPO's implicit rewards, and the mean utility of completions of the held-out prompts."""
        logps = group_logps(policy, self.held_out, self.pad_id, 32)
        with policy.disable_adapter():
            before = group_logps(policy, self.held_out, self.pad_id, 32)
        apart = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(logps, before, strict=True)]
        rows = [row for row in self.domain.rows.values() if row["split"] == "validation"]
        prompts = [encode_prompt(self.tokenizer, row["prompt"]) for row in rows]
        sampled = generate(policy, self.tokenizer, prompts, n=4, max_new_tokens=48, seed=0, batch_size=256)
        worth = [utility(row, each.text) for row, group in zip(rows, sampled, strict=True) for each in group]
        return {"accuracy": self._accuracy(apart), "utility": fmean(worth)}

    def _accuracy(self, scores: Sequence[Sequence[float]]) -> float:
        return fmean(
            own[winner] > own[loser]
            for group, own in zip(self.held_out, scores, strict=True)
            for winner, loser, *_ in group.pairs
        )

    def _work(self, name: str, seed: int) -> Work:
        folders = [self.folder / f"{name}-{seed}" / each for each in ("out", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True)
        return Work(*folders, seed=seed, checkpoint_seconds=1e9)


def preferences(domain: Domain, split: str, wrong: float) -> list[Row]:
    """All pairs of a prompt's finished completions that are not worth the same, a share of them turned round."""
    rng, rows = random.Random(split), []
    for name, worth in domain.utilities(split).items():
        finished = sorted(text for text in worth if domain.finished[name, text])
        for pair in combinations(finished, 2):
            if worth[pair[0]] == worth[pair[1]]:
                continue
            rejected, chosen = sorted(pair, key=lambda text: worth[text], reverse=rng.random() < wrong)
            sides = {"chosen": chosen, "rejected": rejected}
            answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
            rows.append({"prompt": domain.rows[name]["prompt"], **answers})
    return rows


def _figures(outcomes: Sequence[Outcome], pairs: float) -> dict[str, float]:
    reached = {name: fmean(quality[name] for _, quality in outcomes) for name in outcomes[0][1]}
    return {"pairs_per_second": pairs / fmean(seconds for seconds, _ in outcomes), **reached}


if __name__ == "__main__":
    main()
