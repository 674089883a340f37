"""How varied written rows are, and what every step kept, as tables, figures and numbers."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from tasks.artifact import Row
from tasks.data.preview import made_by
from tasks.data.words import normalise
from tasks.evaluation.text import distinct_n
from tasks.synthesis.drafts import Draft, Making
from tasks.synthesis.novelty import nearest_scores
from tasks.synthesis.rules import words_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE = 5000
"""Instructions that are compared with one another; of more, as many drawn by the seed."""
FIRST = 30
"""Beginnings of instructions in the table."""


def report(drafts: Sequence[Draft], making: Making) -> None:
    """Write tables (`steps`, `dropped`, `diversity`, `spread`, `first words`, `examples`), the figure and numbers."""
    work = making.work
    instructions = list({normalise(draft.instruction): draft.instruction for draft in drafts}.values())
    sampled = instructions
    if len(instructions) > SAMPLE:
        sampled = Random(work.seed).sample(instructions, SAMPLE)
    among = nearest_scores(sampled)
    start = nearest_scores(sampled, _begun(sampled, making))
    work.table("steps", making.account)
    work.table(
        "dropped",
        [
            {"step": step, "reason": reason, "rows": count}
            for (step, reason), count in sorted(making.counts.items(), key=lambda item: (item[0][0], -item[1]))
        ],
    )
    answers = [draft.answer for draft in drafts if draft.answer]
    numbers = {
        "unique_share": len(instructions) / len(drafts),
        **{f"distinct_{n}": distinct_n(instructions, n) for n in (1, 2, 3)},
        "nearest_rouge_l": float(among.mean()) if len(sampled) > 1 else 0.0,
        "nearest_rouge_l_to_start": float(start.mean()),
        "instruction_words": float(np.mean(_lengths(instructions))),
        "answer_words": float(np.mean(_lengths(answers))),
    }
    work.table("diversity", [{"measure": name, "value": round(value, 4)} for name, value in numbers.items()])
    measured = {"words of instructions": _lengths(instructions), "words of answers": _lengths(answers)}
    measured |= {"nearest ROUGE-L to one another": among, "nearest ROUGE-L to what it began with": start}
    work.table("spread", [_spread(name, values) for name, values in measured.items()])
    work.table("first words", _first_words(instructions))
    work.table("examples", _examples(drafts, making))
    work.figure("novelty", _figure(among, start))
    usage, paid = making.writer.usage, making.writer.paid
    work.log({"rows": len(drafts), "dropped": len(making.dropped), **numbers})
    work.log({f"unreadable/{what}": count for what, count in making.unreadable.items()})
    work.log({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens})
    work.log({"answers": usage.answers, "answers_now": paid.answers, "unmetered_answers": usage.unmetered})
    part = making.recipe.writer
    if part.kind == "endpoint":
        prices = (part.prompt_price, part.completion_price)
        work.log({"cost": usage.cost(*prices), "cost_now": paid.cost(*prices)})


def _begun(sampled: Sequence[str], making: Making) -> list[str]:
    """What it began with and the rows are held against; rows that it began with are not held against themselves."""
    begun = making.begun_with
    if making.recipe.rows is not None:
        there = set(map(normalise, sampled))
        begun = [text for text in begun if normalise(text) not in there]
    return begun if len(begun) <= SAMPLE else Random(making.work.seed).sample(begun, SAMPLE)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(words_in(text)) for text in texts] or [0])


def _spread(name: str, values: np.ndarray) -> Row:
    quantiles = {"least": 0, "lower quarter": 0.25, "median": 0.5, "upper quarter": 0.75, "most": 1}
    return {"of": name} | {title: round(float(np.quantile(values, at)), 3) for title, at in quantiles.items()}


def _first_words(instructions: Sequence[str]) -> list[Row]:
    """How many instructions begin with the same two words."""
    begun = Counter(" ".join(normalise(text).split()[:2]) for text in instructions)
    return [
        {"first words": words, "instructions": count, "share": round(count / len(instructions), 4)}
        for words, count in sorted(begun.items(), key=lambda item: (-item[1], item[0]))[:FIRST]
    ]


def _examples(drafts: Sequence[Draft], making: Making) -> list[Row]:
    shown = Random(making.work.seed).sample(range(len(drafts)), min(20, len(drafts)))
    return [
        {
            "instruction": drafts[place].instruction[:500],
            "answer": drafts[place].answer[:500],
            "made": made_by(making.made(drafts[place])),
        }
        for place in sorted(shown)
    ]


def _figure(among: np.ndarray, start: np.ndarray) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    bins = np.linspace(0, 1, 21).tolist()
    axes.hist(among, bins, alpha=0.6, label="to one another")
    axes.hist(start, bins, alpha=0.6, label="to what it began with")
    axes.set(xlabel="ROUGE-L of an instruction to the nearest", ylabel="instructions")
    axes.legend()
    return figure
