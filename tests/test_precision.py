"""Precision and reproducibility: what "auto" decides, the same bytes from the same recipe, the same loss otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models.adapters import LoraRecipe
from tasks.models.loading import load_causal_lm
from tasks.store import _content_digest, _describe
from tasks.training import precision
from tasks.training.direct import DpoRecipe, train_direct
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.sft import SftRecipe, train_sft
from tests.tiny_models import demonstrations, work_in

LORA = LoraRecipe(rank=4)
CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a CPU")


@CPU
def test_auto_takes_bf16_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(precision, "has_bf16", lambda has=has: has)
        assert precision.choose("auto", 14_999_999)[0] is False
        assert precision.choose("auto", 15_000_000)[0] is has
        assert precision.choose("bf16", 1000)[0] and not precision.choose("fp32", 10**9)[0]
    assert "1.0M parameters" in precision.choose("auto", 1_000_000)[1]
    assert "neither avx512_bf16" in precision.choose("auto", 10**9)[1]


@pytest.fixture
def inputs(tmp_path: Path, chain: dict[str, Path]) -> dict[str, Path]:
    return chain | {"data": demonstrations(tmp_path / "rows")}


@CPU
@pytest.mark.parametrize(
    ("train", "recipe"),
    [
        (train_sft, SftRecipe(adapter=LoraRecipe(rank=4, dropout=0.1), epochs=1, precision="bf16")),
        (train_reward, RewardRecipe(adapter=LORA, epochs=1, members=2)),
        (train_direct, DpoRecipe(adapter=LORA, epochs=1)),
    ],
    ids=["sft", "reward", "dpo"],
)
def test_the_same_recipe_and_seed_are_the_same_bytes(
    tmp_path: Path, inputs: dict[str, Path], train: Callable[..., None], recipe: Any
) -> None:
    digests = []
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        torch.manual_seed(len(digests))  # what happened before must not matter
        work = work_in(tmp_path / name, seed)
        train(recipe, inputs, work)
        digests.append(_content_digest(_describe(work.out)))
    assert digests[0] == digests[1] != digests[2]


@CPU
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"precision": "bf16"}, 0.05),
        ({"gradient_checkpointing": True}, 1e-5),
        ({"accumulation": 2, "batch_size": 4}, 0.02),
    ],
    ids=["bf16", "checkpointing", "accumulation"],
)
def test_the_loss_stays_what_it_is(
    tmp_path: Path, inputs: dict[str, Path], settings: dict[str, Any], tolerance: float
) -> None:
    losses = []
    for name, given in (("plain", {}), ("other", settings)):
        work = work_in(tmp_path / name)
        train_sft(SftRecipe.model_validate({"adapter": LORA, "epochs": 4, "batch_size": 8} | given), inputs, work)
        losses.append(work.metrics["last_loss"])
        assert work.metrics["bf16"] == (given.get("precision") == "bf16")
        assert "fp32" in (work.out / "report" / "precision.md").read_text() or given.get("precision") == "bf16"
    assert losses[1] == pytest.approx(losses[0], abs=tolerance)
    if "precision" in settings:
        assert losses[1] != losses[0], "it was computed otherwise"


@CPU
def test_dpo_in_bf16_starts_from_its_reference(tmp_path: Path, inputs: dict[str, Path]) -> None:
    work, seen = work_in(tmp_path / "dpo"), []
    work.on_log = lambda metrics, step: seen.append(metrics)
    recipe = DpoRecipe(adapter=LORA, epochs=40, sft_weight=0, precision="bf16", learning_rate=1e-9)
    train_direct(recipe, inputs, work)
    assert seen[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)


@CPU
def test_an_adapters_own_weights_do_not_change_the_precision_under_way(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference has just too few parameters for bf16, and an adapter more than the policy needs for it."""
    below = load_causal_lm([inputs["base"], inputs["sft"]])
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    monkeypatch.setattr(precision, "WORTH_IT", sum(p.numel() for p in below.parameters()) + 1)
    work, seen = work_in(tmp_path / "dpo"), []
    work.on_log = lambda metrics, step: seen.append(metrics)
    recipe = DpoRecipe(adapter=LORA, epochs=20, sft_weight=0, learning_rate=1e-9)
    train_direct(recipe, inputs, work)
    assert not work.metrics["bf16"] and "fp32" in (work.out / "report" / "precision.md").read_text()
    margins = [metrics["rewards/margins"] for metrics in seen if "rewards/margins" in metrics]
    assert margins[0] == pytest.approx(0, abs=1e-6)
