"""What is killed goes on: kill -9 of a worker and of the whole run, and services that die in the middle."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows import services as local
from tests.lifecycle_runs import TINY, built, rlhf, stages, start

LONG_SFT = ["--set", "name=killed-sft", "--set", "seed=11", "--set", "sft.epochs=60"]
LONG_PPO = ["--set", "name=killed-ppo", "--set", "seed=12", "--set", "policy.ppo.updates=80"]


@pytest.fixture(autouse=True)
def frequent_checkpoints(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RLHF_CHECKPOINT_SECONDS", "1")
    yield
    local.up()


def wait_for(condition: Callable[[], bool], run: subprocess.Popen[str], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, "it did not get that far"
        time.sleep(0.05)


def checkpoints(home: Path, pattern: str) -> list[Path]:
    return list((home / "building").glob(f"*/scratch/{pattern}"))


def curve_steps(run_id: str, metric: str) -> list[int]:
    from mlflow import MlflowClient

    client = MlflowClient(local.environment()["MLFLOW_TRACKING_URI"])
    return sorted({point.step for point in client.get_metric_history(run_id, metric)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "stage", "checkpoint", "metric"),
    [
        (LONG_SFT, "sft", "checkpoint-*/whole.json", "loss"),
        (LONG_PPO, "ppo", "update-*/progress.json", "reward"),
    ],
)
def test_a_killed_run_goes_on_from_its_checkpoint(
    rlhf_home: Path, arguments: list[str], stage: str, checkpoint: str, metric: str
) -> None:
    run = start("run", TINY, *arguments)
    wait_for(lambda: bool(checkpoints(rlhf_home, checkpoint)), run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    plan = {step["name"]: step for step in rlhf("plan", TINY, *arguments).document["stages"]}
    assert not plan[stage]["reused"], "half a build is never served"
    time.sleep(1)  # the workers notice that their parent is gone
    [kept] = checkpoints(rlhf_home, checkpoint)
    first_half = kept.parents[1] / "curves.jsonl"
    done_before = max(json.loads(line)["step"] for line in first_half.read_text().splitlines())
    document = rlhf("run", TINY, *arguments).document
    assert stage in built(document) and "data" not in built(document)
    assert not checkpoints(rlhf_home, checkpoint)
    steps = curve_steps(stages(document)[stage]["run_id"], metric)
    assert min(steps) <= done_before < max(steps), "one MLflow run holds the curve from before and after the kill"


@pytest.mark.slow
def test_a_killed_worker_is_started_again_by_itself(rlhf_home: Path) -> None:
    arguments = ["--set", "name=killed-worker", "--set", "seed=13", "--set", "sft.epochs=60"]
    run = start("run", TINY, *arguments)
    wait_for(lambda: bool(checkpoints(rlhf_home, "checkpoint-*/whole.json")), run)
    [busy] = sorted(
        (p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())),
        key=lambda p: -p.cpu_times().user,
    )[:1]
    busy.kill()
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert "sft" in built(json.loads(out))
    assert ": its process was killed or ran out of memory; it is started once more" in err
    assert ": goes on from where it was interrupted" in err


@pytest.mark.slow
@pytest.mark.parametrize("service", ["mlflow", "prefect", "argilla"])
def test_a_service_that_dies_is_one_sentence_and_the_rerun_continues(service: str, rlhf_home: Path) -> None:
    arguments = [
        "--set",
        f"name=dead-{service}",
        "--set",
        f"seed={('mlflow', 'prefect', 'argilla').index(service) + 20}",
    ]
    run = start("run", TINY, *arguments)
    wait_for(lambda: any((rlhf_home / "building").glob("*/scratch")), run)
    if service == "argilla":
        wait_for(labeling_now, run)
    victim = local.status()[service].pid
    assert victim
    psutil.Process(victim).kill()
    out, err = run.communicate(timeout=600)
    assert run.returncode == 1, out
    error = json.loads(out)["error"]
    assert service in error.lower() and "rlhf up" in error
    assert "Traceback" not in err
    kept = {step["name"] for step in after(arguments) if step["reused"]}
    document = rlhf("run", TINY, *arguments).document
    assert not kept & built(document) and document["reason"]


def labeling_now() -> bool:
    """Whether a round is being labeled, as MLflow sees it."""
    from mlflow import MlflowClient

    client = MlflowClient(local.environment()["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("rlhf")
    assert experiment
    running = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    return any(run.data.tags.get("rlhf.stage") == "label" for run in running)


def after(arguments: list[str]) -> list[dict[str, object]]:
    """The plan once the services are up again."""
    local.up()
    return rlhf("plan", TINY, *arguments).document["stages"]
