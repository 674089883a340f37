"""A writer over HTTP that answers by what it is asked, and a synthesis by it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.artifact import Row, Work, read_jsonl
from tasks.synthesis.recipe import SynthesisRecipe
from tasks.synthesis.synthesise import synthesise
from tests.test_ai_endpoint import completion
from tests.test_mixture import NOUNS, save
from tests.tiny_models import work_in

SEEDS = [
    {
        "id": f"seed_task_{n}",
        "instruction": f"Tell which {NOUNS[n]} grows beside {NOUNS[n + 1]} number {n}.",
        "instances": [{"input": f"{NOUNS[n]} {n}", "output": f"It is {NOUNS[n + 1]}."}],
        "is_classification": n % 4 == 0,
    }
    for n in range(12)
]
PRINCIPLES = ["Be kind to whoever asks.", "Say nothing that may hurt somebody."]


def seeds(folder: Path) -> str:
    return save(folder / "seeds.jsonl", SEEDS)


class Author:
    """Answers by what it is asked, the same each time; `asked` counts the kinds of questions."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any], number: int) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        for kind, (mark, reply) in self.kinds().items():
            if mark in text:
                self.asked[kind] += 1
                return 200, completion(reply(text))
        self.asked["answer"] += 1
        return 200, completion(self.answer(text))

    def kinds(self) -> dict[str, tuple[str, Callable[[str], str]]]:
        return {
            "instructions": ("numbered list of tasks", self.instructions),
            "classification": ("Is this a classification task? Answer yes or no.", self.classification),
            "instances": ("Use exactly this form", self.instance),
            "evolve": ("You rewrite instructions", self.evolved),
            "compare": ("Do they ask for the same", lambda text: "No, the second asks for more."),
            "critique": ("Hold the answer against this principle", lambda text: "It could be kinder."),
            "revision": (
                "Write the answer anew",
                lambda text: f"Here is the revised answer: {between(text, 2)} Be well.",
            ),
        }

    def instructions(self, text: str) -> str:
        shown = sorted(int(n) for n in re.findall(r"number (\d+)", text))
        start = 100 + sum(shown)
        lines = [f"{9 + n}. {new_instruction(start + n)}" for n in range(3)]
        return "Sure, here are more:\n\n" + "\n".join([*lines, "12. Draw a picture of a birch.", "13. Sing."])

    def classification(self, text: str) -> str:
        return "Yes." if int(numbers(text)[-1]) % 3 == 0 else "No, it is not."

    def instance(self, text: str) -> str:
        name = text.rsplit("Task: ", 1)[1]
        given = f"the {NOUNS[len(name) % 20]} of {numbers(name)[-1]}"
        if "Label: ..." in text:
            return f"Label: green\nInput: {given}"
        return f"Input: {given}\nOutput: It grows by {given}."

    def evolved(self, text: str) -> str:
        return f"{between(text, 1)} Also name {len(text)} reasons and say which counts most."

    def answer(self, text: str) -> str:
        return f"The answer to {' '.join(numbers(text))} is {NOUNS[len(text) % 20]}."


def between(text: str, place: int) -> str:
    return text.split("----------\n")[2 * place - 1].strip()


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def new_instruction(n: int) -> str:
    a, b, c = NOUNS[n % 20], NOUNS[(n // 20) % 20], NOUNS[(n * 7) % 20]
    return f"{('Explain how', 'Compare why', 'List where')[n % 3]} {a}{n} meets {b} near {c}{n * 3} at {n}."


def endpoint(url: str, **more: Any) -> Row:
    return {"kind": "endpoint", "url": url, "model": "author-1", "concurrency": 4, **more}


def made(folder: Path, writer: Row, steps: list[Row], seed: int = 0, **more: Any) -> Work:
    work = work_in(folder, seed)
    recipe = SynthesisRecipe.model_validate({"name": "made", "writer": writer, "steps": steps, **more})
    synthesise(recipe, {}, work)
    return work


def chain(folder: Path, **more: Any) -> list[Row]:
    return [
        {"kind": "self_instruct", "seeds": seeds(folder), "instructions": 12, "prompts_at_once": 2, **more},
        {"kind": "evolve", "generations": 2},
        {"kind": "answer", "system": "Be short."},
        {"kind": "revise", "principles": PRINCIPLES},
    ]


def rows_of(work: Work) -> list[Row]:
    return read_jsonl(work.out / "rows.jsonl")


def dropped(work: Work) -> Counter[tuple[str, str]]:
    return Counter((row["step"], row["reason"]) for row in read_jsonl(work.out / "dropped.jsonl"))


def steps_of(row: Row) -> list[str]:
    return [step["step"] for step in row["made"]["steps"]]


def conversations(path: Path) -> str:
    """Rows of several forms: a question, one with a system text, one of several turns, one with tools, broken ones."""
    tools = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}])
    return save(
        path,
        [
            {"instruction": "Name three tall trees of the north.", "input": "", "output": "Pine, birch, fir."},
            {"messages": [{"role": "system", "content": "Be brief."},
                          {"role": "user", "content": "Why is moss green?"}]},
            {"messages": [{"role": "user", "content": "What is fern?"}, {"role": "assistant", "content": "A plant."},
                          {"role": "user", "content": "And what is larch then?"}]},
            {"messages": [{"role": "user", "content": "Find some slate nearby."}], "tools": tools},
            {"prompt": ""},
            {"instruction": "Name three tall trees of the north.", "input": "", "output": "Pine, birch, fir."},
        ],
    )  # fmt: skip
