"""Deployed runs: they suspend while people rank, hold no process meanwhile, and go on by themselves, exactly once."""

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import Flow

from flows import services as local
from flows import waiting
from flows.collect import round_order
from flows.recipe import LifecycleRecipe
from flows.serve import parameters_of
from flows.webhooks import secret_of, sign
from tasks.artifact import Artifact, PipelineError
from tasks.labels.label import collect_judgements
from tasks.labels.recipe import LabelRecipe
from tasks.labels.round import ArgillaAwayError
from tasks.lineage import Record
from tasks.recipe import load_recipe
from tasks.registry import Registry
from tasks.store import Order, Stage, Store
from tests.deployed_runs import Prefect, Process, changes_of, deployed, ranked, submitted, swept, until
from tests.lifecycle_runs import LOOSE, ROOT, TINY, rlhf, stages, start


def completions(folder: Path) -> Order:
    """The order of a round of one prompt."""
    both = [{"id": f"c{number}", "text": text} for number, text in enumerate(("Aisle four.", "Aisle two."))]
    row = {"id": "p1", "prompt": [{"role": "user", "content": "Where is the bread?"}], "completions": both}
    (folder / "completions.jsonl").write_text(json.dumps(row) + "\n")
    artifact = Artifact(key="k", stage="sample", digest="d", path=folder, run_id="r", metrics={})
    return Order(Stage("label", collect_judgements), LabelRecipe(), {"completions": artifact}, seed=0)


def test_only_a_deployed_run_that_waits_for_people_suspends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = completions(tmp_path)
    assert not waiting.must_suspend(order), "started by hand it waits with a table"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    assert waiting.must_suspend(order)
    simulated = LabelRecipe(source="simulated", utility="tasks.data.shop:utility")
    assert not waiting.must_suspend(replace(order, part=simulated))


