"""The whole lifecycle through the command line, with the real services: what is built, reused, recorded and refused."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lifecycle_runs import ROOT, TINY, built, rlhf, stages
from tests.tiny_rewards import reward_base

EVERY = {
    *("base", "data", "sft", "sample", "label", "preferences", "reward"),
    *("dpo", "ppo", "merge dpo", "merge ppo", "evaluate", "gate"),
}


NO_RL = "{sft=0.5, reward_train=0.3, reward_validation=0.1, rl=0, evaluation=0.1}"


@pytest.fixture(scope="module")
def first(services: dict[str, str]) -> dict[str, Any]:
    """The document of a first run."""
    return rlhf("run", TINY).document


def test_the_document_says_what_was_built_and_what_came_of_it(first: dict[str, Any], services: dict[str, str]) -> None:
    assert set(stages(first)) == EVERY and built(first) == EVERY
    for stage in first["stages"]:
        assert len(stage["artifact"]) == 64 and stage["run_id"] and stage["seconds"] > 0
    rate = first["win_rate"]["vs_sft"]
    assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    assert first["win_rate"]["vs_champion"] is None
    assert {c["name"] for c in first["candidates"]} == {"dpo", "ppo"}
    assert isinstance(first["promoted"], bool) and first["reason"]
    assert first["urls"] == {
        "prefect": services["PREFECT_API_URL"].removesuffix("/api"),
        "mlflow": services["MLFLOW_TRACKING_URI"],
        "argilla": services["ARGILLA_API_URL"],
    }


def test_a_second_run_builds_nothing(first: dict[str, Any]) -> None:
    again = rlhf("run", TINY).document
    assert built(again) == set()
    assert {n: s["artifact"] for n, s in stages(again).items()} == {n: s["artifact"] for n, s in stages(first).items()}
    assert again["win_rate"] == first["win_rate"] and again["promoted"] == first["promoted"]


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        ("policy.ppo.kl_coefficient=0.2", {"ppo", "merge ppo", "evaluate", "gate"}),
        ("gate.max_kl=1", {"gate"}),
        ("reward.epochs=2", {"reward", "ppo", "merge ppo", "evaluate", "gate"}),
        ("sft.learning_rate=1e-4", EVERY - {"base", "data"}),
        ("data.demonstrations=3", EVERY - {"base"}),
        ("seed=1", EVERY),
    ],
)
def test_a_plan_rebuilds_what_depends_on_the_change(first: dict[str, Any], change: str, rebuilt: set[str]) -> None:
    plan = rlhf("plan", TINY, "--set", change).document
    assert {step["name"] for step in plan["stages"] if not step["reused"]} == rebuilt


def test_a_changed_policy_builds_only_what_follows_it(first: dict[str, Any]) -> None:
    document = rlhf("run", TINY, "--set", "policy.ppo.updates=1").document
    assert built(document) == {"ppo", "merge ppo", "evaluate", "gate"}


@pytest.mark.slow
def test_a_reward_model_of_another_family_changes_only_what_follows_it(first: dict[str, Any], tmp_path: Path) -> None:
    """An encoder scores what the policy writes, in PPO, in the evaluation and on its server."""
    change = ("--set", f"reward.base={reward_base(tmp_path / 'bert', 'bert')}", "--set", "reward.max_length=96")
    document = rlhf("run", TINY, *change).document
    assert built(document) == {"reward", "ppo", "merge ppo", "evaluate", "gate"}
    again = rlhf("plan", TINY, *change).document
    assert all(step["reused"] for step in again["stages"])
    rebuilt = rlhf("plan", TINY, *change, "--set", "sft.epochs=2").document
    assert "reward" in {step["name"] for step in rebuilt["stages"] if not step["reused"]}, "its pairs are other ones"
    (tmp_path / "bert").rename(tmp_path / "moved")
    assert "does not exist; check reward.base" in rlhf("plan", TINY, *change).error


def test_mlflow_holds_one_parent_and_a_run_per_artifact(first: dict[str, Any], services: dict[str, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(services["MLFLOW_TRACKING_URI"])
    parent = client.get_run(first["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.params["policy.1.updates"] == "2"
    assert {"dpo/win_rate_vs_sft", "ppo/correct"} <= set(parent.data.metrics)
    for name, stage in stages(first).items():
        run = client.get_run(stage["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == first["run_id"], name
        assert run.info.status == "FINISHED" and run.data.tags["rlhf.key"] == stage["artifact"]
        inputs = [tag for tag in run.data.tags if tag.startswith("rlhf.input.")]
        assert run.inputs and len(run.inputs.dataset_inputs) == len(inputs)
    reports = {
        name: {
            file.path.removeprefix("report/") for file in client.list_artifacts(stages(first)[name]["run_id"], "report")
        }
        for name in ("label", "reward", "evaluate", "ppo")
    }
    assert "judgements.json" in reports["label"] and "completions.json" in reports["evaluate"]
    assert any(file.endswith(".png") for file in reports["reward"]), "calibration"
    assert any(file.endswith(".png") for file in reports["evaluate"]), "win rates"
    assert len(client.get_metric_history(stages(first)["ppo"]["run_id"], "reward")) == 2


def test_nothing_is_optimised_against_a_reward_model_below_its_bar(first: dict[str, Any]) -> None:
    refused = rlhf("run", TINY, "--set", "reward.bar.accuracy=1", "--set", "policy.ppo.updates=3")
    assert "The reward model is below its bar: its accuracy on held-out pairs is" in refused.error
    planned = {
        step["name"]: step["reused"] for step in rlhf("plan", TINY, "--set", "reward.bar.accuracy=1").document["stages"]
    }
    assert all(planned.values()), "the bar decides nothing that is built"


def test_prefect_shows_the_run_its_stages_and_the_summary(first: dict[str, Any], services: dict[str, str]) -> None:
    api = services["PREFECT_API_URL"]
    runs = httpx.post(f"{api}/flow_runs/filter", json={"sort": "START_TIME_ASC"}).json()
    named = [run for run in runs if run["name"].startswith("tiny: dpo, ppo, seed 0")]
    mine = [run for run in named if run["state_type"] == "COMPLETED"]
    assert mine and mine[0]["parameters"]["recipe"]["name"] == "tiny"
    chosen = {"flow_runs": {"id": {"any_": [mine[0]["id"]]}}}
    tasks = httpx.post(f"{api}/task_runs/filter", json=chosen).json()
    assert {task["name"] for task in tasks} == EVERY
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    artifacts = {each["key"]: each for each in httpx.post(f"{api}/artifacts/filter", json=chosen).json()}
    artifact = artifacts["rlhf-summary"]
    assert "What to do next" in artifacts["rlhf-label-round"]["data"]
    assert artifact["type"] == "markdown" and "| model |" in artifact["data"]


def test_lineage_walks_from_a_model_to_judgements_and_back(first: dict[str, Any], rlhf_home: Path) -> None:
    merged = stages(first)["merge dpo"]["artifact"]
    document = rlhf("lineage", merged[:12]).document
    found: dict[str, list[str]] = {}

    def walk(node: dict[str, Any]) -> None:
        found.setdefault(node["name"], []).append(node["artifact"])
        for judgement in node.get("judgements", []):
            found.setdefault("judgement", []).append(judgement)
        for child in node["inputs"]:
            walk(child)

    walk(document["artifact"])
    assert {"merge dpo", "dpo", "sft", "base", "data", "preferences", "label", "sample"} <= set(found)
    shaped = rlhf("lineage", "--judgement", found["judgement"][0]).document
    reached = {artifact["artifact"] for artifact in shaped["artifacts"]}
    assert shaped["round"] == stages(first)["label"]["artifact"]
    train = {row["id"] for row in rows_of(rlhf_home, stages(first)["preferences"], "train.jsonl")}
    assert (merged in reached) == bool(train & set(shaped["pairs"])), "held-out pairs shape no model"


def rows_of(home: Path, stage: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Rows of a stage's artifact."""
    text = (home / "store" / stage["artifact"] / name).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_pair_keeps_the_judgements_behind_it(first: dict[str, Any], rlhf_home: Path) -> None:
    known = {row["id"] for row in rows_of(rlhf_home, stages(first)["label"], "judgements.jsonl")}
    for row in rows_of(rlhf_home, stages(first)["preferences"], "train.jsonl"):
        assert row["judgements"] and set(row["judgements"]) <= known and 0 < row["weight"] <= 1


