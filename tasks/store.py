"""The store: every artifact under the key of what it was made from, whole or not there at all.

key = hash(stage, version, recipe part, seed, digests of the inputs). A build happens in `building/KEY`, the manifest is
written last and the folder moved to `store/KEY` in one step, so a killed build is resumed or begun again, never served.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.artifact import Artifact, InputError
from tasks.erasure import erased_runs
from tasks.lineage import Record
from tasks.recipe import identity, stable_hash

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Stage:
    """One step of the lifecycle: its function, and a version to raise when the function's results change."""

    name: str
    function: Callable[..., None]
    version: int = 1


@dataclass(frozen=True)
class Order:
    """A stage with all that decides its result: what the store can name, find and build."""

    stage: Stage
    part: BaseModel
    inputs: Mapping[str, Artifact]
    seed: int
    label: str = ""
    """What people see when one stage is built several times (`optimise dpo`)."""

    @property
    def name(self) -> str:
        return self.label or self.stage.name

    @cached_property
    def key(self) -> str:
        """Hex SHA-256 of everything the result depends on."""
        return stable_hash(
            {
                "stage": self.stage.name,
                "version": self.stage.version,
                "part": identity(self.part),
                "files": _file_digests(self.part),
                "seed": self.seed,
                "inputs": {name: artifact.digest for name, artifact in self.inputs.items()},
            }
        )


