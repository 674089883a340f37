"""The whole lifecycle on one screen: data -> SFT -> sample -> label -> preferences -> reward -> optimise -> merge ->
evaluate -> gate -> register."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Self
from uuid import UUID

from prefect import flow, get_client
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import ObjectNotFound, Pause
from prefect.runtime import flow_run
from prefect.states import Crashed
from pydantic import BaseModel, Field, model_validator

from flows import services, waiting
from flows.blind import BLIND_LABEL, ask_people
from flows.running import Builder, Running, curves_sent
from flows.screen import Screen
from flows.summary import Built, conclude, figures, markdown
from tasks.abandoned import close_abandoned, take_up
from tasks.ai_feedback import judge_comparisons, judging_of
from tasks.artifact import Artifact, PipelineError
from tasks.blind import BlindRecipe
from tasks.data.prepare import DataRecipe, ShopData, prepare_data
from tasks.evaluation.evaluate import EvaluateRecipe, evaluate_models
from tasks.evaluation.gate import GateRecipe, decide_gate
from tasks.label import collect_judgements
from tasks.label_recipe import LabelRecipe
from tasks.lineage import Record
from tasks.merging import MergeRecipe, merge_policy
from tasks.models.pretrain import BaseRecipe, build_base
from tasks.preferences import PreferencesRecipe, build_preferences
from tasks.recipe import Part
from tasks.registry import Registered, Registry
from tasks.sampling.completions import SampleRecipe, sample_completions
from tasks.select import LEARNERS, SelectRecipe, select_completions
from tasks.store import Order, Stage, Store, read_manifest
from tasks.training.dpo import DpoRecipe, train_dpo
from tasks.training.grpo import GrpoRecipe, train_grpo
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.sft import SftRecipe, train_sft
from tasks.worker import count_from, workers_of

BASE = Stage("base", build_base)
DATA = Stage("data", prepare_data)
SFT = Stage("sft", train_sft)
SAMPLE = Stage("sample", sample_completions)
SELECT = Stage("select", select_completions)
JUDGE = Stage("judge", judge_comparisons)
LABEL = Stage("label", collect_judgements, version=2)
PREFERENCES = Stage("preferences", build_preferences, version=2)
REWARD = Stage("reward", train_reward)
OPTIMISE = {"dpo": Stage("dpo", train_dpo), "ppo": Stage("ppo", train_ppo), "grpo": Stage("grpo", train_grpo)}
MERGE = Stage("merge", merge_policy)
EVALUATE = Stage("evaluate", evaluate_models)
GATE = Stage("gate", decide_gate)

BEFORE_RL = (BASE, DATA, SFT, SAMPLE, SELECT, JUDGE, LABEL, PREFERENCES, REWARD)
RESERVED = {"champion", "pairs", "blind", BLIND_LABEL, *(stage.name for stage in BEFORE_RL)} | {
    stage.name for stage in (MERGE, EVALUATE, GATE)
}
"""Names that a policy cannot go by: they stand for stages and for whom it is compared with."""

PolicyRecipe = Annotated[DpoRecipe | PpoRecipe | GrpoRecipe, Field(discriminator="method")]


class LifecycleRecipe(Part):
    """Everything that decides what a run computes: the TOML file, the flow's parameter and the hash are this object."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The registered model whose champion the run may become."""
    seed: int = Field(default=0, ge=0)
    """Seeds everything random."""
    base: BaseRecipe = BaseRecipe()
    """The model everything starts from."""
    data: DataRecipe = ShopData()
    """Conversations and prompts, split by one ledger."""
    sft: SftRecipe = SftRecipe()
    """Supervised fine-tuning."""
    sample: SampleRecipe = SampleRecipe()
    """Completions for people to rank."""
    select: SelectRecipe = SelectRecipe()
    """What is worth people's time; by default everything."""
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
    blind: BlindRecipe = BlindRecipe()
    """The comparison by people, where `gate.people` asks for one."""
    gate: GateRecipe = GateRecipe()
    """What a candidate must show to become champion."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [policy_name(policy) for policy in self.policy]
        if len(set(names)) != len(names):
            raise ValueError(f"'policy' has two entries of one name ({', '.join(names)}); give each its own 'name'")
        taken = sorted(set(names) & RESERVED)
        if taken:
            raise ValueError(f"'policy' has an entry named '{taken[0]}', which means something else; rename it")
        if any(policy.method != "dpo" for policy in self.policy) and not self.data.shares.rl:
            raise ValueError("'data.shares.rl' is 0, but ppo and grpo need RL prompts; give them a share")
        imports = self.data.source == "preferences"
        if imports != (self.preferences.source == "data"):
            raise ValueError(
                "'data.source = \"preferences\"' and 'preferences.source = \"data\"' go together: "
                "set both to import existing preferences, or neither to collect them"
            )
        collected = {"sample": SampleRecipe(), "select": SelectRecipe(), "label": LabelRecipe()}
        idle = [name for name, default in collected.items() if imports and getattr(self, name) != default]
        if idle:
            raise ValueError(f"'{idle[0]}' has no effect when preferences are imported; remove it")
        if self.select.show and self.select.show > self.sample.completions_per_prompt:
            raise ValueError("'select.show' is over 'sample.completions_per_prompt'; raise the one or lower the other")
        if self.select.method in LEARNERS and not self.select.earlier:
            raise ValueError("'select.method' learns from an earlier round; set 'select.earlier' or take \"random\"")
        return self


def policy_name(policy: PolicyRecipe) -> str:
    """The name a policy goes by in the run: its own, else its method."""
    return policy.name or policy.method


def build_lifecycle(recipe: LifecycleRecipe, build: Builder, store: Store, registry: Registry) -> Built:
    """Order every stage of a recipe, in turn or side by side, each with just what it needs."""

    def order(stage: Stage, part: BaseModel, inputs: Mapping[str, Artifact], label: str = "") -> Order:
        return Order(stage, part, inputs, recipe.seed, label)

    base, data = build.side_by_side([order(BASE, recipe.base, {}), order(DATA, recipe.data, {})])
    start = {"base": base, "sft": build.one(order(SFT, recipe.sft, {"base": base, "data": data}))}
    if recipe.preferences.source == "data":
        behind = {"data": data}
    else:
        completions = build.one(order(SAMPLE, recipe.sample, {**start, "data": data}))
        if recipe.select.method != "all":
            looks_at = {name: start[name] for name in recipe.select.looks_at if name in start}
            part = recipe.select.in_round(recipe.label)
            completions = build.one(order(SELECT, part, {"completions": completions, **looks_at}))
        shown = {"completions": completions}
        if recipe.label.ai:
            judge = {**start, **shown} if recipe.label.ai.judge.model == "sft" else {**shown}
            shown["ai"] = build.one(order(JUDGE, judging_of(recipe.label.ai, recipe.label), judge))
        judgements = build.by_people(order(LABEL, recipe.label, shown))
        behind = {"judgements": judgements, "completions": completions}
    preferences = build.one(order(PREFERENCES, recipe.preferences, behind))

    def optimise(policy: PolicyRecipe, needs: Mapping[str, Artifact]) -> Order:
        return order(OPTIMISE[policy.method], policy, {**start, "data": data, **needs}, policy_name(policy))

    # DPO needs no reward model, so both are trained side by side; what needs the reward model follows.
    direct = [policy for policy in recipe.policy if policy.method == "dpo"]
    by_reward = [policy for policy in recipe.policy if policy.method != "dpo"]
    learnt = {"preferences": preferences}
    reward, *policies = build.side_by_side(
        [order(REWARD, recipe.reward, {**start, **learnt}), *(optimise(policy, learnt) for policy in direct)]
    )
    policies += build.side_by_side([optimise(policy, {"reward": reward}) for policy in by_reward])

    names = [policy_name(policy) for policy in [*direct, *by_reward]]
    merges = [
        order(MERGE, recipe.merge, {**start, "policy": policy}, f"merge {name}")
        for name, policy in zip(names, policies, strict=True)
    ]
    merged = dict(zip(names, build.side_by_side(merges), strict=True))
    candidates = {f"candidate.{name}": artifact for name, artifact in merged.items()}

    def evaluation(against: Artifact | None) -> Order:
        champion = {"champion": against} if against else {}
        learnt_from = _data_behind(against, store) if against else None
        if learnt_from and learnt_from.digest != data.digest:
            champion["champion_data"] = learnt_from
        return order(EVALUATE, recipe.evaluate, {**start, "data": data, "reward": reward, **candidates, **champion})

    champion = _opponent(registry, store, recipe.name, merged, evaluation)
    against = _files_of(champion, store)
    evaluated = build.one(evaluation(against))
    learnt_from = _data_behind(against, store) if against else None
    other = {"data": learnt_from} if learnt_from and learnt_from.digest != data.digest else {}
    opponent = {"": against, **other} if against else {"": start["sft"], "base": base}
    asked = ask_people(build, order, LABEL, recipe.gate, recipe.blind, recipe.label, evaluated, merged, opponent, data)
    return Built(evaluated, build.one(order(GATE, recipe.gate, {"evaluation": evaluated, **asked})), merged, champion)


def _files_of(champion: Registered | None, store: Store) -> Artifact | None:
    """The champion's artifact; a champion whose files are lost is an error, for nobody is promoted uncompared."""
    found = store.find(champion.key) if champion and champion.key else None
    if champion and found is None:
        raise PipelineError(
            f"The files of the champion, {champion.name} version {champion.version}, are neither here nor in MLflow; "
            "run its recipe again, or remove the alias in MLflow."
        )
    return found


