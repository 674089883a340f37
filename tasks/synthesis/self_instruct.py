"""New tasks from seed tasks (Wang et al. 2023, "Self-Instruct: Aligning Language Models with Self-Generated
Instructions", arXiv 2212.10560): instructions first, then whether each is a classification, then inputs and answers."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tasks.artifact import InputError, Message, Row
from tasks.data.files import file_rows
from tasks.data.forms import read_row
from tasks.data.rows import BadRow, check_characters
from tasks.synthesis.drafts import Draft, Making
from tasks.synthesis.instances import given_in, instance_faults, instances_in
from tasks.synthesis.novelty import Known
from tasks.synthesis.recipe import SelfInstruct
from tasks.synthesis.rules import instruction_fault, listed, yes_or_no

EXAMPLES = 3
"""Seed tasks shown where instances are asked for."""
SHORT = 1500
"""Characters of such an example, unless all are longer."""


@dataclass(frozen=True)
class Task:
    """A seed task, or a new one."""

    id: str
    instruction: str
    instances: tuple[tuple[str, str], ...] = ()
    """(input, output)"""
    classification: bool | None = None
    shown: tuple[str, ...] = ()
    """Ids of the tasks it was made from."""


def self_instruct(step: SelfInstruct, drafts: list[Draft], making: Making) -> list[Draft]:
    """New rows. Raises `InputError` when there is no seed task."""
    seeds = read_seeds(Path(step.seeds).expanduser(), making)
    making.begun_with = [seed.instruction for seed in seeds]
    tasks = _new_instructions(step, seeds, making)
    if not step.instances:
        return [_draft(task, "", "", None) for task in tasks]
    return _with_instances(step, _classified(tasks, seeds, making), seeds, making)


def read_seeds(path: Path, making: Making) -> list[Task]:
    """Seed tasks of a file; what is none is dropped. Raises `InputError` when it is missing or holds none."""
    seeds: list[Task] = []
    read = 0
    for number, row in file_rows(path):
        read += 1
        try:
            if isinstance(row, str):
                raise BadRow(row)
            check_characters(row)
            seeds.append(_seed(row, number))
        except (BadRow, InputError) as bad:
            making.drop(f"as a seed {' '.join(map(str, bad.args))}", str(row)[:200], line=number)
    if not read:
        raise InputError(f"{path} is empty; write one seed task per line.")
    if not seeds:
        raise InputError(f"{path} holds no seed task: row 1 {making.dropped[0]['reason']}; check its format.")
    return seeds


def _seed(row: Row, number: int) -> Task:
    name = str(row.get("id") or f"seed_{number}")
    instruction, instances = row.get("instruction"), row.get("instances")
    if isinstance(instruction, str) and instruction.strip() and isinstance(instances, list):
        texts = [(each.get("input"), each.get("output")) for each in instances if isinstance(each, dict)]
        pairs = tuple((given_in(str(given or "")), str(output).strip()) for given, output in texts if output)
        known = row.get("is_classification")
        return Task(name, instruction.strip(), pairs, known if isinstance(known, bool) else None)
    example = read_row(row)[0]
    if len(example.prompt) > 1:
        raise BadRow("is a conversation of several turns")
    if isinstance(instruction, str) and instruction.strip():
        given, output = row.get("input"), row.get("output")
        pairs = ((given_in(str(given or "")), str(output).strip()),) if output else ()
        return Task(name, instruction.strip(), pairs)
    pairs = tuple(("", text.strip()) for text in example.completions[:1] if text.strip())
    return Task(name, example.prompt[-1]["content"].strip(), pairs)


def _new_instructions(step: SelfInstruct, seeds: list[Task], making: Making) -> list[Task]:
    """Instructions that are new, in the order in which they were asked for."""
    known = Known(seed.instruction for seed in seeds)
    found: list[Task] = []
    barren = number = 0
    while len(found) < step.instructions and barren < step.patience:
        before = len(found)
        shown = [_shown(step, seeds, found, Random(making.rng_name(number + n))) for n in range(step.prompts_at_once)]
        questions = [
            making.recipe.prompt(
                "instructions",
                {
                    "tasks": "\n".join(f"{place}. {_line(task.instruction)}" for place, task in enumerate(tasks, 1)),
                    "count": step.per_prompt,
                    "next": len(tasks) + 1,
                },
            )
            for tasks in shown
        ]
        draws = [f"{making.step}/{number + n}" for n in range(len(questions))]
        note = f"{len(found)} of {step.instructions} instructions"
        for tasks, said in zip(shown, making.ask(questions, draws, note), strict=True):
            names = tuple(task.id for task in tasks)
            fault = making.writer.fault(said)
            items = listed(said.text, said.whole)
            if not items:
                making.drop(fault or "is no list of tasks", said.text, shown=list(names))
            for text in items:
                reason = instruction_fault(text, step.words, step.forbidden, step.forbidden_starts, step.ascii_start)
                if not reason:
                    reason = "is too like another instruction" if known.nearest(text) >= step.novelty else ""
                if reason or len(found) == step.instructions:
                    making.drop(reason or "is more than were wanted", text, shown=list(names))
                    continue
                known.add(text)
                found.append(Task(_draft_id(text), text, shown=names))
        number += step.prompts_at_once
        barren = barren + 1 if len(found) == before else 0
    if 0 < len(found) < step.instructions:
        making.work.notify(
            f"Synthesis '{making.recipe.name}': nothing new came after {len(found)} of {step.instructions} "
            "instructions."
        )
    return found


def _shown(step: SelfInstruct, seeds: list[Task], found: list[Task], rng: Random) -> list[Task]:
    generated = rng.sample(found, min(step.generated_shown, len(found)))
    wanted = step.seeds_shown + step.generated_shown - len(generated)
    shown = [*rng.sample(seeds, min(wanted, len(seeds))), *generated]
    rng.shuffle(shown)
    return shown


def _classified(tasks: list[Task], seeds: list[Task], making: Making) -> list[Task]:
    """The tasks with the writer's word on whether each is a classification; one that cannot be read is a no."""
    known = [seed for seed in seeds if seed.classification is not None]
    rng = Random(making.rng_name("classification"))
    both = [[seed for seed in known if seed.classification is each] for each in (True, False)]
    shown = [seed for group in both for seed in rng.sample(group, min(4, len(group)))]
    rng.shuffle(shown)
    examples = "\n\n".join(
        f"Task: {_line(seed.instruction)}\nIs this a classification task? {'Yes' if seed.classification else 'No'}."
        for seed in shown
    )
    questions = [
        making.recipe.prompt("classification", {"examples": examples, "instruction": task.instruction})
        for task in tasks
    ]
    said = making.ask(questions, [""] * len(tasks), "is it a classification?", greedy=True)
    verdicts = [yes_or_no(each.text) for each in said]
    making.unreadable["classification"] += sum(verdict is None for verdict in verdicts)
    return [replace(task, classification=bool(verdict)) for task, verdict in zip(tasks, verdicts, strict=True)]


