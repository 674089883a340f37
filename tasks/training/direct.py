"""Stages: the SFT model is fitted to the preferences themselves, without a reward model and without sampling.

One stage per method, all alike but for the loss: DPO (Rafailov et al. 2023), IPO (Azar et al. 2023), KTO (Ethayarajh
et al. 2024), ORPO (Hong et al. 2024) and SimPO (Meng et al. 2024). The formulas are in `direct_losses`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.artifact import InputError, Work, below, read_jsonl
from tasks.models.adapters import QloraRecipe
from tasks.training.hyperparameters import Hyperparameters, WatchRecipe


class DirectRecipe(Hyperparameters):
    """What the direct methods share."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the candidate is called; the method's name when left out."""
    epochs: float = Field(default=3, gt=0)
    """Passes over the preferences."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=4, ge=1)
    """Prompts in one forward pass; all judged completions of a prompt are in it, each once."""
    margin: float = Field(default=0.0, ge=0)
    """How much of a pair's own margin the two sides must differ by (Amini et al. 2024); 0 leaves margins out."""
    sft_weight: float = Field(default=0.5, ge=0)
    """Weight of the chosen completions' negative log-likelihood per token added to the loss (Pang et al. 2024): at 0
    the log-probabilities of both sides fall, that of EOS too, and answers run on."""
    watch: WatchRecipe = WatchRecipe()
    """Held-out win rates while it learns, the best policy and an early end by them; it needs a `judge`."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longer answers are cut when it is watched."""

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.watch.every and self.watch.judge is None:
            raise ValueError("watch needs a judge here: a direct method has no rewards to compare answers by")
        return self


class DpoRecipe(DirectRecipe):
    """Direct preference optimisation: the log-ratios to the SFT model are the rewards."""

    method: Literal["dpo"] = "dpo"
    """The optimiser."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference (the SFT model)."""
    length_normalised: bool = False
    """Divide log-probabilities by the completion's length, against growing answers."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs believed to be ordered wrongly."""
    smoothing: Literal["conservative", "robust"] = "conservative"
    """What is made of it: wrong pairs keep the policy from being too sure (cDPO, Mitchell 2023), or are taken out of
    the loss on average (rDPO, Chowdhury et al. 2024)."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.smoothing == "robust" and not self.label_smoothing:
            raise ValueError("smoothing 'robust' needs label_smoothing: the share of wrong pairs it corrects for")
        return self


class IpoRecipe(DirectRecipe):
    """Identity preference optimisation: the log-ratios differ by a fixed amount, so sure pairs are not overfitted."""

    method: Literal["ipo"] = "ipo"
    """The optimiser."""
    beta: float = Field(default=0.1, gt=0)
    """The paper's tau: the log-ratios of chosen and rejected are to be 1 / (2 beta) nats apart."""
    length_normalised: bool = False
    """Divide log-probabilities by the completion's length; the distance is then per token, so beta must be larger."""


class KtoRecipe(DirectRecipe):
    """Kahneman-Tversky optimisation: each completion is good or bad by itself, so pairs are not needed."""

    method: Literal["kto"] = "kto"
    """The optimiser."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference (the SFT model)."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """What a completion weighs that won more than it lost."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """What a completion weighs that lost more than it won."""
    margin: float = Field(default=0.0, ge=0, le=0)
    """Has no meaning without pairs."""


class OrpoRecipe(DirectRecipe):
    """Odds-ratio preference optimisation: no reference; the SFT loss holds the policy."""

    method: Literal["orpo"] = "orpo"
    """The optimiser."""
    beta: float = Field(default=0.5, gt=0)
    """The paper's lambda: weight of the odds ratio beside the chosen completions' likelihood."""
    sft_weight: float = Field(default=1.0, gt=0)
    """Weight of the chosen completions' negative log-likelihood per token: what holds the policy."""


class SimpoRecipe(DirectRecipe):
    """Simple preference optimisation: the mean log-probability per token is the reward; no reference."""

    method: Literal["simpo"] = "simpo"
    """The optimiser."""
    beta: float = Field(default=2.0, gt=0)
    """Scales the mean log-probabilities."""
    gamma: float = Field(default=1.0, ge=0)
    """By how much the scaled sides are to differ."""


AnyDirect = DpoRecipe | IpoRecipe | KtoRecipe | OrpoRecipe | SimpoRecipe
DIRECT = ("dpo", "ipo", "kto", "orpo", "simpo")
"""Methods that need preferences only."""


def train_direct(recipe: AnyDirect, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, sft (or `start`), preferences; data for a watch. Writes `adapter/` or `model/`, on top of those.

    Raises `InputError` for rows it cannot use, `PipelineError` when training would not start from the reference.
    """
    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.models.quantised import quantise
    from tasks.training.direct_engine import fit_direct
    from tasks.training.watch import watched_rows

    rows = read_jsonl(inputs["preferences"] / "train.jsonl")
    if not rows:
        raise InputError("There are no preferences to learn from; collect judgements or import a preference file.")
    tokenizer = load_tokenizer(inputs["base"])
    model = load_causal_lm(
        [inputs[name] for name in below(inputs)],
        trainable=True,
        to_quantise=isinstance(recipe.adapter, QloraRecipe),
    )
    if isinstance(recipe.adapter, QloraRecipe):
        quantise(model, **recipe.adapter.quantisation)  # now, for the reference is what training starts from
    watched = watched_rows(recipe.watch, inputs["data"]) if recipe.watch.every else []
    fit_direct(
        model, lambda start: attach(start, recipe.adapter, seed=work.seed), tokenizer, rows, recipe, work, watched
    )
