"""What a recipe says about synthesis: who writes, from what, and the steps in their order."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tasks.ai.recipe import EndpointModel, LocalModel
from tasks.artifact import InputError
from tasks.data.arrow_sources import HubSet, ParquetSet
from tasks.data.sources import CsvSet, JsonSet, SynthesisSet
from tasks.recipe import Part
from tasks.synthesis.prompts import PROMPTS, fill, prompt_fault

Operation = Literal["constraints", "deepen", "concretise", "reasoning", "complicate_input", "broaden"]
OPERATIONS: tuple[Operation, ...] = (
    "constraints",
    "deepen",
    "concretise",
    "reasoning",
    "complicate_input",
    "broaden",
)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Similarity = Annotated[float, Field(gt=0, le=1)]


class Sampled(Part):
    """How a writer's texts are drawn."""

    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this share of the probability."""


class LocalWriter(LocalModel, Sampled):
    """A causal language model on this machine; best one trained on instructions."""

    who: ClassVar[str] = "writer"
    max_new_tokens: int = Field(default=512, ge=1)
    """The longest text; what is cut there is not used."""

    @model_validator(mode="after")
    def _not_of_this_run(self) -> Self:
        if self.model == "sft":
            raise ValueError("the rows are written before the SFT model is there; name another writer")
        return self


class EndpointWriter(EndpointModel, Sampled):
    """A model behind an OpenAI-compatible endpoint."""

    who: ClassVar[str] = "writer"
    max_new_tokens: int = Field(default=1024, ge=1)
    """The longest text (`max_tokens` of a request); what is cut there is not used."""

    @model_validator(mode="after")
    def _own_fields(self) -> Self:
        if taken := sorted({"temperature", "top_p", "max_tokens"} & self.options.keys()):
            raise ValueError(f"'options' holds '{taken[0]}', which has a field of its own; set that")
        return self


Writer = Annotated[LocalWriter | EndpointWriter, Field(discriminator="kind")]


class SelfInstruct(Part):
    """New instructions with inputs and answers, from seed tasks (Wang et al. 2023, "Self-Instruct", 2212.10560)."""

    kind: Literal["self_instruct"]
    """Self-instruct."""
    seeds: str
    """A file of seed tasks (`instruction` and `instances`), or of instructions in any form the json set reads."""
    instructions: int = Field(default=100, ge=1)
    """How many new instructions to keep; fewer when nothing new comes any more."""
    seeds_shown: int = Field(default=6, ge=1)
    """Seed tasks in each prompt."""
    generated_shown: int = Field(default=2, ge=0)
    """Earlier new tasks in each prompt, as soon as there are some; seed tasks stand in for them before."""
    per_prompt: int = Field(default=8, ge=1)
    """New tasks asked for in each prompt."""
    prompts_at_once: int = Field(default=8, ge=1)
    """Prompts asked before what came is looked at: fewer follow the new tasks more closely, more are quicker."""
    patience: int = Field(default=5, ge=1)
    """End after so many times in a row without any new instruction."""
    novelty: Similarity = 0.7
    """A new instruction must have a ROUGE-L below this to every seed and every one that is kept."""
    words: tuple[int, int] = (4, 150)
    """Fewest and most words of an instruction."""
    forbidden: tuple[str, ...] = (
        *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
        *("go to", "video", "audio", "music", "flowchart", "diagram"),
    )
    """Words for what a language model cannot see or do."""
    forbidden_starts: tuple[str, ...] = ("write a program",)
    """Beginnings of instructions that leave open what is to be written."""
    ascii_start: bool = True
    """Drop instructions that begin with a letter outside ASCII; turn it off for other languages."""
    instances: int = Field(default=1, ge=0, le=20)
    """Inputs with answers asked for each instruction; 0: none, a later `answer` step answers the instructions."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 1 <= self.words[0] <= self.words[1]:
            raise ValueError("'words' must be [fewest, most] with 1 <= fewest <= most")
        return self

    def external_files(self) -> list[Path]:
        """The seed tasks."""
        return [Path(self.seeds).expanduser()]


class Evolve(Part):
    """Harder and other instructions out of each (Xu et al. 2023, "WizardLM", 2304.12244); answers follow later."""

    kind: Literal["evolve"]
    """Evol-instruct."""
    generations: int = Field(default=1, ge=1, le=10)
    """How often; each goes on from what the one before made, or from its parent where that failed."""
    operations: tuple[Operation, ...] = Field(default=OPERATIONS, min_length=1)
    """Of which one is drawn for each instruction; name one twice to draw it twice as often."""
    keep_originals: bool = True
    """Keep what was evolved beside what came of it."""
    compare: bool = True
    """Ask the writer whether the new instruction asks for more than the old one, and drop it where it does not."""
    novelty: Similarity = 0.7
    """What `broaden` makes must have a ROUGE-L below this to every other instruction."""
    most_words: int = Field(default=400, ge=10)
    """Longer instructions are dropped."""

    def external_files(self) -> list[Path]:
        """None."""
        return []


