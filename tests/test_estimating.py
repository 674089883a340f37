"""What a run is said to cost: memory as it is taken, tokens as they are, money as it adds up."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flows.recipe import LifecycleRecipe
from tasks.data.prepare import ShopData, prepare_data
from tasks.estimating import Prices, estimate, histogram
from tasks.models.adapters import FullRecipe, LoraRecipe, PrefixTuningRecipe, PTuningRecipe, attach
from tasks.recipe import load_recipe
from tasks.training.footprint import _Peak, _step, cache_bytes, of_step
from tests.lifecycle_runs import TINY
from tests.tiny_models import LAYOUTS, tiny_model, work_in


@pytest.mark.parametrize("adapter", [LoraRecipe(rank=4), FullRecipe()], ids=lambda recipe: recipe.kind)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_a_step_is_counted_as_it_is_taken(kind: str, adapter: Any) -> None:
    model: Any = tiny_model(kind).requires_grad_(False)
    said = of_step(model.config, adapter, rows=8, length=64, kept=200)
    model = attach(model, adapter).train()
    held = sum(p.nbytes for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert said.trainable == sum(p.numel() for p in trained)
    assert said.weights == held and said.gradients == sum(p.nbytes for p in trained)
    assert said.optimizer == 2 * said.gradients
    with _Peak() as seen:
        _step(model, 8, 64, 200, None)
    assert said.activations + said.gradients == pytest.approx(seen.most, rel=0.1)
    fewer = of_step(model.config, adapter, rows=8, length=64, kept=200, checkpointing=True)
    assert fewer.activations < 0.8 * said.activations


@pytest.mark.parametrize("recipe", [PTuningRecipe(virtual_tokens=5, width=8), PrefixTuningRecipe(virtual_tokens=5)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", *LAYOUTS])
def test_soft_prompts_are_counted_without_being_made(kind: str, recipe: Any) -> None:
    model: Any = tiny_model(kind)
    said = of_step(model.config, recipe, rows=2, length=16, kept=8)
    made = attach(model, recipe)
    assert said.trainable == sum(p.numel() for p in made.parameters() if p.requires_grad)


def test_a_cache_is_as_large_as_it_is() -> None:
    model: Any = tiny_model("qwen3").eval()
    ids = torch.ones(3, 7, dtype=torch.long)
    layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    assert cache_bytes(model.config, 3, 7) == sum(each.keys.nbytes + each.values.nbytes for each in layers)


def test_a_recipe_has_its_price(tmp_path: Path) -> None:
    recipe = load_recipe(LifecycleRecipe, TINY, ["label.source=people"])
    prices = Prices(machine_hour=3600.0, label_hour=20.0, seconds_per_judgement=30)
    work = work_in(tmp_path)
    prepare_data(recipe.data, {}, work)
    found = estimate(recipe, prices, work.out)
    names = [row["stage"] for row in found["stages"]]
    assert names[:2] == ["base", "sft"] and {policy.name or policy.method for policy in recipe.policy} <= set(names)
    rows = {row["stage"]: row for row in found["stages"]}
    assert all(row["hours"] > 0 and row["total"] >= row["weights"] > 0 for row in rows.values())
    assert rows["sft"]["rule"] == 1.2 * 4 * found["parameters"]
    assert found["judgements"] % recipe.label.min_submitted == 0 and found["judgements"] > 0
    assert found["label_hours"] == pytest.approx(found["judgements"] * 30 / 3600)
    assert found["cost"] == pytest.approx(3600 * found["machine_hours"] + 20 * found["label_hours"])
    assert isinstance(recipe.data, ShopData) and sum(found["lengths"].values()) > 0
    nobody = estimate(load_recipe(LifecycleRecipe, TINY), prices, work.out)
    assert nobody["judgements"] == 0 == nobody["label_hours"]  # simulated annotators take no one's time


def test_a_histogram_counts_by_powers_of_two() -> None:
    assert histogram([1, 8, 9, 16, 17, 300]) == {"8": 2, "16": 2, "32": 1, "512": 1}
