"""A judge model's opinion of every comparison of a round, asked in two orders, with what it cost.

The artifact depends on the judge, the completions and the guidelines, not on what its judgements are used for: other
thresholds and audit shares ask nothing again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from labeling.ai.endpoint import Usage
from labeling.ai.feedback import Opinion, form_opinion
from labeling.ai.prompts import Answer, Question, Rubric, questions_of
from labeling.ai.validation import position_of
from labeling.comparison import Comparison
from labeling.question import MAX_GUIDELINES, MAX_SCALE, guidelines_version
from tasks.ai.account import Account
from tasks.ai.answers import answer_by_endpoint, judge_identity, letters_mean, usage_of
from tasks.ai.kept import Said, kept_answers
from tasks.ai.recipe import AiRecipe, EndpointJudge, Judge, earlier_comparisons, validation_files
from tasks.ai.usable import check_usable
from tasks.artifact import Work, read_jsonl, write_jsonl
from tasks.labels.recipe import LabelRecipe
from tasks.labels.round import plan_of
from tasks.recipe import Part

FEW_LETTERS = 0.1
"""A judge that gives letters less probability than this does not answer the question."""


class JudgingRecipe(Part):
    """All that decides what a judge answers about a round."""

    judge: Judge
    """The model."""
    annotator: str
    """What its judgements are signed with."""
    form: Literal["rank", "rate"] = "rank"
    """Ranks or ratings."""
    asking: Literal["list", "pairs"] = "list"
    """All completions at once, or each two."""
    reasons: bool = True
    """Reasons before the verdict."""
    guidelines: str = Field(min_length=1, max_length=MAX_GUIDELINES)
    """The round's."""
    criteria: tuple[str, ...] = ()
    """What is rated."""
    scale: Annotated[int, Field(ge=2, le=MAX_SCALE)] = 5
    """Ratings go from 1 to this."""
    gold: Path | None = None
    """The round's gold comparisons."""
    validation: Path | None = None
    """A judgements artifact of an earlier round."""
    usable: float = Field(default=0.5, ge=0, le=1)
    """Share of the records that it must give a usable judgement on."""

    def external_files(self) -> list[Path]:
        """The judge's files, the gold file and the earlier round."""
        return [*self.judge.external_files(), *([self.gold] if self.gold else []), *validation_files(self.validation)]

    def rubric(self) -> Rubric:
        """How it is asked."""
        letters = self.judge.kind == "local" and self.judge.answer == "letters"
        form = "letter" if letters else self.form
        return Rubric(self.guidelines, form, self.asking, self.criteria, self.scale, self.reasons)


def judging_of(ai: AiRecipe, label: LabelRecipe) -> JudgingRecipe:
    """What a round's judge is to do."""
    told = {
        name: getattr(ai, name) for name in ("judge", "annotator", "form", "asking", "reasons", "validation", "usable")
    }
    rated = {"criteria": label.criteria, "scale": label.scale} if ai.form == "rate" else {}
    return JudgingRecipe(**told, **rated, guidelines=label.guidelines, gold=label.gold)


