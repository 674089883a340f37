"""The decoding engine: same greedy tokens as `generate`, true log-probabilities, repeatable sampling."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from tasks.artifact import InputError
from tasks.sampling.beams import beam_search
from tasks.sampling.cache import compaction
from tasks.sampling.folded import folded
from tasks.sampling.local import Sampler, decode, generate

VOCABULARY = 40
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16, 17], [20, 21, 22, 23]]


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def llama(kv_heads=4, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=128, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4)
    return GPT2LMHeadModel(config).eval()


def sliding_window():
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, initializer_range=0.4,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def grouped_query_with_lora():
    model = get_peft_model(
        llama(kv_heads=2, seed=3), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    return model.eval()


def peer(model, prompts, steps):
    """`model.generate` on the same left-padded batch, each row cut after its EOS."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=steps, pad_token_id=0, eos_token_id=2
    )[:, width:].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in out]


@pytest.mark.parametrize("build", [llama, gpt2, grouped_query_with_lora, sliding_window])
@pytest.mark.parametrize("batch_size", [64, 2])
def test_greedy_equals_generate(tokenizer, build, batch_size):
    model = build()
    ours = generate(model, tokenizer, PROMPTS, max_new_tokens=24, greedy=True, seed=0, batch_size=batch_size)
    assert [c.token_ids for (c,) in ours] == peer(model, PROMPTS, 24)
    assert [c.finished for (c,) in ours] == [c.token_ids[-1] == 2 for (c,) in ours]


def eager_to_end(model, amount):
    """Raise EOS's logit so that rows end at different steps."""
    bias = torch.zeros(VOCABULARY)
    bias[2] = amount
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    return model


def test_greedy_equals_generate_when_rows_finish_early(tokenizer):
    prompts = [[a, b] for a in range(4, 16) for b in (5, 9)] + PROMPTS
    model = eager_to_end(llama(), 4.0)
    ours = generate(model, tokenizer, prompts, max_new_tokens=24, greedy=True, seed=0)
    lengths = {len(c.token_ids) for (c,) in ours}
    assert len(lengths) > 3, "the test needs rows of several lengths"
    assert [c.token_ids for (c,) in ours] == peer(model, prompts, 24)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9)])
def test_logprobs_are_the_models_own(tokenizer, temperature, top_p):
    model = eager_to_end(llama(), 1.0)
    groups = generate(model, tokenizer, PROMPTS, n=3, max_new_tokens=12, temperature=temperature, top_p=top_p, seed=1)
    assert any(c.finished for g in groups for c in g) and not all(c.finished for g in groups for c in g)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids).unsqueeze(-1)).squeeze(-1)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


