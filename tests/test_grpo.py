"""GRPO on tiny models: it starts at the SFT model, learns through our decoding and scoring, and resumes exactly."""

import json

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, TrainerCallback, set_seed

from tasks.artifact import InputError
from tasks.models.adapters import FullRecipe, LoraRecipe, PrefixTuningRecipe, PromptTuningRecipe, attach
from tasks.training.grpo import GrpoRecipe, RlooRecipe
from tasks.training.grpo_settings import leave_one_out
from tasks.training.grpo_trainer import Grpo, fit
from tasks.training.rl_loop import finish
from tests.tiny_policies import ROWS, llama, share_of_apples, word_tokenizer, work


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def trainer(tokenizer, here, score=share_of_apples, rows=ROWS, model=None, kind=GrpoRecipe, **changes):
    set_seed(here.seed)
    small = {"updates": 3, "prompts": 4, "completions_per_prompt": 6, "micro_batch_size": 24, "max_new_tokens": 6}
    recipe = kind.model_validate(small | {"learning_rate": 3e-3, "likelihood_coefficient": 0.0} | changes)
    return Grpo(recipe, attach(model or llama(), recipe.adapter), tokenizer, rows, score, here)


@pytest.mark.parametrize("adapter", [LoraRecipe(), FullRecipe()])
def test_starts_at_the_reference_and_leaves_it(tokenizer, tmp_path, adapter):
    here = work(tmp_path)
    history = fit(trainer(tokenizer, here, adapter=adapter, learning_rate=1e-2), here).history
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert history[0]["kl_k3"] == pytest.approx(0, abs=1e-4)
    assert history[-1]["kl_k3"] > 1e-2


@pytest.mark.parametrize("kind", [GrpoRecipe, RlooRecipe])
@pytest.mark.parametrize("above", [FullRecipe(), LoraRecipe()], ids=["full", "lora"])
@pytest.mark.parametrize("below", [PromptTuningRecipe(), PrefixTuningRecipe()], ids=lambda below: below.kind)
def test_a_soft_prompt_below_is_part_of_the_reference(tokenizer, tmp_path, kind, above, below):
    prompted = attach(llama(), below).merge_and_unload()  # type: ignore[operator]
    here = work(tmp_path)
    grpo = trainer(tokenizer, here, model=prompted, kind=kind, adapter=above, updates=2, learning_rate=1e-2)
    history = fit(grpo, here).history
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert history[0]["kl_k3"] == pytest.approx(0, abs=1e-4)
    assert history[1]["kl_k3"] > 1e-4


