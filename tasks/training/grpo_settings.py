"""What GRPO's and RLOO's engine hands to TRL: whose prompts come when, RLOO's rewards, settings and reporting."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig

from tasks.artifact import Work
from tasks.training.engine_checkpoints import Reporting
from tasks.training.grpo import GrpoRecipe, RlooRecipe
from tasks.training.precision import name_here
from tasks.training.rollouts import drawn
from tasks.training.watch import Watch


class UpdateRows(Sampler[int]):
    """Row numbers as TRL takes them: an update's prompts, each once for every completion, all of them again for every
    part that an update is learnt in. The same prompts whether a run was interrupted or not."""

    def __init__(self, recipe: GrpoRecipe | RlooRecipe, count: int, arguments: GRPOConfig) -> None:
        self.recipe, self.count, self.seed = recipe, count, arguments.seed
        self.again = (arguments.steps_per_generation or 1) * arguments.num_iterations

    def __len__(self) -> int:
        return self.recipe.updates * self.again * self.recipe.prompts * self.recipe.completions_per_prompt

    def __iter__(self) -> Iterator[int]:
        for update in range(self.recipe.updates):
            prompts = drawn(self.count, update, self.recipe.prompts, self.seed)
            rows = [row for row in prompts for _ in range(self.recipe.completions_per_prompt)]
            for _ in range(self.again):
                yield from rows


def leave_one_out(
    recipe: RlooRecipe, rewards: Sequence[float], sampled: Sequence[float], reference: Sequence[float]
) -> list[float]:
    """Rewards less the KL, stretched so that their distance from the group's mean is that from the mean of the others.

    `sampled` and `reference` are log-probabilities of each completion. r_i - mean of the others = n / (n - 1) times
    r_i - mean of all.
    """
    n, held = recipe.completions_per_prompt, recipe.kl_coefficient
    rows = zip(rewards, sampled, reference, strict=True)
    return [n / (n - 1) * (value - held * (ours - theirs)) for value, ours, theirs in rows]


def _objective(recipe: GrpoRecipe | RlooRecipe) -> dict[str, Any]:
    """The loss in TRL's words. RLOO's is the sum of a completion's log-probabilities times its advantage: dr_grpo's,
    which divides by a constant; its KL is in the reward, and TRL computes the reference only for a beta over 0."""
    if isinstance(recipe, RlooRecipe):
        return {"beta": 1e-12, "loss_type": "dr_grpo", "scale_rewards": "none"}
    return {
        "beta": recipe.beta,
        "loss_type": recipe.loss,
        "scale_rewards": recipe.scale_rewards,
        "importance_sampling_level": recipe.importance_sampling,
        "epsilon_high": recipe.clip_high,
    }


def arguments(recipe: GrpoRecipe | RlooRecipe, work: Work) -> GRPOConfig:
    rows, micro = recipe.prompts * recipe.completions_per_prompt, recipe.rows_at_once
    cuda = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(work.scratch),
        max_steps=recipe.updates * recipe.minibatches,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // recipe.minibatches // micro,
        steps_per_generation=rows // micro,
        num_generations=recipe.completions_per_prompt,
        max_completion_length=recipe.max_new_tokens,
        learning_rate=recipe.learning_rate,
        optim=name_here(recipe.optimizer),
        lr_scheduler_type="constant",
        max_grad_norm=recipe.max_gradient_norm,
        epsilon=recipe.clip,
        **_objective(recipe),
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        seed=work.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


class CoreReporting(Reporting):
    """Hands on our own figures, under our own names; checkpoints are between updates, so that a resumed run samples
    when an uninterrupted one does."""

    def __init__(self, work: Work, every: int, watch: Watch | None) -> None:
        super().__init__(work)
        self.every, self.watch = every, watch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        control.should_save = control.should_save and state.global_step % self.every == 0

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_save(args, state, control, **kwargs)
        if self.watch is not None:
            self.watch.prune(state.log_history)

    def report(self, curves: dict[str, float], state: TrainerState) -> None:
        update, updates = state.global_step // self.every, state.max_steps // self.every
        self.work.log(curves, update)
        self.work.progress(update, updates, f"reward {curves['reward']:.2f}, KL {curves['kl']:.2f}")