def _with_instances(step: SelfInstruct, tasks: list[Task], seeds: list[Task], making: Making) -> list[Draft]:
    """Rows of the tasks: input first, but for classifications, whose labels would else be too much alike."""
    questions = [_instance_question(step, task, seeds, making) for task in tasks]
    draws = [f"{making.step}/instances"] * len(tasks)
    drafts: list[Draft] = []
    for task, said in zip(tasks, making.ask(questions, draws, "inputs and answers"), strict=True):
        pairs = instances_in(said.text, said.whole, bool(task.classification))
        if not pairs:
            making.drop(
                making.writer.fault(said) or "has no instance of its form",
                task.instruction,
                said=said.text or said.refused,
            )
            continue
        kept = 0
        for (given, output), fault in zip(pairs, instance_faults(pairs), strict=True):
            reason = fault or ("is a classification without an input" if task.classification and not given else "")
            if reason or kept == step.instances:
                making.drop(reason or "is more than were wanted", task.instruction, input=given, output=output)
                continue
            kept += 1
            drafts.append(_draft(task, given, output, task.classification))
    return drafts


def _instance_question(step: SelfInstruct, task: Task, seeds: list[Task], making: Making) -> str:
    label_first = bool(task.classification)
    fitting = [seed for seed in seeds if seed.instances and bool(seed.classification) == label_first]
    rng = Random(making.rng_name("instances", task.id))
    told = [_example(seed, label_first) for seed in fitting]
    told = [text for text in told if len(text) <= SHORT] or told
    examples = rng.sample(told, min(EXAMPLES, len(told)))
    values = {"examples": "\n\n".join(examples), "instruction": task.instruction, "count": step.instances}
    return making.recipe.prompt("output_first" if label_first else "input_first", values)


def _example(seed: Task, label_first: bool) -> str:
    given, output = seed.instances[0]
    parts = [f"Label: {output}", f"Input: {given or 'none'}"] if label_first else []
    return "\n".join([f"Task: {seed.instruction}", *(parts or [f"Input: {given or 'none'}", f"Output: {output}"])])


def _draft(task: Task, given: str, output: str, classification: bool | None) -> Draft:
    prompt: list[Message] = [
        {"role": "user", "content": "\n\n".join(part for part in (task.instruction, given) if part)}
    ]
    told = {} if classification is None else {"order": "label first" if classification else "input first"}
    return Draft(prompt, output).then(step="self_instruct", task=task.id, shown=list(task.shown), **told)


def _draft_id(text: str) -> str:
    return Draft([{"role": "user", "content": text}]).id


def _line(text: str) -> str:
    return " ".join(text.split())
