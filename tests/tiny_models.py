"""Tiny random models and artifacts made in memory: two layers, width 32."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tasks.artifact import Row, Work, write_jsonl
from tasks.models.pretrain_engine import new_llama, train_tokenizer

TEXTS = ["The bread is in aisle 4.", "You pay 2.50 for the milk.", "Where is the rice? It is in aisle 2."] * 20


WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "intermediate_size": 64}
LAYOUTS: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 64},
    "mistral": {"intermediate_size": 64, "sliding_window": 8},
    "qwen2": {"use_sliding_window": True, **WINDOW},
    "qwen3": {"intermediate_size": 64, "head_dim": 32, "tie_word_embeddings": True},
    "gemma": {"intermediate_size": 64},
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 16},
    "phi": {"intermediate_size": 64},
    "phi3": {"intermediate_size": 64, "original_max_position_embeddings": 128},
    "granite": {"intermediate_size": 64, "logits_scaling": 4.0},
    "qwen2_moe": {
        **{"intermediate_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
        **{"num_experts": 4, "num_experts_per_tok": 2},
    },
    "mixtral": {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""What tells each layout of transformers' from another: fused or scaled matrices, windows, tied embeddings, experts,
and one that transformers has no reward head for."""


def corpus(seed: int, documents: int) -> list[str]:
    """Text to pre-train on, with dialogues."""
    return [f"<|user|>Where is item {n % 7}?<|assistant|>Item {n % 7} is in aisle {n % 5}." for n in range(documents)]


def no_corpus(seed: int, documents: int) -> list[str]:
    """A corpus function that gives nothing."""
    return []


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE of 320 entries."""
    return train_tokenizer(TEXTS, 320)


def tiny_model(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model for `tiny_tokenizer`."""
    tokenizer = tiny_tokenizer()
    if kind == "llama":
        return new_llama(tokenizer, seed, hidden=32, layers=2, heads=2, positions=128)
    torch.manual_seed(seed)
    if kind in LAYOUTS:
        grouped = {} if kind in ("opt", "gpt_neox", "phi") else {"num_key_value_heads": 1, "head_dim": 16}
        given = grouped | LAYOUTS[kind]
        config = AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128, initializer_range=0.1, bos_token_id=1, eos_token_id=2, pad_token_id=0, **given,
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.1,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def tiny_base(folder: Path, kind: str = "llama") -> Path:
    """A base artifact."""
    tiny_model(kind).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def work_in(folder: Path, seed: int = 0) -> Work:
    """Work whose artifact is `folder/out`."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    return Work(out=out, scratch=scratch, seed=seed)


def demonstrations(folder: Path, count: int = 24) -> Path:
    """A data artifact with `sft.jsonl`: one right answer per item."""
    rows = [
        {
            "id": str(n),
            "messages": [
                {"role": "user", "content": f"Where is item {n}?"},
                {"role": "assistant", "content": f"It is in aisle {n % 5}."},
            ],
        }
        for n in range(count)
    ]
    write_jsonl(folder / "sft.jsonl", rows)
    return folder


def preference(prompt: str, chosen: str, rejected: str, **more: object) -> Row:
    """One preference row."""
    return {
        "id": f"{prompt}{chosen}{rejected}",
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "weight": 1.0,
        "margin": None,
        **more,
    }


def preferences(folder: Path, count: int = 16) -> Path:
    """A preferences artifact in which the polite answer wins; three completions and two or three pairs per prompt."""
    rows = []
    for n in range(count):
        prompt = f"Where is item {n}?"
        polite, plain, rude = f"Aisle {n % 5}. Thank you!", f"In {n % 5}.", "Go away."
        rows += [preference(prompt, polite, rude), preference(prompt, polite, plain, weight=0.5)]
        rows += [preference(prompt, plain, rude)] if n % 2 else []
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "validation.jsonl", rows[:9])
    return folder


def trainer_loss(kind, model, batch, recipe=None) -> float:
    """A trainer's loss of one batch, without the library around it."""
    trainer = object.__new__(kind)
    trainer.accelerator = type("Accelerator", (), {"unwrap_model": staticmethod(lambda model: model)})
    trainer.recipe = recipe
    with torch.no_grad():
        return float(kind.losses(trainer, model, batch)[0]) / batch["items"]
