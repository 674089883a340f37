"""What a recipe says about a round of labeling: what is asked, of whom, how it is shared out, when it is enough."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from labeling.question import DEFAULT_GUIDELINES, MAX_GUIDELINES, MAX_SCALE
from tasks.ai.recipe import AiRecipe, ai_faults
from tasks.recipe import Dotted, Part

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Label = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class AnnotatorRecipe(Part):
    """One simulated annotator."""

    name: Name
    """Username in Argilla."""
    noise: float = Field(default=0.3, ge=0)
    """Scale of the Gumbel noise on what they perceive, in units of the utility."""
    tie_margin: float = Field(default=0.3, ge=0)
    """Completions perceived this close to the best of their group share its rank."""
    careless: bool = False
    """Ranks at random, without reading."""
    contrary: bool = False
    """Ranks the worst first."""
    discard_rate: float = Field(default=0.02, ge=0, lt=1)
    """Share of records discarded instead of ranked."""


class EnoughRecipe(Part):
    """When a round is enough."""

    records: float = Field(default=1.0, gt=0, le=1)
    """Share of the records that must be done: ranked by `min_submitted` annotators, or answered by all there are."""
    alpha_low: float | None = Field(default=None, ge=-1, le=1)
    """What the lower end of the 95 % interval of Krippendorff's alpha must reach."""
    strata: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Records that must be done per stratum."""
    deadline: AwareDatetime | None = None
    """When people's time is over, with a time zone: 2026-12-01T18:00:00+01:00."""
    at_deadline: Literal["use", "extend", "fail"] = "use"
    """Go on with what there is, keep waiting for the rest, or end the run."""


class GroupRecipe(Part):
    """People for some strata only."""

    people: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Usernames."""
    strata: Annotated[tuple[str, ...], Field(min_length=1)]
    """What they judge, and nobody else does."""


class LabelRecipe(Part):
    """What is asked, of whom, and when it is enough."""

    round: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "preferences"
    """Name of the round; its datasets in Argilla are called this and eight characters that stand for its content."""
    workspace: Name = "rlhf"
    """Argilla workspace of the project: its annotators see its rounds."""
    guidelines: str = Field(default=DEFAULT_GUIDELINES, min_length=1, max_length=MAX_GUIDELINES)
    """Markdown shown to the annotators; every judgement says under which version it was made."""
    markdown: bool = False
    """Render prompts and completions as Markdown. They are untrusted text."""
    criteria: tuple[Label, ...] = ()
    """What each completion may be rated on beside the ranking, as `helpful`, `honest`, `harmless`."""
    scale: int = Field(default=5, ge=2, le=MAX_SCALE)
    """Ratings go from 1 to this."""
    flags: tuple[Label, ...] = ()
    """What may be wrong with a record, as `unsafe`, `broken`, `cannot_judge` (which takes the vote away)."""
    rationale: bool = False
    """Ask why, in free text."""
    source: Literal["people", "simulated"] = "people"
    """Who ranks."""
    people: tuple[Name, ...] = ("annotator-1", "annotator-2", "annotator-3")
    """Usernames of the people who rank; accounts are made where they are missing."""
    simulated: tuple[AnnotatorRecipe, ...] = (
        AnnotatorRecipe(name="sim-careful", noise=0.2),
        AnnotatorRecipe(name="sim-hasty", noise=0.4),
        AnnotatorRecipe(name="sim-careless", careless=True),
    )
    """Simulated annotators, who answer over the same endpoints as the web UI."""
    utility: Dotted | None = None
    """What simulated annotators value: a function of (row with `prompt` and `reference`, completion text) -> float."""
    min_submitted: int = Field(default=3, ge=1)
    """Annotators whose ranks a record needs: the overlap."""
    sharing: Literal["shared", "personal"] = "shared"
    """One dataset that all annotators draw from, or one per person that holds just their records: quotas, groups and
    giving disputed records to further people need the second."""
    max_submitted: int | None = Field(default=None, ge=1)
    """Judgements a disputed record may get: it is given to further people, one at a time. None: as many as others."""
    disagreement: float = Field(default=1 / 3, ge=0, lt=1)
    """A record is disputed when more than this share of (two people, two completions) is ordered differently."""
    adjudicators: tuple[Name, ...] = ()
    """People who get the disputed records instead of further annotators."""
    quotas: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Records a person gets at most."""
    groups: tuple[GroupRecipe, ...] = ()
    """Strata that only some people judge."""
    gold: Path | None = None
    """A JSONL file of comparisons with a known answer, slipped in unseen: rows with prompt, completions and ranks."""
    repeats: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the records that come a second time, options in another order."""
    enough: EnoughRecipe = EnoughRecipe()
    """When the round is enough."""
    ai: AiRecipe | None = None
    """A judge model that judges instead of people, helps them, or takes what it is sure of."""

    @property
    def annotators(self) -> tuple[str, ...]:
        """Usernames of those who rank."""
        return tuple(each.name for each in self.simulated) if self.source == "simulated" else self.people

    def external_files(self) -> list[Path]:
        """The gold file belongs to the identity by its content, and so does what the judge model is made of."""
        return [*([self.gold] if self.gold else []), *(self.ai.external_files() if self.ai else [])]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for fault in _faults(self):
            raise ValueError(fault)
        return self


def _faults(recipe: LabelRecipe) -> Iterator[str]:
    """What cannot be, a clause each."""
    who = recipe.source
    if recipe.source == "simulated" and recipe.utility is None:
        yield "'utility' is needed with source = \"simulated\"; name a function, package.module:function"
    if len(set(recipe.annotators)) != len(recipe.annotators):
        yield f"'{who}' names an annotator twice; give everybody a name of their own"
    for what in ("criteria", "flags"):
        names = getattr(recipe, what)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"'{what}' has '{twice[0]}' twice; remove one"
    if recipe.min_submitted > len(recipe.annotators):
        yield (
            f"'min_submitted' is {recipe.min_submitted} but '{who}' has {len(recipe.annotators)} annotators; "
            "lower it or add annotators"
        )
    personal = {name for name in ("max_submitted", "adjudicators", "quotas", "groups") if getattr(recipe, name)}
    if recipe.sharing == "shared" and personal:
        yield f"'{min(personal)}' needs sharing = \"personal\": Argilla itself assigns nothing"
    if recipe.max_submitted is not None and recipe.max_submitted <= recipe.min_submitted:
        yield f"'max_submitted' is {recipe.max_submitted}, not over 'min_submitted' ({recipe.min_submitted}); raise it"
    if recipe.adjudicators and recipe.max_submitted is None:
        yield "'adjudicators' get disputed records; set 'max_submitted' to say that there are any"
    if recipe.adjudicators and recipe.source == "simulated":
        yield "'adjudicators' are people; with source = \"simulated\" leave them out"
    if recipe.ai:
        yield from ai_faults(recipe.ai, gold=recipe.gold is not None)
    named = {*recipe.quotas, *(name for group in recipe.groups for name in group.people)}
    if strangers := sorted(named - set(recipe.annotators)):
        yield f"'{strangers[0]}' has a quota or a group but is not in '{who}'; add the name or remove it"
