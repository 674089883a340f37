"""Instruction data from many sets: read, told in phrasings, filtered, split by the ledger, and mixed by their rates.

Rows go through one at a time and wait on disk, so that memory holds a few numbers per row and no texts. The evaluation
sets come first: nothing of what they hold is trained on.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.artifact import Work
from tasks.data.arrow_sources import HubSet, ParquetSet
from tasks.data.filter_report import report
from tasks.data.filters import (
    CharacterFilter,
    ContaminationFilter,
    DuplicateFilter,
    LanguageFilter,
    LengthFilter,
    PiiFilter,
)
from tasks.data.held_out import share_out
from tasks.data.identity import IdentitySet
from tasks.data.intake import Intake
from tasks.data.mixing import Mix
from tasks.data.mixture_files import write_files
from tasks.data.model_filters import DifficultyFilter, JudgeFilter, PerplexityFilter
from tasks.data.sources import CsvSet, JsonSet, SynthesisSet, TextSet
from tasks.data.splits import Splitting
from tasks.recipe import Part

AnySet = Annotated[
    JsonSet | CsvSet | ParquetSet | HubSet | TextSet | IdentitySet | SynthesisSet, Field(discriminator="kind")
]
AnyFilter = Annotated[
    LengthFilter
    | CharacterFilter
    | LanguageFilter
    | PiiFilter
    | DuplicateFilter
    | ContaminationFilter
    | PerplexityFilter
    | DifficultyFilter
    | JudgeFilter,
    Field(discriminator="kind"),
]


class MixtureStage(Part):
    """A further stage of SFT, with a mixture of its own from the same rows."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """What `sft.stages` calls it."""
    sets: tuple[str, ...] = ()
    """Only these sets; none: all that are trained on."""
    mix: Mix = Mix()
    """How much of each set."""
    boost: dict[str, float] = Field(default_factory=dict)
    """In place of the boosts of the sets named here."""


class MixtureData(Splitting):
    """Several sets of instructions, filtered and mixed."""

    source: Literal["mixture"]
    """The sets below."""
    sets: tuple[AnySet, ...] = Field(min_length=1)
    """Where rows come from, and how they are told."""
    mix: Mix = Mix()
    """How much of each set is used for fine-tuning."""
    stages: tuple[MixtureStage, ...] = ()
    """Mixtures of SFT's further stages, which follow on that of `mix`; `sft.stages` names them in their order."""
    filters: tuple[AnyFilter, ...] = ()
    """What keeps rows out; rules on single rows first, then what compares rows, each in the order given."""

    @field_validator("sets")
    @classmethod
    def _different_names(cls, sets: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [each.name for each in sets]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"two sets are named '{twice[0]}'; give each its own name")
        return sets

    @model_validator(mode="after")
    def _known_names(self) -> "MixtureData":
        names = {each.name for each in self.sets}
        for each in self.filters:
            if unknown := sorted({*each.sets} - names):
                raise ValueError(f"the filter '{each.kind}' names the set '{unknown[0]}', which is not there")
            if idle := [part.name for part in self.sets if part.kind == "identity" and part.name in each.sets]:
                raise ValueError(f"the filter '{each.kind}' names '{idle[0]}', whose rows pass every filter; remove it")
        for each in self.stages:
            if unknown := sorted({*each.sets, *each.boost} - names):
                raise ValueError(f"the stage '{each.name}' names the set '{unknown[0]}', which is not there")
        if len({each.name for each in self.stages}) < len(self.stages):
            raise ValueError("two of 'stages' have the same name; give each its own")
        if all(each.use == "evaluation" or each.kind == "text" for each in self.sets):
            raise ValueError("no set has conversations to learn from; add one that is not plain text or for evaluation")
        return self

    def brings_evaluation(self) -> bool:
        """Whether a set is there for evaluation alone."""
        return any(each.use == "evaluation" for each in self.sets)

    def needs(self) -> list[str]:
        """The syntheses whose rows are mixed in."""
        return sorted({each.of for each in self.sets if isinstance(each, SynthesisSet)})

    def external_files(self) -> list[Path]:
        """Files whose content is part of the identity: rows, templates, and what is protected from contamination."""
        files = [file for each in self.sets for file in [*each.source_files(), *each.template_files()]]
        for each in self.filters:
            if isinstance(each, ContaminationFilter):
                files += [Path(file).expanduser() for file in each.against]
            if isinstance(each, PerplexityFilter | DifficultyFilter | JudgeFilter):
                files += each.external_files()
        return files


def prepare_mixture(recipe: MixtureData, inputs: Mapping[str, Path], work: Work) -> None:
    """Write the splits, the ledger, `dropped.jsonl` with every row that is not used, and the tables of the report.

    `sft.jsonl`, and `sft.NAME.jsonl` of each further stage, have rows `{"id", "messages", "reference", "set", "form"}`,
    and `{"text", "set"}` of plain text; rows of a synthesis, which is among the `inputs`, keep `made`. Raises
    `InputError` when a set cannot be read or gives nothing, or when a split would stay empty.
    """
    sets = tuple(each.made(inputs) if isinstance(each, SynthesisSet) else each for each in recipe.sets)
    recipe = recipe.model_copy(update={"sets": sets})
    intake, total = Intake(recipe, work), len(recipe.sets) + 3
    try:
        intake.run()
        work.progress(total - 2, total, "splitting")
        splits, groups = share_out(recipe, intake)
        work.progress(total - 1, total, "mixing")
        write_files(recipe, intake, splits, groups, work)
    finally:  # what the filters did is told of data that they emptied too
        intake.close()
        report(intake)
    work.progress(total, total, f"{int(work.metrics['rows/sft'])} rows")