def judge_comparisons(recipe: JudgingRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Write `opinions.jsonl`, one row per asked and gold comparison, `earlier.jsonl` for an earlier round's, and
    `usage.json`.

    Interrupted and run again, it asks only what is not answered. Raises `PipelineError` when the judge cannot be asked,
    or too few of its answers can be used.
    """
    rows = read_jsonl(inputs["completions"] / "completions.jsonl")
    plan = plan_of(LabelRecipe(guidelines=recipe.guidelines, gold=recipe.gold), rows, work.seed)
    comparisons = {"opinions": list(plan.comparisons), "earlier": earlier_comparisons(recipe.validation)}
    rubric = recipe.rubric()
    questions = [
        [question for comparison in held for question in questions_of(comparison, rubric)]
        for held in comparisons.values()
    ]
    identity, said, paid = _ask(recipe, inputs, [each for part in questions for each in part], work)
    start = 0
    opinions: list[Opinion] = []
    for (name, held), asked in zip(comparisons.items(), questions, strict=True):
        formed = _opinions(recipe, rubric, identity, held, asked, said[start : start + len(asked)])
        start += len(asked)
        opinions += formed
        write_jsonl(work.out / f"{name}.jsonl", [opinion.row() for opinion in formed])
    _report(recipe, opinions, said, paid, work)
    check_usable(recipe.judge, recipe.annotator, recipe.usable, opinions, said, work)


def _ask(
    recipe: JudgingRecipe, inputs: Mapping[str, Path], questions: Sequence[Question], work: Work
) -> tuple[str, list[Said], Usage]:
    """The judge's identity, what it says to each question, and what was paid now."""
    judge = recipe.judge
    if isinstance(judge, EndpointJudge):
        identity = judge_identity({"url": judge.url, "model": judge.model, "options": judge.options})
        account = Account(judge, kept_answers(identity, work), work)
        return identity, *answer_by_endpoint(judge, questions, recipe.rubric(), account, work)
    from tasks.ai.local import chain_digest, chain_of, local_answers

    chain = chain_of(judge, inputs)
    told: dict[str, Any] = {"weights": chain_digest(chain), "answer": judge.answer}
    identity = judge_identity(told | ({"tokens": judge.max_new_tokens} if judge.answer == "text" else {}))
    said = local_answers(judge, chain, identity, work)(questions)
    return identity, said, usage_of(said)


def _opinions(
    recipe: JudgingRecipe,
    rubric: Rubric,
    identity: str,
    comparisons: Sequence[Comparison],
    questions: Sequence[Question],
    said: Sequence[Said],
) -> list[Opinion]:
    answers: dict[str, list[Answer]] = {}
    times: dict[str, str] = {}
    for question, each in zip(questions, said, strict=True):
        answers.setdefault(question.record, []).append(each.read(question, rubric))
        times[question.record] = max(times.get(question.record, ""), each.at)
    how = [identity, rubric.form, rubric.asking, list(rubric.criteria), rubric.scale, rubric.reasons]
    return [
        form_opinion(
            comparison,
            answers[comparison.id],
            judge=repr(how),
            annotator=recipe.annotator,
            guidelines=guidelines_version(recipe.guidelines),
            at=times[comparison.id],
        )
        for comparison in comparisons
    ]


def _report(recipe: JudgingRecipe, opinions: Sequence[Opinion], said: Sequence[Said], paid: Usage, work: Work) -> None:
    """Counts, tokens and cost, of all answers the artifact holds and of those asked now."""
    usage, position = usage_of(said), position_of(opinions)
    judge = recipe.judge
    prices = (judge.prompt_price, judge.completion_price) if isinstance(judge, EndpointJudge) else (0.0, 0.0)
    spent = {
        "questions": len(said),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "unmetered_answers": usage.unmetered,
        "cost": usage.cost(*prices),
    }
    (work.out / "usage.json").write_text(json.dumps(spent))
    figures = {
        "records": len(opinions),
        "invalid_records": sum(opinion.judgement is None for opinion in opinions),
        "invalid_answers": sum(bool(answer.invalid) for opinion in opinions for answer in opinion.answers),
        **spent,
        "cost_now": paid.cost(*prices),
        "sure_mean": sum(opinion.sure for opinion in opinions) / len(opinions),
    }
    if position.pairs:
        figures |= {
            "position_consistency": position.consistency,
            "first_wins_both": position.first / position.pairs,
            "last_wins_both": position.last / position.pairs,
        }
    letters = letters_mean(said)
    if letters is not None:
        figures["letters_probability"] = letters
        if letters < FEW_LETTERS:
            work.notify(
                f"{recipe.annotator} gives the letters {letters:.1%} of its probability: it does not answer the "
                'question. Take a model trained on instructions, or set judge.answer = "text".'
            )
    work.log(figures)
    work.table("opinions", [_row(opinion) for opinion in opinions])


def _row(opinion: Opinion) -> dict[str, Any]:
    reasons = sorted({answer.invalid for answer in opinion.answers if answer.invalid})
    ranks = opinion.judgement.ranks if opinion.judgement else None
    return {
        "record": opinion.record,
        "ranks": ", ".join(f"{id} {rank}" for id, rank in sorted((ranks or {}).items())),
        "sure": opinion.sure,
        "invalid": "; ".join(reasons),
        "rationale": opinion.judgement.rationale if opinion.judgement else "",
    }
