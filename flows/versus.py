"""`rlhf compare A B`: people compare two models without knowing which is which."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows import services
from flows.blind import PAIRS, Chain, judge_blind
from flows.running import Running, failure_recorded
from flows.screen import Screen
from flows.summary import urls
from flows.tree import SPEAKING, resolve_model
from tasks.artifact import Artifact, PipelineError, below
from tasks.data.prepare import DataRecipe
from tasks.labels.blind import BlindRecipe, blind_round
from tasks.labels.recipe import LabelRecipe
from tasks.lineage import STAGE, Record
from tasks.recipe import Part, RecipeError, load_recipe
from tasks.registry import Registry
from tasks.store import Order, Stage, Store
from tasks.worker import workers_of


class VersusRecipe(Part):
    """What a comparison takes of a recipe; the other keys of the file do not matter to it."""

    model_config = ConfigDict(extra="ignore")

    seed: int = Field(default=0, ge=0)
    """Draws the prompts, the completions and the sides."""
    data: DataRecipe | None = None
    """Whose evaluation prompts are asked; none: those behind model A."""
    blind: BlindRecipe = BlindRecipe()
    """The comparison."""
    label: LabelRecipe = LabelRecipe()
    """The round, where the comparison has none of its own."""


@dataclass(frozen=True)
class Contender:
    """One of the two models."""

    title: str
    """For the reader of the result; annotators never see it."""
    chain: Chain
    data: str | None
    """Key of the data it was made with."""

    @property
    def row(self) -> dict[str, str]:
        return {"name": self.title, "artifact": self.chain[""].key}


def load_versus(path: Path | None = None, prompts: Path | None = None, overrides: Sequence[str] = ()) -> VersusRecipe:
    """The comparison that a recipe file means; without one everything is as by default. Raises `RecipeError`."""
    for override in overrides:
        head = override.partition("=")[0].partition(".")[0].strip()
        if head not in VersusRecipe.model_fields:
            known = ", ".join(VersusRecipe.model_fields)
            raise RecipeError(f"--set {override}: a comparison takes {known} of a recipe; check the key.")
    asked = [*overrides, *([f"blind.pairs.prompts={json.dumps(str(prompts))}"] if prompts else [])]
    return load_recipe(VersusRecipe, path or Path(os.devnull), asked)


def compare(
    a: str, b: str, recipe: Path | None = None, prompts: Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare two models (NAME, NAME@champion, NAME/VERSION, an artifact's key) and return the document.

    Interrupted and called again, it goes on; with the same models and recipe the result is reused. The services must be
    up and in the environment. Raises `PipelineError` and `RecipeError`.
    """
    return compare_models(a, b, load_versus(recipe, prompts, overrides))


@flow(name="compare", flow_run_name="{a} and {b}", validate_parameters=False, persist_result=False)
def compare_models(a: str, b: str, recipe: VersusRecipe) -> dict[str, Any]:
    """People compare two models blind; returns the document that `rlhf compare --json` prints."""
    from flows.lifecycle import DATA, LABEL

    started = time.monotonic()
    home = services.home()
    os.environ["RLHF_HOME"] = str(home)  # so that stages, in their own processes, keep people's passwords there too
    record = Record()
    store = Store(home, record)
    one, other = (_contender(model, store, record) for model in (a, b))
    if one.chain[""].key == other.chain[""].key:
        raise PipelineError(f"'{a}' and '{b}' are the same model ({one.title}); name two different ones.")
    with workers_of(home) as workers:
        names = {STAGE: "comparison", "rlhf.a": one.title, "rlhf.b": other.title}
        parent = record.open_lifecycle(f"{one.title} and {other.title}", recipe.model_dump(mode="json"), names)
        with failure_recorded(record, parent, store, workers):
            with Screen() as screen:
                screen.say(announcement(recipe))
                running = Running(store, workers, screen, parent)

                def order(stage: Stage, part: BaseModel, inputs: Mapping[str, Artifact], label: str = "") -> Order:
                    return Order(stage, part, inputs, recipe.seed, label)

                data = running.one(order(DATA, recipe.data, {})) if recipe.data else _data_of(one, store)
                ours, theirs = (_with_data(model, data, store) for model in (one, other))
                result = judge_blind(running, order, LABEL, recipe.blind, recipe.label, ours, theirs, data)
            workers.close()
            store.settle()
            document = _document(one, other, result, running.done, parent)
            document["seconds"] = round(time.monotonic() - started, 2)
            artifacts = {f"rlhf.artifact.{name}": artifact.key for name, artifact in running.done}
            record.close_lifecycle(parent, dict(result.metrics), artifacts, {"summary.md": markdown(document)})
    return document


