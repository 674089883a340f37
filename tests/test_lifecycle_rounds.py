"""A run of several rounds: each goes on from the champion of the one before and learns from the judgements of all."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import read_jsonl
from tasks.lineage import Record
from tasks.registry import Registry
from tests.lifecycle_runs import LOOSE, TINY, built, rlhf, stages

pytestmark = pytest.mark.slow
SET = [word for change in ("name=again", 'policy=[{method="dpo", epochs=1}]', *LOOSE) for word in ("--set", change)]


@pytest.fixture(autouse=True)
def environment(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def two(services: dict[str, str]) -> dict[str, Any]:
    """The document of a run with two rounds, both of which end with a new champion."""
    return rlhf("run", TINY, *SET, "--set", "rounds=2").document


def test_each_round_goes_on_from_the_champion_of_the_one_before(two: dict[str, Any], rlhf_home: Path) -> None:
    found = {name: stage["artifact"] for name, stage in stages(two).items()}
    again = ("sample 2", "label 2", "preferences 2", "reward 2", "dpo 2", "merge dpo 2", "evaluate 2", "gate 2")
    assert {"sft", "sample", "gate", *again} <= set(found) and not {"base 2", "data 2", "sft 2"} & set(found)
    lineage = Record().artifacts()
    for name in ("sample 2", "dpo 2", "merge dpo 2"):
        assert lineage[found[name]]["inputs"]["start"] == found["merge dpo"]
        assert "sft" not in lineage[found[name]]["inputs"]
    pooled = lineage[found["preferences 2"]]["inputs"]
    assert pooled["judgements"] == found["label 2"] and pooled["judgements.1"] == found["label"]
    assert lineage[found["evaluate 2"]]["inputs"]["champion"] == found["merge dpo"]

    store = rlhf_home / "store"
    first, second = (read_jsonl(store / found[name] / "train.jsonl") for name in ("preferences", "preferences 2"))
    assert len(second) > len(first) and sum(row["prompt_id"].startswith("1/") for row in second) > 0
    snapshots = [read_jsonl(store / found[name] / "judgements.jsonl") for name in ("label", "label 2")]
    judgements = [{row["id"] for row in rows} for rows in snapshots]
    assert all(set(row["judgements"]) <= judgements[row["prompt_id"].startswith("1/") is False] for row in second)
    held_out = {row["id"] for row in read_jsonl(store / found["data"] / "evaluation.jsonl")}
    asked = {row["id"] for row in read_jsonl(store / found["sample 2"] / "completions.jsonl")}
    assert asked and not asked & held_out


def test_the_document_and_mlflow_show_every_round(two: dict[str, Any]) -> None:
    assert [row["round"] for row in two["rounds"]] == [1, 2] and all(row["promoted"] for row in two["rounds"])
    assert two["rounds"][1]["win_rate"]["vs_champion"] and not two["rounds"][0]["win_rate"]["vs_champion"]
    assert two["rounds"][0]["pairs"] < two["rounds"][1]["pairs"]
    record = Record()
    curve = record.client.get_metric_history(two["run_id"], "round/win_rate_vs_sft")
    assert [(point.step, point.value) for point in curve] == [
        (row["round"], row["win_rate"]["vs_sft"]["mean"]) for row in two["rounds"]
    ]
    assert {"rounds.png", "summary.md"} <= {file.path for file in record.client.list_artifacts(two["run_id"])}
    versions = sorted(Registry(record).versions("again"), key=lambda version: int(version.version))
    assert [(version.round, version.beaten) for version in versions] == [(1, None), (2, versions[0].version)]


def test_labels_show_the_last_round(two: dict[str, Any]) -> None:
    shown = rlhf("labels", TINY, *SET, "--set", "rounds=2").document
    once = rlhf("labels", TINY, *SET).document
    assert shown["round"] != once["round"] and shown["sufficient"] and once["sufficient"]


def test_again_it_builds_nothing_and_one_more_round_builds_only_that(two: dict[str, Any]) -> None:
    again = rlhf("run", TINY, *SET, "--set", "rounds=2").document
    assert built(again) == set() and again["champion"] == two["champion"] and again["rounds"] == two["rounds"]
    planned = json.loads(rlhf("plan", TINY, *SET, "--set", "rounds=3").stdout)["stages"]
    build = {step["name"] for step in planned if not step["reused"]}
    assert build and all(name.endswith(" 3") for name in build)
    three = rlhf("run", TINY, *SET, "--set", "rounds=3").document
    assert built(three) == build and [row["round"] for row in three["rounds"]] == [1, 2, 3]
    assert three["rounds"][:2] == two["rounds"]
    once = rlhf("run", TINY, *SET).document
    assert built(once) == {"evaluate", "gate"}, "with one round its candidate meets the champion of its own third round"
    inputs = Record().artifacts()[stages(once)["evaluate"]["artifact"]]["inputs"]
    assert inputs["champion"] == stages(three)["merge dpo 3"]["artifact"]


def test_somebody_elses_champion_meets_the_last_round_only(two: dict[str, Any]) -> None:
    """While people rank in a later round another recipe may promote: the rounds that are done stay done."""
    other = rlhf("run", TINY, *SET, "--set", "seed=1").document
    assert other["promoted"] and other["champion"]["version"] > two["champion"]["version"]
    again = rlhf("run", TINY, *SET, "--set", "rounds=2").document
    assert built(again) == {"evaluate 2", "gate 2"} and again["rounds"][0] == two["rounds"][0]
    inputs = Record().artifacts()[stages(again)["evaluate 2"]["artifact"]]["inputs"]
    assert inputs["champion"] == stages(other)["merge dpo"]["artifact"]


def test_a_round_that_promotes_nobody_asks_about_other_completions(services: dict[str, str], rlhf_home: Path) -> None:
    refused = [*SET, "--set", "name=stays", "--set", "gate.min_win_rate=0.99", "--set", "rounds=2"]
    document = rlhf("run", TINY, *refused).document
    assert [row["promoted"] for row in document["rounds"]] == [False, False] and document["champion"] is None
    found = {name: stage["artifact"] for name, stage in stages(document).items()}
    assert Record().artifacts()[found["sample 2"]]["inputs"]["sft"] == found["sft"]
    texts = [
        [
            c["text"]
            for row in read_jsonl(rlhf_home / "store" / found[name] / "completions.jsonl")
            for c in row["completions"]
        ]
        for name in ("sample", "sample 2")
    ]
    assert texts[0] != texts[1]


def test_imported_preferences_have_no_rounds() -> None:
    imported = TINY.parents[2] / "deployments" / "recipes" / "imported.toml"
    assert "'rounds' is over 1" in rlhf("run", imported, "--set", "rounds=2").error
