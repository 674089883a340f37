"""Adapters of every kind: what they train, that they load, decode and merge as they were trained, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from flows.recipe import LifecycleRecipe, PolicyRecipe
from labeling.ai.prompts import Question
from tasks.ai.local import local_answers
from tasks.ai.recipe import LocalJudge
from tasks.artifact import InputError, read_jsonl, write_jsonl
from tasks.evaluation.evaluate import EvaluateRecipe, evaluate_models
from tasks.merging import MergeRecipe, merge_policy
from tasks.models.adapter_names import has_adapted_output
from tasks.models.adapters import AdapterRecipe, FullRecipe, LoraRecipe, PrefixTuningRecipe, attach, save
from tasks.models.features import text_features
from tasks.models.loading import load_causal_lm, positions
from tasks.models.prompts import installed
from tasks.models.shelf import Shelf
from tasks.sampling.folded import folded
from tasks.sampling.local import generate
from tasks.training.direct import DpoRecipe, train_direct
from tasks.training.engine_checkpoints import Reporting
from tasks.training.ppo import PpoRecipe, _demonstrations
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.sft import SftRecipe, train_sft
from tests.tiny_models import demonstrations, preferences, tiny_base, tiny_model, tiny_tokenizer, work_in
from tests.tiny_rewards import reward_base

IDS = torch.tensor([[1, 20, 30, 40, 50], [1, 20, 30, 41, 51]])
PROMPTS: list[dict[str, Any]] = [
    {"kind": "prompt_tuning", "virtual_tokens": 5},
    {"kind": "p_tuning", "virtual_tokens": 5, "width": 8},
    {"kind": "prefix_tuning", "virtual_tokens": 5},
]
ON_WEIGHTS: list[dict[str, Any]] = [
    {"kind": "dora", "rank": 4},
    {"kind": "ia3"},
    {"kind": "ia3", "targets": "all-linear"},
    {"kind": "lora", "targets": "attention", "rank": 4, "ranks": {"q_proj|c_attn": 2}, "rank_stabilised": True},
    {"kind": "lora", "rank": 4, "bias": "all"},
]
SAVED = {"llama": {"modules_to_save": ["norm"]}, "gpt2": {"modules_to_save": ["ln_f"]}}


def recipe_of(given: dict[str, Any]) -> Any:
    return TypeAdapter(AdapterRecipe).validate_python(given)


def _moved(model: Any, amount: float = 0.2) -> Any:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += amount * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("given", [*PROMPTS, *ON_WEIGHTS], ids=lambda given: "-".join(map(str, given.values()))[:30])
def test_it_loads_and_decodes_as_it_was_trained(tmp_path: Path, kind: str, given: dict[str, Any]) -> None:
    """By PEFT as by us, with the tokens of `generate`; without it the model is the one below."""
    base, tokenizer = tiny_base(tmp_path / "base", kind), tiny_tokenizer()
    below = load_causal_lm([base])
    given = given | (SAVED[kind] if "bias" in given else {})
    policy: Any = _moved(attach(load_causal_lm([base]), recipe_of(given), seed=1))
    save(policy, tmp_path / "sft")
    loaded: Any = load_causal_lm([base, tmp_path / "sft"])
    assert not torch.allclose(_logits(policy), _logits(below), atol=1e-2)
    torch.testing.assert_close(_logits(loaded), _logits(policy), atol=1e-5, rtol=1e-4)
    theirs = PeftModel.from_pretrained(load_causal_lm([base]), str(tmp_path / "sft" / "adapter"))
    torch.testing.assert_close(_logits(theirs)[:, -5:], _logits(policy), atol=1e-5, rtol=1e-4)
    if given.get("bias") != "all":
        with policy.disable_adapter():
            assert torch.equal(_logits(policy), _logits(below))
    short = IDS[1, :3].tolist()
    ours = generate(policy, tokenizer, [IDS[0].tolist(), short], n=2, max_new_tokens=12, greedy=True, seed=0)
    for ids, found in zip((IDS[0].tolist(), short), ours, strict=True):
        for model in (loaded, theirs):
            seen = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            expected = model.generate(**seen, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
            assert found[0].token_ids == found[1].token_ids == expected[0, len(ids) :].tolist()


@pytest.mark.parametrize("given", ON_WEIGHTS, ids=lambda given: given["kind"])
def test_a_fresh_adapter_on_weights_changes_nothing(given: dict[str, Any]) -> None:
    model = tiny_model().eval()
    before = _logits(model)
    torch.testing.assert_close(_logits(attach(model, recipe_of(given))), before)


@pytest.mark.parametrize("given", [*ON_WEIGHTS[:3], {"kind": "lora", "rank": 4}], ids=lambda given: given["kind"])
def test_folding_is_the_same_and_comes_undone(given: dict[str, Any]) -> None:
    policy: Any = _moved(attach(tiny_model().eval(), recipe_of(given)))
    before, bits = _logits(policy), {name: p.clone() for name, p in policy.named_parameters()}
    with folded(policy):
        assert any(layer.merged for layer in policy.modules() if hasattr(layer, "merged_adapters"))
        torch.testing.assert_close(_logits(policy), before, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(p, bits[name]) for name, p in policy.named_parameters())
    assert torch.equal(_logits(policy), before)


def test_targets_are_found_by_what_is_said_of_them() -> None:
    def chosen(kind: str, **given: Any) -> set[str]:
        policy: Any = attach(tiny_model(kind), recipe_of({"kind": "lora", "rank": 4} | given))
        return {name for name, module in policy.get_base_model().named_modules() if hasattr(module, "lora_A")}

    assert {name.rpartition(".")[2] for name in chosen("llama", targets="attention")} == {
        *("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert {".".join(name.split(".")[-2:]) for name in chosen("gpt2", targets="attention")} == {
        *("attn.c_attn", "attn.c_proj")
    }
    assert chosen("llama", targets=r".*\.1\.mlp\..*") == {
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    assert chosen("llama", targets=["v_proj"]) == {f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)}
    assert len(chosen("gpt2")) == 8, "all linear layers but the output layer"
    policy: Any = attach(tiny_model(), recipe_of(ON_WEIGHTS[3]))
    ranks = {name: p.shape[0] for name, p in policy.named_parameters() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in ranks.items() if "q_proj" not in name} == {4}
    scaled: Any = attach(tiny_model(), recipe_of({"kind": "ia3"}))
    inputs = {name for name, module in scaled.named_modules() if getattr(module, "is_feedforward", False)}
    assert inputs and all(name.endswith("down_proj") for name in inputs)


@pytest.mark.parametrize("given", PROMPTS, ids=lambda given: given["kind"])
def test_an_sft_prompt_carries_an_adapter_a_reward_model_and_a_merged_model(
    tmp_path: Path, chain: dict[str, Path], given: dict[str, Any]
) -> None:
    sft, dpo, merged = (work_in(tmp_path / name) for name in ("prompted", "dpo", "merged"))
    data = {"base": chain["base"], "data": demonstrations(tmp_path / "rows")}
    train_sft(SftRecipe(adapter=recipe_of(given), epochs=20, learning_rate=2e-2), data, sft)
    assert sft.metrics["last_loss"] < 0.99 * sft.metrics["first_loss"]
    weights = load_file(sft.out / "adapter" / "adapter_model.safetensors")
    assert set(weights) == {"prompt_embeddings"}
    inputs = chain | {"sft": sft.out}
    train_direct(DpoRecipe(adapter=LoraRecipe(rank=4), epochs=4), inputs, dpo)
    merge_policy(MergeRecipe(), inputs | {"policy": dpo.out}, merged)
    assert merged.metrics["max_logit_difference"] < 1e-4
    whole, parts = load_causal_lm([merged.out]), load_causal_lm([chain["base"], sft.out, dpo.out])
    torch.testing.assert_close(_logits(whole), _logits(parts), atol=1e-5, rtol=1e-4)
    assert installed(whole) is not None and positions(whole) == 128 - 5
    bare = load_file(merged.out / "model" / "model.safetensors")
    assert not any("prompt" in name for name in bare), "the weights are those of a plain model"
    trained = attach(load_causal_lm([merged.out], trainable=True), FullRecipe())
    save(_moved(trained), tmp_path / "full")
    torch.testing.assert_close(_logits(load_causal_lm([merged.out, tmp_path / "full"])), _logits(trained))
    reward = work_in(tmp_path / "reward")
    train_reward(RewardRecipe(adapter=LoraRecipe(rank=4), epochs=1), inputs, reward)
    assert (reward.out / "start" / "adapter").is_dir()
    evaluated = work_in(tmp_path / "evaluated")
    asked = [{"id": str(n), "prompt": [{"role": "user", "content": f"Where is item {n}?"}]} for n in range(3)]
    write_jsonl(data["data"] / "evaluation.jsonl", asked)
    models = inputs | data | {"reward": reward.out, "candidate.dpo": merged.out}
    evaluate_models(EvaluateRecipe(samples_per_prompt=4, max_new_tokens=8), models, evaluated)
    kl = [c["kl"] for row in read_jsonl(evaluated.out / "samples.jsonl") for c in row["completions"]]
    assert len(kl) == 24
    assert max(map(abs, kl[:12])) < 1e-4 < max(map(abs, kl[12:])), "the SFT model, prompt and all, is its own reference"
    with pytest.raises(InputError, match="already has a soft prompt"):
        train_direct(DpoRecipe(adapter=recipe_of(given)), inputs, work_in(tmp_path / "second"))


@pytest.mark.parametrize("given", PROMPTS, ids=lambda given: given["kind"])
def test_a_killed_training_of_a_prompt_ends_with_the_same_bytes(
    tmp_path: Path, base: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"base": base, "data": demonstrations(tmp_path / "data")}
    recipe = SftRecipe(adapter=recipe_of(given), epochs=2, batch_size=4, learning_rate=1e-2)
    whole, cut = work_in(tmp_path / "whole"), work_in(tmp_path / "cut")
    train_sft(recipe, inputs, whole)
    cut.checkpoint_seconds = 0.0

    class Killed(Reporting, TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.engine.Reporting", Killed)
        with pytest.raises(KeyboardInterrupt):
            train_sft(recipe, inputs, cut)
    train_sft(recipe, inputs, cut)
    one, other = (work.out / "adapter" / "adapter_model.safetensors" for work in (whole, cut))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "ppo", "adapter": {"kind": "lora", "bias": "all"}}, "which PPO measures the KL to"),
        ({"method": "grpo", "adapter": {"kind": "dora", "dropout": 0.1}}, "adapter.dropout must be 0 for GRPO"),
        ({"method": "dpo", "adapter": {"kind": "prefix_tuning"}, "gradient_checkpointing": True}, "without the cache"),
        ({"method": "dpo", "adapter": {"kind": "lora", "targets": "[a"}}, "no regular expression"),
        ({"method": "dpo", "adapter": {"kind": "lora", "targets": []}}, "no module is named"),
        ({"method": "dpo", "adapter": {"kind": "prompt_tuning", "rank": 4}}, "Extra inputs"),
        (
            {
                "method": "dpo",
                "adapter": {"kind": "lora", "bias": "all"},
                "watch": {"every": 5, "judge": "tests.tiny_policies:apples"},
            },
            "which a watch measures",
        ),
        ({"method": "ppo", "adapter": {"kind": "full"}, "share_base": True}, "share_base needs adapters"),
        ({"method": "dpo", "adapter": {"kind": "lora", "ranks": {"[": 4}}}, r"'\[' is no regular expression"),
        (
            {"method": "dpo", "adapter": {"kind": "ia3", "targets": ["k_proj"], "feed_forward": ["down_proj"]}},
            "feed_forward names 'down_proj', which targets lack",
        ),
        ({"method": "dpo", "adapter": {"kind": "ia3", "feed_forward": ["down_proj"]}}, "knows the feed-forward layers"),
        ({"method": "grpo", "adapter": {"kind": "lora", "targets": ["q_proj", "lm_head"]}}, "the output layer"),
        ({"method": "rloo", "adapter": {"kind": "lora", "modules_to_save": ["lm_head"]}}, "weights RLOO takes"),
    ],
)
def test_what_cannot_be_is_refused_in_the_recipe(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(PolicyRecipe).validate_python(given)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("llama", {"ranks": {"q_projj": 32}}, r"adapter.ranks names 'q_projj', .* \(the adapter is on down_proj"),
        ("llama", {"alphas": {"lm_head": 3}}, "adapter.alphas names 'lm_head'"),
        (
            "llama",
            {"targets": ["q_proj", "query"]},
            r"targets names 'query', which this model lacks \(it has down_proj",
        ),
        ("llama", {"modules_to_save": ["nope"], "ranks": {"no": 2}}, r"save names 'nope' and adapter.ranks .*lm_head"),
        ("llama", {"bias": "lora_only"}, "no such layer of this model has one"),
        (
            "llama",
            {"targets": ["layers.0"]},
            "'layers.0', which is no layer that an adapter can be on; it has down_proj",
        ),
        ("llama", {"kind": "ia3", "targets": "attention", "feed_forward": ["up_proj"]}, "none of the targets"),
        ("mixtral", {"kind": "dora"}, "experts of this model are one tensor"),
        ("mixtral", {"targets": ["q_proj", "down_proj"]}, "targets names 'down_proj'"),
    ],
)
def test_names_that_match_nothing_are_told(kind: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        attach(tiny_model(kind), recipe_of({"kind": "lora"} | given))


def test_names_that_match_something_are_used() -> None:
    given = {"kind": "lora", "rank": 4, "ranks": {r"layers\.0\..*": 2}, "modules_to_save": ["norm"], "bias": "none"}
    ranks = {
        name: p.shape[0] for name, p in attach(tiny_model(), recipe_of(given)).named_parameters() if "lora_A" in name
    }
    assert {rank for name, rank in ranks.items() if "layers.0" in name} == {2}
    given = {"kind": "ia3", "targets": "all-linear", "feed_forward": ["down_proj"]}
    scaled: Any = attach(tiny_model(), recipe_of(given))
    assert {name[-9:] for name, each in scaled.named_modules() if getattr(each, "is_feedforward", False)} == {
        "down_proj"
    }
    attach(tiny_model("gpt2"), LoraRecipe(bias="lora_only"))


def test_a_model_that_peft_knows_to_refuse_is_told_what_is_left() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=320, hidden_size=32, num_hidden_layers=1, state_size=4)
    mamba = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"no low-rank adapter on out_proj .*it has dt_proj, in_proj"):
        attach(mamba, LoraRecipe())
    attach(AutoModelForCausalLM.from_config(config), LoraRecipe(targets=("in_proj", "x_proj")))


def test_an_adapter_on_the_output_layer_is_seen_whatever_it_is_called() -> None:
    for recipe in (LoraRecipe(targets=("q_proj", "lm_head")), LoraRecipe(modules_to_save=("lm_head",))):
        assert has_adapted_output(attach(tiny_model(), recipe))
    assert has_adapted_output(attach(tiny_model("gpt_neox"), LoraRecipe(targets=("lm_head",))))
    assert not has_adapted_output(attach(tiny_model(), LoraRecipe()))


def test_what_the_model_does_not_allow_is_one_sentence(tmp_path: Path, chain: dict[str, Path]) -> None:
    for targets in (("query",), "query.*"):
        with pytest.raises(InputError, match="it has down_proj, gate_proj"):
            attach(tiny_model(), LoraRecipe(targets=targets))
    with pytest.raises(InputError, match="output layer is its embeddings"):
        attach(tiny_model("gpt2"), LoraRecipe(targets=("wte",)))
    with pytest.raises(InputError, match="output layer is its embeddings"):
        attach(tiny_model("gpt2"), LoraRecipe(modules_to_save=("lm_head",)))
    recipe = RewardRecipe(base=str(reward_base(tmp_path / "bert", "bert")), adapter=PrefixTuningRecipe())
    with pytest.raises(InputError, match=r"reward\.base is an encoder"):
        train_reward(recipe, {"preferences": chain["preferences"]}, work_in(tmp_path / "reward"))


def test_models_on_a_shelf_share_what_they_stand_on(tmp_path: Path, chain: dict[str, Path]) -> None:
    """Adapters of any kind on one SFT model: each answers as by itself, and the weights are there once."""
    start = [chain["base"], chain["sft"]]
    below = load_causal_lm(start)
    kinds = [{"kind": "lora", "rank": 4}, {"kind": "ia3"}, PROMPTS[2]]
    for number, given in enumerate(kinds):
        save(_moved(attach(load_causal_lm(start), recipe_of(given), seed=number)), tmp_path / str(number))
    shelf, seen = Shelf(), set()
    models: list[Any] = [shelf.take([*start, tmp_path / str(number)])[0] for number in range(3)]
    for number, model in enumerate([*models, models[0]]):
        alone = load_causal_lm([*start, tmp_path / str(number % 3)])
        torch.testing.assert_close(_logits(model), _logits(alone), atol=1e-5, rtol=1e-4)
        seen |= {p.data_ptr(): p.nbytes for p in model.parameters()}.items()
    torch.testing.assert_close(_logits(shelf.take(start)[0]), _logits(below), atol=1e-5, rtol=1e-4)
    assert sum(size for _, size in seen) < 1.6 * sum(p.nbytes for p in below.parameters())
    assert shelf.take([*start, tmp_path / "0"])[0] is models[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sft": PROMPTS[0], "policy": PROMPTS[1]}, "'policy.dpo.adapter' would be a second one"),
        ({"sft": PROMPTS[0], "reward": PROMPTS[1]}, "'reward.adapter' would be a second one"),
        ({"policy": PROMPTS[2], "rounds": 2}, "round 2 would put a second one"),
    ],
)
def test_a_model_has_one_soft_prompt_at_most(given: dict[str, Any], words: str) -> None:
    parts = {name: {"adapter": given[name]} for name in ("sft", "reward") if name in given}
    policy = {"method": "dpo"} | ({"adapter": given["policy"]} if "policy" in given else {})
    whole = {"name": "one", "rounds": given.get("rounds", 1), "policy": [policy], **parts}
    with pytest.raises(ValidationError, match=words):
        LifecycleRecipe.model_validate(whole)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sft": {"adapter": PROMPTS[0]}, "sample": {"engine": "vllm"}}, "set sample.engine"),
        ({"sft": {"adapter": PROMPTS[2]}, "evaluate": {"engine": "vllm"}}, "set evaluate.engine"),
        ({"sft": {"adapter": PROMPTS[1]}, "policy": [{"method": "ppo", "engine": "vllm"}]}, "set policy.ppo.engine"),
        (
            {"sft": {"adapter": PROMPTS[1]}, "policy": [{"method": "rejection", "engine": "vllm"}]},
            "set policy.rejection.engine",
        ),
        (
            {"policy": [{"method": "dpo", "adapter": PROMPTS[0]}], "evaluate": {"engine": "vllm"}},
            "'policy.dpo.adapter' is a soft prompt, which vLLM does not serve",
        ),
        ({"sft": {"adapter": PROMPTS[0], "packing": "always"}}, 'set packing = "never"'),
        (
            {"sft": {"adapter": PROMPTS[2]}, "policy": [{"method": "dpo", "gradient_checkpointing": True}]},
            "'policy.dpo.gradient_checkpointing' computes layers again",
        ),
        (
            {"sft": {"adapter": PROMPTS[2]}, "reward": {"gradient_checkpointing": True}},
            "'reward.gradient_checkpointing' computes layers again",
        ),
    ],
)
def test_what_a_soft_prompt_cannot_do_is_refused_in_the_recipe(given: dict[str, Any], words: str) -> None:
    whole = {"name": "one", "policy": [{"method": "dpo"}, {"method": "ppo"}]} | given
    with pytest.raises(ValidationError, match=words):
        LifecycleRecipe.model_validate(whole)


def test_what_a_soft_prompt_can_do_is_not_refused() -> None:
    drawn = {"method": "rejection", "engine": "vllm", "adapter": PROMPTS[0]}
    LifecycleRecipe.model_validate({"name": "one", "policy": [drawn], "sample": {"engine": "vllm"}})
    checkpointed = {"method": "dpo", "gradient_checkpointing": True}
    LifecycleRecipe.model_validate({"name": "one", "policy": [checkpointed], "sft": {"adapter": PROMPTS[0]}})


def test_a_prefix_below_is_not_computed_again(tmp_path: Path, chain: dict[str, Path]) -> None:
    """As under a champion, whose recipe another run had."""
    save(attach(load_causal_lm([chain["base"]]), recipe_of(PROMPTS[2])), tmp_path / "sft")
    recipe = DpoRecipe(gradient_checkpointing=True)
    with pytest.raises(InputError, match="a prefix below the model fills"):
        train_direct(recipe, chain | {"sft": tmp_path / "sft"}, work_in(tmp_path / "dpo"))


def test_a_soft_prompt_takes_its_places_from_every_length(tmp_path: Path) -> None:
    """GPT-2 has 128 positions and no more: whoever counts without the prompt asks for one that is not there."""
    base, data = tiny_base(tmp_path / "base", "gpt2"), demonstrations(tmp_path / "data")
    tokenizer, shown = tiny_tokenizer(), preferences(tmp_path / "preferences")
    save(attach(load_causal_lm([base]), LoraRecipe(rank=4)), tmp_path / "lora")
    given = {"base": base, "sft": tmp_path / "lora", "preferences": shown}
    with pytest.raises(InputError, match="longer than 8 tokens"):
        train_direct(DpoRecipe(adapter=recipe_of(PROMPTS[0] | {"virtual_tokens": 120})), given, work_in(tmp_path / "d"))
    save(attach(load_causal_lm([base]), recipe_of(PROMPTS[0] | {"virtual_tokens": 80})), tmp_path / "sft")
    chain = [base, tmp_path / "sft"]
    asked: Any = [{"role": "user", "content": "Where is item 3?"}]
    assert text_features(chain, [(asked, "It is in aisle 3. " * 20, True)]).shape == (1, 32)
    work = work_in(tmp_path / "ppo")
    rows = [{"id": str(n), "messages": [*asked, {"role": "assistant", "content": "Aisle. " * n}]} for n in (1, 30)]
    write_jsonl(data / "sft.jsonl", rows)
    kept = _demonstrations(PpoRecipe(ptx_coefficient=1.0), data, tokenizer, load_causal_lm(chain), work)
    assert len(kept) == 1 and work.metrics["demonstrations_dropped"] == 1
    question = Question("1", ("a", "b"), ({"role": "user", "content": "A" * 90},), "mark")
    judge = LocalJudge(kind="local", model="sft")
    [said] = local_answers(judge, chain, "judge", work_in(tmp_path / "judge"))([question])
    assert said.refused and "context of 48 tokens" in said.refused
    tokenizer.chat_template = f"{tokenizer.chat_template}{{{{ raise_exception('Not this one') }}}}"
    tokenizer.save_pretrained(base / "tokenizer")
    [said] = local_answers(judge, chain, "judge", work_in(tmp_path / "strict"))([question])
    assert said.refused == "the judge's chat template refuses it (Not this one)"
