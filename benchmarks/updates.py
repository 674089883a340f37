"""GRPO and RLOO: seconds per update of ours and of TRL's own trainers, sampling with `generate`, in one process.

python -m benchmarks.updates [--domain FOLDER]

The demo's SFT model, 8 prompts x 8 completions, LoRA, the same settings. The reward is a function of the text: what
the shop's customers want, and one less for a completion that was cut. CPU seconds at one torch thread, the first update
left out; the reward reached (mean of the last updates) stands beside them.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from benchmarks.measured import in_turn, keep, show
from benchmarks.reward_arms import Domain, work_folder
from tasks.artifact import Message, Work
from tasks.data.shop import rows, utility
from tasks.models.adapters import LoraRecipe, attach
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.training.grpo import GrpoRecipe, RlooRecipe
from tasks.training.grpo_settings import arguments
from tasks.training.grpo_trainer import Grpo, fit

UPDATES, LAST, REPEATS = 20, 5, 1
LENGTHS = (16, 64)
LORA = LoraRecipe()
Outcome = tuple[float, float, float]
"""CPU seconds per update; reward and length over the last updates."""


def main() -> None:
    found: list[dict[str, Any]] = []
    with work_folder(__doc__) as (folder, kept):
        domain = Domain(kept)
        for kind in (GrpoRecipe, RlooRecipe):
            for length in LENGTHS:
                recipe = kind(
                    adapter=LORA,
                    updates=UPDATES,
                    max_new_tokens=length,
                    missing_eos_penalty=0.0,  # it is in the reward, where TRL sees it as well
                    likelihood_coefficient=0.0,
                )
                sides = Sides(recipe, domain.start, folder / f"{recipe.method}-{length}")
                runs = in_turn({"TRL": sides.theirs, "ours": sides.ours}, REPEATS)
                row: dict[str, Any] = {"method": recipe.method, "length": length}
                for name, outcomes in runs.items():
                    values = [fmean(column) for column in zip(*(outcome for _, outcome in outcomes), strict=True)]
                    row[name] = dict(zip(("seconds", "reward", "tokens"), values, strict=True))
                found.append(row | {"ratio": row["TRL"]["seconds"] / row["ours"]["seconds"]})
                keep("updates", found)
    head = ["", "limit", "TRL s", "ours s", "ratio", "reward TRL", "ours", "tokens TRL", "ours"]
    cells = [
        [row["method"], row["length"]]
        + [row[side]["seconds"] for side in ("TRL", "ours")]
        + [row["ratio"]]
        + [row[side][what] for what in ("reward", "tokens") for side in ("TRL", "ours")]
        for row in found
    ]
    show(f"seconds per update, 8 x 8 completions, {UPDATES} updates", head, cells)


class Sides:
    """One setting, as ours and as TRL's."""

    def __init__(self, recipe: GrpoRecipe | RlooRecipe, start: dict[str, Path], folder: Path) -> None:
        self.recipe, self.start, self.folder = recipe, start, folder
        self.tokenizer = load_tokenizer(start["base"])
        self.rows = {row["prompt"][-1]["content"]: row for row in rows()}

    def ours(self, seed: int) -> Outcome:
        work = self._work(f"ours-{seed}", seed)
        policy = attach(self._model(), LORA, seed=seed)
        trainer = Grpo(self.recipe, policy, self.tokenizer, list(self.rows.values()), self.score, work)
        clock = Clock()
        trainer.add_callback(clock)
        history = fit(trainer, work).history
        return _outcome(clock, [row["reward"] for row in history], [row["length"] for row in history])

    def theirs(self, seed: int) -> Outcome:
        work = self._work(f"theirs-{seed}", seed)
        kind: Any = GRPOTrainer if isinstance(self.recipe, GrpoRecipe) else RLOOTrainer
        trainer = kind(
            model=self._model(),
            args=arguments(self.recipe, work) if isinstance(self.recipe, GrpoRecipe) else _rloo(self.recipe, work),
            reward_funcs=self.reward,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in self.rows.values()]),
            processing_class=self.tokenizer,
            peft_config=LoraConfig(
                r=LORA.rank, lora_alpha=int(LORA.alpha), target_modules=str(LORA.targets), task_type="CAUSAL_LM"
            ),
        )
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        history = [row for row in trainer.state.log_history if "reward" in row]
        lengths = [row["completions/mean_length"] for row in history]
        return _outcome(clock, [row["reward"] for row in history], lengths)

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool], /
    ) -> list[float]:
        """The reward as ours asks for it."""
        asked = [self.rows[prompt[-1]["content"]] for prompt in prompts]
        return [
            utility(row, text) - (not ended)
            for row, text, ended in zip(asked, completions, finished, strict=True)
        ]  # fmt: skip

    def reward(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        """The same reward as TRL asks for it."""
        texts = [completion[-1]["content"] for completion in completions]
        return self.score(prompts, texts, [ids[-1] == self.tokenizer.eos_token_id for ids in completion_ids])

    def _model(self) -> Any:
        return load_causal_lm([self.start["base"], self.start["sft"]])

    def _work(self, name: str, seed: int) -> Work:
        folders = self.folder / name / "out", self.folder / name / "scratch"
        for folder in folders:
            folder.mkdir(parents=True)
        return Work(*folders, seed=seed, checkpoint_seconds=1e9)


class Clock(TrainerCallback):
    """CPU seconds at the end of every update."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.times.append(time.process_time())


def _rloo(recipe: RlooRecipe, work: Work) -> RLOOConfig:
    """What `arguments` says of GRPO, for TRL's RLOO."""
    return RLOOConfig(
        output_dir=str(work.scratch),
        max_steps=recipe.updates,
        per_device_train_batch_size=recipe.rows_at_once,
        num_generations=recipe.completions_per_prompt,
        max_completion_length=recipe.max_new_tokens,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=recipe.max_gradient_norm,
        epsilon=recipe.clip,
        beta=recipe.kl_coefficient,
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=work.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _outcome(clock: Clock, rewards: list[float], lengths: list[float]) -> Outcome:
    seconds = (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)
    return seconds, fmean(rewards[-LAST:]), fmean(lengths[-LAST:])


if __name__ == "__main__":
    main()
