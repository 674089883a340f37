"""Lineage as people read it: from a model down to the judgements, or from a judgement up to the models."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from flows import services
from tasks.artifact import PipelineError, read_jsonl
from tasks.lineage import Record
from tasks.registry import CHAMPION, Registered, Registry
from tasks.store import Store
from tasks.training.direct import DIRECT

Found = dict[str, Any]
SPEAKING = ("base", "sft", *DIRECT, "ppo", "grpo", "rloo", "rejection", "merge")
"""Stages that make a language model."""
LISTED = 8
"""How many candidates a refusal names, the newest first."""


def resolve_model(
    model: str, registry: Registry, records: Mapping[str, Mapping[str, Any]]
) -> tuple[str, Registered | None]:
    """The artifact key behind `NAME`, `NAME@ALIAS`, `NAME/VERSION` or the beginning of a key."""
    name, _, alias = model.partition("@")
    if not alias and "/" in model:
        name, _, alias = model.rpartition("/")
    registered = registry.find(name, alias or CHAMPION)
    if registered:
        return registered.key, registered
    keys = [key for key in records if len(model) >= 6 and key.startswith(model)]
    if len(keys) == 1:
        return keys[0], None
    versions = registry.versions()
    if own := sorted((each.version for each in versions if each.name == name), key=int):
        raise PipelineError(
            f"{name} has no version or alias '{alias or CHAMPION}'; its versions are {', '.join(own)}: "
            f"say {name}/{own[0]}, or {name}@{CHAMPION} for the one that the gate let pass last."
        )
    known = sorted({version.name for version in versions})
    merged = [(found["name"], key) for key, found in records.items() if found["stage"] == "merge"]
    told = f"registered models: {', '.join(known) or 'none yet, run a recipe'}"
    if merged:  # candidates that no gate let pass are not registered
        told += f"; candidates by key: {', '.join(f'{name} {key[:12]}' for name, key in merged[:LISTED])}"
    raise PipelineError(f"There is no model or artifact '{model}'; {told}.")


def ancestry(model: str) -> tuple[Found, Tree]:
    """Every artifact behind a model down to the judgements: as a document and as a tree."""
    record = Record()
    store, records = Store(services.home(), record), record.artifacts()
    key, registered = resolve_model(model, Registry(record), records)
    title = f"{registered.name} version {registered.version}" if registered else model
    tree = Tree(f"[bold]{escape(title)}[/]")
    seen: set[str] = set()

    def walk(key: str, role: str, branch: Tree) -> Found:
        found = records.get(key)
        if found is None:
            raise PipelineError(f"MLflow has no record of artifact {key[:12]}; run its recipe again to restore it.")
        node: Found = {"role": role, "stage": found["stage"], "name": found["name"], "artifact": key}
        node |= {"run_id": found["run_id"], "inputs": []}
        line = f"{role}: {found['name']} {key[:12]}" if role != found["name"] else f"{role} {key[:12]}"
        if key in seen:
            branch.add(f"[dim]{escape(line)} (above)[/]")
            return node
        seen.add(key)
        below = branch.add(escape(line))
        if found["erased"]:
            below.add("erased: it held judgements of somebody who was erased since")
        elif found["stage"] == "label":
            node["judgements"] = [row["id"] for row in _rows(store, key, "judgements.jsonl")]
            below.add(f"{len(node['judgements'])} judgements, the first: {', '.join(node['judgements'][:2])}")
        node["inputs"] = [walk(parent, name, below) for name, parent in sorted(found["inputs"].items())]
        return node

    return {"model": title, "artifact": walk(key, "model", tree)}, tree


def descent(judgement: str) -> tuple[Found, Tree]:
    """The pairs, artifacts and registered models that one judgement shaped."""
    record = Record()
    store, records = Store(services.home(), record), record.artifacts()
    labels = [key for key, found in records.items() if found["stage"] == "label" and not found["erased"]]
    source = next(
        (key for key in labels if any(r["id"] == judgement for r in _rows(store, key, "judgements.jsonl"))), None
    )
    if source is None:
        raise PipelineError(f"No recorded round has a judgement '{judgement}'; `rlhf lineage MODEL --json` lists them.")
    versions = Registry(record).versions()
    tree = Tree(f"[bold]judgement {escape(judgement)}[/]")
    document: Found = {"judgement": judgement, "round": source, "pairs": [], "artifacts": [], "models": []}
    seen: set[str] = set()

    def walk(key: str, branch: Tree) -> None:
        if key in seen:
            return
        seen.add(key)
        stage, name = records[key]["stage"], records[key]["name"]
        below = branch.add(escape(f"{name} {key[:12]}"))
        document["artifacts"].append({"stage": stage, "name": name, "artifact": key, "run_id": records[key]["run_id"]})
        for version in (v for v in versions if v.key == key):
            document["models"].append({"name": version.name, "version": version.version})
            below.add(f"[bold green]{escape(version.name)} version {version.version}[/]")
        if stage == "preferences" and not records[key]["erased"]:
            pairs, trained = _pairs_with(judgement, store, key)
            document["pairs"] += pairs
            below.add(f"{len(pairs)} pairs hold it, {trained} of them to train on")
            if not trained:
                return  # it made no pair, or only held-out ones: it shaped nothing further
        for child, found in records.items():
            if key in found["inputs"].values() and found["stage"] not in ("evaluate", "gate"):  # those only look at it
                walk(child, below)

    walk(source, tree)
    return document, tree


def _pairs_with(judgement: str, store: Store, key: str) -> tuple[list[str], int]:
    """Ids of an artifact's pairs that a judgement stands behind, and how many of them are trained on."""
    train, held_out = (
        [row["id"] for row in _rows(store, key, f"{split}.jsonl") if judgement in row["judgements"]]
        for split in ("train", "validation")
    )
    return [*train, *held_out], len(train)


def _rows(store: Store, key: str, name: str) -> list[dict[str, Any]]:
    """Rows of an artifact's file, from here or from MLflow."""
    artifact = store.find(key)
    if artifact:
        return read_jsonl(artifact.path / name)
    with tempfile.TemporaryDirectory() as folder:
        if store.record.fetch(key, Path(folder) / key):
            return read_jsonl(Path(folder) / key / name)
    raise PipelineError(f"The files of artifact {key[:12]} are neither here nor in MLflow; run its recipe again.")
