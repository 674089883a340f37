"""The whole lifecycle on one screen: data -> SFT -> sample -> label -> preferences -> reward -> optimise -> merge ->
evaluate -> gate -> register."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from flows.running import Builder
from tasks.artifact import Artifact
from tasks.data.prepare import DataRecipe, prepare_data
from tasks.evaluation.evaluate import EvaluateRecipe, evaluate_models
from tasks.evaluation.gate import GateRecipe, decide_gate
from tasks.label import LabelRecipe, collect_judgements
from tasks.merging import MergeRecipe, merge_policy
from tasks.models.pretrain import BaseRecipe, build_base
from tasks.preferences import PreferencesRecipe, build_preferences
from tasks.recipe import Part
from tasks.registry import Registered
from tasks.sampling.completions import SampleRecipe, sample_completions
from tasks.store import Order, Stage
from tasks.training.dpo import DpoRecipe, train_dpo
from tasks.training.grpo import GrpoRecipe, train_grpo
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.sft import SftRecipe, train_sft

BASE = Stage("base", build_base)
DATA = Stage("data", prepare_data)
SFT = Stage("sft", train_sft)
SAMPLE = Stage("sample", sample_completions)
LABEL = Stage("label", collect_judgements)
PREFERENCES = Stage("preferences", build_preferences)
REWARD = Stage("reward", train_reward)
OPTIMISE = {"dpo": Stage("dpo", train_dpo), "ppo": Stage("ppo", train_ppo), "grpo": Stage("grpo", train_grpo)}
MERGE = Stage("merge", merge_policy)
EVALUATE = Stage("evaluate", evaluate_models)
GATE = Stage("gate", decide_gate)

PolicyRecipe = Annotated[DpoRecipe | PpoRecipe | GrpoRecipe, Field(discriminator="method")]


class LifecycleRecipe(Part):
    """Everything that decides what a run computes: the TOML file, the flow's parameter and the hash are this object."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The registered model whose champion the run may become."""
    seed: int = Field(0, ge=0)
    """Seeds everything random."""
    base: BaseRecipe = BaseRecipe()
    """The model everything starts from."""
    data: DataRecipe = DataRecipe()
    """Conversations and prompts, split by one ledger."""
    sft: SftRecipe = SftRecipe()
    """Supervised fine-tuning."""
    sample: SampleRecipe = SampleRecipe()
    """Completions for people to rank."""
    label: LabelRecipe = LabelRecipe()
    """The round in Argilla."""
    preferences: PreferencesRecipe = PreferencesRecipe()
    """How judgements become pairs."""
    reward: RewardRecipe = RewardRecipe()
    """The reward model."""
    policy: list[PolicyRecipe] = Field(min_length=1)
    """The optimisers, built side by side from the same SFT model and compared."""
    merge: MergeRecipe = MergeRecipe()
    """Adapters into a standalone model."""
    evaluate: EvaluateRecipe = EvaluateRecipe()
    """The comparison of all candidates."""
    gate: GateRecipe = GateRecipe()
    """What a candidate must show to become champion."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [policy_name(policy) for policy in self.policy]
        if len(set(names)) != len(names):
            raise ValueError(f"'policy' has two entries of one name ({', '.join(names)}); give each its own 'name'")
        imports = self.data.source == "preferences"
        if imports != (self.preferences.source == "data"):
            raise ValueError(
                "'data.source = \"preferences\"' and 'preferences.source = \"data\"' go together: "
                "set both to import existing preferences, or neither to collect them"
            )
        idle = sorted({"sample", "label"} & self.model_fields_set) if imports else []
        if idle:
            raise ValueError(f"'{idle[0]}' has no effect when preferences are imported; remove it")
        return self


def policy_name(policy: PolicyRecipe) -> str:
    """The name a policy goes by in the run: its own, else its method."""
    return policy.name or policy.method


@dataclass(frozen=True)
class Built:
    """What a lifecycle run ends with."""

    evaluation: Artifact
    gate: Artifact
    merged: Mapping[str, Artifact]
    """The standalone candidates by policy name."""


Champion = Callable[[Mapping[str, Artifact], Callable[[Artifact | None], Order]], Artifact | None]
"""Picks whom the candidates must beat: (candidates, evaluation order for a champion) -> the champion's merged artifact."""


def build_lifecycle(recipe: LifecycleRecipe, build: Builder, champion: Champion) -> Built:
    """Order every stage of a recipe, in turn or side by side, each with just what it needs."""

    def order(stage: Stage, part: BaseModel, label: str = "", **inputs: Artifact) -> Order:
        return Order(stage, part, inputs, recipe.seed, label)

    base, data = build.side_by_side([order(BASE, recipe.base), order(DATA, recipe.data)])
    sft = build.one(order(SFT, recipe.sft, base=base, data=data))
    if recipe.preferences.source == "data":
        preferences = build.one(order(PREFERENCES, recipe.preferences, data=data))
    else:
        completions = build.one(order(SAMPLE, recipe.sample, base=base, sft=sft, data=data))
        judgements = build.one(order(LABEL, recipe.label, completions=completions))
        preferences = build.one(
            order(PREFERENCES, recipe.preferences, judgements=judgements, completions=completions)
        )
    start = {"base": base, "sft": sft}
    # DPO needs no reward model, so it is trained beside it; what needs the reward model follows.
    direct = [p for p in recipe.policy if p.method == "dpo"]
    by_reward = [p for p in recipe.policy if p.method != "dpo"]

    def optimise(policy: PolicyRecipe, **needs: Artifact) -> Order:
        return order(OPTIMISE[policy.method], policy, policy_name(policy), **start, data=data, **needs)

    reward, *first = build.side_by_side(
        [
            order(REWARD, recipe.reward, **start, preferences=preferences),
            *(optimise(policy, preferences=preferences) for policy in direct),
        ]
    )
    second = build.side_by_side([optimise(policy, reward=reward) for policy in by_reward])
    policies = dict(zip(map(policy_name, [*direct, *by_reward]), [*first, *second], strict=True))
    merges = [order(MERGE, recipe.merge, f"merge {name}", **start, policy=policy) for name, policy in policies.items()]
    merged = dict(zip(policies, build.side_by_side(merges), strict=True))

    def evaluation_of(against: Artifact | None) -> Order:
        candidates: dict[str, Any] = {f"candidate.{name}": artifact for name, artifact in merged.items()}
        if against is not None:
            candidates["champion"] = against
        return order(EVALUATE, recipe.evaluate, **start, data=data, reward=reward, **candidates)

    evaluation = build.one(evaluation_of(champion(merged, evaluation_of)))
    gate = build.one(order(GATE, recipe.gate, evaluation=evaluation))
    return Built(evaluation, gate, merged)


def choose_champion(
    now: Registered | None,
    beaten: Registered | None,
    load: Callable[[str], Artifact | None],
    merged: Mapping[str, Artifact],
    evaluated: Callable[[Artifact | None], bool],
) -> Registered | None:
    """Whom this run's candidates are compared with.

    That is the present champion, unless this very run made it: then the comparison that did so, with the one before it,
    still stands and is not done again.
    """
    if now is None:
        return None
    before = load(beaten.key) if beaten else None
    ours = now.digest in {artifact.digest for artifact in merged.values()}
    return beaten if ours and evaluated(before) else now
