"""Taking people out of MLflow: files that tell of them are deleted, and runs say whose judgements were in them."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.lineage import DIGEST, ERASED, KEY, Record, local_folder
from tasks.tracking import answering

if TYPE_CHECKING:
    from mlflow.entities import Run

ANNOTATORS = "rlhf.annotators"
"""On the run of an erased artifact: everybody whose judgements it held."""
TEXTS = {".csv", ".html", ".json", ".jsonl", ".md", ".toml", ".txt"}


def erased_runs(record: Record) -> dict[tuple[str, str], "Run"]:
    """The runs of erased artifacts by (key, digest)."""
    with answering():
        runs = record.search(f"tags.`{ERASED}` != ''")
    return {(run.data.tags[KEY], run.data.tags.get(DIGEST, "")): run for run in runs if KEY in run.data.tags}


def erased_for(record: Record, whose: str) -> list["Run"]:
    """The runs whose files are gone for the sake of this person."""
    return [run for run in erased_runs(record).values() if whose in run.data.tags[ERASED].split(",")]


def erase_artifact(record: Record, run_id: str, whose: str, annotators: Sequence[str]) -> None:
    """Delete an artifact's files here and in MLflow, and say on its run whose judgements they held.

    The mark comes first: what is marked is not served, wherever a copy of it lies.
    """
    with answering():
        run = record.find(run_id)
        if run is None:
            return
        everybody = sorted({*annotators, *run.data.tags.get(ANNOTATORS, "").split(",")} - {""})
        erased = sorted({whose, *run.data.tags.get(ERASED, "").split(",")} - {""})
        record.client.set_tag(run_id, ANNOTATORS, ",".join(everybody)[:8000])
        record.client.set_tag(run_id, ERASED, ",".join(erased)[:8000])
        if "mlflow.loggedArtifacts" in run.data.tags:
            record.client.set_tag(run_id, "mlflow.loggedArtifacts", "[]")
        delete_files(run)


def delete_files(run: "Run") -> None:
    """Delete all files of a run."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder = local_folder(run.info.artifact_uri)
    if folder is None:
        get_artifact_repository(str(run.info.artifact_uri)).delete_artifacts()
    elif folder.exists():
        shutil.rmtree(folder)


def mark(record: Record, run_id: str, tag: str, whose: str) -> None:
    """Add a pseudonym to a tag of a run, if the run is there."""
    with answering():
        run = record.find(run_id)
        if run is not None:
            told = {whose, *run.data.tags.get(tag, "").split(",")} - {""}
            record.client.set_tag(run_id, tag, ",".join(sorted(told)))


def texts(record: Record, run: "Run") -> Iterator[tuple[str, bytes]]:
    """The text files of a run as (path, content); weights and pictures are not read."""
    folder = local_folder(run.info.artifact_uri)
    if folder is not None:
        yield from text_files(folder)
        return
    from mlflow.artifacts import download_artifacts

    waiting: list[str | None] = [None]
    while waiting:
        with answering():
            found = record.client.list_artifacts(run.info.run_id, waiting.pop())
        waiting += [each.path for each in found if each.is_dir]
        for each in found:
            if not each.is_dir and Path(each.path).suffix in TEXTS:
                with answering(), tempfile.TemporaryDirectory() as place:
                    path = download_artifacts(run_id=run.info.run_id, artifact_path=each.path, dst_path=place)
                    yield each.path, Path(path).read_bytes()


def text_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The text files in a folder as (path, content)."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in TEXTS and file.is_file():
            yield str(file.relative_to(folder)), file.read_bytes()
