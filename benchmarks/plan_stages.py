"""What `rlhf plan --estimate` says each stage takes in memory, beside what it took.

python -m benchmarks.plan_stages [STAGE ...]

A Llama of 10M parameters with random weights, trained by the stages themselves for an update or two on texts of one
length, each in a process of its own; memory is measured as in `benchmarks.plan`. QLoRA needs bitsandbytes.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.measured import ROOT, keep, show
from benchmarks.memory import MIB, Memory
from benchmarks.plan import LLAMA

PROMPT, ANSWER, COUNT = 120, 80, 32
"""Letters of each prompt and answer (a letter is a token), and how many prompts there are."""
FULL, QLORA = {"adapter": {"kind": "full"}}, {"adapter": {"kind": "qlora"}}
LONG = {"max_new_tokens": 80}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT, QLoRA": ("sft", QLORA),
    "reward, LoRA": ("reward", {"batch_size": 8}),
    "reward, every weight": ("reward", {"batch_size": 8} | FULL),
    "DPO, LoRA": ("dpo", {"batch_size": 8}),
    "DPO, every weight": ("dpo", {"batch_size": 8} | FULL),
    "PPO, LoRA": ("ppo", {"episodes": 64, "updates": 2} | LONG),
    "PPO, every weight": ("ppo", {"episodes": 64, "updates": 2} | LONG | FULL),
    "PPO, share_base": ("ppo", {"episodes": 64, "updates": 2, "share_base": True} | LONG),
    "GRPO, LoRA": ("grpo", {"updates": 2, "prompts": 8, "completions_per_prompt": 8} | LONG),
    "GRPO, every weight": ("grpo", {"updates": 2, "prompts": 8, "completions_per_prompt": 8} | LONG | FULL),
    "sampling": ("sample", {"batch_size": 64, "completions_per_prompt": 4, "max_new_tokens": 256}),
}
"""The stage and its recipe."""


def main(names: list[str]) -> None:
    found = []
    for name in names or STAGES:
        if "QLoRA" in name and importlib.util.find_spec("bitsandbytes") is None:
            continue
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.plan_stages", "--one", name],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)},
        )  # fmt: skip
        seen = json.loads(done.stdout.splitlines()[-1])
        found.append({"stage": name, **seen, "ratio": seen["estimated"] / seen["measured"]})
        print(found[-1], flush=True)
    if not names:
        keep("plan_stages", found)
    columns = ("estimated", "measured", "ratio")
    show("a stage's memory, MiB", ["", *columns], [[row["stage"], *(row[name] for name in columns)] for row in found])


def one(name: str) -> dict[str, Any]:
    """One stage's process."""
    import torch

    from tasks.estimating import memory_of

    torch.set_num_threads(1)
    kind, settings = STAGES[name]
    stage, recipe = _stage(kind, settings)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer()
        small, large = (_artifacts(Path(folder) / size, tokenizer, size == "large") for size in ("small", "large"))
        estimate = memory_of(kind, recipe, _config(tokenizer, True), _lengths(tokenizer, large["data"]), 2, ANSWER + 1)
        if kind in ("ppo", "grpo", "reward", "dpo", "sft"):
            _run(stage, recipe, small, Path(folder) / "first")  # what the libraries take
        memory = Memory()
        _run(stage, recipe, large, Path(folder) / "second")
        grown = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.grown()
    parts = {key: round(value / MIB, 1) for key, value in estimate.items() if isinstance(value, float)}
    return {"estimated": estimate["total"] / MIB, "measured": grown / MIB, "parts": parts}


