"""What a run is said to cost: memory as it is taken, tokens as they are, money as it adds up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config
from trl.trainer.utils import add_fused_lm_head

from flows.costs import show_costs
from flows.recipe import LifecycleRecipe
from tasks.data.prepare import ShopData, prepare_data
from tasks.estimating import Prices, estimate, histogram
from tasks.models.adapters import FullRecipe, LoraRecipe, PrefixTuningRecipe, PTuningRecipe, attach
from tasks.models.loading import positions_of
from tasks.probing import probe
from tasks.recipe import load_recipe
from tasks.sampling.completions import SampleRecipe
from tasks.stage_memory import Lengths, memory_of
from tasks.training.direct import DpoRecipe
from tasks.training.footprint import _loss, _Peak, cache_bytes, of_sampling, of_step, parameters_of
from tasks.training.grpo import GrpoRecipe
from tasks.training.ppo import PpoRecipe
from tasks.training.rejection import RejectionRecipe
from tasks.training.reward import RewardRecipe
from tasks.training.rewards import FunctionReward
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
        _loss(model, 8, 64, 200, None, grouped=False, masked=False).backward()
    assert said.activations + said.gradients == pytest.approx(seen.most, rel=0.1)
    fewer = of_step(model.config, adapter, rows=8, length=64, kept=200, checkpointing=True)
    assert fewer.activations < 0.8 * said.activations


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_step_of_a_group_is_counted_as_trl_takes_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model(kind).requires_grad_(False)
    said = of_step(model.config, LoraRecipe(rank=4), rows=8, length=64, kept=512, grouped=True)
    apart = of_step(model.config, LoraRecipe(rank=4), rows=8, length=64, kept=512)
    assert said.activations > apart.activations, "a tile's gradient is made of several of its size"
    entries = model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", entries)  # the rest is never written to
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model, ids = attach(model, LoraRecipe(rank=4)).train(), torch.zeros(8, 64, dtype=torch.long)
    with _Peak() as seen:
        model(input_ids=ids, shift_labels=ids, fused_lm_head=True).log_probs.sum().backward()
    assert said.activations + said.gradients == pytest.approx(seen.most, rel=0.1)


@pytest.mark.parametrize("recipe", [PTuningRecipe(virtual_tokens=5, width=8), PrefixTuningRecipe(virtual_tokens=5)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", *LAYOUTS])
def test_soft_prompts_are_counted_without_being_made(kind: str, recipe: Any) -> None:
    model: Any = tiny_model(kind)
    said = of_step(model.config, recipe, rows=2, length=16, kept=8)
    made = attach(model, recipe)
    assert said.trainable == sum(p.numel() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("more", [{"multi_query": True}, {"new_decoder_architecture": True, "num_kv_heads": 2}])
def test_keys_are_as_wide_as_falcon_has_them(more: dict[str, Any]) -> None:
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 320}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **shape, alibi=False, **more))
    recipe = PrefixTuningRecipe(virtual_tokens=5)
    made = attach(model, recipe)
    said = of_step(model.config, recipe, rows=2, length=16, kept=8)
    assert said.trainable == sum(p.numel() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "granite", "qwen2_moe", "mixtral"])
def test_every_stage_of_a_layout_is_counted(kind: str) -> None:
    """As their configurations are on the hub: Llama-3's and GPT-2's say nothing of a pad token."""
    config: Any = tiny_model(kind).config
    config.pad_token_id = None
    for scored in (False, True):
        assert of_step(config, LoraRecipe(rank=2), 4, 16, 8, scored=scored).activations > 0
    assert of_sampling(config, 2, 3, 8, 4) >= cache_bytes(config, 6, 12)
    assert probe(config).token > 0, "of one layer and of three, whatever is listed for each"


def test_a_model_that_also_sees_is_counted_by_its_text() -> None:
    text: Any = tiny_model("gemma3_text").config
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision | {"image_size": 28, "patch_size": 14})
    assert (
        of_step(config, PrefixTuningRecipe(virtual_tokens=5), 2, 16, 8).trainable
        == of_step(text, PrefixTuningRecipe(virtual_tokens=5), 2, 16, 8).trainable
    )
    assert cache_bytes(config, 3, 7) == cache_bytes(text, 3, 7) and positions_of(config) == 128
    assert of_sampling(config, 2, 3, 8, 4, features=True) >= cache_bytes(text, 6, 12)
    assert probe(config).decoded > 0


def test_what_cannot_be_counted_is_told_and_does_not_end_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_values(*given: Any, **more: Any) -> Any:
        raise RuntimeError("data-dependent")

    recipe = load_recipe(LifecycleRecipe, TINY)
    work = work_in(tmp_path)
    prepare_data(recipe.data, {}, work)
    monkeypatch.setattr("tasks.training.footprint.of_step", by_values)
    found = estimate(recipe, Prices(), work.out)
    row = next(row for row in found["stages"] if row["stage"] == "sft")
    assert row["total"] == row["rule"] > 0 and row["activations"] is None and row["hours"] > 0
    assert len(found["notes"]) == 1 and "llama models cannot be computed without values" in found["notes"][0]
    monkeypatch.setattr("flows.costs.prepared", lambda *given: (work.out, None))
    show_costs(recipe, Prices(), as_json=False)


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


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("reward", RewardRecipe(batch_size=4)),
        ("dpo", DpoRecipe(batch_size=4)),
        ("ppo", PpoRecipe(episodes=8, max_new_tokens=8)),
        ("grpo", GrpoRecipe(prompts=2, completions_per_prompt=4, max_new_tokens=8)),
        ("rejection", RejectionRecipe(max_new_tokens=8)),
        ("sample", SampleRecipe(max_new_tokens=8)),
    ],
)
def test_what_is_beside_a_step_is_counted(kind: str, part: Any) -> None:
    config, lengths = tiny_model().config, Lengths([30] * 8, [10] * 8, dict.fromkeys(("compared", "rl"), [20] * 8))
    found = memory_of(kind, part, config, lengths, 2, 10)
    weights = 4.0 * parameters_of(config)
    assert found["total"] >= found["weights"] + found["optimizer"] + max(found["activations"], found["cache"])
    if kind in ("ppo", "grpo", "rejection", "sample"):
        assert found["cache"] >= cache_bytes(config, 8, 28), "keys and values, and more"
        longer = memory_of(kind, part.model_copy(update={"max_new_tokens": 80}), config, lengths, 2, 10)
        assert longer["cache"] > 1.8 * found["cache"]
    if kind in ("ppo", "grpo"):
        assert found["weights"] > 1.8 * weights, "the reward model"
        every = memory_of(kind, part.model_copy(update={"adapter": FullRecipe()}), config, lengths)
        assert every["weights"] > 2.6 * weights, "and a reference"
        shared = memory_of(kind, part.model_copy(update={"share_base": True}), config, lengths)
        assert weights < shared["weights"] < 1.5 * weights
        text = [FunctionReward(function="tests.tiny_policies:apples")]
        assert memory_of(kind, part.model_copy(update={"rewards": text}), config, lengths)["weights"] < 1.5 * weights


def test_a_model_is_estimated_by_its_configuration_alone(tmp_path: Path) -> None:
    from tests.tiny_models import tiny_tokenizer

    work = work_in(tmp_path)
    folder = tmp_path / "model"
    tiny_model("gpt2").config.save_pretrained(folder)
    changes = [f'base={{model="{folder}"}}', 'sft.adapter={kind="qlora"}']
    recipe = load_recipe(LifecycleRecipe, TINY, changes)
    prepare_data(recipe.data, {}, work)
    found = estimate(recipe, Prices(), work.out)
    assert found["parameters"] == parameters_of(tiny_model("gpt2").config)
    assert len(found["notes"]) == 2 and "weights are not here" in found["notes"][0]
    assert sum(found["lengths"].values()) == len((work.out / "sft.jsonl").read_text().splitlines())
    tiny_tokenizer().save_pretrained(folder)
    assert len(estimate(recipe, Prices(), work.out)["notes"]) == 1
