"""A round with a judge model in it: what people still judge, what they are shown, and whose judgements are used."""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labeling.ai.feedback import Opinion, Routed, opinion_from, route, suggestion_of
from labeling.ai.report import held_against, validation_report
from labeling.ai.validation import Validation, validated
from labeling.collection.sheets import Plan
from labeling.comparison import Comparison, Judgement, judgement_from
from tasks.ai.recipe import AiRecipe, earlier_comparisons
from tasks.artifact import PipelineError, Work, read_jsonl


@dataclass(frozen=True)
class Ai:
    """A judge's opinions of a round and what they are for."""

    recipe: AiRecipe
    opinions: tuple[Opinion, ...]
    earlier: tuple[Opinion, ...]
    """Of the comparisons of an earlier round."""
    seed: int
    spent: Mapping[str, float] = field(default_factory=dict)
    """Questions, tokens and cost of all its answers."""

    def routed(self, comparisons: Sequence[Comparison]) -> Routed:
        """Who judges what. With `ai_only` it is sure of all it gave a judgement on; with `assisted` of nothing."""
        recipe = self.recipe
        if recipe.use == "assisted":
            return Routed([each.id for each in comparisons if each.kind == "asked"], [], [])
        sure = recipe.sure if recipe.use == "route" else 0.0
        return route(comparisons, self.opinions, recipe.audit_share, sure, self.seed)

    def validation(self, comparisons: Sequence[Comparison], people: Sequence[Judgement]) -> Validation:
        """The judge against people: on the audit, on gold comparisons and on an earlier round.

        With `route` only where it is sure, for only there its judgements are used.
        """
        least = self.recipe.sure if self.recipe.use == "route" else 0.0
        opinions = [*self.opinions, *(_apart(each) for each in self.earlier)]
        earlier = earlier_comparisons(self.recipe.validation)
        held = [*comparisons, *(replace(each, id=f"earlier/{each.id}") for each in earlier)]
        chosen = {each.record for each in opinions if each.sure >= least}
        if self.recipe.use != "assisted":
            chosen -= set(self.routed(comparisons).people)
        return validated(opinions, [*people, *self._earlier_people()], held, chosen, seed=self.seed)

    def _earlier_people(self) -> list[Judgement]:
        rows = read_jsonl(self.recipe.validation / "judgements.jsonl") if self.recipe.validation else []
        given = [replace(each, record=f"earlier/{each.record}") for each in map(judgement_from, rows)]
        return [each for each in given if each.by == "person"]

    def trusted(self, validation: Validation) -> bool:
        """Whether its judgements may be used."""
        return validation.reaches(self.recipe.minimum_agreement, self.recipe.at_least)


def _apart(opinion: Opinion) -> Opinion:
    """An opinion of an earlier round under an id that this round does not have."""
    record = f"earlier/{opinion.record}"
    judgement = replace(opinion.judgement, record=record) if opinion.judgement else None
    return replace(opinion, record=record, judgement=judgement)


def read_ai(recipe: AiRecipe, folder: Path, seed: int) -> Ai:
    """The opinions in an artifact of `judge_comparisons`."""
    read = [tuple(map(opinion_from, read_jsonl(folder / f"{name}.jsonl"))) for name in ("opinions", "earlier")]
    return Ai(recipe, read[0], read[1], seed, json.loads((folder / "usage.json").read_text()))


def share_of_people(ai: Ai, plan: Plan, judgements: Sequence[Judgement]) -> Plan:
    """What of a round people judge, given the judgements so far.

    `assisted`: all of it. `ai_only`: the audit. `route`: what the judge is not sure of, and the audit; all of it once
    every audited record has its overlap and the judge is still not validated. Gold comparisons stay, and repeats of
    what people have. An empty plan needs nobody.
    """
    if ai.recipe.use == "assisted":
        return replace(plan, suggestions=suggestions(ai, plan))
    routed = ai.routed(plan.comparisons)
    done = ai.recipe.use == "route" and _audited(routed, plan, judgements)
    if done and not ai.trusted(ai.validation(plan.comparisons, judgements)):
        return plan
    chosen = set(routed.audit) | (set(routed.people) if ai.recipe.use == "route" else set())
    kept = [each for each in plan.comparisons if chosen and (each.kind == "gold" or (each.source or each.id) in chosen)]
    held = {each.id for each in kept}
    return replace(
        plan,
        comparisons=tuple(kept),
        reserve=tuple(each for each in plan.comparisons if each.id not in held),
    )


def more_for_people(ai: Ai, before: Plan, now: Plan, people: Sequence[Judgement]) -> str:
    """What to say when people get more of a round than they had: the judge turned out not to be validated."""
    given = [sum(each.kind == "asked" for each in plan.comparisons) for plan in (before, now)]
    return (
        f"{_not_validated(ai, ai.validation(now.comparisons, people))}; people get {given[1] - given[0]} records more, "
        f"{given[1]} instead of {given[0]}."
    )


def _not_validated(ai: Ai, validation: Validation) -> str:
    recipe = ai.recipe
    found = "nobody judged a record that it judged too"
    if validation.records:
        found = held_against(validation, recipe.minimum_agreement, recipe.at_least)
    return f"{recipe.annotator} is not validated: {found}"


