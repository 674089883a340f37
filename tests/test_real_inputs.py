"""Whole runs on input that others made: a pretrained model without chat template, and an existing preference file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lifecycle_runs import ROOT, built, rlhf, stages

SHARED = ROOT.parent / "shared" / "data"
RECIPES = ROOT / "deployments" / "recipes"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the project: it is other people's data and not part of it")
    return path


def manifest(home: Path, document: dict[str, Any], stage: str) -> dict[str, Any]:
    return json.loads((home / "store" / stages(document)[stage]["artifact"] / "manifest.json").read_text())


@pytest.mark.slow
def test_a_pretrained_model_without_template_and_pad_token_runs_whole(
    services: dict[str, str], rlhf_home: Path
) -> None:
    model = shared("stories260K")
    arguments = [
        *("--set", f"base.model={model}", "--set", "name=stories"),
        *("--set", "sft.adapter.kind=full", "--set", "sample.max_new_tokens=64", "--set", "evaluate.max_new_tokens=64"),
    ]  # it never saw its EOS, and a LoRA adapter leaves the embeddings as they are
    document = rlhf("run", RECIPES / "pretrained.toml", *arguments).document
    base = rlhf_home / "store" / stages(document)["base"]["artifact"]
    assert not list(base.rglob("*.safetensors")), "the weights stay where they are"
    tokenizer = json.loads((base / "tokenizer" / "tokenizer_config.json").read_text())
    assert tokenizer["pad_token"] != tokenizer["eos_token"]
    assert (rlhf_home / "store" / stages(document)["merge dpo"]["artifact"] / "model" / "model.safetensors").exists()
    assert document["candidates"][0]["finished"] > 0.5, "it learns to end its answers"
    assert built(rlhf("run", RECIPES / "pretrained.toml", *arguments).document) == set()


@pytest.mark.slow
def test_existing_preferences_take_the_place_of_labeling(services: dict[str, str], rlhf_home: Path) -> None:
    model = shared("stories260K")
    [file] = shared("hh-rlhf").glob("*.jsonl")
    arguments = [
        *("--set", f"base.model={model}", "--set", f"data.path={file}", "--set", "name=hh"),
        *("--set", "sft.dropped_limit=1", "--set", "reward.dropped_limit=1", "--set", "policy.dpo.dropped_limit=1"),
    ]
    document = rlhf("run", RECIPES / "imported.toml", *arguments).document
    assert "label" not in stages(document) and document["judge"] == "reward_model"
    data = manifest(rlhf_home, document, "data")
    assert data["metrics"]["dropped/all"] > 0, "its broken pairs are counted"
    folder = rlhf_home / "store" / stages(document)["data"]["artifact"]
    dropped = json.loads((folder / "report" / "dropped.json").read_text())
    assert len(dropped["data"]) == data["metrics"]["dropped/all"] and "reason" in dropped["columns"]
    assert document["win_rate"]["vs_sft"]["low"] <= document["win_rate"]["vs_sft"]["high"]


@pytest.mark.slow
def test_bad_files_are_one_sentence(services: dict[str, str], tmp_path: Path) -> None:
    tiny = ROOT / "tests" / "recipes" / "tiny.toml"

    def error(text: str | None) -> str:
        path = tmp_path / "rows.jsonl"
        if text is not None:
            path.write_text(text)
        return rlhf("run", tiny, "--set", f'data={{source="jsonl", path="{path}"}}').error

    assert "does not exist" in error(None) or "cannot be read" in error(None)
    assert "empty" in error("")
    assert "row 2 has no prompt" in error('{"prompt": "Hello?", "completion": "Hi."}\n{"completion": "No prompt."}\n')
