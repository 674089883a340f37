"""The store with a real MLflow: reuse, rebuild, half builds, deleted bytes, and one copy of every byte."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.artifact import Artifact, InputError, Row
from tasks.lineage import Record
from tasks.recipe import Part
from tasks.registry import Registry
from tasks.store import Order, Stage, Store, read_manifest
from tasks.worker import WorkerDied, Workers
from tests.stages_for_store import Counted, Sum, add, count, refuse, see

ADD, COUNT, REFUSE, SEE = Stage("add", add), Stage("count", count), Stage("refuse", refuse), Stage("see", see)


class Quiet:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def progress(self, done: int, total: int, note: str) -> None: ...

    def curve(self, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        self.steps.append(step)

    def notify(self, text: str) -> None: ...

    def show(self, rows: list[Row]) -> None: ...


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(1, tmp_path_factory.mktemp("logs") / "stages.log") as started:
        yield started


@pytest.fixture
def record(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Record:
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    return Record()


class Bench:
    """A store with workers, counting what was really built."""

    def __init__(self, home: Path, record: Record, workers: Workers) -> None:
        self.store, self.workers, self.built = Store(home, record), workers, 0
        self.heard = Quiet()

    def get(self, stage: Stage, part: Part, seed: int = 0, **inputs: Artifact) -> Artifact:
        def run(order: Order, run_id: str, out: Path, scratch: Path) -> dict[str, float]:
            self.built += 1
            return self.workers.run(order, out, scratch, self.heard)

        artifact = self.store.get(Order(stage, part, inputs, seed), run)
        self.store.settle()
        return artifact


@pytest.fixture
def bench(tmp_path: Path, record: Record, workers: Workers) -> Bench:
    return Bench(tmp_path / "home", record, workers)


def total(artifact: Artifact) -> int:
    return int((artifact.path / "total.txt").read_text())


def test_what_is_there_is_reused_and_what_depends_on_a_change_is_rebuilt(bench: Bench) -> None:
    seed = int.from_bytes(os.urandom(4), "big")  # MLflow is shared by the tests: nothing from an earlier one may serve
    one = bench.get(ADD, Sum(add=1), seed)
    two = bench.get(ADD, Sum(add=2), seed, first=one)
    assert (total(two), bench.built) == (3, 2)
    again = bench.get(ADD, Sum(add=2), seed, first=bench.get(ADD, Sum(add=1), seed))
    assert again.reused and again.digest == two.digest and bench.built == 2
    other = bench.get(ADD, Sum(add=2), seed, first=bench.get(ADD, Sum(add=5), seed))
    assert (total(other), bench.built) == (7, 4)
    assert bench.get(Stage("add", add, version=2), Sum(add=1), seed).key != one.key


def test_equal_content_is_equal_for_what_follows(bench: Bench) -> None:
    """A rebuild that changes only the report does not rebuild its successors."""
    seed = int.from_bytes(os.urandom(4), "big")
    one = bench.get(ADD, Sum(add=1, report="a"), seed)
    same = bench.get(ADD, Sum(add=1, report="b"), seed)
    assert one.key != same.key and one.digest == same.digest
    bench.get(ADD, Sum(add=2), seed, first=one)
    built = bench.built
    bench.get(ADD, Sum(add=2), seed, first=same)
    assert bench.built == built


def test_a_killed_build_is_resumed_and_never_served(bench: Bench, workers: Workers) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    part = Counted(die_at=4)
    with pytest.raises(WorkerDied, match="run again"):
        bench.get(COUNT, part, seed)
    key = Order(COUNT, part, {}, seed).key
    assert bench.store.find(key) is None
    finished = bench.get(COUNT, part, seed)
    assert (finished.path / "counted.txt").read_text() == "4 to 6"
    assert not (finished.path / "half.txt").exists()
    history = bench.store.record.client.get_metric_history(finished.run_id, "step")
    assert sorted(point.step for point in history) == [0, 1, 2, 3, 4, 5], "one run holds the curve of both attempts"
    assert not (bench.store.home / "building" / key).exists()


INTERRUPTED = """
import signal, threading, time
from pathlib import Path
from tasks.store import Order, Stage
from tasks.worker import Workers
from tests.stages_for_store import Sum, rest
from tests.test_store import Quiet

def interrupt():
    while not (here / "begun").exists():
        time.sleep(0.05)
    time.sleep(0.5)  # the main thread waits for the stage by now
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

if __name__ == "__main__":
    here = Path("{here}")
    with Workers(1, here / "stages.log") as workers:
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            workers.run(Order(Stage("rest", rest), Sum(), {{}}, 0), here, here, Quiet())
        except KeyboardInterrupt:
            print("interrupted")
