"""Tiny random policies, prompts and a reward for the tests of PPO and GRPO."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tasks.artifact import Row, Work
from tasks.models.templates import prepare_tokenizer

WORDS = ["apple", "pear", "plum", "fig", "nut", "kiwi", "lime", "date", "user", "assistant", ":", "Assistant", "User"]
ROWS: list[Row] = [{"prompt": [{"role": "user", "content": " ".join(WORDS[: 1 + i % 5])}]} for i in range(12)]


def word_tokenizer() -> PreTrainedTokenizerBase:
    """One token per word, with the default chat template."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return prepare_tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
        )
    )


def llama() -> LlamaForCausalLM:
    """Two layers, hidden 32, the same random weights each time, frozen."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def save_reward(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A reward artifact: one layer, hidden 16, the same random weights each time."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "reward.json").write_text(json.dumps({"mean": 0.0, "std": 1.0}))


def share_of_apples(prompts, completions, finished):
    """Four times the share of words that are "apple"."""
    return [4 * text.split().count("apple") / max(1, len(text.split())) for text in completions]


def apples(row, completion):
    """A judge: the share of words that are "apple"."""
    return share_of_apples([], [completion], [])[0]


def no_apples(row, completion):
    """A judge of the contrary opinion."""
    return -apples(row, completion)


def indifferent(row, completion):
    """A judge to whom all is the same."""
    return 0.0


def ends_in_an_apple(row, completion):
    """A check."""
    return completion.endswith("apple")


def work(path, name="work", **handlers) -> Work:
    """Folders to build an artifact in, under `path/name`."""
    folders = path / name / "out", path / name / "scratch"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return Work(*folders, **handlers)