def _data_behind(merged: Artifact, store: Store) -> Artifact | None:
    """The data that a merged model was made with, where it can be had."""
    found: Artifact | None = merged
    for name in ("sft", "data"):
        source = read_manifest(found.path)["inputs"].get(name) if found else None
        found = store.find(source["key"]) if source else None
    return found


def _opponent(
    registry: Registry,
    store: Store,
    name: str,
    merged: Mapping[str, Artifact],
    evaluation: Callable[[Artifact | None], Order],
) -> Registered | None:
    """Whom the candidates must beat: the present champion.

    Where one of them is the champion, made so by this very comparison, that comparison (with the champion before it)
    stands and is not done again.
    """
    now = registry.find(name)
    if now is None or now.digest not in {artifact.digest for artifact in merged.values()}:
        return now
    before = registry.find(name, now.beaten) if now.beaten else None
    earlier = evaluation(_files_of(before, store))
    return before if store.find(earlier.key) else now


def _close_abandoned(record: Record) -> None:
    """Runs that were killed on this machine end in MLflow and Prefect before the next one begins."""
    gone = close_abandoned(record)
    if gone:
        with get_client(sync_client=True) as client:
            for flow_run_id in gone:
                with suppress(ObjectNotFound):
                    client.set_flow_run_state(UUID(flow_run_id), Crashed(message="Its process was killed."), force=True)


