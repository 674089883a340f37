"""The whole lifecycle on one screen: synthesis -> data -> SFT -> sample -> label -> preferences -> reward ->
optimise -> merge -> evaluate -> gate -> register."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import flow, get_client
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed
from pydantic import BaseModel

from flows import services, waiting
from flows.blind import ask_people
from flows.recipe import LifecycleRecipe, PolicyRecipe, policy_name
from flows.rounds import Built, Rivals
from flows.running import Builder, BuildsOne, Running, curves_sent, failure_recorded
from flows.screen import Screen
from flows.summary import conclude, figures, markdown, round_row, show_rounds
from tasks.abandoned import close_abandoned, take_up
from tasks.ai.feedback import judge_comparisons, judging_of
from tasks.artifact import Artifact
from tasks.data.prepare import prepare_data
from tasks.evaluation.evaluate import evaluate_models
from tasks.evaluation.gate import decide_gate
from tasks.foresight import check_models
from tasks.labels.label import collect_judgements
from tasks.labels.preferences import build_preferences
from tasks.labels.selection import select_completions
from tasks.lineage import Record
from tasks.merging import merge_policy
from tasks.models.pretrain import build_base
from tasks.registry import Registry
from tasks.sampling.completions import sample_completions
from tasks.sampling.vllm_server import require_vllm
from tasks.store import Order, Stage, Store
from tasks.synthesis.synthesise import synthesise
from tasks.training.direct import DIRECT, train_direct
from tasks.training.grpo import train_groups
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.rejection import train_rejection
from tasks.training.reward import check_bar, train_reward
from tasks.training.sft import train_sft
from tasks.worker import count_from, workers_of

BASE = Stage("base", build_base)
SYNTHESIS = Stage("synthesis", synthesise)
DATA = Stage("data", prepare_data)
SFT = Stage("sft", train_sft)
SAMPLE = Stage("sample", sample_completions)
SELECT = Stage("select", select_completions)
JUDGE = Stage("judge", judge_comparisons)
LABEL = Stage("label", collect_judgements, version=2)
PREFERENCES = Stage("preferences", build_preferences, version=2)
REWARD = Stage("reward", train_reward)
OPTIMISE = {method: Stage(method, train_direct) for method in DIRECT} | {
    "ppo": Stage("ppo", train_ppo),
    "grpo": Stage("grpo", train_groups),
    "rloo": Stage("rloo", train_groups),
    "rejection": Stage("rejection", train_rejection),
}
MERGE = Stage("merge", merge_policy)
EVALUATE = Stage("evaluate", evaluate_models)
GATE = Stage("gate", decide_gate)


def build_lifecycle(recipe: LifecycleRecipe, build: Builder, store: Store, registry: Registry) -> Iterator[Built]:
    """Order every stage of a recipe, in turn or side by side, each with just what it needs; one `Built` per round.

    Whoever takes them lets the champion move (`flows.summary.conclude`) before asking for the next one.
    """
    recipe.reward.external_files()  # what is missing is said before anything is built
    checked = check_models(recipe)
    rivals = Rivals(registry, store, recipe.name)
    base, data = build.side_by_side(
        [Order(BASE, recipe.base, {}, recipe.seed), data_order(recipe, build_syntheses(recipe, build))]
    )
    if not checked:  # a model of the hub is here now
        check_models(recipe)
    sft = build_sft(recipe, build, base, data)
    start: Artifact | None = None
    judged: list[tuple[Artifact, Artifact]] = []
    for number in range(1, recipe.rounds + 1):
        built = build_round(recipe, build, rivals, number, base, data, sft, start, judged)
        yield built
        start = built.winner or start


def build_syntheses(recipe: LifecycleRecipe, build: BuildsOne) -> dict[str, Artifact]:
    """What models write before the data is made, in turn: a synthesis may begin with the rows of an earlier one."""
    made: dict[str, Artifact] = {}
    for part in recipe.synthesis:
        inputs = {f"synthesis.{name}": made[name] for name in part.needs()}
        made[part.name] = build.one(Order(SYNTHESIS, part, inputs, recipe.seed, f"synthesis {part.name}"))
    return made


def data_order(recipe: LifecycleRecipe, syntheses: Mapping[str, Artifact]) -> Order:
    """The data of a recipe, made of files and syntheses."""
    needed = recipe.data.needs() if recipe.data.source == "mixture" else []
    return Order(DATA, recipe.data, {f"synthesis.{name}": syntheses[name] for name in needed}, recipe.seed)


def build_sft(recipe: LifecycleRecipe, build: Builder, base: Artifact, data: Artifact) -> Artifact:
    """The stages of SFT one after the other, each going on from the one before; the last."""
    first, *further = recipe.sft.in_turn()
    sft = build.one(Order(SFT, first, {"base": base, "data": data}, recipe.seed))
    for part in further:
        inputs = {"base": base, "data": data, "earlier": sft}
        sft = build.one(Order(SFT, part, inputs, recipe.seed, f"sft {part.mixture}"))
    return sft


def build_round(
    recipe: LifecycleRecipe,
    build: Builder,
    rivals: Rivals,
    number: int,
    base: Artifact,
    data: Artifact,
    sft: Artifact,
    start: Artifact | None,
    judged: list[tuple[Artifact, Artifact]],
) -> Built:
    """One round: people compare what the champion says, and the candidates trained on that compete with it.

    `start` is what the last round of this run that promoted anything ended with; None: the SFT model. `judged` holds
    judgements and completions of the rounds before; this round's are added.
    """

    def order(
        stage: Stage, part: BaseModel, inputs: Mapping[str, Artifact], label: str = "", seed: int = recipe.seed
    ) -> Order:
        name = label or stage.name
        return Order(stage, part, inputs, seed, name if number == 1 else f"{name} {number}")

    first = {"base": base, "sft": sft}
    begin = {"base": base, "start": start} if start else first
    if recipe.preferences.source == "data":
        behind = {"data": data}
    else:
        # A round that starts where the one before started asks about other completions.
        completions = build.one(order(SAMPLE, recipe.sample, {**begin, "data": data}, seed=recipe.seed + number - 1))
        if recipe.select.method != "all":
            looks_at = {name: first[name] for name in recipe.select.looks_at if name in first}
            part = recipe.select.in_round(recipe.label)
            completions = build.one(order(SELECT, part, {"completions": completions, **looks_at}))
        shown = {"completions": completions}
        if recipe.label.ai:
            judge = {**first, **shown} if recipe.label.ai.judge.model == "sft" else {**shown}
            shown["ai"] = build.one(order(JUDGE, judging_of(recipe.label.ai, recipe.label), judge))
        judgements = build.by_people(order(LABEL, recipe.label, shown))
        behind = {"judgements": judgements, "completions": completions}
        for earlier, (answers, asked) in enumerate(judged, 1):
            behind |= {f"judgements.{earlier}": answers, f"completions.{earlier}": asked}
        judged.append((judgements, completions))
    preferences = build.one(order(PREFERENCES, recipe.preferences, behind))

    def optimise(policy: PolicyRecipe, needs: Mapping[str, Artifact]) -> Order:
        if isinstance(policy, PpoRecipe):
            policy = policy.after_sft(recipe.sft.mixtures(), recipe.sft.turns)
        return order(OPTIMISE[policy.method], policy, {**begin, "data": data, **needs}, policy_name(policy))

    # The direct methods need no reward model, so all are trained side by side; what needs the reward model follows.
    direct = [policy for policy in recipe.policy if policy.method in DIRECT]
    by_reward = [policy for policy in recipe.policy if policy.method not in DIRECT]
    learnt = {"preferences": preferences}
    beneath = {"base": base} if recipe.reward.base else first
    reward, *policies = build.side_by_side(
        [order(REWARD, recipe.reward.trained, {**beneath, **learnt}), *(optimise(policy, learnt) for policy in direct)]
    )
    if by_reward:
        build.require(lambda: check_bar(recipe.reward.bar, reward.metrics))
    policies += build.side_by_side([optimise(policy, {"reward": reward}) for policy in by_reward])

    names = [policy_name(policy) for policy in [*direct, *by_reward]]
    merges = [
        order(MERGE, recipe.merge, {**begin, "policy": policy}, f"merge {name}")
        for name, policy in zip(names, policies, strict=True)
    ]
    merged = dict(zip(names, build.side_by_side(merges), strict=True))
    candidates = {f"candidate.{name}": artifact for name, artifact in merged.items()}
    # What they were made of: adapters on the same weights can be decoded together.
    candidates |= {f"policy.{name}": policy for name, policy in zip(names, policies, strict=True)}
    candidates |= {"start": start} if start else {}

    def evaluation(against: Artifact | None) -> Order:
        other = rivals.other_data(against, data)
        champion = ({"champion": against} if against else {}) | ({"champion_data": other} if other else {})
        return order(EVALUATE, recipe.evaluate, {**first, "data": data, "reward": reward, **candidates, **champion})

    last = number == recipe.rounds
    champion = rivals.of_round(last, merged, evaluation)
    against = rivals.files(champion)
    evaluated = build.one(evaluation(against))
    other = rivals.other_data(against, data)
    opponent = {"": against} | ({"data": other} if other else {}) if against else {"": sft, "base": base}
    asked = ask_people(build, order, LABEL, recipe.gate, recipe.blind, recipe.label, evaluated, merged, opponent, data)
    gate = build.one(order(GATE, recipe.gate, {"evaluation": evaluated, **asked}))
    return Built(number, last, preferences, reward, evaluated, gate, merged, champion)


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
    recipe.require_installed()
    count_from("RLHF_THREADS", 1)
    if recipe.on_vllm():
        require_vllm()  # before hours of work, not after
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
        with failure_recorded(record, parent, store, workers):
            with Screen() as screen, curves_sent(record):
                running = Running(store, workers, screen, parent)
                document: dict[str, Any] = {"rounds": []}
                for built in build_lifecycle(recipe, running, store, registry):
                    store.settle()
                    earlier = document["rounds"]
                    document = conclude(recipe.name, built, running.done, registry, parent, str(flow_run.id))
                    document["rounds"] = [*earlier, round_row(document, built)]
                    if recipe.rounds > 1:
                        show_rounds(record, parent, document["rounds"])
            workers.close()
            document["seconds"] = round(time.monotonic() - started, 2)
            text = markdown(document)
            promoted = {"rlhf.promoted": str(document["promoted"]), "mlflow.note.content": text}
            artifacts = {f"rlhf.artifact.{name}": artifact.key for name, artifact in running.done}
            record.close_lifecycle(parent, figures(document), promoted | artifacts, {"summary.md": text})
            create_markdown_artifact(key="rlhf-summary", markdown=text, description=f"Lifecycle of {recipe.name}")
    return document
