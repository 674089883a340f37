"""Questions to a model behind an endpoint: only what was not answered before is asked, up to the budget."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from labeling.ai.endpoint import Endpoint, Messages, Usage, ask
from labeling.ai.keys import key_in, quoted
from labeling.ai.prompts import LETTERS, Question, Rubric
from labeling.ai.replies import Reply
from labeling.comparison import LabelingError
from tasks.ai.account import Account, counted
from tasks.ai.kept import Said, now
from tasks.ai.recipe import EndpointJudge
from tasks.artifact import PipelineError, Work

EXAMPLE = 80
"""Characters of an answer that are quoted."""
NONE = 50
"""As many answers without one that can be read mean that there will be none."""


def answer_by_endpoint(
    judge: EndpointJudge, questions: Sequence[Question], rubric: Rubric, account: Account, work: Work
) -> tuple[list[Said], Usage]:
    """What the endpoint says to each question, and what this call paid for; raises as `ask_endpoint` does."""
    keys = [account.kept.key(question.messages) for question in questions]
    asked = dict(zip(keys, questions, strict=True))
    said, paid = ask_endpoint(
        account,
        judge.options,
        {key: question.messages for key, question in asked.items()},
        lambda key, each: each.read(asked[key], rubric).invalid,
        work,
        "questions to the judge",
    )
    return [said[key] for key in keys], paid


def ask_endpoint(
    account: Account,
    options: Mapping[str, Any],
    asked: Mapping[str, Messages],
    fault: Callable[[str, Said], str],
    work: Work,
    note: str,
    may_leave: Sequence[str] = (),
) -> tuple[dict[str, Said], Usage]:
    """What an endpoint says to each question by its key, and what this call paid for.

    `fault` says why an answer cannot be used; such questions are asked again by each call: the endpoint may have been
    mended. `may_leave`: options that are left out where the endpoint does not take them. Raises `PipelineError` when it
    cannot be asked, none of its first answers can be used, or the budget is used up. What was answered is kept.
    """
    model, kept = account.model, account.kept
    said = {key: each for key in asked if (each := kept.get(key)) is not None and not fault(key, each)}
    missing = {key: messages for key, messages in asked.items() if key not in said}
    account.meet(asked)
    paid, total, before = Usage(), len(asked), len(said)
    account.usable += before

    def on_reply(key: str, reply: Reply) -> None:
        each = Said(now(), reply.text, reply.whole, reply.refused, None, reply.prompt_tokens, reply.completion_tokens)
        said[key] = each
        wrong = fault(key, each)
        if not wrong:
            kept.add(key, each)
        elif reply.completion_tokens or reply.text:  # paid for, and asked again
            prompt, completion = counted(asked[key], each)
            unusable = replace(each, text="", refused=wrong, prompt_tokens=prompt, completion_tokens=completion)
            kept.add(key, unusable)
        account.settle(key, asked[key], each)
        account.usable += not wrong
        account.texts += not reply.refused
        account.refused += bool(reply.refused) and reply.lasting
        account.unusable += bool(wrong)
        if wrong and not account.usable and account.unusable == NONE:
            shown = quoted(reply.text, key_in(model.api_key_env), EXAMPLE)
            raise PipelineError(
                f"None of the {model.who}'s first {NONE} answers can be used (the last one: {wrong} in '{shown}'); "
                "mend its endpoint, or take a model that follows instructions, and run again."
            )
        paid.add(reply.prompt_tokens, reply.completion_tokens)
        work.progress(before + paid.answers, total, note)

    def admit(key: str) -> bool:
        return account.admit(key, asked[key], options, before + paid.answers, total)

    work.progress(before, total, note)
    if missing:
        settings = {name: getattr(model, name) for name in ("concurrency", "timeout", "attempts")}
        endpoint = Endpoint(
            model.url, model.model, model.api_key_env, options, who=model.who, may_leave=tuple(may_leave), **settings
        )
        try:
            ask(endpoint, missing, on_reply, account.usable + account.texts, admit, account.refused, work.notify)
        except LabelingError as error:
            raise PipelineError(str(error)) from error
    return said, paid


def usage_of(said: Sequence[Said]) -> Usage:
    """What these answers cost when they were given."""
    usage = Usage()
    for each in said:
        usage.add(each.prompt_tokens, each.completion_tokens)
    return usage


def letters_mean(said: Sequence[Said]) -> float | None:
    """Mean probability the judge gives to letters at all, where it is read; near 0 it says something else."""
    masses = [sum(each.worth) for each in said if each.worth is not None]
    return sum(masses) / len(masses) if masses else None


def letter_options(question: Question) -> str:
    """The letters a question may be answered with."""
    return LETTERS[: len(question.order)]


def judge_identity(settings: Mapping[str, Any]) -> str:
    """All that decides what a judge answers, as one text."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)
