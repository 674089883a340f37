"""A group's completions in one row behind their prompt: the same log-probabilities and gradients, where a model can."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tasks.models.adapters import LoraRecipe, attach
from tasks.training.grpo import GrpoRecipe
from tasks.training.grpo_trainer import Grpo, fit
from tasks.training.packed_groups import agrees, may_pack, pack
from tests.tiny_policies import ROWS, llama, share_of_apples, word_tokenizer, work

LLAMA_LIKE = {
    "vocab_size": 17, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
PROMPTS, ANSWERS = [[5, 6, 7], [8], [5, 6, 7], [9, 10], [8], [5, 6, 7]], [[4, 2], [5, 6, 2], [9], [], [7], [4, 2]]


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    return GPT2LMHeadModel(config)


def rows():
    """Prompts padded on the left and completions on the right, as TRL holds them."""
    width, length = max(map(len, PROMPTS)), max(map(len, ANSWERS))
    ids = [[0] * (width - len(p)) + p + a + [0] * (length - len(a)) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    seen = [
        [0] * (width - len(p)) + [1] * len(p + a) + [0] * (length - len(a))
        for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(seen), length


def alone(model):
    """Each row by itself, without padding or masks: what is true."""
    found = torch.zeros(len(ANSWERS), max(map(len, ANSWERS)))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        if answer:
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            found[row, : len(answer)] = logits.log_softmax(-1).gather(-1, torch.tensor(answer).unsqueeze(-1))[:, 0]
    return found


def together(model):
    [packed] = pack(*rows(), width=1024, most=10_000)
    logits = model(
        input_ids=packed.tokens, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).logits
    labels = packed.labels.clamp(min=0).unsqueeze(-1)
    return packed.unpacked(logits.log_softmax(-1).gather(-1, labels).squeeze(-1))


def test_a_prompt_stands_once_before_its_completions():
    [packed] = pack(*rows(), width=1024, most=10_000)
    assert packed.tokens.tolist() == [[9, 0, 0, 0, 0, 0, 0], [8, 5, 6, 8, 0, 0, 0], [5, 6, 7, 4, 7, 7, 4]]
    assert packed.positions[2].tolist() == [0, 1, 2, 3, 2, 2, 3]
    assert packed.labels[2].tolist() == [-100, -100, 4, 2, 9, 4, 2]
    assert packed.mask[2, 0, 4].tolist() == [True, True, False, False, True, False, False], "prompt and itself"
    back = packed.unpacked(packed.labels)
    assert back.tolist() == [[4, 2, 0], [5, 6, 2], [9, 0, 0], [0, 0, 0], [7, 0, 0], [4, 2, 0]]


@pytest.mark.parametrize("make", [llama, gpt2, lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE))])
def test_log_probabilities_and_gradients_are_those_of_each_row_alone(make):
    model = make().eval().requires_grad_(True)
    assert may_pack(model.config)
    weights = torch.randn(len(ANSWERS), 3, generator=torch.Generator().manual_seed(0))
    gradients = []
    for way in (alone, together):
        model.zero_grad()
        found = way(model)
        (found * weights).sum().backward()
        gradients.append((found.detach(), *(p.grad.clone() for p in model.parameters())))
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(expected, found, atol=2e-5)


def test_parts_hold_so_many_tokens_and_together_everything():
    parts = pack(*rows(), width=1024, most=8)
    assert [part.tokens.shape for part in parts] == [(2, 4), (1, 7)]
    assert sum(part.unpacked(part.labels) for part in parts).tolist() == [  # type: ignore[union-attr]
        [4, 2, 0], [5, 6, 2], [9, 0, 0], [0, 0, 0], [7, 0, 0], [4, 2, 0]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "each", "prompt", "answer", "packs"),
    [
        (8, 8, 12, 12, True),
        (8, 1, 12, 12, False),
        (8, 8, 4, 200, False),
        (8, 8, 200, 20, True),
        (2, 8, 10, 400, False),
    ],
)
def test_packed_only_where_it_pays(prompts, each, prompt, answer, packs):
    """At a width of 128: eight answers behind one prompt meet each other's tokens in the mask."""
    ids = [[9 + i] * (prompt + answer) for i in range(prompts) for _ in range(each)]
    seen = torch.ones(prompts * each, prompt + answer, dtype=torch.long)
    assert bool(pack(torch.tensor(ids), seen, answer, width=128, most=100_000)) == packs


def test_models_that_cannot_are_found_out():
    torch.manual_seed(0)
    assert not may_pack(MistralConfig(**LLAMA_LIKE, sliding_window=4))
    assert not may_pack(MistralForCausalLM(MistralConfig(**LLAMA_LIKE, sliding_window=4)).config)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=17, hidden_size=32, n_layer=2, n_head=4)).eval()
    assert not agrees(lambda: alone(bloom), lambda: together(bloom), exact=True), "it knows no positions"
    model = llama()
    assert agrees(lambda: alone(model), lambda: together(model), exact=True)
    assert not agrees(lambda: alone(model), lambda: together(model) + 0.01, exact=True)
    assert agrees(lambda: alone(model), lambda: together(model) + 0.01, exact=False)
    assert not agrees(lambda: alone(model), lambda: together(model) + 0.03, exact=False)

    def exhausted():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        agrees(lambda: alone(model), exhausted, exact=True)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_grpo_learns_the_same_either_way(tmp_path, minibatches):
    curves = []
    for packs in (None, False):
        here = work(tmp_path, str(packs))
        recipe = GrpoRecipe.model_validate(
            {"updates": 4, "prompts": 4, "completions_per_prompt": 6, "max_new_tokens": 6, "minibatches": minibatches}
            | {"learning_rate": 3e-3, "micro_batch_size": 12}
        )
        torch.manual_seed(0)
        policy = attach(llama(), LoraRecipe())
        trainer = Grpo(recipe, policy, word_tokenizer(), ROWS, share_of_apples, here)
        trainer.packs = packs
        history = fit(trainer, here).history
        assert trainer.packs is (packs is None)
        curves.append(
            [[row[name] for name in ("reward", "kl", "entropy", "policy_loss", "gradient_norm")] for row in history]
        )
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