@pytest.mark.slow
def test_the_champion_moves_only_when_the_gate_says_so(first: dict[str, Any], services: dict[str, str]) -> None:
    from mlflow import MlflowClient

    lenient = [
        *("--set", "gate.min_win_rate=0", "--set", "gate.check_tolerance=1", "--set", "gate.max_finished_drop=1"),
        *("--set", "gate.min_distinct_2=0", "--set", "gate.max_length=99", "--set", "gate.min_length=0"),
        *("--set", "name=lenient", "--set", "gate.min_win_rate_vs_champion=0"),
    ]
    strict = ["--set", "name=strict", "--set", "gate.min_win_rate=1"]
    refused = rlhf("run", TINY, *strict).document
    assert not refused["promoted"] and refused["champion"] is None and "not over 1" in refused["reason"]
    assert built(refused) <= {"gate"}
    promoted = rlhf("run", TINY, *lenient).document
    assert promoted["promoted"] and promoted["champion"]["version"] == "1"
    tags = MlflowClient(services["MLFLOW_TRACKING_URI"]).get_model_version("lenient", "1").tags
    assert float(tags["win_rate.mean"]) == pytest.approx(promoted["win_rate"]["vs_sft"]["mean"], rel=1e-3)
    again = rlhf("run", TINY, *lenient).document
    assert again["promoted"] and again["champion"]["version"] == "1" and built(again) == set()
    assert rlhf("lineage", "lenient").document["model"] == "lenient version 1"
    for wrong in ("lenient/99", "lenient@best"):
        assert "its versions are 1: say lenient/1, or lenient@champion" in rlhf("lineage", wrong).error
    other = rlhf("run", TINY, *lenient, "--set", "policy.dpo.learning_rate=1e-5").document
    assert other["win_rate"]["vs_champion"] is not None, "a new candidate is compared with the champion"
    answer = rlhf(
        "chat", "lenient@champion", "--prompt", "Which aisle has the bread?", "--max-new-tokens", "8"
    ).document
    assert isinstance(answer["completion"], str)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "sft.learning_rat=1"], "unknown key 'sft.learning_rat'"),
        (["--set", "policy.0.method=sarsa"], "'dpo'"),
        (["--set", "base.model=./no/such/model"], "does not exist"),
        (["--set", "reward.base=./no/such/model"], "check reward.base, or give a hub id"),
        (["--set", "preferences.source=data"], "go together"),
        (["--set", "policy.0.name=reward"], "means something else"),
        (["--set", "policy.0.name=a b"], "policy.0"),
        (["--set", f"data.shares={NO_RL}"], "need RL prompts"),
        (["--set", "sample.completions_per_prompt=9"], "sample.completions_per_prompt"),
        (["--set", "evaluate.judge=nowhere:judge"], "cannot be imported"),
        (["--labels", "people", "--set", "label.people=[]"], "label"),
    ],
)
def test_a_bad_recipe_is_one_sentence_before_anything_runs(
    services: dict[str, str], arguments: list[str], named: str
) -> None:
    error = rlhf("run", TINY, *arguments).error
    assert named in error and "\n" not in error