def test_an_argilla_that_is_away_is_told_from_one_that_refuses(
    argilla: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    order = completions(tmp_path)
    monkeypatch.setenv("ARGILLA_API_KEY", "not the owner's")
    monkeypatch.setenv("ARGILLA_API_URL", argilla["ARGILLA_API_URL"])
    with pytest.raises(PipelineError) as refusal:
        waiting.count(order)
    assert not isinstance(refusal.value, ArgillaAwayError)
    monkeypatch.setenv("ARGILLA_API_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ArgillaAwayError):
        waiting.count(order)


@pytest.mark.parametrize(
    "path", [TINY, *sorted((ROOT / "deployments" / "recipes").glob("*.toml"))], ids=lambda p: p.stem
)
def test_a_submitted_recipe_is_the_recipe(path: Path) -> None:
    recipe = load_recipe(LifecycleRecipe, path)
    again = LifecycleRecipe.model_validate(json.loads(json.dumps(parameters_of(recipe)))["recipe"])
    assert again == recipe


def test_the_deployments_name_flows_that_are_there() -> None:
    file = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
    for each in file["deployments"]:
        module, name = each["entrypoint"].rsplit(".", 1)
        assert isinstance(getattr(importlib.import_module(module), name), Flow)


def test_a_sweep_with_nobody_waiting_does_nothing(services: dict[str, str]) -> None:
    assert swept() == {"waiting": []}


@pytest.fixture
def serving(services: dict[str, str], tmp_path: Path) -> Iterator[Callable[[int], Process]]:
    """Starts `python -m flows.serve` with this many seconds between sweeps; killed at the end."""
    started: list[Process] = []

    def serve(sweep_seconds: int = 3600) -> Process:
        started.append(Process(tmp_path / "serve.log", "flows.serve", str(sweep_seconds)))
        until(deployed, 60, tmp_path / "serve.log")
        return started[-1]

    yield serve
    for process in started:
        process.kill()  # in the middle of a sweep, as may be: the next one that serves sweeps at once


def parents(run: Prefect) -> list[Any]:
    """The lifecycle's runs in MLflow that belong to a flow run."""
    from mlflow import MlflowClient

    client = MlflowClient(local.environment()["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("rlhf")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`rlhf.flow_run` = '{run.id}'"))


def went_on_once(run: Prefect, suspensions: int) -> None:
    """The run is complete, was suspended and started as often as it should, and is one run in MLflow."""
    until(lambda: run.is_in("Completed"), 240, "the resumed run did not end")
    history = run.history()
    assert history.count("Suspended") == suspensions
    assert history.count("Running") == suspensions + 1, history
    assert history[-1] == "Completed"
    assert "waiting-for-labels" not in run.run()["tags"]
    [parent] = parents(run)
    assert parent.info.status == "FINISHED"
    assert "rlhf.waiting" not in parent.data.tags and "rlhf.artifact.gate" in parent.data.tags


def kill(*names: str) -> None:
    """End services without warning."""
    state = json.loads((local.home() / "services.json").read_text())
    for name in names:
        os.killpg(state[name]["pid"], signal.SIGKILL)


def restart(*names: str) -> None:
    """Kill services without warning and start them again with the same data."""
    kill(*names)
    time.sleep(1)
    local.up()


@pytest.mark.slow
def test_a_deployed_run_suspends_and_the_scheduled_sweep_resumes_it(
    serving: Callable[[int], Process], rlhf_home: Path
) -> None:
    server = serving(30)
    run = submitted("swept")
    until(lambda: run.is_in("Suspended"), 240, server.log)
    assert run.run()["tags"] == ["waiting-for-labels"]
    [parent] = parents(run)
    assert parent.info.status == "SCHEDULED" and "records" in parent.data.tags["rlhf.waiting"]
    [row] = swept()["waiting"]
    assert not row["ready"] and not row["resumed"] and "lacks" in row["says"]

    run.resume()  # by hand, too early: it counts and suspends again
    until(lambda: run.history().count("Suspended") == 2, 60, server.log)
    assert len(parents(run)) == 1

    def processes() -> int:
        return server.log.read_text().count("Beginning flow run 'swept")

    assert processes() == 2
    assert ranked(rlhf_home, "swept", leave=1) > 10
    [row] = swept()["waiting"]
    assert not row["ready"] and "1 of" in row["says"]
    restart("prefect")  # under a process that serves
    ranked(rlhf_home, "swept")
    went_on_once(run, suspensions=2)
    assert processes() == 3


@pytest.mark.slow
def test_an_argilla_that_dies_after_the_count_suspends_the_run_again(
    serving: Callable[[int], Process], services: dict[str, str], rlhf_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    server = serving(15)
    run = submitted("dying")
    until(lambda: run.is_in("Suspended"), 240, server.log)
    record = Record()
    order = round_order(
        load_recipe(LifecycleRecipe, TINY, changes_of("dying")), Store(rlhf_home, record), Registry(record)
    )
    assert order is not None
    with (rlhf_home / "locks" / order.key).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another run that builds the stage: this one waits with its count made
        ranked(rlhf_home, "dying")
        until(lambda: run.is_in("Running") and "waiting-for-labels" not in run.run()["tags"], 120, server.log)
        kill("argilla")
    try:
        until(lambda: run.history().count("Suspended") == 2, 60, server.log)
        [parent] = parents(run)
        assert "does not answer" in parent.data.tags["rlhf.waiting"] and parent.info.status == "SCHEDULED"
        assert run.run()["tags"] == ["waiting-for-labels"]
    finally:
        local.up()
    went_on_once(run, suspensions=2)


@pytest.mark.slow
def test_the_sweep_keeps_deadlines(serving: Callable[[int], Process], rlhf_home: Path) -> None:
    """Past it one run goes on with what there is, and another one fails with the sentence of its rule."""

    def late(seconds: int, then: str) -> list[str]:
        moment = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        return [f"label.enough.deadline={moment}", f"label.enough.at_deadline={then}"]

    server = serving(15)
    used = submitted("late-use", *late(150, "use"))
    until(lambda: used.is_in("Suspended"), 150, server.log)
    done = ranked(rlhf_home, "late-use", leave=4)
    failed = submitted("late-fail", *late(60, "fail"))
    until(lambda: failed.is_in("Suspended"), 60, server.log)
    until(lambda: failed.is_in("Failed"), 150, server.log)
    assert "The round's deadline has passed and it lacks" in failed.run()["state"]["message"]
    went_on_once(used, suspensions=1)
    label = parents(used)[0].data.tags["rlhf.artifact.label"]
    assert len((rlhf_home / "store" / label / "judgements.jsonl").read_text().splitlines()) == done > 4


@pytest.mark.slow
def test_by_hand_an_argilla_that_dies_is_one_sentence_and_no_judgement_is_lost(
    services: dict[str, str], rlhf_home: Path
) -> None:
    arguments = ["run", TINY, *(word for change in changes_of("by-hand") for word in ("--set", change))]
    run = start(*arguments)
    try:
        until(lambda: datasets("by-hand"), 240, "the round did not open")
        time.sleep(2)  # it publishes, and begins to wait
        before = ranked(rlhf_home, "by-hand", leave=4)
        assert before > 4
        kill("argilla")
        out, _ = run.communicate(timeout=120)
    finally:
        run.kill()
        local.up()
    assert run.returncode == 1 and "does not answer" in json.loads(out)["error"]
    assert ranked(rlhf_home, "by-hand") == 4
    label = stages(rlhf(*arguments).document)["label"]
    rows = (rlhf_home / "store" / label["artifact"] / "judgements.jsonl").read_text().splitlines()
    assert len(rows) == before + 4


def datasets(round: str) -> list[str]:
    """Argilla's datasets of a round that are published."""
    url, key = (local.environment()[name] for name in ("ARGILLA_API_URL", "ARGILLA_API_KEY"))
    found = httpx.get(f"{url}/api/v1/me/datasets", headers={"X-Argilla-Api-Key": key}, trust_env=False).json()["items"]
    return [each["id"] for each in found if each["name"].startswith(f"{round}-") and each["status"] == "ready"]


@pytest.mark.slow
def test_a_gate_that_asks_people_suspends_the_run_for_them_too(
    serving: Callable[[int], Process], rlhf_home: Path
) -> None:
    server = serving(15)
    blind = "blind.label={round='blind-gate', people=['annotator-1'], min_submitted=1}"
    run = submitted("asking", *LOOSE, "gate.people=instead", blind)
    for count, round in enumerate(("asking", "blind-gate"), 1):
        until(lambda count=count: run.history().count("Suspended") == count, 240, server.log)
        assert ranked(rlhf_home, round) > 0
    went_on_once(run, suspensions=2)
    [parent] = parents(run)
    assert "rlhf.artifact.blind" in parent.data.tags and "people prefer it" in parent.data.tags["mlflow.note.content"]


@pytest.fixture
def worker(services: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    """A worker of the process pool that `deployments/prefect.yaml` deploys to."""
    settings = {**local.environment(), "RLHF_PROJECT": str(ROOT)}
    pool = ["work-pool", "create", "rlhf", "--type", "process", "--overwrite"]
    deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        for command in (pool, deploy):
            subprocess.run([sys.executable, "-m", "prefect", *command], check=True, cwd=ROOT, capture_output=True)
        process = Process(tmp_path / "worker.log", "prefect", "worker", "start", "--pool", "rlhf")
    yield process
    process.kill()


@pytest.mark.slow
def test_nothing_runs_while_people_rank_and_a_delivery_sets_the_run_going(
    worker: Process, rlhf_home: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    receiver = Process(tmp_path / "webhooks.log", "flows.webhooks", str(port))
    try:
        until(lambda: health(port), 60, receiver.log)
        run = submitted("delivered")
        until(lambda: run.is_in("Suspended"), 240, worker.log)
        until(lambda: not worker.runs(), 30, "the suspended run still holds processes")
        ranked(rlhf_home, "delivered", leave=1)
        time.sleep(3)
        assert run.is_in("Suspended")
        ranked(rlhf_home, "delivered")
        until(lambda: not run.is_in("Suspended"), 60, receiver.log)
        went_on_once(run, suspensions=1)
    finally:
        receiver.kill()


def health(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def deliver(port: int, home: Path, number: int) -> int:
    """A delivery as Argilla signs it; returns the answer's status."""
    kept = json.loads((home / "credentials" / "webhooks.json").read_text())
    [secret] = [secret for where, secret in kept.items() if f":{port}/" in where]
    body, now = b'{"type": "record.completed"}', int(time.time())
    headers = {"webhook-id": f"msg_{number}", "webhook-timestamp": str(now)}
    headers["webhook-signature"] = sign(secret_of(secret), f"msg_{number}", now, body)
    return httpx.post(f"http://127.0.0.1:{port}/argilla", content=body, headers=headers, trust_env=False).status_code


@pytest.mark.slow
def test_everything_restarted_meanwhile_and_ten_resumers_give_one_execution(
    serving: Callable[[int], Process], rlhf_home: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    server = serving(3600)
    run = submitted("restarted")
    until(lambda: run.is_in("Suspended"), 240, server.log)
    server.kill()
    ranked(rlhf_home, "restarted", leave=1)
    restart("argilla", "prefect")
    ranked(rlhf_home, "restarted")
    port = free_port()
    receiver = Process(tmp_path / "webhooks.log", "flows.webhooks", str(port))
    try:
        with ThreadPoolExecutor(10) as pool:
            sweeps = [pool.submit(swept) for _ in range(4)]
            until(lambda: health(port), 60, receiver.log)
            deliveries = [pool.submit(deliver, port, rlhf_home, number) for number in range(6)]
            assert {delivery.result() for delivery in deliveries} == {204}
            rows = [row for sweep in sweeps for row in sweep.result()["waiting"]]
        assert sum(row["resumed"] for row in rows) <= 1
        until(lambda: run.is_in("Resuming", "Late"), 60, f"nobody resumed it: {rows}")
        server = serving(3600)
        went_on_once(run, suspensions=1)
        assert run.history().count("Resuming") == 1
        assert server.log.read_text().count("Beginning flow run 'restarted") == 2, "one to wait, one to go on"
    finally:
        receiver.kill()
