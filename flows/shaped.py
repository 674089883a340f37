"""What somebody's judgements went into: the artifacts that hold them, and the artifacts and models shaped by them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tasks.artifact import read_jsonl
from tasks.erasure import ANNOTATORS, erased_runs, text_files, texts
from tasks.lineage import KEY
from tasks.registry import Registered, Registry
from tasks.store import Store, read_manifest

LABEL = "label"


@dataclass
class Shaped:
    """Everything that one annotator's judgements went into."""

    judgements: dict[str, list[str]] = field(default_factory=dict)
    """Key of a snapshot -> ids of their judgements in it."""
    annotators: dict[str, list[str]] = field(default_factory=dict)
    """Key of a snapshot -> everybody whose judgements it holds."""
    holding: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key -> record of every artifact whose files tell of them: judgements, pairs, reports."""
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key -> record of every artifact made from those, which do not."""
    models: list[Registered] = field(default_factory=list)
    """Registered versions among them."""

    @property
    def ids(self) -> list[str]:
        """All their judgements in snapshots."""
        return sorted({each for ids in self.judgements.values() for each in ids})


def shaped_by(annotator: str, store: Store, registry: Registry, known: Iterable[str] = ()) -> Shaped:
    """Walk from every snapshot with judgements of a pseudonym to all that was made from it.

    An artifact counts as made from a snapshot although its figures may be the same without: who is held out below the
    bar, or voted with the majority, still decided that. `known` are ids of judgements beside those in snapshots.
    """
    record, found = store.record, Shaped()
    records = _unrecorded(store) | record.artifacts()
    for key, each in records.items():
        if each["stage"] == LABEL and not each["erased"]:
            _look_into(key, annotator, store, found)
    gone = [run.data.tags for run in erased_runs(record).values()]
    before = {tags[KEY] for tags in gone if annotator in tags.get(ANNOTATORS, "").split(",")}
    needles = [text.encode() for text in (annotator, *found.ids, *known)]
    for key in _descendants({*found.judgements, *before} & records.keys(), records):
        each = records[key]
        told = not each["erased"] and any(holds(text, needles) for text in _texts(key, each["run_id"], store))
        (found.holding if told else found.others)[key] = each
    found.models = [version for version in registry.versions() if version.key in {**found.holding, **found.others}]
    return found


def _unrecorded(store: Store) -> dict[str, dict[str, Any]]:
    """What lies in the store, as `Record.artifacts` tells it: MLflow may not have heard of all."""
    found: dict[str, dict[str, Any]] = {}
    for folder in (store.home / "store").glob("*"):
        with suppress(OSError, ValueError, KeyError):
            told = read_manifest(folder)
            inputs = {name: source["key"] for name, source in told["inputs"].items()}
            found[folder.name] = {name: told[name] for name in ("stage", "name", "run_id", "digest")}
            found[folder.name] |= {"inputs": inputs, "erased": False}
    return found


def _look_into(key: str, annotator: str, store: Store, found: Shaped) -> None:
    """Note what a snapshot holds of an annotator."""
    artifact = store.find(key)
    rows = read_jsonl(artifact.path / "judgements.jsonl") if artifact else []
    theirs = [row["id"] for row in rows if row["annotator"] == annotator]
    if theirs:
        found.judgements[key] = theirs
        found.annotators[key] = sorted({row["annotator"] for row in rows})


def _descendants(sources: Iterable[str], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sources and all that was made from them, parents before children."""
    children: dict[str, list[str]] = {}
    for key, found in records.items():
        for parent in found["inputs"].values():
            children.setdefault(parent, []).append(key)
    reached = dict.fromkeys(sources)
    waiting = list(reached)
    while waiting:
        fresh = [child for child in children.get(waiting.pop(0), ()) if child not in reached]
        reached |= dict.fromkeys(fresh)
        waiting += fresh
    return list(reached)


def _texts(key: str, run_id: str, store: Store) -> Iterator[bytes]:
    """The text files of an artifact, from here or else from MLflow; weights stay where they are."""
    here = store.home / "store" / key
    if here.is_dir():
        yield from (content for _, content in text_files(here))
    else:
        yield from (content for _, content in texts(store.record, store.record.client.get_run(run_id)))


def holds(content: bytes, needles: Iterable[bytes]) -> bool:
    return any(needle in content for needle in needles)
