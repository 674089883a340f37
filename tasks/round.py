"""The round that a recipe means, opened and read: the stage, the flow and the verbs share it."""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from labeling.accounts import usernames
from labeling.checks import gold_comparisons, repeats
from labeling.comparison import Comparison, Completion, LabelingError, compare
from labeling.connection import connect
from labeling.question import Round
from labeling.rounds import Standing, open_round, standing
from labeling.sheets import Group, Plan
from labeling.sufficiency import Enough
from tasks.ai_round import Ai, read_ai, share_of_people
from tasks.artifact import InputError, PipelineError, Row, read_jsonl
from tasks.label_recipe import EnoughRecipe, LabelRecipe
from tasks.recipe import identity, stable_hash
from tasks.tombstones import erased_votes, not_erased, read_tombstones


def plan_of(recipe: LabelRecipe, rows: Sequence[Row], seed: int) -> Plan:
    """The round a recipe means for sampled completions. Raises `InputError` when there is nothing to rank."""
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
    return Plan(
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
        """What people are asked now (more, where the judge turned out not to be validated), and how far they are.

        Raises `PipelineError` past a deadline that says "fail".
        """
        found = standing(client, plan)
        if self.ai is None:
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


def round_standing(recipe: LabelRecipe, inputs: Mapping[str, Path], seed: int) -> Standing:
    """How far the round of a label stage's inputs is. Raises `PipelineError` past a deadline that says "fail"."""
    campaign = campaign_of(recipe, inputs, seed)
    with argilla() as client:
        return campaign.now(client, campaign.start)[1]


def passwords(client: httpx.Client, recipe: LabelRecipe) -> dict[str, str]:
    """Passwords of the annotators by name, as far as they are known: made and kept before the accounts are."""
    names = not_erased((*recipe.annotators, *recipe.adjudicators), read_tombstones())
    return known_passwords(client, recipe.workspace, names)


def known_passwords(client: httpx.Client, workspace: str, names: Sequence[str]) -> dict[str, str]:
    """Passwords by name from the file of a workspace (mode 0600), made there for names without an account."""
    folder = Path(os.environ.get("RLHF_HOME", ".rlhf")) / "credentials"
    path = folder / f"{workspace}.json"
    kept: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
    known = kept.setdefault(os.environ["ARGILLA_API_URL"].rstrip("/"), {})
    strangers = set(names) - usernames(client)
    if fresh := {name: secrets.token_urlsafe(12) for name in sorted(strangers - known.keys())}:
        known.update(fresh)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(kept, file, indent=1)
        partial.replace(path)
    return {name: known[name] for name in names if name in known}
