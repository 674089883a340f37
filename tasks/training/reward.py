"""A reward model: the SFT model or another with a scalar head, fitted to preferences by Bradley and Terry's model
(1952)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl
from tasks.models.source import local_folder, model_files
from tasks.recipe import Part
from tasks.training.hyperparameters import Hyperparameters
from tasks.training.reward_heads import OVERALL, Heads


class RewardBar(Part):
    """What a reward model must reach on held-out pairs before anything is optimised against it."""

    accuracy: float = Field(default=0.5, ge=0, le=1)
    """What its accuracy must reach: by default that of a coin."""
    accuracy_low: float | None = Field(default=None, ge=0, le=1)
    """What the lower end of the accuracy's 95 % interval must reach."""
    calibration_error: float | None = Field(default=None, gt=0, le=1)
    """The largest expected calibration error."""
    length_correlation: float | None = Field(default=None, ge=0, le=1)
    """The largest correlation of reward and length, either way."""


class RewardRecipe(Hyperparameters):
    """Learn to score completions as people prefer them."""

    base: str | None = Field(default=None, min_length=1)
    """A model of another size or family than the policy, decoder or encoder: a local folder or a hub id such as
    `FacebookAI/roberta-base`, with its own tokenizer and chat template. None: the SFT model."""
    revision: str | None = None
    """Branch, tag or commit of a hub `base`; the commit it stands for is kept with the artifact."""
    chat_template: str = "auto"
    """Of `base`. "auto": its own; where it has none plain turns, or for an encoder texts between its separators;
    "default": the latter two; else a Jinja file."""
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
    criteria: tuple[str, ...] = ()
    """Criteria of the round's ratings that get heads of their own beside the ranking's; what they count for is said in
    a policy's `rewards`."""
    members: int = Field(default=1, ge=1, le=32)
    """Heads that learn the same, each from its own draw of the prompts: where they differ the model is not sure."""
    bar: RewardBar = RewardBar()
    """Below it the run ends before PPO or GRPO. Not a part of what is trained: raising it trains nothing again."""

    @field_validator("criteria")
    @classmethod
    def _named_once(cls, criteria: tuple[str, ...]) -> tuple[str, ...]:
        if len({*criteria, OVERALL}) <= len(criteria):
            raise ValueError(f"criteria must differ, and '{OVERALL}' is the ranking's own head")
        return criteria

    @property
    def heads(self) -> Heads:
        """What the model has heads for."""
        return Heads((OVERALL, *self.criteria), self.members)

    @property
    def trained(self) -> Self:
        """What decides the model: the recipe without its bar."""
        return self.model_copy(update={"bar": RewardBar()})

    def external_files(self) -> list[Path]:
        """Files outside the recipe that belong to its identity: those of a local `base`, and a template file.

        Raises `InputError` for one that is missing.
        """
        if self.base is None:
            return []
        template = [] if self.chat_template in ("auto", "default") else [Path(self.chat_template)]
        if template and not template[0].is_file():
            raise InputError(f'The chat template {template[0]} does not exist; give "auto", "default" or a Jinja file.')
        return model_files(local_folder(self.base, "reward.base")) + template

    @model_validator(mode="after")
    def _of_a_base(self) -> Self:
        if self.base is None and (self.revision is not None or self.chat_template != "auto"):
            name = "chat_template" if self.revision is None else "revision"
            raise ValueError(f"'{name}' says something of 'base', which is not set; set base, or remove {name}")
        return self


def check_bar(bar: RewardBar, figures: Mapping[str, float]) -> None:
    """Raise `PipelineError`, naming every figure of a reward artifact that is below the bar."""

    def of(name: str) -> float:
        return figures.get(f"validation/{name}", math.nan)

    faults = []
    if math.isnan(of("accuracy")):
        faults.append("there is no held-out pair to measure it on")
    elif of("accuracy") < bar.accuracy:
        faults.append(f"its accuracy on held-out pairs is {of('accuracy'):.3f}, below {bar.accuracy:g}")
    if bar.accuracy_low is not None and not of("accuracy_low") >= bar.accuracy_low:
        low = of("accuracy_low")
        faults.append(f"the lower bound of its accuracy on held-out pairs is {low:.3f}, below {bar.accuracy_low:g}")
    if bar.calibration_error is not None and not of("calibration_error") <= bar.calibration_error:
        faults.append(f"its calibration error is {of('calibration_error'):.3f}, over {bar.calibration_error:g}")
    if bar.length_correlation is not None and abs(of("length_correlation")) > bar.length_correlation:
        found = of("length_correlation")
        faults.append(f"its correlation with length is {found:.3f}, over {bar.length_correlation:g} either way")
    if faults:
        raise PipelineError(
            f"The reward model is below its bar: {'; '.join(faults)}. Collect more judgements, train it otherwise, or "
            "lower reward.bar."
        )


def train_reward(recipe: RewardRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: preferences (`train.jsonl`, `validation.jsonl`); base and sft unless the recipe has a base of its own.

    Writes `adapter/` and, in `start/`, the SFT adapter under it (with a base of its own `source.json`, which says what
    is under it; or a whole `model/`), `tokenizer/` and `reward.json` with mean and deviation of the rewards on training
    completions. Raises `InputError` for rows it cannot use.
    """
    from tasks.training.reward_engine import fit_reward_model, save_reward_model, start
    from tasks.training.reward_report import report_quality

    rows = preferences(recipe, inputs["preferences"], "train")
    if not rows:
        raise InputError("There are no preferences to learn from; collect judgements or import a preference file.")
    model, tokenizer = start(recipe, inputs, work)
    groups = fit_reward_model(model, tokenizer, rows, recipe, work)
    model = save_reward_model(model, tokenizer, groups, inputs, recipe, work)
    report_quality(model, tokenizer, preferences(recipe, inputs["preferences"], "validation"), recipe, work)


def preferences(recipe: RewardRecipe, folder: Path, split: str) -> list[Row]:
    """The pairs of a split: people's rankings, and the ratings of the recipe's criteria.

    Raises `InputError` for a criterion that nobody rated.
    """
    rows = read_jsonl(folder / f"{split}.jsonl")
    if not recipe.criteria:
        return rows
    file = folder / f"rated_{split}.jsonl"
    rated = read_jsonl(file) if file.exists() else []
    if lacking := sorted({*recipe.criteria} - {row["criterion"] for row in rated}):
        raise InputError(
            f"No {split} preference is about '{lacking[0]}'; rate it in the round (label.criteria), or take it out of "
            "reward.criteria."
        )
    return rows + [row for row in rated if row["criterion"] in recipe.criteria]
