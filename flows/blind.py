"""The stages of a blind comparison, ordered: for `rlhf compare`, and for a lifecycle whose gate asks people."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from flows.running import Builder
from tasks.artifact import Artifact
from tasks.evaluation.gate import GateRecipe, read_evaluation, shortlisted
from tasks.labels.blind import BlindRecipe, blind_round, count_votes, sample_pairs
from tasks.labels.recipe import LabelRecipe
from tasks.store import Order, Stage

PAIRS = Stage("pairs", sample_pairs)
BLIND = Stage("blind", count_votes)
BLIND_LABEL = "blind label"
"""What the labeling of a blind round is called beside the round that the models are trained on."""

Chain = Mapping[str, Artifact]
"""A language model: itself under "", `base` and `sft` where it builds on them, and `data` where it learnt from other
data than the prompts are of."""
Ordered = Callable[[Stage, BaseModel, Mapping[str, Artifact], str], Order]


def judge_blind(
    build: Builder,
    order: Ordered,
    labels: Stage,
    recipe: BlindRecipe,
    usual: LabelRecipe,
    a: Chain,
    b: Chain,
    data: Artifact | None,
) -> Artifact:
    """The result of comparing A with B, in three stages: completions in pairs, a round of labeling, the count.

    `labels` is the stage that collects judgements and `usual` the recipe's own round. Where the models say the same to
    every prompt nobody is asked.
    """
    models = {f"{side}.{name}".rstrip("."): part for side, m in (("a", a), ("b", b)) for name, part in m.items()}
    prompts = {"data": data} if data is not None and recipe.pairs.prompts is None else {}
    pairs = build.one(order(PAIRS, recipe.pairs, {**models, **prompts}, ""))
    counted = {"pairs": pairs}
    if pairs.metrics.get("different") != 0:
        part = blind_round(recipe, usual)
        counted["judgements"] = build.by_people(order(labels, part, {"completions": pairs}, BLIND_LABEL))
    return build.one(order(BLIND, recipe.votes, counted, ""))


def ask_people(
    build: Builder,
    order: Ordered,
    labels: Stage,
    gate: GateRecipe,
    recipe: BlindRecipe,
    usual: LabelRecipe,
    evaluated: Artifact,
    candidates: Mapping[str, Artifact],
    opponent: Chain,
    data: Artifact,
) -> dict[str, Artifact]:
    """What the gate needs beside the evaluation: the people's comparison of the best candidate with the opponent.

    Nothing where the gate does not ask people, and where no candidate passes what it asks besides: people's time is
    not spent on a model that is refused anyway.
    """
    if gate.people == "no":
        return {}
    best = Artifact("", "merge", "", Path(), "", {})  # while a run is only planned nobody knows which one it will be
    if evaluated.digest:
        name = shortlisted(gate, read_evaluation(evaluated.path))
        if name is None:
            return {}
        best = candidates[name]
    return {"blind": judge_blind(build, order, labels, recipe, usual, {"": best}, opponent, data)}
