"""PPO on tiny models: it starts at the reference, learns, moves only what it should, and resumes exactly."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from tasks.artifact import InputError, Message
from tasks.models.adapters import FullRecipe, LoraRecipe, attach
from tasks.models.chat import encode_conversation
from tasks.models.loading import twin
from tasks.sampling.engine import Engine
from tasks.sampling.local import decode, generate
from tasks.training import rl_checkpoint
from tasks.training.advantages import explained_variance
from tasks.training.engine_rollouts import draw
from tasks.training.ppo import PpoRecipe
from tasks.training.ppo_trainer import Ppo, adapted
from tasks.training.rl_loop import finish, run
from tasks.training.rollouts import Prompts, by_length, collect, encode_prompts, token_logprobs
from tests.tiny_policies import ROWS, llama, share_of_apples, word_tokenizer, work


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def trainer(tokenizer, seed=0, score=share_of_apples, model=None, demonstrations=(), **changes):
    """`value_model = "separate"` gets its trunk as the stage makes it."""
    set_seed(seed)
    small = {"updates": 4, "episodes": 24, "max_new_tokens": 6, "learning_rate": 3e-3, "likelihood_coefficient": 0.0}
    recipe = PpoRecipe.model_validate(small | changes)
    model = (model or llama()).requires_grad_(isinstance(recipe.adapter, FullRecipe))
    trunk = attach(twin(model), recipe.adapter, seed=1) if recipe.value_model == "separate" else None
    policy = attach(model, recipe.adapter)
    return Ppo(recipe, policy, tokenizer, encode_prompts(tokenizer, ROWS), score, seed, demonstrations, trunk)


def test_starts_at_the_reference(tokenizer):
    metrics = trainer(tokenizer).step(rl_checkpoint.Progress())
    assert metrics["kl"] == pytest.approx(0, abs=1e-4)
    assert metrics["kl_k3"] == pytest.approx(0, abs=1e-4)


def test_the_precision_of_a_stage_before_in_the_process_is_not_taken_over(tokenizer):
    """As a worker has it that trained another stage in bf16: the ratio would be rounding, and the result by chance."""
    expected = trainer(tokenizer, learning_rate=1e-2).step(rl_checkpoint.Progress())
    AcceleratorState._reset_state()
    Accelerator(mixed_precision="bf16")
    metrics = trainer(tokenizer, learning_rate=1e-2).step(rl_checkpoint.Progress())
    assert metrics["kl_k3"] == pytest.approx(0, abs=1e-6)
    assert metrics == expected


def test_reference_of_a_full_fine_tune_stays_behind(tokenizer):
    ppo = trainer(tokenizer, adapter=FullRecipe(), learning_rate=1e-2)
    first = ppo.step(rl_checkpoint.Progress())
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    second = ppo.step(rl_checkpoint.Progress(update=1))
    assert second["kl_k3"] > 1e-3


def test_values_and_logprobs_are_those_of_their_tokens(tokenizer):
    """What decoding kept agrees with a whole forward over prompt and completion, however rows are grouped."""
    ppo = trainer(tokenizer)
    rollouts = collect(
        ppo.policy, ppo.reference, tokenizer, ppo.prompts, range(12), share_of_apples,
        n=2, max_new_tokens=9, seed=5, micro_batch_size=64, features=True,
    )  # fmt: skip
    assert rollouts.features is not None
    for part in by_length(rollouts, 5):
        logprobs, entropy = token_logprobs(ppo.policy, rollouts, part)
        width = logprobs.shape[1]
        assert torch.allclose(logprobs, rollouts.logprobs[part, :width], atol=1e-4)
        assert (entropy[~rollouts.mask[part, :width]] == 0).all()
    row = int(rollouts.lengths.argmin())
    length, prompt = int(rollouts.lengths[row]), rollouts.prompt_ids[row]
    whole = torch.tensor([prompt + rollouts.tokens[row, :length].tolist()])
    hidden = ppo.policy(input_ids=whole, output_hidden_states=True).hidden_states[-1][0]
    assert torch.allclose(hidden[len(prompt) - 1 : -1], rollouts.features[row, :length], atol=1e-4)
    assert not rollouts.mask[row, length:].any()


class Ours(Engine):
    """Our own engine where vLLM would draw."""

    def draw(self, *arguments, **named):
        return generate(*arguments, **named)

    def accept(self, gap):
        assert gap < 1e-5


def test_rollouts_of_another_engine_have_the_same_form(tokenizer, tmp_path):
    ppo = trainer(tokenizer)
    asked = {"n": 2, "max_new_tokens": 9, "seed": 5, "features": True}
    found, _ = draw(Ours("local", work(tmp_path)), ppo.policy, tokenizer, ppo.prompts.ids, rows=5, **asked)
    own = decode(ppo.policy, tokenizer, ppo.prompts.ids, **asked)
    assert len(set(own.lengths.tolist())) > 2, "the test needs rows of several lengths"
    for name in ("tokens", "lengths", "finished"):
        assert torch.equal(getattr(found, name), getattr(own, name)), name
    assert torch.allclose(found.logprobs, own.logprobs, atol=1e-5)
    assert found.features is not None and own.features is not None
    assert torch.allclose(found.features, own.features, atol=1e-5)


def test_only_the_adapter_and_the_value_head_move(tokenizer):
    ppo = trainer(tokenizer)
    before = {name: p.detach().clone() for name, p in ppo.policy.named_parameters()}
    value = [p.detach().clone() for p in ppo.value.parameters()]
    ppo.step(rl_checkpoint.Progress())
    for name, parameter in ppo.policy.named_parameters():
        moved = not torch.equal(before[name], parameter)
        assert moved == ("lora_B" in name) or ("lora_A" in name), name
    assert all(not torch.equal(a, b) for a, b in zip(value, ppo.value.parameters(), strict=True))


@pytest.mark.parametrize("adapter", [LoraRecipe(), FullRecipe()])
def test_raises_the_reward(tokenizer, adapter, tmp_path):
    ppo = trainer(tokenizer, adapter=adapter, updates=25, missing_eos_penalty=0.0, kl_coefficient=0.02)
    history = run(ppo.recipe, ppo.step, work(tmp_path), ppo.modules, ppo.optimizers).history
    assert history[0]["reward"] < 1.0
    assert sum(m["reward"] for m in history[-5:]) / 5 > 2.5


def rollouts_of(ppo, features=None):
    """Samples of a trainer's policy, their features in place of the policy's where they are given."""
    rollouts = collect(
        ppo.policy, ppo.reference, ppo.tokenizer, ppo.prompts, range(12), share_of_apples,
        n=4, max_new_tokens=5, seed=5, micro_batch_size=64, features=ppo.keeps_features,
    )  # fmt: skip
    if features is not None:
        rollouts.features = features(*rollouts.mask.shape)
    return rollouts


def learnt(ppo, rollouts, returns, passes):
    generator, values = torch.Generator().manual_seed(0), torch.zeros_like(returns)
    for _ in range(passes):
        ppo._learn_value(rollouts, values, returns, generator)
        values = ppo._values(rollouts)
    return explained_variance(values, returns, rollouts.mask)


def test_value_head_learns_what_features_tell(tokenizer):
    ppo = trainer(tokenizer)
    generator = torch.Generator().manual_seed(0)
    rollouts = rollouts_of(ppo, lambda rows, tokens: torch.randn(rows, tokens, 32, generator=generator))
    assert rollouts.features is not None
    returns = rollouts.features[..., :4].sum(-1) * rollouts.mask
    assert learnt(ppo, rollouts, returns, 60) > 0.8


@pytest.mark.parametrize("adapter", [LoraRecipe(), FullRecipe()])
def test_a_separate_value_model_learns_what_the_policy_does_not_tell(tokenizer, adapter):
    """How often a word came before a token is hard to tell from frozen features; a trunk of its own learns to count."""
    reached = {}
    for value_model in ("shared", "separate"):
        ppo = trainer(tokenizer, adapter=adapter, value_model=value_model, value_learning_rate=3e-3)
        rollouts = rollouts_of(ppo)
        seen = (rollouts.tokens == rollouts.tokens.mode().values.mode().values).cumsum(-1).roll(1, -1)
        seen[:, 0] = 0
        before = [p.detach().clone() for p in ppo.policy.parameters()]
        reached[value_model] = learnt(ppo, rollouts, 2.0 * seen * rollouts.mask, 40)
        assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy.parameters(), strict=True))
    assert reached["separate"] > 0.9
    assert 1 - reached["separate"] < (1 - reached["shared"]) / 3


def test_an_adapter_for_values_is_on_the_policys_weights(tokenizer):
    ppo = trainer(tokenizer, value_model="separate")
    frozen = {p.data_ptr() for p in ppo.policy.parameters() if not p.requires_grad}
    assert frozen == {p.data_ptr() for p in ppo.value.parameters() if not p.requires_grad}
    values = ppo._values(rollouts_of(ppo))
    assert (values == 0).all(), "the head begins at zero"
    metrics = ppo.step(rl_checkpoint.Progress())
    assert metrics["kl_k3"] == pytest.approx(0, abs=1e-4) and metrics["value_loss"] > 0


def test_missing_eos_is_punished(tokenizer, tmp_path):
    ppo = trainer(
        tokenizer, score=lambda p, c, f: [0.0] * len(c), updates=20, missing_eos_penalty=4.0, kl_coefficient=0.0
    )
    history = run(ppo.recipe, ppo.step, work(tmp_path), ppo.modules, ppo.optimizers).history
    assert history[0]["objective"] == pytest.approx(-4 * (1 - history[0]["finished_share"]), abs=1e-5)
    assert history[-1]["finished_share"] > history[0]["finished_share"] + 0.3


def test_kl_penalty_holds_the_policy_back(tokenizer, tmp_path):
    kls = []
    for i, coefficient in enumerate([0.0, 2.0]):
        ppo = trainer(tokenizer, kl_coefficient=coefficient, updates=12)
        kls.append(run(ppo.recipe, ppo.step, work(tmp_path, str(i)), ppo.modules, ppo.optimizers).history[-1]["kl_k3"])
    assert kls[1] < kls[0] / 2


def test_likelihood_reward_makes_the_policy_surer(tokenizer, tmp_path):
    ppo = trainer(
        tokenizer, score=lambda p, c, f: [0.0] * len(c), updates=15, missing_eos_penalty=0.0, likelihood_coefficient=0.5
    )
    history = run(ppo.recipe, ppo.step, work(tmp_path), ppo.modules, ppo.optimizers).history
    assert history[-1]["reference_logprob"] > history[0]["reference_logprob"] + 2
    assert history[-1]["entropy"] < history[0]["entropy"]


def test_the_kl_is_steered_to_its_target(tokenizer, tmp_path):
    reached = []
    for target in (None, 1.0):
        changes = {"kl_coefficient": 0.3, "kl_target": target, "kl_gain": 1.0, "learning_rate": 1e-3, "updates": 40}
        ppo = trainer(tokenizer, **changes)
        history = run(ppo.recipe, ppo.step, work(tmp_path, str(target)), ppo.modules, ppo.optimizers).history
        assert history[0].get("kl_coefficient") == (target and 0.3)
        reached.append(sum(metrics["kl"] for metrics in history[-12:]) / 12)
    assert reached[0] > 3 and 0.5 < reached[1] < 2


def test_a_coefficient_of_zero_cannot_be_steered():
    with pytest.raises(ValidationError, match="start it higher"):
        PpoRecipe(kl_coefficient=0, kl_target=1)


def test_the_coefficient_by_hand():
    assert adapted(0.1, kl=3.0, target=2.0, gain=0.5) == pytest.approx(0.1 * 1.1), "the error counts up to 0.2"
    assert adapted(0.1, kl=2.2, target=2.0, gain=0.5) == pytest.approx(0.1 * 1.05)
    assert adapted(0.1, kl=0.0, target=2.0, gain=0.5) == pytest.approx(0.1 * 0.9)


def test_demonstrations_are_not_forgotten(tokenizer, tmp_path):
    turns: list[Message] = [{"role": "user", "content": "fig"}, {"role": "assistant", "content": "kiwi lime date"}]
    rows = [encode_conversation(tokenizer, turns)] * 4
    losses = []
    for coefficient in (1e-9, 2.0):
        ppo = trainer(tokenizer, demonstrations=rows, ptx_coefficient=coefficient, ptx_batch_size=3, updates=8)
        history = run(ppo.recipe, ppo.step, work(tmp_path, str(coefficient)), ppo.modules, ppo.optimizers).history
        losses.append([metrics["ptx_loss"] for metrics in history])
    row = rows[0]
    with torch.no_grad():
        logps = llama()(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    marked = [t for t, mark in enumerate(row.labels_mask) if mark]
    expected = -sum(float(logps[t - 1, row.input_ids[t]]) for t in marked) / len(marked)
    assert losses[0][0] == pytest.approx(expected, rel=0.05), "before the first steps moved it far"
    assert losses[1][-1] < 0.5 * losses[1][0] and losses[1][-1] < 0.5 * losses[0][-1]
    with pytest.raises(InputError, match="none of the data's for SFT fits"):
        trainer(tokenizer, ptx_coefficient=1.0)


def test_target_kl_ends_an_update(tokenizer):
    ppo = trainer(tokenizer, target_kl=1e-6, learning_rate=1e-2, minibatches=4, epochs=2)
    steps = []
    step, ppo.optimizer.step = ppo.optimizer.step, lambda: (steps.append(1), step())
    metrics = ppo.step(rl_checkpoint.Progress())
    assert metrics["stopped_early"] > 0
    assert len(steps) == 1, "the first step has nothing to be far from; the second is left out"


def test_micro_batches_change_nothing(tokenizer):
    runs = [trainer(tokenizer, micro_batch_size=size, minibatches=1) for size in (24, 5)]
    for ppo in runs:
        ppo.step(rl_checkpoint.Progress())
    for a, b in zip(runs[0].policy.parameters(), runs[1].policy.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_resumes_exactly(tokenizer, tmp_path, value_model):
    """The curve of a run that was killed at update 3 and taken up again is that of the run that was not."""
    changes = {"kl_target": 0.5, "updates": 5, "value_model": value_model}
    whole = trainer(tokenizer, **changes)
    expected = run(whole.recipe, whole.step, work(tmp_path, "whole"), whole.modules, whole.optimizers).history

    def kill(metrics, step):
        if step == 3:
            raise Killed

    first = trainer(tokenizer, **changes)
    cut = work(tmp_path, "cut", on_log=kill, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        run(first.recipe, first.step, cut, first.modules, first.optimizers)
    steps = []
    second = trainer(tokenizer, **changes)
    with torch.no_grad():
        for module in second.modules.values():
            for p in module.parameters():
                p += p.requires_grad * 0.1  # whatever it starts from, the checkpoint counts
    taken_up = work(tmp_path, "cut", on_log=lambda metrics, step: steps.append(step))
    progress = run(second.recipe, second.step, taken_up, second.modules, second.optimizers)
    assert steps == [3, 4, 5]
    assert progress.history == expected
    for a, b in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_half_written_checkpoint_is_not_used(tokenizer, tmp_path):
    ppo = trainer(tokenizer)
    (tmp_path / "update-000009.partial").mkdir()
    assert rl_checkpoint.read(tmp_path, ppo.modules, ppo.optimizers).update == 0
    rl_checkpoint.write(tmp_path, rl_checkpoint.Progress(3, [{"reward": 1.0}]), ppo.modules, ppo.optimizers)
    rl_checkpoint.write(tmp_path, rl_checkpoint.Progress(4, [{"reward": 1.0}] * 2), ppo.modules, ppo.optimizers)
    assert [p.name for p in tmp_path.iterdir()] == ["update-000004"]
    assert rl_checkpoint.read(tmp_path, ppo.modules, ppo.optimizers).history == [{"reward": 1.0}] * 2


def test_other_architectures(tokenizer):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    metrics = trainer(tokenizer, model=model.requires_grad_(False)).step(rl_checkpoint.Progress())
    assert metrics["kl_k3"] == pytest.approx(0, abs=1e-4)
    assert metrics["update_kl"] >= 0


def test_artifact_and_report(tokenizer, tmp_path):
    ppo = trainer(tokenizer, updates=2)
    here = work(tmp_path)
    finish(ppo.policy, run(ppo.recipe, ppo.step, here, ppo.modules, ppo.optimizers), here)
    assert (here.out / "adapter" / "adapter_model.safetensors").exists()
    table = json.loads((here.out / "report" / "updates.json").read_text())
    wanted = {"reward", "kl", "kl_k3", "entropy", "length", "finished_share", "policy_loss", "value_loss",
              "clip_fraction", "value_clip_fraction", "explained_variance"}  # fmt: skip
    assert wanted <= set(table["columns"]) and len(table["data"]) == 2
    assert wanted <= here.metrics.keys()
    assert (here.out / "report" / "updates.png").stat().st_size > 1000
    files = {str(p.relative_to(here.out)) for p in here.out.rglob("*") if p.is_file()}
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


def test_prompts_come_in_shuffled_passes():
    prompts = Prompts([{}] * 10, [[1]] * 10)
    stream = [i for update in range(5) for i in prompts.batch(update, 4, seed=1)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    assert prompts.batch(2, 4, seed=1) == stream[8:12]
    assert sorted(prompts.batch(0, 25, seed=1)[:20]) == sorted([*range(10), *range(10)])


def test_impossible_recipes_are_refused(tokenizer):
    with pytest.raises(ValidationError, match="dropout must be 0"):
        PpoRecipe(adapter=LoraRecipe(dropout=0.1))
    with pytest.raises(ValidationError, match="at most episodes"):
        PpoRecipe(episodes=2, minibatches=3)
    with pytest.raises(ValidationError, match="there is one; use minibatches"):
        PpoRecipe(target_kl=0.1, minibatches=1)
    with pytest.raises(InputError, match="no RL prompts"):
        encode_prompts(tokenizer, [])


def test_stage_file_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, tasks.training.ppo, tasks.sampling.completions; print('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"
