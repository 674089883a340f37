"""Stage: group-relative policy optimisation against the reward model (Shao et al. 2024, "DeepSeekMath")."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.artifact import Work, read_jsonl
from tasks.models.adapters import AdapterRecipe, FullRecipe, LoraRecipe
from tasks.recipe import Part


class GrpoRecipe(Part):
    """How a policy is trained with GRPO."""

    method: Literal["grpo"] = "grpo"
    """Chooses this optimiser."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the candidate is called; by default the method."""
    adapter: AdapterRecipe = LoraRecipe()
    """What is trained; its dropout must be 0, or the policy's probabilities would be noise."""
    updates: Annotated[int, Field(ge=1)] = 40
    """Rounds of sampling and learning."""
    prompts: Annotated[int, Field(ge=1)] = 8
    """Prompts sampled for one update."""
    completions_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Completions that are compared with each other: the group."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    """AdamW's, constant."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longer completions are cut, and punished by `missing_eos_penalty`."""
    beta: Annotated[float, Field(gt=0)] = 0.2
    """Weight of the KL to the SFT model in the loss (k3, corrected by the ratio); without it a reward is hacked."""
    likelihood_coefficient: Annotated[float, Field(ge=0)] = 0.2
    """Reward per nat of the log-probability that the SFT model gives the completion. What the reward model cannot judge
    (is the fact right?) is then settled by what the SFT model is surest of, not by the reward model's noise. Makes
    answers more alike, and shorter where they would ramble; 0 leaves it out."""
    loss: Literal["dapo", "dr_grpo", "bnpo", "grpo"] = "dapo"
    """How token losses are averaged: over all tokens (dapo, bnpo), by a constant (dr_grpo), or per completion (grpo),
    which favours long bad answers."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Whose standard deviation advantages are divided by."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 2.0
    """Subtracted from the score of a cut completion, in the reward's standard deviations."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the probability ratio may move before its gradient is cut."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows in memory at once while learning."""

    @model_validator(mode="after")
    def _possible(self) -> "GrpoRecipe":
        if not isinstance(self.adapter, FullRecipe) and self.adapter.dropout:
            raise ValueError("adapter.dropout must be 0 for GRPO: the probability ratio would be noise")
        rows = self.prompts * self.completions_per_prompt
        if rows % min(rows, self.micro_batch_size):
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide {rows}, an update's completions")
        return self


def train_grpo(recipe: GrpoRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Train from base + sft on the RL prompts; writes `adapter/` (or `model/`). Resumes from `work.scratch`.

    The reference is the SFT model: base and sft are merged and the fresh adapter is switched off for it.
    """
    from transformers import set_seed

    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.training.grpo_trainer import Grpo, fit
    from tasks.training.reward_scoring import RewardScorer
    from tasks.training.rl_loop import finish

    set_seed(work.seed)
    tokenizer = load_tokenizer(inputs["base"])
    start = load_causal_lm([inputs["base"], inputs["sft"]], trainable=isinstance(recipe.adapter, FullRecipe))
    trainer = Grpo(
        recipe,
        attach(start, recipe.adapter),
        tokenizer,
        read_jsonl(inputs["data"] / "rl.jsonl"),
        RewardScorer(inputs["base"], inputs["reward"]).normalised,
        work,
    )
    progress = fit(trainer, work)
    finish(trainer.accelerator.unwrap_model(trainer.model), progress, work)