def run_name() -> str:
    """What tells a run from others of its recipe at a glance."""
    recipe = flow_run.parameters["recipe"]
    recipe = recipe if isinstance(recipe, LifecycleRecipe) else LifecycleRecipe.model_validate(recipe)
    return f"{recipe.name}: {', '.join(map(policy_name, recipe.policy))}, seed {recipe.seed}"


@flow(name="rlhf", flow_run_name=run_name, validate_parameters=True, persist_result=False)
def rlhf(recipe: LifecycleRecipe) -> dict[str, Any]:
    """Run a recipe's whole lifecycle; returns the summary document (see `flows.summary`).

    Raises `PipelineError` with one sentence when a stage fails; what was finished is kept and reused.
    """
    started = time.monotonic()
    count_from("RLHF_THREADS", 1)
    home = services.home()
    os.environ["RLHF_HOME"] = str(home)  # so that stages, in their own processes, keep people's passwords there too
    with workers_of(home) as workers:
        record = Record()
        store, registry = Store(home, record), Registry(record)
        parent = waiting.parent_of(record, flow_run.id) or record.open_lifecycle(
            run_name(), recipe.model_dump(mode="json"), {waiting.FLOW_RUN: flow_run.id or ""}
        )
        take_up(record, parent)
        _close_abandoned(record)
        try:
            with Screen() as screen, curves_sent(record):
                running = Running(store, workers, screen, parent)
                built = build_lifecycle(recipe, running, store, registry)
            workers.close()
            store.settle()
            document = conclude(recipe.name, built, running.done, registry, parent, str(flow_run.id))
            document["seconds"] = round(time.monotonic() - started, 2)
            text = markdown(document)
            promoted = {"rlhf.promoted": str(document["promoted"]), "mlflow.note.content": text}
            artifacts = {f"rlhf.artifact.{name}": artifact.key for name, artifact in running.done}
            record.close_lifecycle(parent, figures(document), promoted | artifacts, {"summary.md": text})
            create_markdown_artifact(key="rlhf-summary", markdown=text, description=f"Lifecycle of {recipe.name}")
        except Pause:  # people are at work; this process ends and the run goes on in another one
            raise
        except BaseException as error:
            workers.close()
            with suppress(PipelineError):
                store.settle()
            record.fail(parent, error)
            raise
    return document
