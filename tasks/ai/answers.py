"""Every answer of a judge that can be read is kept as soon as it is there, so that it is not paid for twice."""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from labeling.ai.endpoint import Endpoint, Messages, Reply, Usage, ask
from labeling.ai.keys import key_in, quoted
from labeling.ai.prompts import LETTERS, Answer, Question, Rubric, read_answer
from labeling.comparison import LabelingError
from tasks.ai.recipe import EndpointJudge, EndpointModel
from tasks.artifact import PipelineError, Work
from tasks.recipe import stable_hash

EXAMPLE = 80
"""Characters of an answer that are quoted."""
NONE = 50
"""As many answers without one that can be read mean that there will be none."""


@dataclass(frozen=True)
class Said:
    """What a judge said to one question, before it is read."""

    at: str
    text: str = ""
    whole: bool = True
    refused: str = ""
    worth: tuple[float, ...] | None = None
    """Probability of each letter, where those were read instead."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def read(self, question: Question, rubric: Rubric) -> Answer:
        """The answer in it."""
        if self.refused:
            return Answer(question.order, invalid=self.refused.partition(":")[0])
        if self.worth is not None:
            return Answer(question.order, worth=dict(zip(question.order, self.worth, strict=True)))
        return read_answer(self.text, question, rubric, whole=self.whole)


class Kept:
    """Answers by question in a file that is only ever added to, one line each.

    Several processes may add to it. What a crash cut off is left out when it is read, and asked again.
    """

    def __init__(self, path: Path, judge: str) -> None:
        self.path, self.judge, self.lock = path, judge, Lock()
        self.said: dict[str, Said] = {}
        self.all: dict[str, list[Said]] = {}
        """What was said before to the same question as well: it was paid for."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                key, worth = row.pop("key"), row.pop("worth")
                self._take(key, Said(**row, worth=tuple(worth) if worth is not None else None))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def key(self, messages: Messages, *more: Any) -> str:
        """What a question to this judge is kept under; `more` tells apart what is asked in the same words."""
        return stable_hash([self.judge, [dict(message) for message in messages], *more])

    def add(self, key: str, said: Said) -> None:
        """Keep an answer: it is in the file when this returns."""
        line = json.dumps({"key": key, **asdict(said)}, ensure_ascii=False)
        with self.lock:
            self._take(key, said)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file.fileno()).st_size
                cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
                _write(file.fileno(), ("\n" * cut + line + "\n").encode())

    def _take(self, key: str, said: Said) -> None:
        self.said[key] = said
        self.all.setdefault(key, []).append(said)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def now() -> str:
    """The time of an answer."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def kept_answers(judge: str, work: Work) -> Kept:
    """Answers of an endpoint, for all rounds and recipes: they are paid. In `RLHF_HOME`, or the work's scratch."""
    home = os.environ.get("RLHF_HOME")
    folder = Path(home) / "ai-answers" if home else work.scratch
    return Kept(folder / f"{stable_hash(judge)[:16]}.jsonl", judge)


def answer_by_endpoint(
    recipe: EndpointJudge, questions: Sequence[Question], rubric: Rubric, judge: str, work: Work
) -> tuple[list[Said], Usage]:
    """What the endpoint says to each question, and what this call paid for; raises as `ask_endpoint` does."""
    kept = kept_answers(judge, work)
    keys = [kept.key(question.messages) for question in questions]
    asked = dict(zip(keys, questions, strict=True))
    said, paid = ask_endpoint(
        recipe,
        recipe.options,
        {key: question.messages for key, question in asked.items()},
        lambda key, each: each.read(asked[key], rubric).invalid,
        kept,
        Usage(),
        work,
        "questions to the judge",
    )
    return [said[key] for key in keys], paid


def ask_endpoint(
    model: EndpointModel,
    options: Mapping[str, Any],
    asked: Mapping[str, Messages],
    fault: Callable[[str, Said], str],
    kept: Kept,
    spent: Usage,
    work: Work,
    note: str,
) -> tuple[dict[str, Said], Usage]:
    """What an endpoint says to each question by its key, and what this call paid for.

    `fault` says why an answer cannot be used; such questions are asked again by each call: the endpoint may have been
    mended. `spent` is what the budget was used for before; all that was ever paid for these questions is added.
    Raises `PipelineError` when it cannot be asked, none of its first answers can be used, or the budget is used up.
    What was answered is kept.
    """
    said = {key: kept.said[key] for key in asked if key in kept.said}
    said = {key: each for key, each in said.items() if not fault(key, each)}
    missing = {key: messages for key, messages in asked.items() if key not in said}
    paid = Usage()
    for each in (each for key in asked for each in kept.all.get(key, ())):
        spent.add(each.prompt_tokens, each.completion_tokens)
    total, before = len(asked), len(said)
    unreadable = 0
    _check_budget(model, spent, before, total)

    def on_reply(key: str, reply: Reply) -> None:
        each = Said(now(), reply.text, reply.whole, reply.refused, None, reply.prompt_tokens, reply.completion_tokens)
        nonlocal unreadable
        said[key] = each
        wrong = fault(key, each)
        if not wrong:
            kept.add(key, each)
        elif reply.completion_tokens:
            kept.add(key, replace(each, text="", refused=wrong))  # paid for, and asked again
        unreadable += bool(wrong)
        if unreadable == NONE == before + paid.answers + 1:
            shown = quoted(reply.text, key_in(model.api_key_env), EXAMPLE)
            raise PipelineError(
                f"None of the {model.who}'s first {NONE} answers can be used (the last one: {wrong} in '{shown}'); "
                "mend its endpoint, or take a model that follows instructions, and run again."
            )
        for usage in (paid, spent):
            usage.add(reply.prompt_tokens, reply.completion_tokens)
        work.progress(before + paid.answers, total, note)
        if before + paid.answers < total:
            _check_budget(model, spent, before + paid.answers, total)

    work.progress(before, total, note)
    if missing:
        settings = {name: getattr(model, name) for name in ("concurrency", "timeout", "attempts")}
        endpoint = Endpoint(model.url, model.model, model.api_key_env, options, who=model.who, **settings)
        try:
            ask(endpoint, missing, on_reply, before)
        except LabelingError as error:
            raise PipelineError(str(error)) from error
    return said, paid


def usage_of(said: Sequence[Said]) -> Usage:
    """What these answers cost when they were given."""
    usage = Usage()
    for each in said:
        usage.add(each.prompt_tokens, each.completion_tokens)
    return usage


def _check_budget(model: EndpointModel, spent: Usage, done: int, total: int) -> None:
    cost = spent.cost(model.prompt_price, model.completion_price)
    if model.budget is not None and cost >= model.budget and done < total:
        raise PipelineError(
            f"The {model.who}'s budget of {model.budget:g} is used up after {done} of {total} questions; raise its "
            "'budget', what was answered is kept."
        )


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
