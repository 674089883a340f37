"""Stage: proximal policy optimisation against the reward model (Schulman et al. 2017; Ouyang et al. 2022).

Our own, since TRL dropped its trainer. The engine is in `ppo_trainer`, the parts it is made of in `rollouts`,
`advantages` and `policy_losses`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.artifact import Work, read_jsonl
from tasks.models.adapters import QloraRecipe
from tasks.sampling.engine import Engine
from tasks.training.hyperparameters import OnlineHyperparameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.models.chat import Encoded


class PpoRecipe(OnlineHyperparameters):
    """How a policy is trained with PPO."""

    method: Literal["ppo"] = "ppo"
    """Chooses this optimiser."""
    episodes: Annotated[int, Field(ge=1)] = 64
    """Completions sampled for one update, each of another prompt."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the completions of an update."""
    minibatches: Annotated[int, Field(ge=1)] = 2
    """Optimiser steps per epoch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's, for the policy."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.1
    """Reward taken off per nat by which a token's log-probability exceeds the SFT model's (k1 in the reward)."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats per completion that the KL to the SFT model is steered to: `kl_coefficient` is where its coefficient starts
    (Ziegler et al. 2019, section 2.2). None: the coefficient stays."""
    kl_gain: Annotated[float, Field(gt=0, lt=5)] = 0.5
    """Share by which the coefficient follows the KL's relative distance from the target, which counts up to 0.2."""
    ptx_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the demonstrations' loss per token in the loss: what SFT taught stays (PPO-ptx, Ouyang et al. 2022)."""
    ptx_batch_size: Annotated[int, Field(ge=1)] = 16
    """Demonstrations in each optimiser step."""
    ptx_max_length: Annotated[int, Field(ge=8)] = 1024
    """Longer demonstrations (in tokens) are left out and counted."""
    ptx_mixtures: tuple[str, ...] | None = None
    """The stages of `data.stages` that the demonstrations are of, "" for the first mixture; none: all that SFT learns
    from."""
    ptx_turns: Literal["all", "last"] | None = None
    """Which of a conversation's assistant turns are learnt; none: as `sft.turns` says."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda: 1 trusts rewards, 0 the value model."""
    value_model: Literal["shared", "separate"] = "shared"
    """shared: a small head on the features the policy computes anyway, no gradient of it reaches the policy. separate:
    a trunk of its own, trained as the policy is (an adapter of its own on the same frozen weights, or a second whole
    model), which learns features for values and costs a forward and backward pass for each of `value_epochs`."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from the one at sampling before it gains nothing more."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's, for the value model."""
    value_epochs: Annotated[int, Field(ge=1)] = 4
    """Passes of the value model over an update; those of a shared one cost next to nothing."""
    whiten_rewards: bool = False
    """Divide an update's token rewards by their standard deviation (scores are normalised already)."""
    whiten_advantages: bool = True
    """Bring an update's advantages to mean 0 and variance 1."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows of like length computed at once while learning: less padding, less memory; only rounding differs."""

    def after_sft(self, mixtures: tuple[str, ...], turns: Literal["all", "last"]) -> "PpoRecipe":
        """The recipe with the demonstrations that SFT learns from, where it has a use for them."""
        if not self.ptx_coefficient:
            return self
        update = {"ptx_mixtures": self.ptx_mixtures or mixtures, "ptx_turns": self.ptx_turns or turns}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _possible(self) -> "PpoRecipe":
        if self.minibatches > self.episodes:
            raise ValueError(f"minibatches ({self.minibatches}) must be at most episodes ({self.episodes})")
        if self.kl_target is not None and not self.kl_coefficient:
            raise ValueError("kl_target steers kl_coefficient, which is 0 and would stay 0; start it higher")
        if self.target_kl is not None and self.epochs * self.minibatches == 1:
            raise ValueError("target_kl leaves out optimiser steps after the first, and there is one; use minibatches")
        return self


def train_ppo(recipe: PpoRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Train from base + sft (or `start`) on the RL prompts; writes `adapter/` or `model/`. Resumes from `work.scratch`.

    The reference is the model it starts from: the chain is merged and the fresh adapter is switched off for it.
    """
    from tasks.models.adapters import attach
    from tasks.models.loading import positions, twin
    from tasks.models.quantised import quantise
    from tasks.sampling.room import with_room
    from tasks.training.online_start import begin
    from tasks.training.ppo_trainer import Ppo
    from tasks.training.rl_loop import finish, run
    from tasks.training.rollouts import encode_prompts
    from tasks.training.watch import Watch

    began = begin(recipe, inputs, work)
    start, tokenizer, score = began.model, began.tokenizer, began.score
    if isinstance(recipe.adapter, QloraRecipe):
        quantise(start, **recipe.adapter.quantisation)  # now, so that a value model shares the small weights
    trunk = None
    if recipe.value_model == "separate":
        trunk = attach(twin(start), recipe.adapter, seed=work.seed + 1)
    policy = attach(start, recipe.adapter)
    rows = with_room(began.rows, tokenizer, recipe.max_new_tokens, positions(policy), work, "rl")
    with Engine(recipe.engine, work) as engine:
        ppo = Ppo(
            recipe,
            policy,
            tokenizer,
            encode_prompts(tokenizer, rows),
            score,
            work.seed,
            _demonstrations(recipe, inputs["data"], tokenizer, start, work) if recipe.ptx_coefficient else (),
            trunk,
            engine if recipe.engine == "vllm" else None,
        )
        watch = Watch(recipe, ppo.policy, tokenizer, began.watched, score, work) if began.watched else None
        progress = run(recipe, ppo.step, work, ppo.modules, ppo.optimizers, watch)
    finish(ppo.policy, progress, work, watch)


def _demonstrations(
    recipe: PpoRecipe, data: Path, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", work: Work
) -> list["Encoded"]:
    """What SFT learnt from, as far as it fits; what does not is counted."""
    from tasks.models.loading import positions
    from tasks.training.sft_engine import encode_rows

    files = [f"sft.{name}.jsonl" if name else "sft.jsonl" for name in recipe.ptx_mixtures or ("",)]
    learnt = [row for file in files for row in read_jsonl(data / file)]
    rows = encode_rows(learnt, tokenizer, recipe.ptx_turns or "all", refused={})
    limit = min(recipe.ptx_max_length, positions(model) or recipe.ptx_max_length)
    kept = [row for row in rows if len(row.input_ids) <= limit]
    work.log({"demonstrations": len(kept), "demonstrations_dropped": len(learnt) - len(kept)})
    return kept
