"""What a recipe says about a judge model: which one, how it is asked, and what its judgements are used for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from labeling.ai.endpoint import url_fault
from labeling.ai.keys import key_in
from labeling.comparison import Comparison, LabelingError, comparison_from
from tasks.artifact import InputError, PipelineError, read_jsonl
from tasks.recipe import Part

ShortName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$")]
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


class LocalModel(Part):
    """A causal language model on this machine that is asked something."""

    who: ClassVar[str] = "judge"
    """What it is to the user."""
    kind: Literal["local"]
    """A model that is loaded here."""
    model: str = Field(min_length=1)
    """A folder (a model, or a base or merged artifact), or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The longest answer; a cut one is invalid."""
    batch_size: int = Field(default=16, ge=1)
    """Questions answered at once."""

    def folder(self) -> Path | None:
        """The model's folder; None for `sft` and a hub id. Raises `InputError` when it is missing."""
        path = Path(self.model).expanduser()
        if self.model == "sft" or (not path.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", self.model)):
            return None
        if not path.is_dir():
            run = " or 'sft'" if self.who == "judge" else ""
            raise InputError(f"The {self.who}'s folder {path} does not exist; give a folder, a hub id{run}.")
        return path.resolve()

    def external_files(self) -> list[Path]:
        """The files of a local model."""
        folder = self.folder()
        return _model_files(folder) if folder else []


class LocalJudge(LocalModel):
    """A causal language model on this machine as judge; `model` may also be `sft`, the run's own SFT model."""

    name: ShortName | None = None
    """What it is called in the judgements, after `ai-`; by default the end of `model`."""
    answer: Literal["letters", "text"] = "letters"
    """`letters` reads the probabilities of the letters as next token: one forward pass, never invalid, and it says how
    sure the judge is; `text` lets it write and reads the verdict."""


class EndpointModel(Part):
    """A model behind an OpenAI-compatible endpoint."""

    who: ClassVar[str] = "judge"
    """What it is to the user."""
    kind: Literal["endpoint"]
    """A model that is asked over HTTP."""
    url: str
    """Up to the version, as in `https://api.example.com/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key. The key itself is never in a recipe."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, as the endpoint takes them."""
    prompt_price: float = Field(default=0.0, ge=0)
    """What a million tokens of prompts cost."""
    completion_price: float = Field(default=0.0, ge=0)
    """What a million tokens of answers cost."""
    budget: float | None = Field(default=None, gt=0)
    """Stop before the answers cost more than this, in the currency of the prices. What earlier runs paid for the same
    questions counts, also for answers that could not be used."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Questions under way at once."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds to wait for one answer."""
    attempts: int = Field(default=6, ge=1)
    """How often a question is asked when the endpoint is busy or garbled, at growing intervals."""

    def external_files(self) -> list[Path]:
        """None."""
        return []

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if fault := url_fault(self.url):
            raise ValueError(f"'url' {fault}")
        if taken := sorted({"model", "messages", "stream", "n"} & self.options.keys()):
            raise ValueError(f"'options' holds '{taken[0]}', which is set already; remove it")
        if self.budget is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("'budget' needs prices; set 'prompt_price' and 'completion_price'")
        return self


class EndpointJudge(EndpointModel):
    """A judge behind an OpenAI-compatible endpoint."""

    name: ShortName | None = None
    """What it is called in the judgements, after `ai-`; by default the end of `model`."""
    options: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    """Further fields of each request, as the endpoint takes them."""


Judge = Annotated[LocalJudge | EndpointJudge, Field(discriminator="kind")]


class AiRecipe(Part):
    """A judge model that judges with the round's own guidelines, each comparison in two orders."""

    use: Literal["ai_only", "assisted", "route"]
    """`ai_only`: its judgements instead of people's. `assisted`: people see them as suggestions, marked as its.
    `route`: it judges what it is sure of, once it is validated against people, and people the rest."""
    judge: Judge
    """The model."""
    form: Literal["rank", "rate"] = "rank"
    """It puts the completions in order, or rates each on the round's criteria and scale."""
    asking: Literal["list", "pairs"] = "list"
    """All completions of a record at once (2 questions), or each two of them (K (K - 1) questions)."""
    reasons: bool = True
    """It says why before it decides (text answers only); kept as the judgement's rationale."""
    sure: float = Field(default=0.9, ge=0.5, le=1)
    """`route`: how sure it must be of a record, 0.5 is a coin; what both orders tell alike is certain."""
    audit_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the records it judges that people judge too, unknown to them: the sample it is validated on."""
    minimum_agreement: float = Field(default=0.7, ge=0, le=1)
    """What the lower bound of its tie-discounted agreement with people must reach for its judgements to be used."""
    at_least: int = Field(default=30, ge=1)
    """Records that both must have judged for that."""
    usable: float = Field(default=0.5, ge=0, le=1)
    """Share of the records that it must give a usable judgement on: with fewer, or none at all, the run ends before
    anybody is asked."""
    validation: Path | None = None
    """A judgements artifact of an earlier round: its comparisons are asked too, and held against its people."""
    unvalidated: bool = False
    """`ai_only`: use its judgements although nothing, or too little, speaks for them. The report says so."""

    @property
    def annotator(self) -> str:
        """What its judgements are signed with."""
        end = re.sub(r"[^A-Za-z0-9_.-]", "-", self.judge.model.rstrip("/").rpartition("/")[2]).strip("-.")
        return f"ai-{self.judge.name or end or 'judge'}"[:64]

    def external_files(self) -> list[Path]:
        """What the judge is made of, and what it is validated on."""
        return [*self.judge.external_files(), *validation_files(self.validation)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        idle = {"assisted": {"sure", "audit_share", "unvalidated"}, "ai_only": {"sure"}, "route": {"unvalidated"}}
        fields = type(self).model_fields
        if vain := sorted(name for name in idle[self.use] if getattr(self, name) != fields[name].default):
            default = json.dumps(fields[vain[0]].default)
            raise ValueError(
                f"'{vain[0]}' has no effect with use = \"{self.use}\"; remove it, or undo what an extended recipe "
                f"sets: {vain[0]} = {default}"
            )
        if self.judge.kind == "local" and self.judge.answer == "letters" and self.form == "rate":
            raise ValueError('form = "rate" needs a judge that writes; set judge.answer = "text"')
        return self


def ai_faults(recipe: AiRecipe, gold: bool) -> Iterator[str]:
    """What a round with or without gold comparisons cannot be with this judge, a clause each."""
    sampled = recipe.audit_share > 0 or recipe.validation is not None or gold
    if recipe.use == "ai_only" and not sampled and not recipe.unvalidated:
        yield (
            "'ai' has nothing that people judged too, so the judge cannot be validated; set audit_share, gold or "
            "validation (or unvalidated = true, and the report will say so)"
        )
    if recipe.use == "route" and recipe.audit_share == 0:
        yield "'ai.audit_share' is 0, so routed records are never checked by people; raise it"


def check_key(model: LocalModel | EndpointModel) -> None:
    """Raises `PipelineError` where a model needs a key that this process does not have."""
    if isinstance(model, EndpointModel):
        try:
            key_in(model.api_key_env, model.who)
        except LabelingError as error:
            raise PipelineError(str(error)) from error


def validation_files(folder: Path | None) -> list[Path]:
    """The files of an earlier round that are read."""
    return [folder / "comparisons.jsonl", folder / "judgements.jsonl"] if folder else []


def earlier_comparisons(folder: Path | None) -> list[Comparison]:
    """The comparisons of an earlier round that people judged to learn from, or whose answer is known."""
    rows = read_jsonl(folder / "comparisons.jsonl") if folder else []
    return [comparison for comparison in map(comparison_from, rows) if comparison.kind != "repeat"]


def _model_files(folder: Path) -> list[Path]:
    """What decides how a model folder or an artifact answers; reports do not."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix in MODEL_FILES)
    hidden = (file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    return sorted(file for file in hidden if file.relative_to(folder).parts[0] != "report")
