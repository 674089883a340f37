"""What a configuration alone says a model cannot do is refused before anything is built."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from flows.recipe import LifecycleRecipe
from tasks.foresight import check_models
from tasks.recipe import RecipeError
from tests.tiny_models import tiny_model


def recipe_of(folder: Path, **parts: Any) -> LifecycleRecipe:
    whole = {"name": "one", "base": {"model": str(folder)}, "policy": [{"method": "dpo"}, {"method": "grpo"}]}
    return LifecycleRecipe.model_validate(whole | parts)


def configured(folder: Path, kind: str) -> Path:
    """A model's folder without its weights."""
    tiny_model(kind).config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2", "granite", "mixtral"])
def test_what_can_be_is_let_pass(tmp_path: Path, kind: str) -> None:
    assert check_models(recipe_of(configured(tmp_path, kind)))


@pytest.mark.parametrize(
    ("kind", "parts", "words"),
    [
        ("llama", {"sft": {"adapter": {"kind": "lora", "ranks": {"query": 2}}}}, "sft: adapter.ranks names 'query'"),
        (
            "llama",
            {"policy": [{"method": "dpo", "adapter": {"kind": "lora", "targets": ["layers.0"]}}]},
            "policy.dpo: adapter.targets names 'layers.0', which is no layer",
        ),
        ("mixtral", {"reward": {"adapter": {"kind": "dora"}}}, "reward: The experts of this model are one tensor"),
        ("llama", {"evaluate": {"max_new_tokens": 200}}, "evaluate.max_new_tokens is 200, and the base has 128"),
        (
            "llama",
            {"sft": {"adapter": {"kind": "prompt_tuning", "virtual_tokens": 100}}},
            r"sample.max_new_tokens is 48, and the base has 128 positions \(100 of them for the soft prompt\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, kind: str, parts: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check_models(recipe_of(configured(tmp_path, kind), **parts))


def test_a_base_that_is_made_here_is_looked_at_too() -> None:
    whole: dict[str, Any] = {"name": "one", "policy": [{"method": "dpo"}]}
    assert check_models(LifecycleRecipe.model_validate(whole))
    with pytest.raises(RecipeError, match=r"evaluate\.max_new_tokens is 600, and the base has 512 positions"):
        check_models(LifecycleRecipe.model_validate(whole | {"evaluate": {"max_new_tokens": 600}}))
    with pytest.raises(RecipeError, match=r"sft: adapter\.modules_to_save names 'wte'"):
        adapter = {"kind": "lora", "modules_to_save": ["wte"]}
        check_models(LifecycleRecipe.model_validate(whole | {"sft": {"adapter": adapter}}))


def test_a_hub_model_that_was_never_fetched_is_looked_at_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    whole = {"name": "one", "policy": [{"method": "dpo"}], "base": {"model": "nobody/nothing"}}
    assert not check_models(LifecycleRecipe.model_validate(whole))


def test_a_prefix_needs_keys_and_values_in_every_layer(tmp_path: Path) -> None:
    adapter = {"kind": "prefix_tuning"}
    AutoConfig.for_model(
        "lfm2", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, layer_types=["conv", "full_attention"],
    ).save_pretrained(tmp_path / "lfm2")  # fmt: skip
    with pytest.raises(RecipeError, match="sft: Lfm2ForCausalLM keeps no keys and values in some layers"):
        check_models(recipe_of(tmp_path / "lfm2", sft={"adapter": adapter}))
    narrow = configured(tmp_path / "gemma2", "gemma2")
    with pytest.raises(
        RecipeError, match=r"reward: Gemma2\w+ has layers that see 8 tokens, in which a prefix of 16 has no"
    ):
        check_models(recipe_of(narrow, reward={"adapter": adapter}))
    assert check_models(recipe_of(narrow, sft={"adapter": adapter | {"virtual_tokens": 4}}))


def test_virtual_tokens_before_layers_that_look_tokens_up_are_refused(tmp_path: Path) -> None:
    AutoConfig.for_model(
        "gemma4_text", vocab_size=320, vocab_size_per_layer_input=320, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=64, hidden_size_per_layer_input=8,
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(RecipeError, match="sft: Gemma4ForCausalLM looks its tokens up in every layer"):
        check_models(recipe_of(tmp_path, sft={"adapter": {"kind": "p_tuning"}}))


def test_a_base_that_cannot_be_sampled_from_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("openai-gpt", n_embd=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="sft: openai-gpt models keep what they have read nowhere"):
        check_models(recipe_of(tmp_path))


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("bert", {}, "sft: bert models read a text in both directions"),
        ("roberta", {"is_decoder": True}, "sft: roberta models count their positions by the padding"),
        ("bart", {}, "sft: bart models read with an encoder and write with a decoder"),
        ("t5", {}, "sft: t5 models read with an encoder and write with a decoder"),
        ("vit", {}, "transformers makes no language model of this vit configuration; set base.model"),
        ("reformer", {"is_decoder": False}, r"no language model of this reformer configuration \(.*is_decoder=True"),
    ],
)
def test_a_base_that_is_no_decoder_is_refused(tmp_path: Path, kind: str, more: dict[str, Any], words: str) -> None:
    AutoConfig.for_model(kind, **more).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=words):
        check_models(recipe_of(tmp_path))


def test_an_encoder_that_was_made_a_decoder_is_let_pass(tmp_path: Path) -> None:
    AutoConfig.for_model("bert", is_decoder=True, num_hidden_layers=2).save_pretrained(tmp_path)
    assert check_models(recipe_of(tmp_path))
