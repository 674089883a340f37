"""Any causal language model of transformers': SFT, reward, DPO and merge with adapters; decoding as `generate` does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tasks.artifact import InputError
from tasks.merging import MergeRecipe, merge_policy
from tasks.models.adapters import AdapterRecipe, attach
from tasks.models.loading import load_causal_lm, open_adapter, start_reward_model, twin
from tasks.models.targets import is_low_rank_only
from tasks.sampling.beams import beam_search as beams
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


PROMPTS = [list(range(20, 41)), list(range(50, 59)), list(range(70, 73))]


def _stirred(policy: Any) -> Any:
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return policy.eval()


def _gpt_neo() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt_neo", vocab_size=len(tiny_tokenizer()), hidden_size=32, num_layers=2, num_heads=2, window_size=8,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "gemma2", "gemma3_text", "gpt2", "gpt_neo"])
@pytest.mark.parametrize("adapter", ["prompt_tuning", "prefix_tuning"])
def test_a_soft_prompt_is_as_near_to_a_short_prompt_in_a_batch_with_long_ones(kind: str, adapter: str) -> None:
    model = _gpt_neo() if kind == "gpt_neo" else tiny_model(kind)
    policy = _stirred(attach(model, _adapter(kind=adapter, virtual_tokens=4)))
    drawn: dict[str, Any] = {"max_new_tokens": 8, "greedy": True, "seed": 0}
    together = [row[0].token_ids for row in generate(policy, tiny_tokenizer(), PROMPTS, **drawn)]
    assert together == [generate(policy, tiny_tokenizer(), [ids], **drawn)[0][0].token_ids for ids in PROMPTS]


def test_a_soft_prompt_is_as_near_in_beams() -> None:
    policy = _stirred(attach(tiny_model("gemma3_text"), _adapter(kind="prompt_tuning", virtual_tokens=4)))
    whole = policy.merge_and_unload()
    drawn: dict[str, Any] = {"n": 2, "max_new_tokens": 6}
    together = [row[0].token_ids for row in beams(whole, tiny_tokenizer(), PROMPTS, **drawn)]
    assert together == [beams(whole, tiny_tokenizer(), [ids], **drawn)[0][0].token_ids for ids in PROMPTS]


def _recurrent(kind: str) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_heads": 4, "head_dim": 16, "n_groups": 1} if kind == "mamba2" else {}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, state_size=8,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("virtual_tokens", [0, 4])
def test_a_recurrent_model_remembers_what_it_read(kind: str, virtual_tokens: int) -> None:
    model = _recurrent(kind)
    if virtual_tokens:
        model = _stirred(attach(model, _adapter(kind="prompt_tuning", virtual_tokens=virtual_tokens)))
    drawn = generate(model, tiny_tokenizer(), PROMPTS, n=3, max_new_tokens=10, seed=0)
    for ids, row in zip(PROMPTS, drawn, strict=True):
        for found in row:
            read = torch.tensor([[*ids, *found.token_ids]])
            logprobs = model(input_ids=read, use_cache=False).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(-1, read[0, len(ids) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["openai-gpt", "recurrent_gemma", "minimax", "xlstm"])
def test_a_model_without_a_cache_to_take_rows_from_is_not_sampled_from(kind: str) -> None:
    shape: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    if kind == "recurrent_gemma":
        shape = {"hidden_size": 32, "num_hidden_layers": 3, "lru_width": 32, "num_attention_heads": 2}
    elif kind == "minimax":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        shape |= {"head_dim": 16, "intermediate_size": 32, "num_local_experts": 2}
    elif kind == "xlstm":
        shape = {"hidden_size": 32, "num_blocks": 2, "num_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=320, **shape))
    with pytest.raises(InputError, match=f"{kind} models keep what they have read"):
        generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=4, seed=0)


@pytest.mark.parametrize(("kind", "heads"), [("mpt", {"n_heads": 2}), ("xglm", {"attention_heads": 2})])
def test_a_soft_prompt_goes_before_layouts_with_names_of_their_own(kind: str, heads: dict[str, int]) -> None:
    layers = {"n_layers": 2} if kind == "mpt" else {"num_layers": 2, "ffn_dim": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=320, d_model=32, **layers, **heads))
    policy: Any = attach(model, _adapter(kind="prompt_tuning", virtual_tokens=4))
    assert policy(input_ids=IDS).logits.shape == (1, IDS.shape[1], 320)


@pytest.mark.parametrize("kind", ["modernbert-decoder", "llama4_text"])
def test_a_soft_prompt_goes_before_a_body_that_is_not_called_decoder(kind: str) -> None:
    config = AutoConfig.for_model(
        kind, vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, intermediate_size_mlp=64, num_local_experts=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    policy: Any = attach(AutoModelForCausalLM.from_config(config), _adapter(kind="prompt_tuning", virtual_tokens=4))
    assert policy(input_ids=IDS).logits.shape == (1, IDS.shape[1], 320)


def test_a_soft_prompt_before_a_model_that_reads_ids_in_every_layer_is_refused() -> None:
    config = AutoConfig.for_model(
        "gemma4_text", vocab_size=320, vocab_size_per_layer_input=320, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=64, hidden_size_per_layer_input=8,
    )  # fmt: skip
    with pytest.raises(InputError, match="looks its tokens up in every layer"):
        attach(AutoModelForCausalLM.from_config(config), _adapter(kind="prompt_tuning", virtual_tokens=4))


@pytest.mark.parametrize("kind", ["mamba", "recurrent_gemma"])
def test_a_prefix_before_layers_without_keys_is_refused(kind: str) -> None:
    shape = {"lru_width": 32, "intermediate_size": 64, "num_attention_heads": 2} if kind == "recurrent_gemma" else {}
    config = AutoConfig.for_model(kind, vocab_size=320, hidden_size=32, num_hidden_layers=3, **shape)
    with pytest.raises(InputError, match="keeps no keys and values in some layers"):
        attach(AutoModelForCausalLM.from_config(config), _adapter(kind="prefix_tuning", virtual_tokens=4))


@pytest.mark.parametrize("experts", [{"num_experts": 4}, {"num_local_experts": 4}], ids=["olmoe", "granitemoe"])
def test_layouts_with_experts_that_the_library_cannot_score_get_a_head(tmp_path: Path, experts: dict[str, int]) -> None:
    config = AutoConfig.for_model(
        "olmoe" if "num_experts" in experts else "granitemoe", vocab_size=320, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, num_experts_per_tok=2, **experts,
    )  # fmt: skip
    model = start_reward_model(AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    model.save_pretrained(tmp_path)
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(read(input_ids=IDS).logits, model(input_ids=IDS).logits)