"""


def test_ctrl_c_ends_a_stage_also_where_another_thread_gets_the_signal(tmp_path: Path) -> None:
    script, root = tmp_path / "interrupted.py", Path(__file__).parents[1]
    script.write_text(INTERRUPTED.format(here=tmp_path))
    known = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script], check=False, env=known, capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n", done.stderr


def test_each_worker_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    with Workers(2, tmp_path / "stages.log") as both, ThreadPoolExecutor() as threads:
        runs = [threads.submit(both.run, Order(SEE, Sum(add=i), {}, 0), tmp_path, tmp_path, Quiet()) for i in range(2)]
        assert sorted(run.result()["gpu"] for run in runs) == [4, 6]


def test_a_failed_stage_leaves_nothing_and_says_why(bench: Bench) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    with pytest.raises(InputError, match="give a file with rows"):
        bench.get(REFUSE, Sum(), seed)
    key = Order(REFUSE, Sum(), {}, seed).key
    assert bench.store.find(key) is None
    [run] = bench.store.record.search(f"tags.`rlhf.key` = '{key}'")
    assert run.info.status == "FAILED" and "give a file" in run.data.tags["rlhf.error"]


def test_damage_is_noticed_and_mended_from_mlflow_or_by_building(bench: Bench) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    one = bench.get(ADD, Sum(add=1), seed)
    (one.path / "total.txt").unlink()
    found = bench.get(ADD, Sum(add=1), seed)
    assert found.reused and total(found) == 1 and bench.built == 1, "fetched back from MLflow's folder"
    for name in ("total.txt", "manifest.json"):
        (found.path / name).unlink()
    assert total(bench.get(ADD, Sum(add=1), seed)) == 1 and bench.built == 1
    file = found.path / "total.txt"
    file.chmod(0o644)
    file.write_text("9")  # same size, other content; MLflow holds the same inode
    rebuilt = bench.get(ADD, Sum(add=1), seed)
    assert total(rebuilt) == 1 and bench.built == 2


def test_bytes_are_held_once(bench: Bench) -> None:
    one = bench.get(ADD, Sum(add=1), int.from_bytes(os.urandom(4), "big"))
    uri = bench.store.record.client.get_run(one.run_id).info.artifact_uri
    assert uri and uri.startswith("file:")
    twin = Path(uri.removeprefix("file://")) / "total.txt"
    assert twin.stat().st_ino == (one.path / "total.txt").stat().st_ino


def test_mlflow_holds_the_record(bench: Bench) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    parent = bench.store.record.open_lifecycle("demo", {"a": {"b": 1}}, {})
    one = bench.get(ADD, Sum(add=1), seed)
    two = bench.get(ADD, Sum(add=2), seed, first=one)
    client = bench.store.record.client
    run = client.get_run(two.run_id)
    assert run.data.params["add"] == "2" and run.data.params["seed"] == str(seed)
    assert run.data.metrics["total"] == 3
    assert [m.value for m in sorted(client.get_metric_history(two.run_id, "partial"), key=lambda m: m.step)] == [
        0,
        3,
        6,
    ]
    assert run.data.tags["rlhf.input.first"] == one.key
    assert run.inputs
    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.name == "first" and one.digest.startswith(dataset.dataset.digest)
    assert {f.path for f in client.list_artifacts(two.run_id)} == {"total.txt", "report", "manifest.json"}
    assert bench.store.record.artifacts()[two.key]["inputs"] == {"first": one.key}
    assert client.get_run(parent).data.params["a.b"] == "1"


def test_an_artifact_mlflow_does_not_know_is_recorded_again(bench: Bench) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    one = bench.get(ADD, Sum(add=1), seed)
    bench.store.record.client.delete_run(one.run_id)
    found = bench.get(ADD, Sum(add=1), seed)
    assert found.reused and found.run_id != one.run_id and bench.built == 1
    assert read_manifest(found.path)["run_id"] == found.run_id
    assert bench.store.record.knows(found)
    assert bench.store.record.client.get_run(found.run_id).data.metrics["total"] == 1


class Reads(Part):
    """Reads a file of the user's."""

    path: str

    def external_files(self) -> list[Path]:
        """The file whose bytes belong to the identity."""
        return [Path(self.path)]


def test_touching_a_row_of_a_users_file_makes_another_artifact(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n')
    part = Reads(path=str(file))
    before = Order(ADD, part, {}, 0).key
    assert Order(ADD, part, {}, 0).key == before
    file.write_text('{"prompt": "b"}\n')
    assert Order(ADD, part, {}, 0).key != before
    file.unlink()
    with pytest.raises(InputError, match="check the path"):
        _ = Order(ADD, part, {}, 0).key


def test_who_looks_does_not_wait_for_who_builds(bench: Bench) -> None:
    order = Order(ADD, Sum(add=7), {}, int.from_bytes(os.urandom(4), "big"))
    with bench.store._lock(order.key):
        assert bench.store.find(order.key) is None


def test_a_version_that_no_registry_has_is_not_found(record: Record) -> None:
    registry = Registry(record)
    assert registry.find("nobody", "1") is None
    assert registry.find("nobody", "9" * 30) is None
