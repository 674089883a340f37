"""Stages: policies learn from how completions of one prompt compare, against the reward model.

GRPO (Shao et al. 2024, "DeepSeekMath") and its variants, and RLOO (Ahmadian et al. 2024).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.artifact import InputError, Work
from tasks.recipe import Part
from tasks.sampling.engine import Engine
from tasks.training.hyperparameters import OnlineHyperparameters

OUTPUT = "lm_head"
"""What nearly all layouts call the layer that makes logits."""

OUTPUT_FIXED = "the output layer, whose weights {method} takes as they are; take it out, or take PPO or DPO"


def _names(adapter: Part, field: str) -> tuple[str, ...]:
    found = getattr(adapter, field, ())
    return found if isinstance(found, tuple) else ()


class GroupRecipe(OnlineHyperparameters):
    """What GRPO and RLOO share."""

    prompts: Annotated[int, Field(ge=1)] = 8
    """Prompts sampled for one update."""
    completions_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Completions that are compared with each other: the group."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    """AdamW's, constant."""
    minibatches: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps per update, each on its share of the completions; from the second on the policy is no longer the
    one that sampled, and clipping matters."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows in memory at once while learning."""

    @model_validator(mode="after")
    def _logits_are_the_models(self) -> Self:
        named = {*_names(self.adapter, "targets"), *_names(self.adapter, "modules_to_save")}
        if OUTPUT in named:
            method = type(self).model_fields["method"].default.upper()
            raise ValueError(f"adapter names '{OUTPUT}', {OUTPUT_FIXED.format(method=method)}")
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        rows = self.prompts * self.completions_per_prompt
        if rows % self.minibatches:
            raise ValueError(f"minibatches ({self.minibatches}) must divide {rows}, an update's completions")
        if rows // self.minibatches % self.rows_at_once:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must divide {rows // self.minibatches}, the completions "
                "of an optimiser step"
            )
        if self.target_kl is not None and self.minibatches == 1:
            raise ValueError("target_kl leaves out optimiser steps after the first, and there is one; use minibatches")
        return self

    @property
    def rows_at_once(self) -> int:
        """Completions in one forward pass of training."""
        return min(self.prompts * self.completions_per_prompt // self.minibatches, self.micro_batch_size)


class GrpoRecipe(GroupRecipe):
    """Group-relative policy optimisation: a completion's advantage is its distance from the mean of its group."""

    method: Literal["grpo"] = "grpo"
    """Chooses this optimiser."""
    beta: Annotated[float, Field(gt=0)] = 0.2
    """Weight of the KL to the SFT model in the loss (k3, corrected by the ratio); without it a reward is hacked."""
    loss: Literal["dapo", "dr_grpo", "bnpo", "grpo", "cispo"] = "dapo"
    """How token losses are averaged: over all tokens of an optimiser step (dapo, cispo) or of `micro_batch_size` rows
    (bnpo), by a constant (dr_grpo), or per completion (grpo), which favours long bad answers. cispo clips the ratio and
    lets every token learn (MiniMax 2025); clipping does nothing while minibatches = 1."""
    importance_sampling: Literal["token", "sequence"] = "token"
    """Whose probability ratio is clipped; a sequence's, with loss = "grpo", is GSPO (Zheng et al. 2025). Either is 1,
    and the same, while minibatches = 1."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """How far the ratio may rise; None: as far as it may fall (`clip`). DAPO (Yu et al. 2025) lets it rise further."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Whose standard deviation advantages are divided by."""

    @model_validator(mode="after")
    def _one_objective(self) -> Self:
        if self.importance_sampling == "sequence" and self.loss != "grpo":
            raise ValueError(
                "importance_sampling 'sequence' (GSPO) needs loss = \"grpo\", which weighs completions alike"
            )
        if self.loss == "cispo" and (self.clip_high is None or self.clip_high <= 1):
            raise ValueError("loss 'cispo' needs clip_high over 1, the most a token may weigh; 5 is what TRL advises")
        return self


class RlooRecipe(GroupRecipe):
    """REINFORCE leave-one-out: a completion is compared with the mean of the others; no scaling, no value model."""

    method: Literal["rloo"] = "rloo"
    """Chooses this optimiser."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.1
    """Reward taken off per nat by which a completion's log-probability exceeds the SFT model's (k1 in the reward)."""


def train_groups(recipe: GrpoRecipe | RlooRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Train from base + sft (or `start`) on the RL prompts; writes `adapter/` or `model/`. Resumes from `work.scratch`.

    The reference is the model it starts from: the chain is merged and the fresh adapter is switched off for it.
    """
    from tasks.models.adapter_names import has_adapted_output
    from tasks.models.adapters import attach
    from tasks.models.loading import positions
    from tasks.sampling.room import with_room
    from tasks.training.grpo_trainer import Grpo, fit
    from tasks.training.online_start import begin
    from tasks.training.rl_loop import finish
    from tasks.training.watch import Watch

    began = begin(recipe, inputs, work)
    tokenizer, policy = began.tokenizer, attach(began.model, recipe.adapter)
    if has_adapted_output(policy):
        raise InputError(f"The adapter is on {OUTPUT_FIXED.format(method=recipe.method.upper())}.")
    rows = with_room(began.rows, tokenizer, recipe.max_new_tokens, positions(policy), work, "rl")
    watch = Watch(recipe, policy, tokenizer, began.watched, began.score, work) if began.watched else None
    with Engine(recipe.engine, work) as engine:
        vllm = engine if recipe.engine == "vllm" else None
        trainer = Grpo(recipe, policy, tokenizer, rows, began.score, work, watch, vllm)
        progress = fit(trainer, work)
    finish(trainer.accelerator.unwrap_model(trainer.model), progress, work, watch)