def _stage(kind: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    from tasks.sampling.completions import SampleRecipe, sample_completions
    from tasks.training.direct import DpoRecipe, train_direct
    from tasks.training.grpo import GrpoRecipe, train_groups
    from tasks.training.ppo import PpoRecipe, train_ppo
    from tasks.training.reward import RewardRecipe, train_reward
    from tasks.training.sft import SftRecipe, train_sft

    known: dict[str, tuple[Any, Any]] = {
        "sft": (train_sft, SftRecipe), "reward": (train_reward, RewardRecipe), "dpo": (train_direct, DpoRecipe),
        "ppo": (train_ppo, PpoRecipe), "grpo": (train_groups, GrpoRecipe), "sample": (sample_completions, SampleRecipe),
    }  # fmt: skip
    fixed = {"epochs": 1, "precision": "fp32"} if kind in ("sft", "reward", "dpo") else {}
    return known[kind][0], known[kind][1].model_validate(fixed | settings)


def _run(stage: Any, recipe: Any, inputs: dict[str, Path], folder: Path) -> None:
    from tasks.artifact import Work

    work = Work(folder / "out", folder / "scratch", checkpoint_seconds=1e9)
    for each in (work.out, work.scratch):
        each.mkdir(parents=True)
    stage(recipe, inputs, work)


def _letters(random: Random, count: int) -> str:
    return "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=count))


def _tokenizer() -> Any:
    """A token for each letter, and 4096 in all."""
    from tasks.models.pretrain_engine import train_tokenizer

    tokenizer = train_tokenizer(["some text"] * 9, 300)
    tokenizer.add_tokens([f"<{n}>" for n in range(LLAMA["vocab_size"] - len(tokenizer))])
    return tokenizer


def _config(tokenizer: Any, large: bool) -> Any:
    from transformers import AutoConfig

    shape = {key: value for key, value in LLAMA.items() if key != "model_type"}
    if not large:
        shape |= {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return AutoConfig.for_model(LLAMA["model_type"], **shape, max_position_embeddings=1024, **ids)


def _artifacts(folder: Path, tokenizer: Any, large: bool) -> dict[str, Path]:
    """base, sft (a LoRA adapter), a reward adapter on it, preferences and prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.artifact import write_jsonl
    from tasks.models.adapters import LoraRecipe, attach, save
    from tasks.models.loading import load_causal_lm, start_reward_model

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(_config(tokenizer, large)).save_pretrained(folder / "base" / "model")
    for name in ("base", "reward"):
        tokenizer.save_pretrained(folder / name / "tokenizer")
    base = load_causal_lm([folder / "base"])
    reward: Any = attach(start_reward_model(base, tokenizer), LoraRecipe(), "SEQ_CLS")
    save(reward, folder / "reward")
    (folder / "reward" / "reward.json").write_text('{"mean": 0.0, "std": 1.0}\n')
    save(attach(load_causal_lm([folder / "base"]), LoraRecipe()), folder / "sft")
    save(attach(load_causal_lm([folder / "base"]), LoraRecipe()), folder / "reward" / "start")
    random = Random(0)
    prompts = [[{"role": "user", "content": _letters(random, PROMPT)}] for _ in range(COUNT)]
    answers = [[{"role": "assistant", "content": _letters(random, ANSWER)} for _ in range(2)] for _ in prompts]
    data = folder / "data"
    told = [{"id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts)]
    for name in ("rl", "reward_train", "reward_validation", "evaluation"):
        write_jsonl(data / f"{name}.jsonl", told)
    rows = zip(told, answers, strict=True)
    write_jsonl(data / "sft.jsonl", [row | {"messages": [*row["prompt"], said]} for row, (said, _) in rows])
    pairs = [
        row | {"chosen": [one], "rejected": [other], "weight": 1.0, "margin": None}
        for row, (one, other) in zip(told, answers, strict=True)
    ]
    for name in ("train", "validation"):
        write_jsonl(folder / "preferences" / f"{name}.jsonl", pairs)
    return {name: folder / name for name in ("base", "sft", "reward", "data", "preferences")}


def _lengths(tokenizer: Any, data: Path) -> Any:
    from tasks.estimating import lengths_in

    return lengths_in(tokenizer, data)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2])))
    else:
        main(sys.argv[1:])