def test_absolute_positions_do_not_count_padding(tokenizer, tmp_path):
    """Log-probabilities kept from decoding are those of training, in a batch of prompts of unequal lengths."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    here = work(tmp_path)
    history = fit(trainer(tokenizer, here, model=model.requires_grad_(False), updates=1), here).history
    assert history[0]["kl_k3"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", [GrpoRecipe, RlooRecipe])
@pytest.mark.parametrize("layout", ["opt", "gpt_bigcode"])
def test_dropout_that_goes_to_a_function_is_off_too(tokenizer, tmp_path, layout, kind):
    """With it the first ratios would not be one: OPT's layers and GPT-BigCode's attention take it as a number."""
    torch.manual_seed(0)
    shape = {"vocab_size": 17, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    config = AutoConfig.for_model(layout, **shape, word_embed_proj_dim=32, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    here = work(tmp_path)
    history = fit(trainer(tokenizer, here, model=model, updates=1, kind=kind), here).history
    assert history[0]["kl_k3"] == pytest.approx(0, abs=1e-6) and history[0]["update_kl"] == pytest.approx(0, abs=1e-6)


def test_raises_the_reward(tokenizer, tmp_path):
    here = work(tmp_path)
    history = fit(trainer(tokenizer, here, updates=20, beta=0.02, missing_eos_penalty=0.0), here).history
    assert history[0]["reward"] < 1.0
    assert sum(m["reward"] for m in history[-4:]) / 4 > 2.5


def test_reward_sees_text_and_whether_it_finished(tokenizer, tmp_path):
    seen = []

    def score(prompts, completions, finished):
        seen.append((prompts, completions, finished))
        return [0.0] * len(completions)

    here = work(tmp_path)
    history = fit(trainer(tokenizer, here, score=score, updates=1), here).history
    prompts, completions, finished = seen[0]
    assert len(prompts) == len(completions) == len(finished) == 24
    assert [p[-1]["content"] for p in prompts[:6]] == [prompts[0][-1]["content"]] * 6
    assert not any("<eos>" in text or "<pad>" in text for text in completions)
    assert all(len(text.split()) <= 6 for text in completions)
    assert 0 < sum(finished) < 24
    assert history[0]["finished_share"] == pytest.approx(sum(finished) / 24)


def test_prompts_keep_their_tools_and_no_others_get_any(tokenizer, tmp_path):
    tool = json.dumps([{"type": "function", "function": {"name": "apple", "parameters": {}}}])
    calls = [{"id": "call00000", "type": "function", "function": {"name": "apple", "arguments": "{}"}}]
    asked = [
        {"role": "user", "content": "pear", "tools": tool},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "fig", "tool_call_id": "call00000"},
    ]
    rows, seen = [{"prompt": asked}, *ROWS[:3]], []

    def score(prompts, completions, finished):
        seen.extend(prompts)
        return [0.0] * len(completions)

    here = work(tmp_path)
    fit(trainer(tokenizer, here, score=score, rows=rows, updates=1), here)
    assert len(seen) == 24 and all(row["prompt"] in seen for row in rows)


def test_missing_eos_is_punished(tokenizer, tmp_path):
    here = work(tmp_path)
    grpo = trainer(
        tokenizer, here, score=lambda p, c, f: [0.0] * len(c), updates=15, missing_eos_penalty=4.0, beta=1e-3
    )
    history = fit(grpo, here).history
    assert history[-1]["finished_share"] > history[0]["finished_share"] + 0.3


def test_likelihood_reward_makes_the_policy_surer(tokenizer, tmp_path):
    here = work(tmp_path)
    grpo = trainer(
        tokenizer, here, score=lambda p, c, f: [0.0] * len(c), updates=12, missing_eos_penalty=0.0, beta=1e-3,
        likelihood_coefficient=0.5,
    )  # fmt: skip
    history = fit(grpo, here).history
    assert history[-1]["reference_logprob"] > history[0]["reference_logprob"] + 2
    assert history[-1]["entropy"] < history[0]["entropy"]


def test_leave_one_out_by_hand():
    """Advantages of r - mean(all) over the stretched rewards are r - mean(others) over the rewards less the KL."""
    recipe = RlooRecipe(completions_per_prompt=3, micro_batch_size=24, kl_coefficient=0.5)
    rewards, sampled, reference = [1.0, 2.0, 6.0], [-1.0, -2.0, -3.0], [-2.0, -2.0, -5.0]
    whole = [1.0 - 0.5, 2.0, 6.0 - 1.0]
    stretched = leave_one_out(recipe, rewards, sampled, reference)
    mean = sum(stretched) / 3
    expected = [whole[i] - (sum(whole) - whole[i]) / 2 for i in range(3)]
    assert [value - mean for value in stretched] == pytest.approx(expected)


def test_rloo_raises_the_reward_and_its_kl_holds_it(tokenizer, tmp_path):
    reached = []
    for coefficient in (0.0, 5.0):
        here = work(tmp_path, f"kl-{coefficient}")
        changes = {"kind": RlooRecipe, "kl_coefficient": coefficient, "missing_eos_penalty": 0.0}
        history = fit(trainer(tokenizer, here, updates=20, **changes), here).history
        reached.append((sum(m["reward"] for m in history[-4:]) / 4, history[-1]["kl"]))
        assert history[0]["kl"] == pytest.approx(0, abs=1e-4) and history[0]["reward"] < 1.0
    assert reached[0][0] > 2.5
    assert reached[1][1] < reached[0][1] / 2 and reached[1][0] < reached[0][0]


def test_few_prompts_come_again_within_an_update(tokenizer, tmp_path):
    here = work(tmp_path)
    assert len(fit(trainer(tokenizer, here, rows=ROWS[:3], updates=2), here).history) == 2


VARIANTS = [
    {"loss": "dr_grpo", "scale_rewards": "none"},
    {"loss": "dapo", "clip_high": 0.28},
    {"loss": "cispo", "clip_high": 5.0},
    {"loss": "grpo", "importance_sampling": "sequence", "clip": 3e-3, "clip_high": 4e-3},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=["dr_grpo", "dapo", "cispo", "gspo"])
def test_every_variant_raises_the_reward_with_several_steps_per_update(tokenizer, tmp_path, variant):
    here = work(tmp_path)
    grpo = trainer(
        tokenizer, here, updates=12, minibatches=3, micro_batch_size=8, beta=0.02, missing_eos_penalty=0.0, **variant
    )
    history = fit(grpo, here).history
    assert len(history) == 12 and history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert history[0]["reward"] < 1.0 and history[-1]["reward"] + history[-2]["reward"] > 3.6
    assert variant["loss"] == "cispo" or max(m["clip_fraction"] for m in history) > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"minibatches": 5}, "minibatches .5. must divide 64"),
        ({"minibatches": 4, "micro_batch_size": 12}, "micro_batch_size .12. must divide 16"),
        ({"target_kl": 0.1}, "there is one; use minibatches"),
        ({"importance_sampling": "sequence"}, 'needs loss = "grpo"'),
        ({"loss": "cispo", "clip_high": 0.28}, "needs clip_high over 1"),
    ],
)
def test_impossible_updates_are_refused(given, words):
    with pytest.raises(ValidationError, match=words):
        GrpoRecipe.model_validate(given)


class Snapshots(TrainerCallback):
    """The trained weights after each optimiser step."""

    def __init__(self):
        self.taken = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert model is not None
        self.taken.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("kind", [GrpoRecipe, RlooRecipe])
def test_target_kl_leaves_out_the_rest_of_an_update(tokenizer, tmp_path, kind):
    here, snapshots = work(tmp_path), Snapshots()
    changes = {"updates": 2, "minibatches": 3, "micro_batch_size": 4, "learning_rate": 1e-2, "target_kl": 1e-6}
    grpo = trainer(tokenizer, here, kind=kind, **changes)
    grpo.add_callback(snapshots)
    history = fit(grpo, here).history
    steps = snapshots.taken
    assert len(steps) == 6
    for first in (0, 3):
        assert torch.equal(steps[first], steps[first + 1]) and torch.equal(steps[first], steps[first + 2])
    assert not torch.equal(steps[2], steps[3]), "the next update learns again"
    assert [metrics["stopped_early"] for metrics in history] == pytest.approx([2 / 3, 2 / 3])
    assert all(metrics["update_kl"] > 1e-6 for metrics in history)


def test_an_update_of_one_step_cannot_drift(tokenizer, tmp_path):
    here = work(tmp_path)
    history = fit(trainer(tokenizer, here, updates=2), here).history
    assert [metrics["update_kl"] for metrics in history] == pytest.approx([0, 0], abs=1e-6)
    assert [metrics["stopped_early"] for metrics in history] == [0, 0]


def test_only_the_adapter_moves(tokenizer, tmp_path):
    here = work(tmp_path)
    grpo = trainer(tokenizer, here, updates=1)
    policy = grpo.accelerator.unwrap_model(grpo.model)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    fit(grpo, here)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all("lora_" in name for name in moved)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("minibatches", "killed", "first"), [(1, 3, 3), (1, 7, 7), (2, 4, 2), (2, 5, 3)])
def test_resumes_exactly(tokenizer, tmp_path, monkeypatch, minibatches, killed, first):
    updates = 8 // minibatches
    changes = {"updates": updates, "minibatches": minibatches, "micro_batch_size": 12}
    whole = work(tmp_path, "whole")
    expected = fit(trainer(tokenizer, whole, **changes), whole).history
    log = Grpo.log

    def kill(self, logs, start_time=None):
        if "loss" in logs and self.state.global_step == killed:
            raise Killed
        log(self, logs, start_time)

    cut = work(tmp_path, "cut", checkpoint_seconds=0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Grpo, "log", kill)
        fit(trainer(tokenizer, cut, **changes), cut)
    steps = []
    again = work(tmp_path, "cut", on_log=lambda metrics, step: steps.append(step))
    progress = fit(trainer(tokenizer, again, **changes), again)
    assert steps == list(range(first, updates + 1))
    assert progress.history == expected


def test_artifact_and_report(tokenizer, tmp_path):
    here = work(tmp_path)
    grpo = trainer(tokenizer, here, updates=2)
    finish(grpo.accelerator.unwrap_model(grpo.model), fit(grpo, here), here)
    files = {str(p.relative_to(here.out)) for p in here.out.rglob("*") if p.is_file()}
    assert files == {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "report/updates.json",
                     "report/updates.png"}  # fmt: skip
    table = json.loads((here.out / "report" / "updates.json").read_text())
    wanted = {"reward", "kl", "kl_k3", "entropy", "length", "finished_share", "policy_loss", "clip_fraction"}
    assert wanted <= set(table["columns"]) and len(table["data"]) == 2
    assert wanted <= here.metrics.keys()


def test_impossible_recipes_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValidationError, match="dropout must be 0"):
        GrpoRecipe(adapter=LoraRecipe(dropout=0.1))
    with pytest.raises(ValidationError, match="must divide 64"):
        GrpoRecipe(micro_batch_size=24)
    with pytest.raises(ValidationError):
        GrpoRecipe(beta=0)
    with pytest.raises(InputError, match="no RL prompts"):
        trainer(tokenizer, work(tmp_path), rows=[])
