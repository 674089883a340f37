"""Packed rows: bins that hold everything, losses that are the rows' own, models that cannot, and what is chosen."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifact import InputError
from tasks.models.adapters import FullRecipe, LoraRecipe
from tasks.models.chat import Encoded
from tasks.training.engine_batches import LengthBatches, TokenBatches
from tasks.training.hyperparameters import Hyperparameters
from tasks.training.packing import (
    PackedBatches,
    Packing,
    best_fit_decreasing,
    choose_packing,
    packed,
    packed_with_mask,
    packs_exactly,
)
from tasks.training.sft import SftRecipe, train_sft
from tasks.training.sft_engine import LanguageTrainer, fit_language_model
from tests.tiny_models import demonstrations, tiny_model, tiny_tokenizer, trainer_loss, work_in

ROWS = [Encoded([1, *range(10, 10 + n)], [0, *[0] * (n // 3), *[1] * (n - n // 3)]) for n in (4, 9, 2, 17, 30)]
SMALL = {"vocab_size": 320, "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0}
LLAMA_LIKE = {**SMALL, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 128}
KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {**LLAMA_LIKE, "num_key_value_heads": 1},
    "qwen3": {**LLAMA_LIKE, "head_dim": 16, "num_key_value_heads": 2},
    "gemma": {**LLAMA_LIKE, "head_dim": 16, "num_key_value_heads": 1},
    "mistral": {**LLAMA_LIKE, "num_key_value_heads": 1, "sliding_window": 8},
    "opt": {**SMALL, "hidden_size": 32, "ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 2},
}


def made(kind: str) -> Any:
    if kind in ("llama", "gpt2"):
        return tiny_model(kind)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # weights so small as the usual ones would hide who sees whom
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


# --- bins ------------------------------------------------------------------------------------------------------------


def test_bins_by_hand() -> None:
    assert best_fit_decreasing([2, 6, 5, 4, 3], 10) == [[1, 3], [2, 4, 0]]
    assert best_fit_decreasing([], 10) == []
    with pytest.raises(ValueError, match="11 tokens"):
        best_fit_decreasing([3, 11], 10)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 100))
def test_every_row_is_in_one_bin_and_no_two_bins_could_be_one(lengths: list[int], capacity: int) -> None:
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(place for each in bins for place in each) == list(range(len(lengths)))
    sums = sorted(sum(lengths[place] for place in each) for each in bins)
    assert all(each <= capacity for each in sums)
    assert len(sums) < 2 or sums[0] + sums[1] > capacity
    assert len(bins) <= 11 / 9 * len(lengths) + 6 / 9


def test_batches_hold_every_row_once_an_epoch_and_about_as_many_tokens() -> None:
    lengths = [5 + n % 37 for n in range(203)]
    batches = PackedBatches(lengths, 8, 2, seed=1)
    drawn = list(batches)
    assert len(drawn) == len(batches) and sorted(i for batch in drawn for i in batch) == sorted([*range(203)] * 2)
    sums = [sum(lengths[i] for i in batch) for batch in drawn]
    assert max(sums) <= batches.capacity == -(-8 * sum(lengths) // 203)
    assert len(drawn) <= 1.1 * len(list(LengthBatches(lengths, 8, 2, seed=1)))
    assert drawn == list(PackedBatches(lengths, 8, 2, seed=1)) != list(PackedBatches(lengths, 8, 2, seed=2))


def test_batches_of_as_many_tokens() -> None:
    lengths = [5 + n % 37 for n in range(203)]
    batches = TokenBatches(lengths, 8, 1, seed=1)
    drawn = list(batches)
    assert len(drawn) == len(batches) and sorted(i for batch in drawn for i in batch) == list(range(203))
    assert max(len(batch) * max(lengths[i] for i in batch) for batch in drawn) <= 8 * sum(lengths) / 203
    assert len({len(batch) for batch in drawn}) > 3 and batches.padding_share() < 0.15
    batches.whole = True
    assert {len(batch) for batch in batches} == {8} and len(batches) == 26
    one = TokenBatches([900, 1, 1, 1], 1, 1, seed=0)
    assert sorted(map(sorted, one)) == [[0], [1, 2, 3]]


def test_the_share_of_padding_by_hand() -> None:
    batches = LengthBatches([4, 4, 2, 1], 2, 1, seed=0)
    assert batches.padding_share() == pytest.approx(1 / 12)
    assert PackedBatches([4, 4, 2, 1], 2, 1, seed=0).padding_share() == 0


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3", "gemma", "mistral", "opt"])
def test_a_packed_rows_losses_are_the_rows_own(kind: str) -> None:
    model = made(kind).eval()
    collate, why = choose_packing("always", model, ROWS)
    assert (
        collate is not None
        and collate == (packed_with_mask if kind == "opt" else packed)
        and "as if it were alone" in why
    )
    alone = sum(_summed(model, packed([row])) for row in ROWS)
    together = collate(ROWS)
    assert together["items"] == sum(sum(row.labels_mask) for row in ROWS)
    assert _summed(model, together) == pytest.approx(alone, rel=1e-5)
    merged = {name: together[name] for name in ("input_ids", "mask", "items")}
    assert _summed(model, merged) != pytest.approx(alone, rel=1e-3), "the rows would see each other"


def _summed(model: Any, batch: dict[str, Any]) -> float:
    return trainer_loss(LanguageTrainer, model, batch) * batch["items"]


def test_a_packed_step_is_the_step_over_the_rows(tmp_path: Path) -> None:
    rows = [Encoded([1, *range(10 * n, 10 * n + 12)], [0] * (n + 1) + [1] * (12 - n)) for n in range(2, 8)]
    recipe = Hyperparameters(
        adapter=FullRecipe(), batch_size=len(rows), warmup=0, max_grad_norm=1e9, learning_rate=1e-3, schedule="constant"
    )
    after: list[dict[str, torch.Tensor]] = []
    for packing in ("never", "always"):
        model, work = tiny_model(), work_in(tmp_path / packing)
        state = fit_language_model(model, tiny_tokenizer(), rows, recipe, work, packing=packing)
        after.append(model.state_dict())
        assert state.global_step == 1 and work.metrics["packed"] == (packing == "always")
    for name, weight in after[0].items():
        torch.testing.assert_close(weight, after[1][name], atol=2e-5, rtol=1e-3)


def test_a_model_that_cannot_keep_rows_apart_is_refused() -> None:
    model = made("bloom")
    assert not packs_exactly(model, ROWS)
    with pytest.raises(InputError, match=r"bloom models .* do not keep packed rows apart"):
        choose_packing("always", model, ROWS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is chosen without a GPU")
def test_without_a_kernel_rows_are_grouped_by_length_and_the_report_says_why(tmp_path: Path, base: Path) -> None:
    data = demonstrations(tmp_path / "data")
    cases: dict[Packing, str] = {"auto": "no kernel", "never": "says so", "always": "as if it were alone"}
    for packing, words in cases.items():
        work = work_in(tmp_path / packing)
        recipe = SftRecipe(adapter=LoraRecipe(rank=4), epochs=1, packing=packing)
        train_sft(recipe, {"base": base, "data": data}, work)
        assert words in (work.out / "report" / "batching.md").read_text()
        assert work.metrics["packed"] == (packing == "always")
        assert 0 <= work.metrics["padding_share"] < 0.2


def test_several_devices_are_not_given_packed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_packing("auto", tiny_model(), ROWS)[0] is None
    with pytest.raises(InputError, match="Several devices"):
        choose_packing("always", tiny_model(), ROWS)