class AnswerStep(Part):
    """The writer answers."""

    kind: Literal["answer"]
    """Answers."""
    system: str = ""
    """What the writer is told before the conversation; it does not become part of the row."""
    candidates: int = Field(default=1, ge=1, le=32)
    """Answers drawn for each instruction; each different one makes a row."""
    again: bool = False
    """Also answer rows that have an answer, in place of it."""
    apologies: Literal["drop", "keep"] = "drop"
    """Short answers (under 80 words) that say sorry: the instruction is too hard, as WizardLM has it."""

    def external_files(self) -> list[Path]:
        """None."""
        return []


class Revise(Part):
    """The writer criticises its answer by a principle and revises it (Bai et al. 2022, "Constitutional AI").

    Answers before and after are also written as pairs (`preferences.jsonl`).
    """

    kind: Literal["revise"]
    """Critique and revision."""
    principles: tuple[str, ...] = ()
    """What an answer is held against; one is drawn for each row and round."""
    principles_file: str | None = None
    """A text file with one principle per line, instead of `principles`."""
    rounds: int = Field(default=1, ge=1, le=10)
    """Critiques and revisions, one after the other."""
    apologies: Literal["drop", "keep"] = "drop"
    """Rows whose revision is a short text that says sorry, where the answer before does not; keep them where principles
    ask for refusals."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.principles) == bool(self.principles_file):
            raise ValueError("'revise' needs 'principles' or 'principles_file', one of both")
        if not all(each.strip() for each in self.principles):
            raise ValueError("'principles' holds an empty one; remove it")
        return self

    def constitution(self) -> list[str]:
        """The principles. Raises `InputError` when their file cannot be read or holds none."""
        if self.principles_file is None:
            return list(self.principles)
        path = Path(self.principles_file).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as text ({error}); check 'principles_file'.") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError(f"{path} holds no principle; write one on each line.")
        return found

    def external_files(self) -> list[Path]:
        """The file of principles."""
        return [Path(self.principles_file).expanduser()] if self.principles_file else []


Step = Annotated[SelfInstruct | Evolve | AnswerStep | Revise, Field(discriminator="kind")]
Rows = Annotated[JsonSet | CsvSet | ParquetSet | HubSet | SynthesisSet, Field(discriminator="kind")]


class SynthesisRecipe(Part):
    """Rows that a model writes."""

    name: Name
    """What sets of the mixture call it (`kind = "synthesis", of = NAME`)."""
    writer: Writer
    """The model."""
    rows: Rows | None = None
    """Rows to begin with, unless the first step is `self_instruct`."""
    steps: tuple[Step, ...] = Field(min_length=1)
    """What is done, in this order."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Prompts in place of those of `tasks/synthesis/prompts.py`, by their names there."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        kinds = [step.kind for step in self.steps]
        if "self_instruct" in kinds[1:]:
            raise ValueError(f"in '{self.name}' 'self_instruct' is not the first step; put it first")
        if (kinds[0] == "self_instruct") == (self.rows is not None):
            raise ValueError(
                f"'{self.name}' begins with either 'rows' or a first step 'self_instruct'; give one of both"
            )
        if self.writer.temperature == 0 and any(step.kind == "answer" and step.candidates > 1 for step in self.steps):
            raise ValueError(
                f"'{self.name}' asks for several 'candidates' at temperature 0, which are all the same; raise the "
                "writer's 'temperature', or leave 'candidates' out"
            )
        for name, text in self.prompts.items():
            if name not in PROMPTS:
                raise ValueError(f"'prompts' has '{name}'; the prompts are {', '.join(PROMPTS)}")
            if fault := prompt_fault(name, text):
                raise ValueError(f"'prompts.{name}' {fault}")
        return self

    def needs(self) -> list[str]:
        """The syntheses whose rows it begins with."""
        return [self.rows.of] if isinstance(self.rows, SynthesisSet) else []

    def external_files(self) -> list[Path]:
        """Files whose content is part of the identity."""
        files = [*self.writer.external_files(), *(file for step in self.steps for file in step.external_files())]
        return files + ([*self.rows.source_files(), *self.rows.template_files()] if self.rows else [])

    def prompt(self, name: str, values: dict[str, Any]) -> str:
        """A prompt filled in."""
        return fill(self.prompts.get(name, PROMPTS[name]), values)