@pytest.mark.parametrize("drawn", [{"top_p": 0.9}, {"temperature": 2.0}, {"greedy": True}], ids=str)
def test_entries_that_the_tokenizer_lacks_are_never_drawn(tokenizer, drawn):
    """Vocabularies are padded to round sizes; the log-probabilities stay those of training, which sees all entries."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 24, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    found = [
        row for rows in generate(model, tokenizer, PROMPTS, n=8, max_new_tokens=12, seed=0, **drawn) for row in rows
    ]
    assert max(token for row in found for token in row.token_ids) < VOCABULARY
    beams = beam_search(model, tokenizer, PROMPTS, n=3, max_new_tokens=6)
    assert max(token for rows in beams for row in rows for token in row.token_ids) < VOCABULARY
    for prompt, row in [(PROMPTS[0], found[0]), (PROMPTS[-1], found[-1]), (PROMPTS[0], beams[0][0])]:
        logits = model(input_ids=torch.tensor([prompt + row.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(row.token_ids).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(torch.tensor(row.logprobs), expected, atol=1e-4, rtol=0)


def test_features_are_what_the_output_layer_saw(tokenizer):
    model = llama()
    out = decode(model, tokenizer, PROMPTS, n=2, max_new_tokens=6, seed=0, features=True)
    assert out.features is not None and out.features.shape == (10, 6, 32)
    logits = model.lm_head(out.features)
    chosen = logits.log_softmax(-1).gather(-1, out.tokens.unsqueeze(-1)).squeeze(-1)
    live = torch.arange(6) < out.lengths.unsqueeze(1)
    assert torch.allclose(chosen[live], out.logprobs[live], atol=1e-4)


def test_what_was_decoded_can_be_learned_from(tokenizer):
    model = llama()
    out = decode(model, tokenizer, PROMPTS, n=2, max_new_tokens=6, seed=0, features=True)
    assert out.features is not None
    value = torch.nn.Linear(32, 1)
    logits = model(out.tokens).logits
    loss = (value(out.features).squeeze(-1) * out.logprobs).sum() + logits.sum()
    loss.backward()
    assert value.weight.grad is not None and value.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_samples_repeat_and_do_not_depend_on_the_batch(tokenizer):
    model = eager_to_end(llama(), 1.0)
    runs = [
        generate(model, tokenizer, PROMPTS, n=4, max_new_tokens=16, seed=seed, batch_size=size)
        for seed, size in [(7, 64), (7, 4), (7, 8), (8, 64)]
    ]
    ids = [[c.token_ids for group in run for c in group] for run in runs]
    assert ids[0] == ids[1] == ids[2]
    assert ids[0] != ids[3]
    assert len({tuple(c) for c in ids[0][:4]}) > 1, "samples of one prompt differ"


def test_sampling_follows_the_distribution(tokenizer):
    model = llama()
    first = decode(model, tokenizer, [[5, 6]], n=4000, max_new_tokens=1, seed=3, temperature=2.0).tokens[:, 0]
    with torch.no_grad():
        wanted = (model(torch.tensor([[5, 6]])).logits[0, -1] / 2.0).softmax(-1)
    counts = torch.bincount(first, minlength=VOCABULARY) / 4000
    assert (counts - wanted).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log().repeat(1000, 1)
    noise = torch.linspace(0, 0.999, 1000)
    chosen = Sampler(1.0, 0.8, False)(logits, noise)
    assert set(chosen.tolist()) == {1, 3}
    assert (chosen == 1).float().mean().item() == pytest.approx(0.5 / 0.8, abs=0.01)
    assert set(Sampler(1.0, 1e-6, False)(logits, noise).tolist()) == {1}


def test_compaction_fills_holes_from_the_end():
    finished = torch.tensor([False, True, False, True, False, False])
    assert compaction(finished).tolist() == [0, 4, 2, 5]
    assert compaction(torch.tensor([True, True])).tolist() == []


def test_dropout_is_off_and_training_mode_restored(tokenizer):
    model = get_peft_model(
        llama(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    )
    model.train()
    a = generate(model, tokenizer, PROMPTS, max_new_tokens=8, greedy=True, seed=0)
    b = generate(model, tokenizer, PROMPTS, max_new_tokens=8, greedy=True, seed=1)
    assert a == b
    assert model.training


def test_folding_an_adapter_changes_no_token_and_leaves_no_trace(tokenizer):
    model = grouped_query_with_lora()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=16, greedy=True, seed=0)
    inputs = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        adapted = model(inputs).logits
        with folded(model):
            inside = generate(model, tokenizer, PROMPTS, max_new_tokens=16, greedy=True, seed=0)
            assert torch.allclose(model(inputs).logits, adapted, atol=1e-4)
            assert not all(torch.equal(before[name], p) for name, p in model.named_parameters())
        assert torch.equal(model(inputs).logits, adapted)
    assert [c.token_ids for (c,) in inside] == [c.token_ids for (c,) in plain]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_progress_and_text(tokenizer):
    seen = []
    out = generate(
        llama(),
        tokenizer,
        PROMPTS,
        max_new_tokens=3,
        seed=0,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert out[0][0].text == tokenizer.decode(out[0][0].token_ids, skip_special_tokens=True)


def test_empty_prompt_is_refused(tokenizer):
    with pytest.raises(InputError, match="Prompt 1 has no tokens"):
        generate(llama(), tokenizer, [[5], []], max_new_tokens=3, seed=0)