def _file_digests(part: BaseModel) -> list[str]:
    """Digests of the files outside the store that a part names (`external_files`): their bytes, not their paths."""
    named = getattr(part, "external_files", None)
    return [file_digest(path) for path in named()] if named else []


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file. Raises `InputError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path in the recipe.") from error


Runner = Callable[[Order, str, Path, Path], dict[str, float]]
"""Runs a stage function: (order, MLflow run id, out, scratch) -> final metrics."""


class Store:
    """Artifacts on this machine, recorded in MLflow and fetched from it when their bytes are missing here."""

    def __init__(self, home: Path, record: Record) -> None:
        self.home, self.record = home, record
        self._recorder = ThreadPoolExecutor(1, "record")
        self._recording: list[Future[None]] = []
        for name in ("store", "building", "locks"):
            (home / name).mkdir(parents=True, exist_ok=True)

    def find(self, key: str) -> Artifact | None:
        """The whole artifact of a key, from here or else from MLflow; None when it must be built, or is just being."""
        path = self.home / "store" / key
        artifact = self._allowed(load_artifact(path))
        if artifact is not None:
            return artifact
        try:
            with self._lock(key, wait=False):
                return self._allowed(load_artifact(path)) or self._fetch(key, path)
        except BlockingIOError:  # a run builds it, perhaps for days where people rank: whoever only looks goes on
            return None

    def erase(self, key: str) -> None:
        """Delete an artifact's files here, and what was left of building it."""
        for folder in (self.home / "store" / key, *(self.home / "building").glob(f"{key}*")):
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def _erased(self) -> set[tuple[str, str]]:
        """(key, digest) of what may not be served, wherever it was erased."""
        return set(erased_runs(self.record))

    def _allowed(self, artifact: Artifact | None) -> Artifact | None:
        """The artifact, unless it holds judgements of somebody who was erased: then its files go here too."""
        if artifact is None or (artifact.key, artifact.digest) not in self._erased:
            return artifact
        shutil.rmtree(artifact.path, ignore_errors=True)
        return None

    def _fetch(self, key: str, path: Path) -> Artifact | None:
        staging = self.home / "building" / f"{key}.fetched"
        shutil.rmtree(staging, ignore_errors=True)
        if not self.record.fetch(key, staging) or load_artifact(staging) is None:
            shutil.rmtree(staging, ignore_errors=True)
            return None
        _move(staging, path)
        return load_artifact(path)

    def get(self, order: Order, run: Runner, parent_run: str | None = None) -> Artifact:
        """The artifact of an order: reused when it is whole, else built by `run`; its record follows (`settle`)."""
        started = time.monotonic()
        key = order.key
        found = self.find(key)
        if found is None:
            with self._lock(key):
                # another process may have built it while we waited
                found = self._allowed(load_artifact(self.home / "store" / key))
                if found is None:
                    return self._build(order, key, run, parent_run, started)
        return replace(self._recorded(found, parent_run), reused=True, seconds=time.monotonic() - started)

    def _build(self, order: Order, key: str, run: Runner, parent_run: str | None, started: float) -> Artifact:
        building = self.home / "building" / key
        out, scratch = building / "out", building / "scratch"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        run_id = self.record.start(order.stage.name, order.name, key, parent_run, building / "run_id")
        try:
            metrics = run(order, run_id, out, scratch)
        except BaseException as error:
            self.record.fail(run_id, error)
            raise
        files = _describe(out)
        manifest = {
            "key": key,
            "stage": order.stage.name,
            "name": order.name,
            "version": order.stage.version,
            "recipe": order.part.model_dump(mode="json"),
            "seed": order.seed,
            "inputs": {n: {"key": a.key, "digest": a.digest, "run_id": a.run_id} for n, a in order.inputs.items()},
            "files": files,
            "digest": _content_digest(files),
            "metrics": metrics,
            "run_id": run_id,
            "seconds": round(time.monotonic() - started, 3),
        }
        (out / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
        for file in out.rglob("*"):
            if file.is_file():
                file.chmod(0o444)  # artifacts never change, and MLflow's folder holds hard links to them
        path = self.home / "store" / key
        _move(out, path)
        shutil.rmtree(building, ignore_errors=True)
        artifact = load_artifact(path)
        if artifact is None:
            raise InputError(f"The new artifact at {path} is not whole; check the disk and run again.")
        self._recording.append(self._recorder.submit(self._finish, artifact, manifest))
        return replace(artifact, seconds=time.monotonic() - started)

    def _finish(self, artifact: Artifact, manifest: Mapping[str, Any]) -> None:
        with self._lock(artifact.key):
            self.record.finish(manifest, artifact.path)

    def settle(self) -> None:
        """Wait until MLflow has the record of all that was built: the next stage does not wait for it.

        Raises what MLflow refused. What is not recorded then is recorded by the next run that reuses it.
        """
        while self._recording:
            self._recording.pop(0).result()

    def _recorded(self, artifact: Artifact, parent_run: str | None) -> Artifact:
        """The artifact, its MLflow run completed or made anew where MLflow does not know it."""
        if self.record.knows(artifact):
            return artifact
        with self._lock(artifact.key):  # a run that builds it just now records it too
            if self.record.knows(artifact):
                return artifact
            return self._record_again(artifact, parent_run)

    def _record_again(self, artifact: Artifact, parent_run: str | None) -> Artifact:
        manifest = read_manifest(artifact.path)
        manifest["run_id"] = self.record.start(
            manifest["stage"], manifest["name"], artifact.key, parent_run, known=artifact.run_id
        )
        if manifest["run_id"] != artifact.run_id:
            _rewrite_manifest(artifact.path, manifest)
        self.record.finish(manifest, artifact.path)
        return replace(artifact, run_id=manifest["run_id"])

    @contextmanager
    def _lock(self, key: str, wait: bool = True) -> Iterator[None]:
        """One builder per key on this machine; the kernel frees the lock when its holder dies.

        Raises `BlockingIOError` where it is held and `wait` is off.
        """
        with (self.home / "locks" / key).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact's folder."""
    return json.loads((path / MANIFEST).read_text())


def load_artifact(path: Path) -> Artifact | None:
    """The artifact in a folder if every byte is as its manifest says, else None.

    A file whose modification time is not after the manifest's was not touched since: its size is enough.
    """
    try:
        manifest = read_manifest(path)
        written = (path / MANIFEST).stat().st_mtime_ns
        for name, file in manifest["files"].items():
            stat = (path / name).stat()
            if stat.st_size != file["size"]:
                return None
            if stat.st_mtime_ns > written and file_digest(path / name) != file["sha256"]:
                return None
    except (OSError, ValueError, KeyError, InputError):
        return None
    return Artifact(path=path, **{name: manifest[name] for name in ("key", "stage", "digest", "run_id", "metrics")})


def _describe(out: Path) -> dict[str, dict[str, Any]]:
    files = sorted(file for file in out.rglob("*") if file.is_file())
    return {str(f.relative_to(out)): {"size": f.stat().st_size, "sha256": file_digest(f)} for f in files}


def _content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of an artifact's content; figures and tables for people (`report/`) do not change what it is."""
    return stable_hash({name: file["sha256"] for name, file in files.items() if not name.startswith("report/")})


def _move(source: Path, target: Path) -> None:
    """Put a finished folder in its place in one step, over what was left of an earlier one."""
    if target.exists():
        rest = target.with_name(f".{target.name}.{os.getpid()}")
        target.rename(rest)
        shutil.rmtree(rest, ignore_errors=True)
    source.rename(target)


def _rewrite_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    temporary = path / f".{MANIFEST}"
    temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    temporary.replace(path / MANIFEST)
