"""Direct preference optimisation (Rafailov et al. 2023): the policy itself is fitted to the preferences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.artifact import InputError, Work, read_jsonl
from tasks.training.hyperparameters import Hyperparameters


class DpoRecipe(Hyperparameters):
    """Optimise the SFT model on preferences, without a reward model and without sampling."""

    method: Literal["dpo"] = "dpo"
    """The optimiser."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the candidate is called; the method's name when left out."""
    epochs: float = Field(default=3, gt=0)
    """Passes over the preferences."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=4, ge=1)
    """Prompts in one forward pass; all judged completions of a prompt are in it, each once."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference (the SFT model)."""
    margin: float = Field(default=0.0, ge=0)
    """How much of a pair's own margin the log-odds must differ by (Amini et al. 2024); 0 leaves margins out."""
    sft_weight: float = Field(default=0.5, ge=0)
    """Weight of the chosen completions' negative log-likelihood per token added to the loss (Pang et al. 2024): at 0
    the log-probabilities of both sides fall, that of EOS too, and answers run on."""
    length_normalised: bool = False
    """Divide log-probabilities by the completion's length, against growing answers."""


def train_dpo(recipe: DpoRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, sft, preferences. Writes `adapter/` or `model/`, on top of base and SFT.

    Raises `InputError` for rows it cannot use, `PipelineError` when training would not start from the reference.
    """
    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer, save_model
    from tasks.training.dpo_engine import fit_dpo

    rows = read_jsonl(inputs["preferences"] / "train.jsonl")
    if not rows:
        raise InputError("There are no preferences to learn from; collect judgements or import a preference file.")
    tokenizer = load_tokenizer(inputs["base"])
    model = load_causal_lm([inputs["base"], inputs["sft"]], trainable=True)
    model = fit_dpo(model, lambda policy: attach(policy, recipe.adapter, seed=work.seed), tokenizer, rows, recipe, work)
    save_model(model, tokenizer, work.out)
