"""What the judgements of a run take: people's, and those that a judge model behind an endpoint is paid for."""

import math
from collections.abc import Sequence
from typing import Any

from labeling.ai.prompts import questions_of
from labeling.comparison import Completion, compare
from labeling.selection import Budget
from tasks.ai.account import UNBOUNDED, tokens_in
from tasks.ai.feedback import judging_of
from tasks.ai.recipe import EndpointJudge
from tasks.artifact import Row, read_jsonl
from tasks.data.files import read_examples
from tasks.labels.blind import blind_round


def records_of(recipe: Any, pool: int) -> int:
    """How many of so many prompts are labelled: those that the selection's budget pays for."""
    if recipe.preferences.source == "data" or recipe.select.method == "all":
        return pool
    return recipe.select.in_round(recipe.label).budget.records(pool)


def judgements_of(recipe: Any, records: int, evaluation: int, notes: list[str]) -> int:
    """What people are asked in a round: its records, their repeats, gold comparisons and a blind comparison.

    evaluation: how many prompts the evaluation has. notes: gets what of it depends on what people or a judge say.
    """
    asked = 0
    if recipe.preferences.source != "data":
        asked = _of_round(recipe.label, records, notes)
    if recipe.gate.people != "no":
        part, most = blind_round(recipe.blind, recipe.label), recipe.blind.pairs
        prompts = len(read_examples(most.prompts.expanduser(), "drop")[0]) if most.prompts else evaluation
        blind = 0 if part.source == "simulated" else part.min_submitted * min(most.n, prompts)
        asked += blind
        if blind:
            notes.append(f"gate.people has {blind:,} blind judgements made, unless no candidate passes before them.")
    return asked


def _of_round(label: Any, records: int, notes: list[str]) -> int:
    if label.source == "simulated":
        return 0
    use = label.ai.use if label.ai else ""
    gold = len(read_jsonl(label.gold)) if label.gold else 0
    cost = Budget(overlap=label.min_submitted, repeats=label.repeats).cost
    least = math.ceil((label.ai.audit_share if label.ai else 0.0) * records)
    if use == "ai_only":
        return cost(least) + label.min_submitted * gold if least else 0
    if use == "route":
        notes.append(
            f"label.ai leaves people the records that it is not sure of: between {cost(least):,} judgements, which are "
            f"its audit, and {cost(records):,}, which are counted."
        )
    return cost(records) + label.min_submitted * gold


def judge_of(recipe: Any, prompts: Sequence[Row], answer: str, drawn: int) -> Row | None:
    """The questions to a judge model behind an endpoint, their tokens by their bytes and what they cost at most; None
    where there is none to pay.

    prompts: the rows that are compared. answer: a typical one. drawn: how many are compared of a prompt.
    """
    ai = recipe.label.ai
    if ai is None or not isinstance(ai.judge, EndpointJudge) or not prompts or recipe.preferences.source == "data":
        return None
    completions = [Completion(str(n), answer) for n in range(drawn)]
    rubric = judging_of(ai, recipe.label).rubric()
    asked = [each for row in prompts for each in questions_of(compare("", row["prompt"], completions, 0), rubric)]
    told = sum(tokens_in(message["content"] for message in each.messages) for each in asked)
    limits = (ai.judge.options.get(name) for name in ("max_tokens", "max_completion_tokens"))
    said = len(asked) * next((limit for limit in limits if isinstance(limit, int)), UNBOUNDED)
    cost = (told * ai.judge.prompt_price + said * ai.judge.completion_price) / 1_000_000
    return {
        "questions": len(asked), "prompt_tokens": told, "completion_tokens": said,
        "cost": cost if ai.judge.budget is None else min(cost, ai.judge.budget),
    }  # fmt: skip
