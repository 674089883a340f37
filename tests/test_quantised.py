"""QLoRA: adapters on 4-bit weights, by every trainer, used on the full weights afterwards."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.recipe import LifecycleRecipe
from tasks.artifact import InputError, read_jsonl
from tasks.merging import MergeRecipe, merge_policy
from tasks.models.adapters import FullRecipe, LoraRecipe, QloraRecipe, attach, save
from tasks.models.loading import load_causal_lm, twin
from tasks.models.quantised import is_quantised, quantise, trained_quantised
from tasks.training.direct import DpoRecipe, train_direct
from tasks.training.grpo import GrpoRecipe, train_groups
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_scoring import RewardScorer
from tasks.training.sft import SftRecipe, train_sft
from tests.tiny_models import demonstrations, preferences, tiny_base, work_in
from tests.tiny_rewards import reward_base

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (make qlora runs these)"
)
QLORA = QloraRecipe(rank=4)
IDS = torch.tensor([[1, 9, 33, 40]])
SMALL = {"updates": 3, "max_new_tokens": 5, "learning_rate": 5e-3, "adapter": QLORA}


@needs_bitsandbytes
def test_weights_are_small_and_about_the_same(base: Path) -> None:
    whole, model = load_causal_lm([base]), load_causal_lm([base])
    policy: Any = attach(model, QLORA)
    assert is_quantised(policy) and not is_quantised(whole)
    body = whole.model.layers  # type: ignore[union-attr]
    for layer in (policy.get_output_embeddings(), policy.get_input_embeddings()):
        assert layer.weight.dtype == torch.float32, "what makes logits of features stays"
    frozen = sum(p.nbytes for p in policy.base_model.model.model.layers.parameters() if not p.requires_grad)
    assert frozen < sum(p.nbytes for p in body.parameters()) / 5, "a half byte for four, and the norms"
    with torch.no_grad():
        apart = (policy(input_ids=IDS).logits - whole(input_ids=IDS).logits).abs()
    assert 0 < float(apart.mean()) < 0.5 * float(whole(input_ids=IDS).logits.std())


@needs_bitsandbytes
def test_it_learns_and_is_used_on_the_full_weights(base: Path, tmp_path: Path) -> None:
    inputs, work = {"base": base, "data": demonstrations(tmp_path / "data")}, work_in(tmp_path / "sft")
    train_sft(SftRecipe(adapter=QLORA, epochs=20, batch_size=8), inputs, work)
    assert work.metrics["last_loss"] < 0.85 * work.metrics["first_loss"]
    assert trained_quantised(work.out / "adapter")
    model = load_causal_lm([base, work.out])
    assert not is_quantised(model)
    assert not torch.allclose(model(input_ids=IDS).logits, load_causal_lm([base])(input_ids=IDS).logits)


@needs_bitsandbytes
def test_a_reward_model_on_a_whole_sft_model_is_stored_in_full(base: Path, tmp_path: Path) -> None:
    """Never merged into 4 bits; and its mean and deviation are those of the stored model."""
    sft, work = work_in(tmp_path / "sft"), work_in(tmp_path / "reward")
    train_sft(SftRecipe(adapter=FullRecipe(), epochs=1), {"base": base, "data": demonstrations(tmp_path / "data")}, sft)
    given = {"base": base, "sft": sft.out, "preferences": preferences(tmp_path / "preferences")}
    train_reward(RewardRecipe(adapter=QLORA, epochs=1), given, work)
    assert (work.out / "model").is_dir() and not (work.out / "adapter").exists()
    scorer = RewardScorer(base, work.out)
    assert not is_quantised(scorer.model)
    rows = read_jsonl(given["preferences"] / "train.jsonl")
    pairs = [(row["prompt"], row[side][0]["content"]) for row in rows for side in ("chosen", "rejected")]
    completions = {json.dumps(pair): pair for pair in pairs}
    prompts, texts = zip(*completions.values(), strict=True)
    scores = scorer.score(prompts, texts, [True] * len(texts))
    assert sum(scores) / len(scores) == pytest.approx(work.metrics["reward_mean"], abs=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_reward_model_on_an_encoder_keeps_its_head_whole(chain: dict[str, Path], tmp_path: Path, kind: str) -> None:
    work = work_in(tmp_path / "reward")
    recipe = RewardRecipe(base=str(reward_base(tmp_path / kind, kind)), adapter=QLORA, epochs=2)
    train_reward(recipe, {"preferences": chain["preferences"]}, work)
    scorer = RewardScorer(tmp_path / "nowhere", work.out)
    assert not is_quantised(scorer.model)
    prompt: Any = [{"role": "user", "content": "Where is item 3?"}]
    assert len({round(s, 5) for s in scorer.score([prompt] * 2, ["Aisle 3. Thank you!", "Go away."], [True] * 2)}) == 2


@needs_bitsandbytes
def test_a_value_model_of_its_own_is_on_the_same_small_weights(chain: dict[str, Path]) -> None:
    start = load_causal_lm([chain["base"], chain["sft"]])
    quantise(start)
    trunk: Any = attach(twin(start), QLORA)
    policy: Any = attach(start, QLORA)
    small = [{p.data_ptr() for p in model.parameters() if not p.requires_grad} for model in (trunk, policy)]
    assert small[0] == small[1]
    assert torch.equal(trunk(input_ids=IDS).logits, policy(input_ids=IDS).logits)


@needs_bitsandbytes
def test_every_optimiser_takes_it(chain: dict[str, Path], tmp_path: Path) -> None:
    reward = work_in(tmp_path / "reward")
    train_reward(RewardRecipe(adapter=QLORA, epochs=1), chain, reward)
    prompt: Any = [{"role": "user", "content": "Where is item 3?"}]
    scorer = RewardScorer(chain["base"], reward.out)
    assert not is_quantised(scorer.model) and len(scorer.score([prompt], ["here"], [True])) == 1
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "rl.jsonl").write_text('{"id": "1", "prompt": [{"role": "user", "content": "Where is it?"}]}\n')
    inputs = chain | {"reward": reward.out, "data": tmp_path / "rl"}
    recipes = [
        (train_direct, DpoRecipe(adapter=QLORA, epochs=1), chain),
        (train_ppo, PpoRecipe.model_validate(SMALL | {"episodes": 4, "value_model": "separate"}), inputs),
        (train_groups, GrpoRecipe.model_validate(SMALL | {"prompts": 1, "completions_per_prompt": 4}), inputs),
    ]
    for number, (train, recipe, given) in enumerate(recipes):
        work, logged = work_in(tmp_path / f"policy{number}"), []
        work.on_log = lambda metrics, step, logged=logged: logged.append(metrics)
        train(recipe, given, work)
        assert trained_quantised(work.out / "adapter")
        if train is not train_direct:
            assert logged[0]["kl_k3"] == pytest.approx(0, abs=1e-3), "the reference is in 4 bits too"
        merged = work_in(tmp_path / f"merged{number}")
        merge_policy(MergeRecipe(), chain | {"policy": work.out}, merged)
        assert 0 < merged.metrics["kl_from_quantised"] < 0.5


@needs_bitsandbytes
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_other_formats_and_optimisers_learn(chain: dict[str, Path], tmp_path: Path, optimizer: Any) -> None:
    """With tensors large enough to be held in 8 bits; on a CPU what is paged is not."""
    coarse = QloraRecipe(rank=128, weights="fp4", double_quantisation=False, compute="bf16")
    inputs, work = {"base": chain["base"], "data": demonstrations(tmp_path / "rows")}, work_in(tmp_path / "sft2")
    train_sft(SftRecipe(adapter=coarse, epochs=20, batch_size=8, optimizer=optimizer), inputs, work)
    assert work.metrics["last_loss"] < 0.9 * work.metrics["first_loss"]
    assert trained_quantised(work.out / "adapter") == {"weights": "fp4", "double_quantisation": False}
    merged = work_in(tmp_path / "merged2")
    merge_policy(MergeRecipe(), {"base": chain["base"], "policy": work.out}, merged)
    assert 0 < merged.metrics["kl_from_quantised"] < 0.5


@needs_bitsandbytes
def test_on_policy_methods_take_8_bit_moments(chain: dict[str, Path], tmp_path: Path) -> None:
    reward = work_in(tmp_path / "reward")
    train_reward(RewardRecipe(adapter=LoraRecipe(rank=4), epochs=1, optimizer="adamw_8bit"), chain, reward)
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "rl.jsonl").write_text('{"id": "1", "prompt": [{"role": "user", "content": "Where is it?"}]}\n')
    inputs = chain | {"reward": reward.out, "data": tmp_path / "rl"}
    part = SMALL | {"adapter": LoraRecipe(rank=128), "optimizer": "paged_adamw_8bit"}
    methods: list[tuple[Any, Any]] = [
        (train_ppo, PpoRecipe.model_validate(part | {"episodes": 4})),
        (train_groups, GrpoRecipe.model_validate(part | {"prompts": 1, "completions_per_prompt": 4})),
    ]
    for train, recipe in methods:
        work = work_in(tmp_path / recipe.method)
        train(recipe, inputs, work)
        before, after = (
            load_causal_lm([chain["base"], chain["sft"]]),
            load_causal_lm([chain["base"], chain["sft"], work.out]),
        )
        assert not torch.equal(before(input_ids=IDS).logits, after(input_ids=IDS).logits)


def test_a_plain_adapter_has_no_such_figure(chain: dict[str, Path], tmp_path: Path) -> None:
    save(attach(load_causal_lm([chain["base"], chain["sft"]]), LoraRecipe(rank=4)), tmp_path / "policy")
    work = work_in(tmp_path / "merged")
    merge_policy(MergeRecipe(), chain | {"policy": tmp_path / "policy"}, work)
    assert "kl_from_quantised" not in work.metrics


@needs_bitsandbytes
def test_gpt2s_layers_are_quantised_too(tmp_path: Path) -> None:
    chain = [tiny_base(tmp_path / "gpt2", "gpt2")]
    whole, model = load_causal_lm(chain), load_causal_lm(chain)
    policy: Any = attach(model, QLORA)
    layers = [each for each in policy.modules() if type(each).__name__ == "Linear4bit" and "lora" not in str(each)]
    assert is_quantised(policy) and len(layers) >= 8
    with torch.no_grad():
        apart = (policy(input_ids=IDS).logits - whole(input_ids=IDS).logits).abs()
    assert 0 < float(apart.mean()) < 0.5 * float(whole(input_ids=IDS).logits.std())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save(policy, tmp_path / "policy")
    used = load_causal_lm([*chain, tmp_path / "policy"])
    with torch.no_grad():
        near = (policy(input_ids=IDS).logits - used(input_ids=IDS).logits).abs().mean()
        far = (used(input_ids=IDS).logits - whole(input_ids=IDS).logits).abs().mean()
    assert float(near) < 0.7 * float(far), "the adapter says the same on the full weights"


def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_linear = torch.nn.Sequential(torch.nn.Embedding(4, 4))
    nothing_linear.get_output_embeddings = lambda: None  # type: ignore[assignment]
    with pytest.raises(InputError, match="no linear layers to keep in 4 bits"):
        quantise(nothing_linear)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    policy = {"policy": [{"method": "dpo"}], "name": "a"}
    for part, match in (({"adapter": {"kind": "qlora"}}, "'qlora' needs"), ({"optimizer": "adamw_8bit"}, "bit' needs")):
        recipe = LifecycleRecipe.model_validate({"sft": part, **policy})  # can be read and planned
        with pytest.raises(InputError, match=f"{match} bitsandbytes; run `pip install"):
            recipe.require_installed()
    with pytest.raises(InputError, match="needs bitsandbytes"):
        quantise(load_causal_lm([tiny_base(tmp_path / "base")]))
