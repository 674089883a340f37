"""Rows that a model writes: instructions from seeds, evolved, answered, revised; each says how it was made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifact import Row, Work, write_jsonl
from tasks.recipe import stable_hash
from tasks.synthesis.answers import answer, revise
from tasks.synthesis.drafts import Draft, Making, read_rows
from tasks.synthesis.evolve import evolve
from tasks.synthesis.recipe import SynthesisRecipe
from tasks.synthesis.report import report
from tasks.synthesis.self_instruct import self_instruct
from tasks.synthesis.writer import Writer

STEPS: dict[str, Callable[[Any, list[Draft], Making], list[Draft]]] = {
    "self_instruct": self_instruct,
    "evolve": evolve,
    "answer": answer,
    "revise": revise,
}


def synthesise(recipe: SynthesisRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Write `rows.jsonl`, `preferences.jsonl`, `dropped.jsonl` and the report.

    Rows are `{"id", "prompt_id", "messages", "made"}`; `made` holds the synthesis, the writer, the `prompt_id` and the
    steps, each with the ids of what it was made from (`prompt_id`s, or those of the seeds). Pairs are `{"prompt",
    "chosen", "rejected", "made"}`: answers after and before each revision, also of rows that a later step changed.
    Dropped texts have their step and the reason. `inputs` are the syntheses that it begins with. Interrupted and run
    again, it asks only what is missing. Raises `PipelineError` when the writer cannot be asked, and `InputError` when
    the seeds cannot be read or a step keeps nothing.
    """
    making = Making(recipe, Writer(recipe.writer, work), work)
    drafts: list[Draft] = []
    if recipe.rows is not None:
        making.step = "rows"
        drafts = read_rows(recipe.rows, inputs, making)
        making.begun_with = [draft.instruction for draft in drafts]
        making.ended(len(drafts) + len(making.dropped), drafts)
    for number, step in enumerate(recipe.steps, 1):
        making.step = f"{number} {step.kind}"
        before = len(drafts)
        drafts = STEPS[step.kind](step, drafts, making)
        making.ended(before, drafts)
    write_jsonl(work.out / "rows.jsonl", _rows(drafts, making))
    write_jsonl(work.out / "preferences.jsonl", making.pairs)
    write_jsonl(work.out / "dropped.jsonl", making.dropped)
    report(drafts, making)
    work.progress(len(drafts), len(drafts), f"{len(drafts)} rows")


def _rows(drafts: Sequence[Draft], making: Making) -> Iterator[Row]:
    for draft in drafts:
        messages = draft.messages()
        row = {"id": stable_hash(messages)[:16], "prompt_id": draft.id, "messages": messages}
        yield {**row, "made": making.made(draft)}