def _audited(routed: Routed, plan: Plan, judgements: Sequence[Judgement]) -> bool:
    """Whether every audited record was answered by as many people as it needs."""
    counts = dict.fromkeys(routed.audit, 0)
    for judgement in judgements:
        if judgement.record in counts and judgement.by == "person":
            counts[judgement.record] += 1
    return all(count >= plan.overlap for count in counts.values())


def suggestions(ai: Ai, plan: Plan) -> dict[str, dict[str, Any]]:
    """Record -> the suggestion annotators see beside it; empty unless the round is assisted.

    Gold comparisons and repeats get none: they check people, not whether people follow the judge.
    """
    if ai.recipe.use != "assisted":
        return {}
    held = {each.id: each for each in plan.asked}
    given = [opinion for opinion in ai.opinions if opinion.judgement and opinion.record in held]
    return {opinion.record: suggestion_of(opinion, held[opinion.record]) for opinion in given}


def conclude(ai: Ai, comparisons: Sequence[Comparison], people: Sequence[Judgement], work: Work) -> list[Judgement]:
    """The judgements of a round, people's and the judge's; says first how far the two agree.

    Writes `report/ai.md` and figures. The judge's judgements of gold comparisons go along where its others are used, so
    that the bar for annotators holds for it too. With `ai_only` people's judgements of audited records are left out:
    they check the judge.
    Raises `PipelineError` with `ai_only` when it is not validated and `unvalidated` is not set.
    """
    recipe, routed = ai.recipe, ai.routed(comparisons)
    validation = ai.validation(comparisons, people)
    trusted = ai.trusted(validation)
    _report(ai, routed, validation, people, work)
    given = [opinion.judgement for opinion in ai.opinions if opinion.judgement]
    checks = {each.id for each in comparisons if each.kind != "asked"}
    if recipe.use == "assisted":
        return list(people)
    if recipe.use == "route":
        own = (set(routed.ai) | checks) if trusted else set()
        return [*people, *(each for each in given if each.record in own)]
    if not trusted:
        _refuse_or_warn(ai, validation, work)
    return [*(each for each in people if each.record in checks), *given]


def _refuse_or_warn(ai: Ai, validation: Validation, work: Work) -> None:
    found = _not_validated(ai, validation)
    if not ai.recipe.unvalidated:
        raise PipelineError(
            f"{found}; have people judge more (label.ai.audit_share, gold), take a better judge, or set "
            "label.ai.unvalidated = true."
        )
    work.notify(f"{found}; its judgements are used UNVALIDATED all the same.")


def _report(ai: Ai, routed: Routed, validation: Validation, people: Sequence[Judgement], work: Work) -> None:
    recipe = ai.recipe
    text = validation_report(
        validation,
        judge=recipe.annotator,
        minimum=recipe.minimum_agreement,
        at_least=recipe.at_least,
        unvalidated=recipe.unvalidated,
        assisted=recipe.use == "assisted",
    )
    lines = [*_shares(ai, routed, ai.trusted(validation), {each.record for each in people}), *_spent(ai)]
    work.text("ai", "\n".join([text, *lines]))
    counts = {"ai_routed": len(routed.ai), "ai_audited": len(routed.audit), "ai_to_people": len(routed.people)}
    work.log({**validation.figures(), **counts, "ai_validated": ai.trusted(validation)})


def _shares(ai: Ai, routed: Routed, trusted: bool, judged: Set[str]) -> Iterator[str]:
    """Whose labels the round's records have; `judged` are the records that people judged."""
    own, audit, rest = len(routed.ai), len(routed.audit), len(routed.people)
    total, checked = own + audit + rest, len(judged & set(routed.audit))
    asked = {*routed.ai, *routed.audit, *routed.people}
    if ai.recipe.use == "route" and trusted:
        yield (
            f"Of {total} records {own} are labelled by the judge alone and {audit + rest} are people's: {rest} that it "
            f"was not sure of, {audit} to audit it.\n"
        )
    elif ai.recipe.use == "route":
        yield (
            f"It is not validated, so none of its labels is used: the {own} records that it would have labelled alone "
            f"are people's too ({total} instead of {audit + rest}), who judged {len(judged & asked)} of them.\n"
        )
    elif ai.recipe.use == "ai_only":
        used = own + audit if trusted or ai.recipe.unvalidated else 0
        lacking = f", and {rest} have no label, for it gave no usable judgement on them" if rest else ""
        yield (
            f"Of {total} records it labels {used}{lacking}. People judged {checked} of the {audit} that are audited, "
            "to check it only.\n"
        )


def _spent(ai: Ai) -> Iterator[str]:
    """What its answers cost, by the recipe's prices."""
    judge, spent = ai.recipe.judge, ai.spent
    if not spent:
        return
    text = (
        f"It answered {spent['questions']:,} questions: {spent['prompt_tokens']:,} tokens of prompts, "
        f"{spent['completion_tokens']:,} of answers"
    )
    if spent["unmetered_answers"]:
        text += f" ({spent['unmetered_answers']:,} answers came without a count)"
    if judge.kind == "endpoint":
        priced = judge.prompt_price or judge.completion_price
        text += f"; cost {spent['cost']:.4g}" if priced else "; the recipe has no prices, so the cost is not known"
    yield f"{text}.\n"
