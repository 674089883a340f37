"""What `rlhf plan --estimate` says a training step takes in memory, beside what it took.

python -m benchmarks.plan

Random models of several shapes, each trained by the SFT stage for a few steps in a process of its own on rows of one
length. "measured" is how much the process's resident memory grew from before the model was loaded to the highest seen,
every 2 ms, where memory that is freed goes back at once (MALLOC_MMAP_THRESHOLD_ is fixed at 1 MiB); "kept" is the same
with glibc's own thresholds, which grow, so that it keeps what was freed. On a GPU it is what PyTorch's allocator held.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measured import ROOT, keep, show
from benchmarks.memory import MIB, Memory

WIDE: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6}
LLAMA = WIDE | {"model_type": "llama", "intermediate_size": 1024, "num_key_value_heads": 6}
SMALL_HEADS: dict[str, Any] = {
    "vocab_size": 12000, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 768,
}  # fmt: skip
FULL = {"adapter": {"kind": "full"}, "batch_size": 8}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "Llama 10M, LoRA, 8 x 256": (LLAMA, {"adapter": {"kind": "lora"}, "batch_size": 8}, 256),
    "Llama 10M, full, 8 x 256": (LLAMA, FULL, 256),
    "Llama 10M, full, 8 x 256, checkpointing": (LLAMA, FULL | {"gradient_checkpointing": True}, 256),
    "GPT-2 9M, LoRA, 8 x 256": (
        WIDE | {"model_type": "gpt2"}, {"adapter": {"kind": "lora"}, "batch_size": 8}, 256,
    ),
    "Gemma 3 10M, prompt, 8 x 256": (
        LLAMA | {"model_type": "gemma3_text", "head_dim": 64},
        {"adapter": {"kind": "prompt_tuning"}, "batch_size": 8}, 256,
    ),
    "Llama 7M, tied, heads of 64, LoRA, 8 x 256": (
        SMALL_HEADS | {"model_type": "llama", "head_dim": 64, "tie_word_embeddings": True},
        {"adapter": {"kind": "lora"}, "batch_size": 8}, 256,
    ),
    "Qwen3 10M, heads of 32, LoRA, 8 x 256": (
        SMALL_HEADS | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
        {"adapter": {"kind": "lora"}, "batch_size": 8}, 256,
    ),
    "Qwen3 9M, tied, heads of 64, LoRA, 8 x 256": (
        SMALL_HEADS | {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True},
        {"adapter": {"kind": "lora"}, "batch_size": 8}, 256,
    ),
    "Qwen3 9M, tied, heads of 64, full, 8 x 256": (
        SMALL_HEADS | {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True}, FULL, 256,
    ),
    "Qwen3-MoE, 8 experts, full, 8 x 256": (
        SMALL_HEADS | {"model_type": "qwen3_moe", "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2,
                       "moe_intermediate_size": 384}, FULL, 256,
    ),
}  # fmt: skip
"""The model, the SFT recipe and the tokens of each row."""


def main() -> None:
    found = []
    for name in SHAPES:
        row: dict[str, Any] = {"shape": name}
        for measure, more in (("kept", {}), ("measured", {"MALLOC_MMAP_THRESHOLD_": str(MIB)})):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.plan", name],
                cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | more,
            )  # fmt: skip
            seen = json.loads(done.stdout.splitlines()[-1])
            row |= seen | {measure: seen["measured"]}
        found.append(row | {"ratio": row["estimated"] / row["measured"]})
    keep("plan", found)
    names = ("rule", "estimated", "measured", "ratio", "kept")
    show("a step's memory, MiB", ["", *names], [[row["shape"], *(row[name] for name in names)] for row in found])


def one(name: str) -> dict[str, float]:
    """One shape's process."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tasks.artifact import Work
    from tasks.models.adapters import attach
    from tasks.models.chat import Encoded
    from tasks.models.loading import load_causal_lm
    from tasks.models.pretrain_engine import train_tokenizer
    from tasks.training.footprint import of_step
    from tasks.training.precision import choose
    from tasks.training.sft import SftRecipe
    from tasks.training.sft_engine import fit_language_model

    torch.set_num_threads(1)
    given, settings, length = SHAPES[name]
    kind = given["model_type"]
    shape = {key: value for key, value in given.items() if key != "model_type"}
    config = AutoConfig.for_model(kind, **shape, max_position_embeddings=1024, pad_token_id=0)
    recipe = SftRecipe.model_validate({"epochs": 1, "precision": "fp32"} | settings)
    count = 2 * recipe.batch_size
    rows = [Encoded([1, *range(length - 1)], [1] * length) for _ in range(count)]
    tokenizer = train_tokenizer(["some text"] * 9, 300)
    estimate = of_step(
        config, recipe.adapter, recipe.batch_size, length, recipe.batch_size * (length - 1),
        bf16=choose(recipe.precision, 0)[0], checkpointing=recipe.gradient_checkpointing,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        AutoModelForCausalLM.from_config(config).save_pretrained(base / "model")
        work = Work(Path(folder) / "out", Path(folder) / "scratch")
        for each in (work.out, work.scratch):
            each.mkdir()
        fit_language_model(_small(config), tokenizer, rows[:1], recipe, work)  # what the libraries take
        memory = Memory()
        model = attach(load_causal_lm([base], trainable=True), recipe.adapter)
        fit_language_model(model, tokenizer, rows, recipe, work)
        grown = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.grown()
    return {"rule": estimate.rule / MIB, "estimated": estimate.total / MIB, "measured": grown / MIB}


def _small(config: Any) -> Any:
    """A model to train first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=config.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(one(sys.argv[1])))
    else:
        main()
