"""MLflow as the record: one run per artifact, with its parameters, curves, inputs, parents and files.

Lineage is walked from MLflow alone: each artifact's run is tagged with its key and the keys of its inputs.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tasks.artifact import Artifact, iterate_jsonl, link_tree
from tasks.tracking import answering, connect

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "rlhf"
KEY, STAGE, DIGEST, INPUT = "rlhf.key", "rlhf.stage", "rlhf.digest", "rlhf.input."
ERASED = "rlhf.erased"
"""On the run of an artifact that held judgements of people who were erased, and is not served any more: of whom."""
CURVES = "report/curves.jsonl"


class Record:
    """Writes artifacts' runs, and reads them back."""

    def __init__(self, client: "MlflowClient | None" = None) -> None:
        with answering():
            self.client = client or connect()
            found = self.client.get_experiment_by_name(EXPERIMENT)
            self.experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        self._curves: dict[str, list[tuple[dict[str, float], int, int]]] = {}
        self._lock = threading.Lock()

    def open_lifecycle(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Start the parent run of one lifecycle run; returns its id."""
        with answering():
            run = self.client.create_run(self.experiment, run_name=name, tags={STAGE: "lifecycle", **tags})
            self._params(run.info.run_id, params)
        return run.info.run_id

    def close_lifecycle(
        self, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        """End the parent run with the figures that matter, so that its page says it all without its children."""
        with answering():
            for name, text in texts.items():
                self.client.log_text(run_id, text, name)
            self._batch(run_id, [(dict(metrics), 0, _now())], tags)
            self.client.set_terminated(run_id, "FINISHED")

    def start(
        self,
        stage: str,
        name: str,
        key: str,
        parent_run: str | None,
        kept: Path | None = None,
        known: str | None = None,
    ) -> str:
        """The run of an artifact being built: a resumed build goes on in the run it began (its id is in `kept`)."""
        with answering():
            earlier = known or (kept.read_text().strip() if kept and kept.exists() else None)
            if earlier and self.find(earlier):
                self.client.update_run(earlier, status="RUNNING")
                return earlier
            tags = {KEY: key, STAGE: stage}
            if parent_run:
                tags["mlflow.parentRunId"] = parent_run
            run_id = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        if kept:
            kept.write_text(run_id)
        return run_id

    def curve(self, run_id: str, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        """Take a point of a curve; sent in batches so that training never waits for it."""
        with self._lock:
            self._curves.setdefault(run_id, []).append((dict(metrics), step, timestamp))

    def flush(self) -> None:
        """Send the points taken so far; a server that is away is tried again at the end (`finish` has them all)."""
        with self._lock:
            waiting, self._curves = self._curves, {}
        for run_id, points in waiting.items():
            with answering():
                self._batch(run_id, points)

    def figure(self, run_id: str, figure: "Figure", name: str) -> None:
        """Keep a figure with a run, as an image."""
        with answering():
            self.client.log_figure(run_id, figure, name)

    def fail(self, run_id: str, error: BaseException) -> None:
        """Mark the run failed, saying why; a dead MLflow must not hide the reason of the failure."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_tag(run_id, "rlhf.error", f"{type(error).__name__}: {error}"[:4000])
            self.client.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        except MlflowException:
            return

    def finish(self, manifest: Mapping[str, Any], path: Path) -> None:
        """Complete an artifact's run: parameters, all curves, inputs, files; the digest tag is written last."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        run_id = manifest["run_id"]
        inputs = [
            DatasetInput(
                Dataset(name, source["digest"][:36], "local", json.dumps({"run_id": source["run_id"]})),
                [InputTag("mlflow.data.context", manifest["stage"])],
            )
            for name, source in manifest["inputs"].items()
        ]
        tags = {f"{INPUT}{name}": source["key"] for name, source in manifest["inputs"].items()}
        with answering():
            self._params(run_id, {**manifest["recipe"], "seed": manifest["seed"]})
            points = [(p["metrics"], p["step"], p["timestamp"]) for p in _curves(path)]
            drawn = {name for metrics, _, _ in points for name in metrics}  # a final figure is no point of its curve
            final = {f"final/{n}" if n in drawn else n: value for n, value in manifest["metrics"].items()}
            self._batch(run_id, [*points, (final, 0, _now())], tags)
            if inputs:
                self.client.log_inputs(run_id, inputs)
            self._files(run_id, path)
            tables = [{"path": f"report/{t.name}", "type": "table"} for t in sorted(path.glob("report/*.json"))]
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))
            self.client.set_tag(run_id, DIGEST, manifest["digest"])
            self.client.set_terminated(run_id, "FINISHED")

    def knows(self, artifact: Artifact) -> bool:
        """Whether the artifact's run is complete in MLflow."""
        with answering():
            run = self.find(artifact.run_id)
        return run is not None and run.data.tags.get(DIGEST) == artifact.digest and ERASED not in run.data.tags

    def fetch(self, key: str, target: Path) -> bool:
        """Put an artifact's files into `target` from MLflow, by hard links where they are on this machine."""
        with answering():
            runs = self.search(f"tags.`{KEY}` = '{key}' AND tags.`{DIGEST}` != ''")
            for run in runs:
                if ERASED in run.data.tags:
                    continue
                folder = local_folder(run.info.artifact_uri)
                if folder is None:
                    target.mkdir(parents=True, exist_ok=True)
                    from mlflow.artifacts import download_artifacts

                    download_artifacts(run_id=run.info.run_id, dst_path=str(target))
                    return True
                if folder.exists():
                    link_tree(folder, target)
                    return True
        return False

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """All recorded artifacts by key: `{"stage", "name", "run_id", "digest", "inputs": {name: key}, "erased"}`.

        `erased` says whether its files are gone because they held judgements of an erased person; one that was built
        again since is told.
        """
        with answering():
            runs = self.search(f"tags.`{DIGEST}` != ''")
        found: dict[str, dict[str, Any]] = {}
        for run in runs:
            tags = run.data.tags
            if ERASED in tags and tags[KEY] in found:
                continue
            found[tags[KEY]] = {
                "stage": tags[STAGE],
                "name": run.info.run_name,
                "run_id": run.info.run_id,
                "digest": tags[DIGEST],
                "inputs": {k.removeprefix(INPUT): v for k, v in tags.items() if k.startswith(INPUT)},
                "erased": ERASED in tags,
            }
        return found

    def runs(self, deleted: bool = False) -> list["Run"]:
        """Every run of the experiment, those of lifecycles too; or those deleted in MLflow, whose files it keeps."""
        with answering():
            return self.search("", deleted)

    def find(self, run_id: str) -> "Run | None":
        """A run by its id, unless it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def search(self, query: str, deleted: bool = False) -> list["Run"]:
        """All runs of the experiment, or all deleted ones, that MLflow's filter lets through."""
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], query, view, max_results=1000, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat = {name: value[:6000] for name, value in flatten(values)}
        known = self.client.get_run(run_id).data.params
        params = [Param(name, value) for name, value in flat.items() if name not in known]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])

    def _batch(
        self,
        run_id: str,
        points: Sequence[tuple[Mapping[str, float], int, int]],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(name, value, when, step) for values, step, when in points for name, value in values.items()]
        for start in range(0, max(len(metrics), 1), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        if tags:
            self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _files(self, run_id: str, path: Path) -> None:
        folder = local_folder(self.client.get_run(run_id).info.artifact_uri)
        if folder is None:
            self.client.log_artifacts(run_id, str(path))
            return
        if folder.exists():
            shutil.rmtree(folder)
        link_tree(path, folder)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted names, the form MLflow's parameters have."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield from flatten({str(index): item for index, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _curves(path: Path) -> Iterator[dict[str, Any]]:
    return iterate_jsonl(path / CURVES) if (path / CURVES).exists() else iter(())


def local_folder(artifact_uri: str | None) -> Path | None:
    """The folder behind a `file:` location, None for a remote one."""
    parsed = urlparse(artifact_uri or "")
    return Path(unquote(parsed.path)) if parsed.scheme in ("file", "") and parsed.path else None


def _now() -> int:
    return int(time.time() * 1000)