def test_unknown_models_and_judgements_are_one_sentence(first: dict[str, Any]) -> None:
    assert "no model or artifact 'nobody'" in rlhf("lineage", "nobody").error
    assert "no/judgement" in rlhf("lineage", "--judgement", "no/judgement").error
    assert "nobody" in rlhf("chat", "nobody", "--prompt", "hi").error


def test_chat_takes_a_plain_model_folder(first: dict[str, Any], rlhf_home: Path) -> None:
    folder = rlhf_home / "store" / stages(first)["merge dpo"]["artifact"] / "model"
    arguments = ["--prompt", "Which aisle has the bread?", "--max-new-tokens", "4", "--temperature", "0"]
    plain, artifact = (rlhf("chat", where, *arguments).document for where in (folder, folder.parent))
    assert plain["completion"] == artifact["completion"]


def test_a_judge_of_the_users_is_found_from_the_current_folder(first: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "my_judge.py").write_text("def short(row, completion):\n    return -len(completion)\n")
    document = rlhf("run", TINY, "--set", "evaluate.judge=my_judge:short", cwd=tmp_path).document
    assert built(document) == {"evaluate", "gate"}


def test_a_champion_whose_files_are_lost_is_not_passed_over(
    first: dict[str, Any], services: dict[str, str], rlhf_home: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(services["MLFLOW_TRACKING_URI"])
    client.create_registered_model("lost")
    source = client.get_run(stages(first)["sft"]["run_id"]).info.artifact_uri
    tags = {"rlhf.key": "0" * 64, "rlhf.digest": "gone"}
    client.create_model_version("lost", f"{source}", run_id=stages(first)["sft"]["run_id"], tags=tags)
    client.set_registered_model_alias("lost", "champion", "1")
    error = rlhf("run", TINY, "--set", "name=lost").error
    assert "champion" in error and "neither here nor in MLflow" in error


def test_what_the_machine_lacks_is_one_sentence_before_anything_runs(services: dict[str, str]) -> None:
    assert "RLHF_WORKERS=0" in rlhf("run", TINY, RLHF_WORKERS="0").error
    error = rlhf("run", TINY, "--set", "policy.ppo.engine=vllm", RLHF_VLLM="/nowhere/vllm").error
    assert "/nowhere/vllm is no program here" in error and "RLHF_VLLM" in error


@pytest.mark.slow
def test_a_budget_chooses_what_is_labelled(first: dict[str, Any], rlhf_home: Path) -> None:
    chosen = 'select={method="random", budget_judgements=80}'
    document = rlhf("run", TINY, "--set", chosen).document
    assert built(document) == EVERY - {"base", "data", "sft", "sample"} | {"select"}

    def asked(run: dict[str, Any]) -> int:
        folder = rlhf_home / "store" / stages(run)["label"]["artifact"]
        return len((folder / "comparisons.jsonl").read_text().splitlines())

    assert 0 < asked(document) <= 40 < asked(first), "two judgements per record"


@pytest.mark.slow
def test_the_gate_refuses_a_policy_that_hacked_the_reward(services: dict[str, str]) -> None:
    document = rlhf("run", ROOT / "deployments" / "recipes" / "overoptimised.toml", "--set", "name=hacked").document
    [candidate] = document["candidates"]
    assert not document["promoted"] and candidate["refused"] and document["champion"] is None
    sure = candidate["win_rate_vs_sft"]["reward_model"]
    assert sure["low"] > candidate["win_rate_vs_sft"]["judge"]["high"], "the reward model is fooled, people are not"
    assert candidate["checks"]["correct"]["high"] < document["sft"]["checks"]["correct"]["low"]
