"""Where rewards come from: the reward model, functions and checks, patterns, JSON, length, a server; a weighted sum.

Each term is asked for every completion of a batch; the means of the terms are logged apart, as `reward/NAME`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator

from tasks.artifact import InputError, Message, PipelineError, Row
from tasks.checks.answers import follows
from tasks.data.splits import prompt_id
from tasks.recipe import Dotted, Part, ask_number
from tasks.training.reward_heads import Ensemble

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Texts = Sequence[str]


class Term(Part):
    """What the terms of a reward share."""

    weight: float = Field(default=1.0)
    """Multiplies the term; below 0 it is a penalty."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What it is logged as; by default its kind."""


class ModelReward(Term):
    """The run's own reward model; each head has mean 0 and deviation 1 on the completions it was trained on."""

    kind: Literal["model"] = "model"
    ensemble: Ensemble = "mean"
    """What the members of an ensemble (reward.members) say together: their mean, the least, or the mean less `penalty`
    times their variance."""
    penalty: float = Field(default=1.0, ge=0)
    """For ensemble = "uncertain"."""
    criteria: dict[str, float] = Field(default={})
    """Weight of each criterion (reward.criteria; the ranking is "overall"); none: the ranking alone."""
    combine: Literal["sum", "worst"] = "sum"
    """The weighted sum of the criteria, or the least of them, each times its weight."""
    at_least: dict[str, float] = Field(default={})
    """Criterion -> what it must reach, in deviations from its mean: a constraint."""
    shortfall: float = Field(default=5.0, ge=0)
    """Reward taken off for each deviation that such a criterion falls short."""


class FunctionReward(Term):
    """A Python function of (row with `prompt` and `reference`, completion text) -> float.

    `tasks.checks` has some: `answers` (right answers, numbers, JSON) and `instructions` (as in IFEval).
    """

    kind: Literal["function"] = "function"
    function: Dotted
    """Its dotted path, `package.module:function`."""


class PatternReward(Term):
    """1 where a regular expression is found in the completion, else 0."""

    kind: Literal["pattern"] = "pattern"
    pattern: str = Field(min_length=1, max_length=1000)
    """Python's syntax."""
    whole: bool = False
    """The whole completion must match."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error})") from error
        return value


class JsonReward(Term):
    """1 where the completion is JSON (perhaps in a fence of backticks) and as the schema asks, else 0."""

    kind: Literal["json"] = "json"
    must: dict[str, Any] | None = None
    """A JSON Schema; none: any JSON. For one in each row's reference take `tasks.checks.answers:json_of_schema`."""

    @field_validator("must")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        follows(value, "null")
        return value


class LengthReward(Term):
    """Minus one for each `per` words over `most` or under `least`."""

    kind: Literal["length"] = "length"
    least: int = Field(default=0, ge=0)
    """Words a completion may have at least."""
    most: int | None = Field(default=None, ge=1)
    """Words it may have at most."""
    per: int = Field(default=10, ge=1)
    """Words that cost one."""


class ServerReward(Term):
    """A reward model behind HTTP (`rlhf serve-reward`, or another that speaks the same)."""

    kind: Literal["server"] = "server"
    url: str = Field(pattern=r"^https?://")
    """Takes `{"prompts": [text], "query": [text]}`, or messages, and answers `{"rewards": [number]}`."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for a batch."""
    attempts: int = Field(default=5, ge=1)
    """How often a busy or absent server is asked, each time after twice as long."""


RewardTerm = Annotated[
    ModelReward | FunctionReward | PatternReward | JsonReward | LengthReward | ServerReward, Field(discriminator="kind")
]
Terms = tuple[RewardTerm, ...]


class Score(Protocol):
    """prompts, completions, whether EOS ended them -> rewards."""

    def __call__(
        self, prompts: Sequence[Sequence[Message]], completions: Texts, finished: Sequence[bool], /
    ) -> list[float]: ...


