"""Any causal language model of transformers': SFT, reward, DPO and merge with adapters; decoding as `generate` does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from tasks.merging import MergeRecipe, merge_policy
from tasks.models.adapters import AdapterRecipe, attach
from tasks.models.loading import load_causal_lm, open_adapter, twin
from tasks.models.targets import is_low_rank_only
from tasks.sampling.local import generate
from tasks.sampling.together import generate_together
from tasks.training.direct import DpoRecipe, train_direct
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_scoring import RewardScorer
from tasks.training.sft import SftRecipe, train_sft
from tests.tiny_models import LAYOUTS, demonstrations, preferences, tiny_base, tiny_model, tiny_tokenizer, work_in

IDS = torch.tensor([[1, *range(20, 40)]])


def _adapter(**given: Any) -> Any:
    return TypeAdapter(AdapterRecipe).validate_python(given)


@pytest.mark.parametrize("kind", [*LAYOUTS, "gpt2", "llama"])
def test_from_sft_to_a_merged_model(tmp_path: Path, kind: str) -> None:
    inputs = {"base": tiny_base(tmp_path / "base", kind), "data": demonstrations(tmp_path / "data")}
    sft, reward, dpo, merged = (work_in(tmp_path / name) for name in ("sft", "reward", "dpo", "merged"))
    attention = _adapter(kind="lora", rank=4, targets="attention")
    train_sft(SftRecipe(adapter=attention, epochs=10, batch_size=8), inputs, sft)
    assert sft.metrics["last_loss"] < sft.metrics["first_loss"]
    inputs |= {"sft": sft.out, "preferences": preferences(tmp_path / "preferences", 8)}
    everything = _adapter(kind="lora", rank=4)
    train_reward(RewardRecipe(adapter=everything, epochs=1), inputs, reward)
    prompt: Any = [{"role": "user", "content": "Where is item 3?"}]
    scorer = RewardScorer(inputs["base"], reward.out)
    padded = scorer.score([prompt] * 2, ["Aisle 3. Thank you!", "No."], [True] * 2)
    assert padded[1] == pytest.approx(scorer.score([prompt], ["No."], [True])[0], abs=1e-4), "padding changes nothing"
    train_direct(DpoRecipe(adapter=everything, epochs=2), inputs, dpo)
    merge_policy(MergeRecipe(), inputs | {"policy": dpo.out}, merged)
    assert merged.metrics["max_logit_difference"] < 1e-4
    whole, chain = load_causal_lm([merged.out]), load_causal_lm([inputs["base"], sft.out, dpo.out])
    torch.testing.assert_close(whole(input_ids=IDS).logits, chain(input_ids=IDS).logits, atol=1e-4, rtol=1e-3)
    if not is_low_rank_only(dpo.out / "adapter"):
        assert kind == "mixtral", "its experts are one tensor"
        return
    model = load_causal_lm([inputs["base"], sft.out])
    drawn: dict[str, Any] = {"max_new_tokens": 12, "n": 2}
    adapters: dict[str, Any] = {"sft": None, "dpo": open_adapter(twin(model), dpo.out / "adapter")}
    asked = [IDS[0, :6].tolist(), IDS[0, :9].tolist()]
    found = generate_together(model, adapters, tiny_tokenizer(), asked, seeds={"sft": 1, "dpo": 2}, **drawn)
    for name, seed in (("sft", 1), ("dpo", 2)):
        alone = generate(adapters[name] or model, tiny_tokenizer(), asked, seed=seed, **drawn)
        assert [c.token_ids for group in found[name] for c in group] == [c.token_ids for group in alone for c in group]


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("adapter", ["ia3", "prompt_tuning", "prefix_tuning"])
def test_other_adapters_fit_it_and_decode_as_generate(kind: str, adapter: str) -> None:
    given: dict[str, Any] = {"virtual_tokens": 4}
    if adapter == "ia3":  # Mixtral's feed-forward layers are one tensor
        given = {"targets": ["k_proj", "v_proj"]} if kind == "mixtral" else {}
    policy: Any = attach(tiny_model(kind).eval(), _adapter(kind=adapter, **given))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy.eval()
    ids = IDS[:, :6]
    [[found]] = generate(policy, tiny_tokenizer(), ids.tolist(), max_new_tokens=10, greedy=True, seed=0)
    expected = policy.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    assert found.token_ids == expected[0, 6:].tolist()
