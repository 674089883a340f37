"""Supervised fine-tuning: the loss is on the assistant's tokens, EOS included, and on nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tasks.artifact import InputError, Work, read_jsonl
from tasks.models.adapters import PromptRecipe, QloraRecipe
from tasks.recipe import Part
from tasks.training.hyperparameters import Hyperparameters

GOES_ON = ("full", "lora", "dora", "ia3")
"""Kinds of adapters that a further stage can go on training."""


class SftStage(Part):
    """A further stage, which goes on training what the one before made; what is not set is as in the first."""

    mixture: str
    """The stage of `data.stages` that it learns from."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over its demonstrations."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Highest learning rate."""


class SftRecipe(Hyperparameters):
    """Teach the base model to answer, from demonstrations."""

    epochs: float = Field(default=2, gt=0)
    """Passes over the demonstrations."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=16, ge=1)
    """Conversations in one forward pass."""
    batches: Literal["tokens", "rows"] = "tokens"
    """tokens: `batch_size` conversations on average, and as many tokens in every batch; where lengths differ much, the
    loss reached is better. rows: as many conversations in every batch."""
    turns: Literal["all", "last"] = "all"
    """Which of a conversation's assistant turns are learnt: every one, in one pass, or the last alone."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Rows behind one another in one row without padding, each as if it were alone; a batch has then as many tokens as
    `batch_size` rows on average. "auto": where FlashAttention is there (CUDA, flash-attn), else batches by length."""
    mixture: str | None = None
    """Learn from this stage of `data.stages` instead of from the first mixture."""
    stages: tuple[SftStage, ...] = ()
    """Further stages, one after the other; what comes after SFT starts from the last."""

    @model_validator(mode="after")
    def _can_go_on(self) -> "SftRecipe":
        if self.stages and self.adapter.kind not in GOES_ON:
            raise ValueError(
                f"'stages' cannot go on training a {self.adapter.kind} adapter; take one of {', '.join(GOES_ON)}, or "
                "one stage"
            )
        return self

    @model_validator(mode="after")
    def _can_pack(self) -> "SftRecipe":
        if self.packing == "always" and isinstance(self.adapter, PromptRecipe):
            raise ValueError('a soft prompt stands before the first of packed rows alone; set packing = "never"')
        return self

    def in_turn(self) -> "list[SftRecipe]":
        """The stages as recipes of their own, in their order."""
        first = self.model_copy(update={"stages": ()})
        return [first, *(first.model_copy(update=stage.model_dump(exclude_none=True)) for stage in self.stages)]

    def mixtures(self) -> tuple[str, ...]:
        """The stages of `data.stages` that are learnt from, "" for the first mixture."""
        return tuple(dict.fromkeys(part.mixture or "" for part in self.in_turn()))


def train_sft(recipe: SftRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, data (`sft.jsonl`), perhaps `earlier`: the stage whose adapter or model goes on being trained.

    Writes `adapter/`, on the base in any case, or `model/`. Raises `InputError` for rows it cannot use.
    """
    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer, open_adapter, save_model
    from tasks.models.unsaid import unsaid
    from tasks.training.engine import tell_refused
    from tasks.training.engine_batches import LengthBatches, TokenBatches
    from tasks.training.sft_engine import encode_rows, fit_language_model

    rows = read_jsonl(inputs["data"] / (f"sft.{recipe.mixture}.jsonl" if recipe.mixture else "sft.jsonl"))
    if not rows:
        raise InputError("There are no demonstrations to fine-tune on; give the data part rows for sft.")
    tokenizer = load_tokenizer(inputs["base"])
    earlier = inputs.get("earlier")
    if earlier is None or recipe.adapter.kind == "full":
        chain = [inputs["base"], *([earlier] if earlier else [])]
        model = load_causal_lm(chain, trainable=True, to_quantise=isinstance(recipe.adapter, QloraRecipe))
        model = attach(model, recipe.adapter, seed=work.seed)
    else:
        model = open_adapter(load_causal_lm([inputs["base"]], trainable=True), earlier / "adapter", trainable=True)
    refused: dict[int, str] = {}
    encoded = encode_rows(rows, tokenizer, recipe.turns, refused)
    tell_refused(refused, rows, recipe, work)
    for notice in unsaid(rows, tokenizer):
        work.notify(notice)
    batches = TokenBatches if recipe.batches == "tokens" else LengthBatches
    fit_language_model(
        model, tokenizer, encoded, recipe, work, batches=batches, packing=recipe.packing, refused=len(refused)
    )
    save_model(model, tokenizer, work.out)
