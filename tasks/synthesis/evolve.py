"""Instructions made harder, or others of their kind (Xu et al. 2023, "WizardLM: Empowering Large Language Models to
Follow Complex Instructions", arXiv 2304.12244)."""

from dataclasses import replace
from random import Random

from tasks.data.words import normalise
from tasks.synthesis.cleaning import only_text
from tasks.synthesis.drafts import Draft, Making
from tasks.synthesis.novelty import Known
from tasks.synthesis.recipe import Evolve, Operation
from tasks.synthesis.rules import apologises, copied_words, says_nothing, words_in, yes_or_no


def evolve(step: Evolve, drafts: list[Draft], making: Making) -> list[Draft]:
    """The rows with what was made of their instructions, without answers, behind them."""
    known = Known(draft.instruction for draft in drafts)
    exact = {normalise(draft.instruction) for draft in drafts}
    pool = _unlike(drafts)
    made: list[Draft] = []
    for generation in range(1, step.generations + 1):
        operations: list[Operation] = [_operation(step, draft, generation, making) for draft in pool]
        children = _rewritten(step, pool, operations, generation, making)
        for place, child in enumerate(children):
            if child is None:
                continue
            reason = "says what another instruction says" if normalise(child.instruction) in exact else ""
            if not reason and operations[place] == "broaden" and known.nearest(child.instruction) >= step.novelty:
                reason = "is too like another instruction"
            if reason:
                making.drop(reason, child.instruction, made=list(child.steps))
                continue
            known.add(child.instruction)
            exact.add(normalise(child.instruction))
            made.append(child)
            pool[place] = child
    return [*(drafts if step.keep_originals else []), *made]


def _unlike(drafts: list[Draft]) -> list[Draft]:
    """Rows that can be evolved, one for each instruction. Those of several turns or with tools cannot be."""
    found: dict[str, Draft] = {}
    for draft in drafts:
        if draft.single:
            found.setdefault(draft.id, draft)
    return list(found.values())


def _operation(step: Evolve, draft: Draft, generation: int, making: Making) -> Operation:
    return Random(making.rng_name(generation, draft.id)).choice(step.operations)


def _rewritten(
    step: Evolve, pool: list[Draft], operations: list[Operation], generation: int, making: Making
) -> list[Draft | None]:
    """What the writer makes of each, None where it cannot be used."""
    questions = [
        making.recipe.prompt(f"evolve_{operation}", {"instruction": draft.instruction})
        for draft, operation in zip(pool, operations, strict=True)
    ]
    said = making.ask(questions, [f"{making.step}/{generation}"] * len(pool), f"generation {generation}")
    children: list[Draft | None] = []
    for draft, operation, each in zip(pool, operations, said, strict=True):
        text = only_text(each.text, before=draft.instruction)
        child = replace(draft, prompt=[*draft.prompt[:-1], {"role": "user", "content": text}], answer="")
        child = child.then(step="evolve", operation=operation, generation=generation, parent=draft.id)
        reason = making.writer.fault(each) or _fault(step, text, draft.instruction)
        if reason:
            making.drop(reason, each.text or each.refused, made=list(child.steps))
        children.append(None if reason else child)
    return _with_more(pool, operations, children, generation, making) if step.compare else children


def _fault(step: Evolve, text: str, parent: str) -> str:
    if says_nothing(text):
        return "is all punctuation and stop words"
    if apologises(text):
        return "is an apology"
    if words := copied_words(text, parent):
        return f"says '{words}', which is from its prompt"
    if normalise(text) == normalise(parent):
        return "is the instruction it was made from"
    return f"has more than {step.most_words} words" if len(words_in(text)) > step.most_words else ""


def _with_more(
    pool: list[Draft], operations: list[Operation], children: list[Draft | None], generation: int, making: Making
) -> list[Draft | None]:
    """The children without those that ask for no more than their parents, by the writer's own word."""
    asked = [place for place, child in enumerate(children) if child is not None and operations[place] != "broaden"]
    questions: list[str] = []
    for place in asked:
        child = children[place]
        assert child is not None
        values = {"first": pool[place].instruction, "second": child.instruction}
        questions.append(making.recipe.prompt("compare", values))
    said = making.ask(questions, [""] * len(questions), f"generation {generation} compared", greedy=True)
    left = list(children)
    for place, each in zip(asked, said, strict=True):
        child = children[place]
        verdict = yes_or_no(each.text)
        making.unreadable["compare"] += verdict is None
        if verdict and child is not None:
            making.drop("asks for no more than its parent", child.instruction, made=list(child.steps))
            left[place] = None
    return left
