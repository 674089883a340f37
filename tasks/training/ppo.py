"""Stage: proximal policy optimisation against the reward model (Schulman et al. 2017; Ouyang et al. 2022).

Our own, since TRL dropped its trainer. The engine is in `ppo_trainer`, the parts it is made of in `rollouts`,
`advantages` and `policy_losses`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.artifact import Work, read_jsonl
from tasks.models.adapters import AdapterRecipe, FullRecipe, LoraRecipe
from tasks.recipe import Part


class PpoRecipe(Part):
    """How a policy is trained with PPO."""

    method: Literal["ppo"] = "ppo"
    """Chooses this optimiser."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the candidate is called; by default the method."""
    adapter: AdapterRecipe = LoraRecipe()
    """What is trained; its dropout must be 0, or the policy's probabilities would be noise."""
    updates: Annotated[int, Field(ge=1)] = 40
    """Rounds of sampling and learning."""
    episodes: Annotated[int, Field(ge=1)] = 64
    """Completions sampled for one update, each of another prompt."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the completions of an update."""
    minibatches: Annotated[int, Field(ge=1)] = 2
    """Optimiser steps per epoch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's, for the policy."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longer completions are cut, and punished by `missing_eos_penalty`."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.1
    """Reward taken off per nat by which a token's log-probability exceeds the SFT model's (k1 in the reward)."""
    likelihood_coefficient: Annotated[float, Field(ge=0)] = 0.2
    """Reward per nat of the log-probability that the SFT model gives the completion. What the reward model cannot judge
    (is the fact right?) is then settled by what the SFT model is surest of, not by the reward model's noise. Makes
    answers more alike, and shorter where they would ramble; 0 leaves it out."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 2.0
    """Subtracted from (not put in place of) the score of a cut completion, in the reward's standard deviations."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda: 1 trusts rewards, 0 the value model."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the probability ratio may move before its gradient is cut."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from the one at sampling before it gains nothing more."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's, for the value head."""
    value_epochs: Annotated[int, Field(ge=1)] = 4
    """Passes of the value head over the features of an update; they cost next to nothing."""
    whiten_rewards: bool = False
    """Divide an update's token rewards by their standard deviation (scores are normalised already)."""
    whiten_advantages: bool = True
    """Bring an update's advantages to mean 0 and variance 1."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """Leave out the rest of an update once the policy is this many nats per token from the one that sampled."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows of like length computed at once while learning: less padding, less memory; only rounding differs."""

    @model_validator(mode="after")
    def _possible(self) -> "PpoRecipe":
        if not isinstance(self.adapter, FullRecipe) and self.adapter.dropout:
            raise ValueError("adapter.dropout must be 0 for PPO: the probability ratio would be noise")
        if self.minibatches > self.episodes:
            raise ValueError(f"minibatches ({self.minibatches}) must be at most episodes ({self.episodes})")
        return self


def train_ppo(recipe: PpoRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Train from base + sft on the RL prompts; writes `adapter/` (or `model/`). Resumes from `work.scratch`.

    The reference is the SFT model: base and sft are merged and the fresh adapter is switched off for it.
    """
    from transformers import set_seed

    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.training.ppo_trainer import Ppo
    from tasks.training.reward_scoring import RewardScorer
    from tasks.training.rl_loop import finish, run
    from tasks.training.rollouts import encode_prompts

    set_seed(work.seed)
    tokenizer = load_tokenizer(inputs["base"])
    start = load_causal_lm([inputs["base"], inputs["sft"]], trainable=isinstance(recipe.adapter, FullRecipe))
    ppo = Ppo(
        recipe,
        attach(start, recipe.adapter),
        tokenizer,
        encode_prompts(tokenizer, read_jsonl(inputs["data"] / "rl.jsonl")),
        RewardScorer(inputs["base"], inputs["reward"]).normalised,
        work.seed,
    )
    progress = run(recipe.updates, ppo.step, work, ppo.modules, ppo.optimizers)
    finish(ppo.policy, progress, work)