def announcement(recipe: VersusRecipe) -> str:
    """What a comparison is about to ask of whom."""
    part = blind_round(recipe.blind, recipe.label)
    who = ", ".join(part.annotators)
    return (
        f"The comparison asks {who}{' (simulated)' if part.source == 'simulated' else ''}: at most "
        f"{recipe.blind.pairs.n} prompts, each judged by {part.min_submitted}. Others: --recipe, or "
        "--set 'label.people=[\"ada\"]' --set label.min_submitted=1 --set blind.pairs.n=40."
    )


def _contender(model: str, store: Store, record: Record) -> Contender:
    """The model of that name with everything it is loaded from. Raises `PipelineError` where its files are lost."""
    records = record.artifacts()
    key, registered = resolve_model(model, Registry(record), records)
    found = records.get(key)
    if found is None or found["stage"] not in SPEAKING:
        what = f"a {found['stage']} artifact" if found else "not recorded in MLflow"
        raise PipelineError(f"'{model}' is {what}, not a language model; name a registered model or a policy.")
    whole = found["stage"] in ("merge", "base")
    parts = {"": key} | ({} if whole else {name: found["inputs"][name] for name in below(found["inputs"])})
    chain = {name: artifact for name, part in parts.items() if (artifact := store.find(part))}
    if len(chain) < len(parts):
        raise PipelineError(f"Files of {model} are neither here nor in MLflow; run its recipe again.")
    title = f"{registered.name} version {registered.version}" if registered else f"{found['name']} {key[:12]}"
    return Contender(title, chain, _ancestor(key, "data", records))


def _ancestor(key: str, stage: str, records: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The nearest artifact of a stage that another one was made from."""
    wave, seen = [key], {key}
    while wave:
        for each in wave:
            if records.get(each, {}).get("stage") == stage:
                return each
        wave = [parent for each in wave for parent in records.get(each, {}).get("inputs", {}).values()]
        wave = [each for each in dict.fromkeys(wave) if each not in seen]
        seen.update(wave)
    return None


def _with_data(contender: Contender, asked: Artifact | None, store: Store) -> Chain:
    """The model with what it learnt from, where that is not the data of the prompts."""
    learnt = _data_of(contender, store)
    other = learnt is not None and (asked is None or learnt.digest != asked.digest)
    return {**contender.chain, "data": learnt} if learnt and other else contender.chain


def _data_of(contender: Contender, store: Store) -> Artifact | None:
    return store.find(contender.data) if contender.data else None


def _document(
    a: Contender,
    b: Contender,
    result: Artifact,
    done: Sequence[tuple[str, Artifact]],
    run_id: str,
) -> dict[str, Any]:
    figures = read_result(result)
    left_out = sum(each.metrics.get("left_out", 0) for name, each in done if name == PAIRS.name)
    note = f"{left_out:.0f} prompts were left out: one of the models learnt from them." if left_out else ""
    stages = [
        {"name": name, "artifact": a.key, "reused": a.reused, "seconds": round(a.seconds, 2), "run_id": a.run_id}
        for name, a in done
    ]
    return {
        "a": a.row,
        "b": b.row,
        "result": figures,
        "says": sentence(a.title, b.title, figures),
        "note": note,
        "artifact": result.key,
        "run_id": run_id,
        "stages": stages,
        "urls": urls(),
    }


def read_result(blind: Artifact) -> dict[str, Any]:
    """The content of a blind artifact's `result.json`."""
    return json.loads((blind.path / "result.json").read_text(encoding="utf-8"))


def sentence(a: str, b: str, result: Mapping[str, Any]) -> str:
    """What came out, for people."""
    rate, test = result["win_rate"], result["sign_test"]
    interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
    counts = f"{test['wins']} wins, {test['ties']} ties, {test['losses']} losses over {result['records']} prompts"
    sure = test["p_value"] <= 0.05
    better = (
        "People do not tell them apart" if not sure else f"People prefer {a if test['wins'] > test['losses'] else b}"
    )
    return f"{better}: {a} wins {interval} against {b} ({counts}, sign test p = {test['p_value']:.3g})."


def markdown(document: Mapping[str, Any]) -> str:
    """The document for a terminal and for MLflow."""
    result = document["result"]
    position, agreed = result["position"], result["agreement"]
    rows = [
        ("votes", result["votes"]),
        ("prompts both answered the same", result["identical"]),
        ("prompts without a vote", result["unjudged"]),
        (f"{document['a']['name']} shown first", position["a_first"]),
        ("shown first: wins / ties / losses", f"{position['wins']} / {position['ties']} / {position['losses']}"),
        ("position matters: p", f"{position['p_value']:.3g}"),
        *((name, f"{agreed[name]:.3f}") for name in ("alpha", "pairwise_agreement") if name in agreed),
    ]
    table = ["|  |  |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    parts = [document["says"], document["note"], "\n".join(table)]
    return "\n\n".join(part for part in parts if part) + "\n"
