"""Supervised fine-tuning: the loss is on the assistant's tokens, EOS included, and on nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.artifact import InputError, Work, read_jsonl
from tasks.training.hyperparameters import Hyperparameters


class SftRecipe(Hyperparameters):
    """Teach the base model to answer, from demonstrations."""

    epochs: float = Field(default=2, gt=0)
    """Passes over the demonstrations."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=16, ge=1)
    """Conversations in one forward pass, on average: a batch holds as many tokens as so many conversations."""
    turns: Literal["all", "last"] = "all"
    """Which of a conversation's assistant turns are learnt: every one, in one pass, or the last alone."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Rows behind one another in one row without padding, each as if it were alone; a batch has then as many tokens as
    `batch_size` rows on average. "auto": where FlashAttention is there (CUDA, flash-attn), else batches by length."""


def train_sft(recipe: SftRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, data (`sft.jsonl`). Writes `adapter/` or `model/`. Raises `InputError` for rows it cannot use."""
    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer, save_model
    from tasks.training.engine_batches import TokenBatches
    from tasks.training.sft_engine import encode_rows, fit_language_model

    rows = read_jsonl(inputs["data"] / "sft.jsonl")
    if not rows:
        raise InputError("There are no demonstrations to fine-tune on; give the data part rows for sft.")
    tokenizer = load_tokenizer(inputs["base"])
    model = attach(load_causal_lm([inputs["base"]], trainable=True), recipe.adapter, seed=work.seed)
    encoded = encode_rows(rows, tokenizer, recipe.turns)
    fit_language_model(model, tokenizer, encoded, recipe, work, batches=TokenBatches, packing=recipe.packing)
    save_model(model, tokenizer, work.out)
