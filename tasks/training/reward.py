"""A reward model: the SFT model with a scalar head, fitted to preferences by Bradley and Terry's model (1952)."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from tasks.artifact import InputError, Work, read_jsonl
from tasks.training.hyperparameters import Hyperparameters


class RewardRecipe(Hyperparameters):
    """Learn to score completions as people prefer them."""

    epochs: float = Field(default=3, gt=0)
    """Passes over the preferences."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts in one forward pass; all judged completions of a prompt are in it, each once."""
    centering: float = Field(default=0.01, ge=0)
    """Weight of the squared mean of a pair's rewards, which keeps rewards around zero (Eisenstein et al. 2023)."""
    margin: float = Field(default=0.0, ge=0)
    """How much of a pair's own margin the rewards must differ by (Llama 2, 2023); 0 leaves margins out."""


def train_reward(recipe: RewardRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, sft, preferences (`train.jsonl`, `validation.jsonl`).

    Writes `adapter/` and, in `start/`, the SFT adapter under it (or a whole `model/`), `tokenizer/` and `reward.json`
    with mean and deviation of the rewards on training completions. Raises `InputError` for rows it cannot use.
    """
    from tasks.training.reward_engine import fit_reward_model, report_quality, save_reward_model, start

    rows = read_jsonl(inputs["preferences"] / "train.jsonl")
    if not rows:
        raise InputError("There are no preferences to learn from; collect judgements or import a preference file.")
    model, tokenizer = start(inputs["base"], inputs["sft"], recipe, work.seed)
    groups = fit_reward_model(model, tokenizer, rows, recipe, work)
    save_reward_model(model, tokenizer, groups, inputs["sft"], work)
    report_quality(model, tokenizer, read_jsonl(inputs["preferences"] / "validation.jsonl"), recipe, work)