class ModelScore(Protocol):
    """The same of a reward model, whose heads are combined as a term says."""

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        completions: Texts,
        finished: Sequence[bool],
        term: ModelReward,
        /,
    ) -> list[float]: ...


class Rewards:
    """The weighted sum of a recipe's terms. `rows` are the prompts that may be asked about, with their references.

    `model` loads the reward model, where a term asks for it.
    """

    def __init__(self, terms: Sequence[RewardTerm], rows: Sequence[Row], model: ModelScore | None) -> None:
        self.terms, self.model = terms, model
        self.rows = {prompt_id(row["prompt"]): row for row in rows}
        self.parts: dict[str, float] = {}
        """Mean of each term over the last batch, by name; empty for a reward of one term."""
        self.shares_base = False
        """Whether the reward model computes on the weights of the model the policy starts from."""

    def __call__(
        self, prompts: Sequence[Sequence[Message]], completions: Texts, finished: Sequence[bool], /
    ) -> list[float]:
        total = [0.0] * len(completions)
        for term in self.terms:
            values = self._of(term, prompts, completions, finished)
            _check(term, values, len(completions))
            if len(self.terms) > 1:
                self.parts[f"reward/{called(term)}"] = sum(values) / max(1, len(values))
            total = [so_far + term.weight * value for so_far, value in zip(total, values, strict=True)]
        return total

    def _of(
        self, term: RewardTerm, prompts: Sequence[Sequence[Message]], completions: Texts, finished: Sequence[bool]
    ) -> list[float]:
        match term:
            case FunctionReward():
                rows = [self.rows[prompt_id(prompt)] for prompt in prompts]
                return [ask_number(term.function, row, text) for row, text in zip(rows, completions, strict=True)]
            case PatternReward():
                found = re.compile(term.pattern)
                look = found.fullmatch if term.whole else found.search
                return [float(look(text) is not None) for text in completions]
            case JsonReward():
                return [_follows(term, text) for text in completions]
            case LengthReward():
                return [_too_long(term, len(text.split())) for text in completions]
            case ServerReward():
                from tasks.training import reward_client

                return reward_client.ask(term, prompts, completions, finished)
            case ModelReward():
                if self.model is None:
                    raise PipelineError("A reward term of kind 'model' needs the run's reward model; give it one.")
                return self.model(prompts, completions, finished, term)


def rewards_of(
    terms: Sequence[RewardTerm],
    inputs: Mapping[str, Path],
    rows: Sequence[Row],
    start: "PreTrainedModel | None" = None,
) -> Rewards:
    """The rewards of a stage with the inputs base and reward; the reward model is loaded where a term asks for it.

    start: the frozen model that the policy starts from, for a reward model on the same weights to share.
    """
    if not any(isinstance(term, ModelReward) for term in terms):
        return Rewards(terms, rows, None)
    from tasks.training.reward_scoring import RewardScorer, started_alike

    shared = start if started_alike(inputs) else None
    rewards = Rewards(terms, rows, RewardScorer(inputs["base"], inputs["reward"], shared).normalised)
    rewards.shares_base = shared is not None
    return rewards


def parts_of(score: Score) -> dict[str, float]:
    """The means of the terms of a sum over its last batch; nothing for another score."""
    return dict(score.parts) if isinstance(score, Rewards) else {}


def called(term: RewardTerm) -> str:
    """What a term is logged as."""
    return term.name or term.kind


def _too_long(term: LengthReward, words: int) -> float:
    over = 0 if term.most is None else max(0, words - term.most)
    return -(over + max(0, term.least - words)) / term.per


def _follows(term: JsonReward, text: str) -> float:
    try:
        return float(follows(term.must, text))
    except ValueError as error:
        raise InputError(f"The reward '{called(term)}' cannot be asked ({error}); mend its schema.") from error


def _check(term: RewardTerm, values: Sequence[float], count: int) -> None:
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(f"The reward '{called(term)}' must give a finite number for each completion; mend it.")
