"""Answers by the writer, and what it makes of them itself: critique and revision by principles (Bai et al. 2022,
"Constitutional AI: Harmlessness from AI Feedback", arXiv 2212.08073, section 3)."""

from dataclasses import replace
from random import Random
from typing import Any

from labeling.question import prompt_text
from tasks.artifact import InputError, Message
from tasks.data.words import normalise
from tasks.synthesis.cleaning import only_text, same_text, words_of_the_task
from tasks.synthesis.drafts import Draft, Making
from tasks.synthesis.recipe import AnswerStep, Revise
from tasks.synthesis.rules import apologises, says_nothing, verdict_of


def answer(step: AnswerStep, drafts: list[Draft], making: Making) -> list[Draft]:
    """The rows with answers; each different candidate makes a row. Rows that cannot be answered are dropped."""
    open_: dict[str, Draft] = {}
    rows: list[Draft | str] = []
    for draft in drafts:
        if draft.answer and not step.again:
            rows.append(draft)
        elif draft.with_tools:
            making.drop("has tools, which a writer cannot call", draft.instruction, made=list(draft.steps))
        elif draft.id not in open_:
            open_[draft.id] = replace(draft, answer="")
            rows.append(draft.id)
    asked = [(draft, place) for draft in open_.values() for place in range(step.candidates)]
    said = making.ask(
        [_conversation(step.system, draft.prompt) for draft, _ in asked],
        [f"{making.step}/{place}" for _, place in asked],
        "answers",
    )
    answered: dict[str, dict[str, Draft]] = {}
    for (draft, place), each in zip(asked, said, strict=True):
        text = each.text.strip()
        reason = making.writer.fault(each) or _fault(step, text, draft.instruction)
        same = answered.setdefault(draft.id, {})
        if reason or normalise(text) in same:
            why = reason or "is an answer given before"
            making.drop(why, text or each.refused, prompt=draft.prompt, made=list(draft.steps))
            continue
        told: dict[str, Any] = {"candidate": place} if step.candidates > 1 else {}
        told |= {"system": step.system} if step.system else {}
        same[normalise(text)] = replace(draft, answer=text).then(step="answer", **told)
    return [draft for row in rows for draft in ([row] if isinstance(row, Draft) else answered.get(row, {}).values())]


def _fault(step: AnswerStep, text: str, instruction: str) -> str:
    if says_nothing(text):
        return "is all punctuation and stop words"
    if normalise(text) == normalise(instruction):
        return "repeats the instruction"
    return "is an apology" if step.apologies == "drop" and apologises(text) else ""


def _conversation(system: str, prompt: list[Message]) -> list[dict[str, str]]:
    """What the writer is asked: its own system text comes before that of the row."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    if not system:
        return turns
    own = turns[0]["content"] if turns[0]["role"] == "system" else ""
    rest = turns[1:] if own else turns
    return [{"role": "system", "content": "\n\n".join(text for text in (system, own) if text)}, *rest]


def revise(step: Revise, drafts: list[Draft], making: Making) -> list[Draft]:
    """The rows with revised answers, which make pairs with those before; a row whose revision cannot be used, or whose
    answer the critique finds no fault with, keeps the answer it had. One whose revision is an apology is dropped,
    unless those are kept: what it had is faulty, and the apology may be about the revising.

    Raises `InputError` where no row has an answer.
    """
    constitution = step.constitution()
    rows = [place for place, draft in enumerate(drafts) if draft.answer]
    if not rows:
        raise InputError(
            f"No row has an answer for the step '{making.step}'; put a step of the kind 'answer' before it."
        )
    drawn = {place: _principles(constitution, step.rounds, drafts[place], making) for place in rows}
    answers = {place: drafts[place].answer for place in rows}
    used: dict[int, list[str]] = {place: [] for place in rows}
    sorry: set[int] = set()
    for number in range(step.rounds):
        values = {
            place: {
                "request": prompt_text(drafts[place].prompt),
                "answer": answers[place],
                "principle": drawn[place][number],
            }
            for place in rows
        }
        faulty: list[int] = []
        for place, text in _asked("critique", rows, values, number, making).items():
            values[place]["critique"], keep = verdict_of(text)
            if not keep:
                faulty.append(place)
        revised = 0
        for place, text in _asked("revision", faulty, values, number, making).items():
            text = _revised(text, values[place], making)
            if text and step.apologies == "drop" and apologises(text) and not apologises(answers[place]):
                making.drop("the revision is an apology", text, answer=answers[place])
                sorry.add(place)
            elif text:
                answers[place] = text
                used[place].append(drawn[place][number])
                revised += 1
        making.work.log({f"revised/round {number + 1}": revised})
        rows = [place for place in rows if place not in sorry]
    done = list(drafts)
    for place in rows:
        if not same_text(answers[place], drafts[place].answer):
            told = {"principles": used[place], "original": drafts[place].answer}
            done[place] = replace(drafts[place], answer=answers[place]).then(step="revise", **told)
            making.pair(done[place], rejected=drafts[place].answer)
    return [draft for place, draft in enumerate(done) if place not in sorry]


def _revised(text: str, values: dict[str, str], making: Making) -> str:
    """The answer in a revision; empty where there is none, or the one there was."""
    text = only_text(text, "answer", before=values["answer"])
    if same_text(text, values["answer"]):
        return ""
    if words := words_of_the_task(text, values["request"], values["answer"]):
        making.drop(f"the revision says '{words}', which is from its prompt", text, answer=values["answer"])
        return ""
    return text


def _principles(constitution: list[str], rounds: int, draft: Draft, making: Making) -> list[str]:
    """A principle for each round, none twice while there are others."""
    rng = Random(making.rng_name(draft.id, draft.answer))
    drawn: list[str] = []
    while len(drawn) < rounds:
        drawn += rng.sample(constitution, min(rounds - len(drawn), len(constitution)))
    return drawn


def _asked(
    prompt: str, rows: list[int], values: dict[int, dict[str, str]], number: int, making: Making
) -> dict[int, str]:
    """The texts that can be used, by row; the others are told of as dropped."""
    questions = [making.recipe.prompt(prompt, values[place]) for place in rows]
    said = making.ask(questions, [f"{making.step}/{number}"] * len(rows), f"{prompt} {number + 1}")
    texts: dict[int, str] = {}
    for place, each in zip(rows, said, strict=True):
        reason = making.writer.fault(each) or ("is all punctuation and stop words" if says_nothing(each.text) else "")
        if reason:
            making.drop(f"the {prompt} {reason}", each.text or each.refused, answer=values[place]["answer"])
        else:
            texts[place] = each.text.strip()
    return texts
