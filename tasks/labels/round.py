"""The round that a recipe means, opened and read: the stage, the flow and the verbs share it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from labeling.collection.checks import gold_comparisons, repeats
from labeling.collection.rounds import Standing, open_round, standing
from labeling.collection.sheets import Group, Plan, check_strata
from labeling.collection.sufficiency import Enough
from labeling.comparison import Comparison, Completion, LabelingError, compare
from labeling.question import Round
from labeling.service.connection import UnavailableError, connect
from tasks.ai.round import Ai, read_ai, share_of_people
from tasks.artifact import InputError, PipelineError, Row, read_jsonl
from tasks.labels.passwords import known_passwords
from tasks.labels.recipe import EnoughRecipe, LabelRecipe
from tasks.recipe import identity, stable_hash
from tasks.tombstones import erased_votes, not_erased, read_tombstones


def plan_of(recipe: LabelRecipe, rows: Sequence[Row], seed: int) -> Plan:
    """The round a recipe means for sampled completions.

    Raises `InputError` when there is nothing to rank, and when the recipe names strata that they do not have.
    """
    asked = _comparisons(rows, seed)
    options = len(asked[0].completions)
    try:
        gold = gold_comparisons(read_jsonl(recipe.gold), options, seed) if recipe.gold else []
    except LabelingError as error:
        raise InputError(f"{recipe.gold}: {error}") from error
    comparisons = (*asked, *gold, *repeats(asked, recipe.repeats, seed))
    content = [[each.id, each.shown, [c.text for c in each.completions]] for each in comparisons]
    question = [recipe.criteria, recipe.scale, recipe.flags, recipe.rationale, recipe.min_submitted, recipe.sharing]
    if recipe.ai and recipe.ai.use == "assisted":  # what people saw is part of what they were asked
        question.append(recipe.ai.model_dump(mode="json"))
    if recipe.source == "simulated":  # people are who they are; other simulated annotators answer otherwise
        question.append(identity(recipe.model_copy(update={"enough": EnoughRecipe(), "guidelines": "."})))
    name = f"{recipe.round}-{stable_hash([content, question])[:8]}"
    stones = read_tombstones()
    people = not_erased(recipe.annotators, stones)
    if not people:
        raise InputError("Everybody whom the recipe lets rank was erased; name other annotators in label.people.")
    plan = Plan(
        round=Round(
            name=name,
            workspace=recipe.workspace,
            guidelines=recipe.guidelines,
            options=options,
            min_submitted=recipe.min_submitted,
            markdown=recipe.markdown,
            criteria=recipe.criteria,
            scale=recipe.scale,
            flags=recipe.flags,
            rationale=recipe.rationale,
        ),
        comparisons=comparisons,
        people=people,
        sharing=recipe.sharing,
        most=recipe.max_submitted or recipe.min_submitted,
        disagreement=recipe.disagreement,
        adjudicators=not_erased(recipe.adjudicators, stones),
        quotas=recipe.quotas,
        groups=tuple(Group(not_erased(group.people, stones), group.strata) for group in recipe.groups),
        enough=Enough(**recipe.enough.model_dump()),
        erased=erased_votes(name, stones),
    )
    try:
        check_strata(plan)
    except LabelingError as error:
        raise InputError(str(error)) from error
    return plan


def _comparisons(rows: Sequence[Row], seed: int) -> list[Comparison]:
    """One comparison per prompt; prompts whose completions all say the same are not worth anybody's time."""
    comparisons = [
        compare(
            row["id"],
            row["prompt"],
            [Completion(each["id"], each["text"]) for each in row["completions"]],
            seed,
            stratum=str(row.get("stratum") or ""),
        )
        for row in rows
        if len({completion["text"].strip() for completion in row["completions"]}) > 1
    ]
    if not comparisons:
        raise InputError("No prompt has two different completions to rank; sample more or at a higher temperature.")
    if len({len(comparison.completions) for comparison in comparisons}) > 1:
        raise InputError("Prompts have different numbers of completions; sample the same number for each.")
    return comparisons


class ArgillaAwayError(PipelineError):
    """Argilla only did not answer: what failed may be done again later as it is."""


@contextmanager
def argilla() -> Iterator[httpx.Client]:
    """The Argilla in `ARGILLA_API_URL`, with an owner's `ARGILLA_API_KEY`; its failures are the pipeline's."""
    for name in ("ARGILLA_API_URL", "ARGILLA_API_KEY"):
        if not os.environ.get(name):
            raise PipelineError(
                f"{name} is not set; start the local services with `rlhf up` or set it to your Argilla's."
            )
    try:
        with closing(connect(os.environ["ARGILLA_API_URL"], os.environ["ARGILLA_API_KEY"])) as client:
            yield client
    except UnavailableError as error:
        raise ArgillaAwayError(str(error)) from error
    except LabelingError as error:
        raise PipelineError(str(error)) from error


@dataclass(frozen=True)
class Campaign:
    """A round with the judge model that takes part in it, if one does."""

    recipe: LabelRecipe
    whole: Plan
    """All comparisons, whoever judges them."""
    ai: Ai | None

    @property
    def start(self) -> Plan:
        """What people are asked at first."""
        return share_of_people(self.ai, self.whole, []) if self.ai else self.whole

    def now(self, client: httpx.Client, plan: Plan) -> tuple[Plan, Standing]:
        """What people are asked now and how far they are.

        Raises `PipelineError` where the round can never be enough: past a deadline that says "fail".
        """
        plan, found = self.look(client, plan)
        if found.overdue:
            raise PipelineError(found.overdue)
        return plan, found

    def look(self, client: httpx.Client, plan: Plan) -> tuple[Plan, Standing]:
        """What people are asked now (more, where the judge turned out not to be validated), and how far they are."""
        found = standing(client, plan)
        if self.ai is None or found.overdue:
            return plan, found
        share = share_of_people(self.ai, self.whole, found.judgements)
        if share.comparisons == plan.comparisons:
            return plan, found
        open_round(client, share, passwords(client, self.recipe))
        return share, standing(client, share)


def campaign_of(recipe: LabelRecipe, inputs: Mapping[str, Path], seed: int) -> Campaign:
    """The round of a `completions` artifact, with the opinions of its judge model (`ai`) where it has one."""
    whole = plan_of(recipe, read_jsonl(inputs["completions"] / "completions.jsonl"), seed)
    return Campaign(recipe, whole, read_ai(recipe.ai, inputs["ai"], seed) if recipe.ai else None)


def publish_round(
    recipe: LabelRecipe,
    inputs: Mapping[str, Path],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Open the round of a label stage's inputs in Argilla, or go on opening it."""
    plan = campaign_of(recipe, inputs, seed).start
    with argilla() as client:
        open_round(client, plan, passwords(client, recipe), progress)


def passwords(client: httpx.Client, recipe: LabelRecipe) -> dict[str, str]:
    """Passwords of the annotators by name, as far as they are known: made and kept before the accounts are."""
    names = not_erased((*recipe.annotators, *recipe.adjudicators), read_tombstones())
    return known_passwords(client, recipe.workspace, names)
