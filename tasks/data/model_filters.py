"""Filters that ask a model: how it finds a completion, how much the prompt helps it, or what it says of the answer."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tasks.ai.recipe import Judge
from tasks.data.filters import FilterPart
from tasks.models.source import local_folder, model_files


class _ByModel(FilterPart):
    model: str
    """A local folder or a hub id of a causal language model; a small one does."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    keep: tuple[float, float] = (0.0, 1.0)
    """Quantiles between which a score must lie, among all that this filter sees."""

    @model_validator(mode="after")
    def _ordered(self) -> "_ByModel":
        if not 0 <= self.keep[0] < self.keep[1] <= 1:
            raise ValueError("'keep' must be [lower, upper] with 0 <= lower < upper <= 1")
        return self

    def external_files(self) -> list[Path]:
        """The files of a local model."""
        return model_files(local_folder(self.model, "the model of a filter"))


class PerplexityFilter(_ByModel):
    """Completions that a language model finds too strange, or too plain, by themselves (Wenzek et al. 2020, CCNet)."""

    kind: Literal["perplexity"]
    """By perplexity per token."""
    least: float = Field(default=0.0, ge=0)
    """Drop what is below: boilerplate."""
    most: float | None = Field(default=None, gt=1)
    """Drop what is above: garbage."""


class DifficultyFilter(_ByModel):
    """Completions that the prompt does not help to foresee.

    Instruction-following difficulty (Li et al. 2024, "From Quantity to Quality"): the loss of the completion after the
    prompt over its loss by itself. Over 1 the prompt only disturbs; near 0 the answer follows from it at once.
    """

    kind: Literal["difficulty"]
    """By instruction-following difficulty (IFD)."""
    least: float = Field(default=0.0, ge=0)
    """Drop what is below: too easy to teach much."""
    most: float | None = Field(default=1.0, gt=0)
    """Drop what is above: prompt and answer do not belong together."""


class JudgeFilter(FilterPart):
    """Answers that a judge model rates low; with `sample`, a classifier learns its ratings and rates the others."""

    kind: Literal["judge"]
    """By a judge's rating."""
    judge: Judge
    """The model that rates: one behind an endpoint, or a local one with answer = "text"."""
    rubric: str = Field(
        default="A good answer does what is asked, is right, clear and complete, and says nothing beside the point.",
        min_length=1,
        max_length=20_000,
    )
    """What the ratings mean."""
    scale: int = Field(default=5, ge=2, le=10)
    """Ratings go from 1 to this, the best."""
    at_least: int = Field(default=3, ge=1)
    """Answers rated below are dropped."""
    reasons: bool = True
    """Have it say why before it rates."""
    sample: int | None = Field(default=None, ge=50)
    """Let it rate so many, drawn by the seed, and a classifier on words the others; none: it rates all."""
    auc: float = Field(default=0.65, ge=0.5, le=1)
    """The least area under the ROC curve, on ratings held out from the classifier, for it to be used."""

    @model_validator(mode="after")
    def _possible(self) -> "JudgeFilter":
        if self.judge.kind == "local" and self.judge.answer == "letters":
            raise ValueError('a judge that rates must write; set judge.answer = "text"')
        if self.judge.kind == "local" and self.judge.model == "sft":
            raise ValueError("the data is made before the SFT model is there; name another judge")
        if self.at_least > self.scale:
            raise ValueError("'at_least' is over 'scale', so everything would be dropped; lower it")
        return self

    def external_files(self) -> list[Path]:
        """The files of a local judge."""
        return self.judge.external_files()
