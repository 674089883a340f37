"""Every trainer and the decoding engine on this machine's device: tokens per second, peak memory, share of its speed.

python -m benchmarks.device [--size 1M|15M|0.5B]

Random weights, by default 0.5B parameters on a GPU and 1M on a CPU (one torch thread); each stage is the pipeline's
own, in a process of its own, from its third step to its last: wall seconds on a GPU, CPU seconds otherwise. Tokens are
real ones: padding and prompts that are computed twice do not count. "share" is the products these tokens need (per
weight and token 2 forward, 2 backward, 2 more where the weight is trained: Kaplan et al. 2020) over what the machine
does in a large matrix product of the same type; attention is left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.measured import ROOT, keep, show

SHAPES: dict[str, dict[str, Any]] = {
    "1M": {"hidden": 128, "layers": 4, "heads": 4, "words": 512, "prompt": 12, "answer": 24},
    "15M": {"hidden": 384, "layers": 8, "heads": 6, "words": 512, "prompt": 12, "answer": 24},
    "0.5B": {"hidden": 1280, "layers": 20, "heads": 20, "words": 32_000, "prompt": 128, "answer": 256},
}
ROWS, EPISODES, UPDATES = 320, 64, 5
STAGES = ("sft", "sft lora", "reward", "dpo", "decode", "ppo", "grpo")
FIRST = 2
"""Steps that are not timed."""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--size", choices=SHAPES)
    size, found = given.parse_args().size or "", []
    with tempfile.TemporaryDirectory(prefix="rlhf-benchmark-") as folder:
        machine = _in_a_process("prepare", folder, size)
        for stage in STAGES:
            measured = _in_a_process(stage, folder, size)
            found.append({"stage": stage, **measured, "share": measured["products"] / machine["rate"]})
            keep(f"device_{machine['kind']}_{machine['size']}", {"machine": machine, "stages": found})
    show(
        f"{machine['size']} ({machine['parameters'] / 1e6:.1f}M parameters) on {machine['name']}, "
        f"{machine['rate'] / 1e9:.0f} GFLOP/s in {machine['dtype']}",
        ["stage", "tokens/s", "share", "peak MiB"],
        [[row["stage"], f"{row['tokens']:.0f}", row["share"], f"{row['peak']:.0f}"] for row in found],
    )


def _in_a_process(stage: str, folder: str, size: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device", "--one", stage, folder, size],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{stage} failed with {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder: Path, size: str) -> dict[str, Any]:
    """Write the models and the rows; returns what the machine is and how fast it multiplies."""
    import torch

    from benchmarks.small_llama import ending
    from tasks.artifact import write_jsonl
    from tasks.models.adapters import LoraRecipe, attach, save
    from tasks.models.loading import load_causal_lm, start_reward_model
    from tasks.models.pretrain_engine import new_llama

    cuda = torch.cuda.is_available()
    size = size or ("0.5B" if cuda else "1M")
    shape = SHAPES[size]
    tokenizer = _words(shape["words"])
    model = new_llama(
        tokenizer, 0, hidden=shape["hidden"], layers=shape["layers"], heads=shape["heads"],
        positions=2 * (shape["prompt"] + shape["answer"]),
    )  # fmt: skip
    for name in ("base", "reward"):
        tokenizer.save_pretrained(folder / name / "tokenizer")
    ending(model.eval(), shape["answer"] / 2, shape["answer"]).save_pretrained(folder / "base" / "model")
    save(attach(model, LoraRecipe()), folder / "sft")  # a fresh adapter, which changes nothing
    start_reward_model(load_causal_lm([folder / "base"]), tokenizer).save_pretrained(folder / "reward" / "model")
    (folder / "reward" / "reward.json").write_text('{"mean": 0.0, "std": 1.0}\n')
    draw = Random(0)

    def text(mean: int) -> str:
        return " ".join(f"w{draw.randrange(shape['words'] - 5)}" for _ in range(draw.randint(mean // 2, mean * 3 // 2)))

    rows, pairs = [], []
    for number in range(ROWS):
        prompt = [{"role": "user", "content": text(shape["prompt"])}]
        chosen, rejected = ([{"role": "assistant", "content": text(shape["answer"] // 2)}] for _ in range(2))
        rows.append({"id": str(number), "prompt": prompt, "messages": [*prompt, *chosen], "reference": None})
        pairs.append({"id": str(number), "prompt": prompt, "chosen": chosen, "rejected": rejected, "weight": 1.0})
    for name in ("data", "preferences"):
        (folder / name).mkdir()
    for name in ("sft", "rl", "reward_validation"):
        write_jsonl(folder / "data" / f"{name}.jsonl", rows)
    write_jsonl(folder / "preferences" / "train.jsonl", [pair | {"margin": None} for pair in pairs])
    write_jsonl(folder / "preferences" / "validation.jsonl", [])
    return {
        "kind": "cuda" if cuda else "cpu",
        "size": size,
        "name": torch.cuda.get_device_name() if cuda else "CPU, one thread",
        "dtype": "bf16" if cuda else "fp32",
        "parameters": sum(p.numel() for p in model.parameters()),
        "rate": _rate(torch.bfloat16 if cuda else torch.float32, 8192 if cuda else 2048),
    }


def _words(count: int) -> Any:
    """A tokenizer of words, so that what is sampled reads the same when it is scored as text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tasks.models.templates import prepare_tokenizer

    names = ["<pad>", "<s>", "</s>", "User:", "Assistant:"]
    names += [f"w{i}" for i in range(count - len(names))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return prepare_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    )


def _rate(dtype: Any, width: int) -> float:
    """Products and sums per second of a large matrix product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = _now()
        left @ right
        best = min(best, _now() - started)
    return 2 * width**3 / best


def _now() -> float:
    """Seconds, once the device has done what it was asked."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Clock:
    """When a stage reported which step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float]] = []

    def __call__(self, done: int, total: int, note: str) -> None:
        self.seen.append((done, total, _now()))

    def share_per_second(self) -> float:
        """Which share of the last long step was done per second, its first steps left out."""
        total = self.seen[-1][1]
        timed = [(done, at) for done, whole, at in self.seen if whole == total and done >= FIRST]
        (first, began), (last, ended) = timed[0], timed[-1]
        return (last - first) / total / (ended - began)


def one(stage: str, folder: Path, size: str) -> dict[str, float]:
    """One stage's process: real tokens per second, the products they need per second, peak memory in MiB."""
    import torch

    from benchmarks.memory import MIB, Memory
    from tasks.artifact import Work, read_jsonl

    torch.set_num_threads(1)
    if stage == "prepare":
        return prepare(folder, size)
    from tasks.models.chat import encode_conversation
    from tasks.models.loading import load_causal_lm, load_tokenizer

    tokenizer = load_tokenizer(folder / "base")
    weights = sum(p.numel() for p in load_causal_lm([folder / "base"]).parameters())
    rows = read_jsonl(folder / "data" / "sft.jsonl")
    whole = sum(len(encode_conversation(tokenizer, row["messages"]).input_ids) for row in rows)
    memory, clock = Memory(), Clock()
    out, scratch = folder / stage / "out", folder / stage / "scratch"
    for each in (out, scratch):
        each.mkdir(parents=True)
    work = Work(out, scratch, seed=0, on_progress=clock, checkpoint_seconds=1e9)
    tokens, products = _RUN[stage](folder, work, clock, whole)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.grown()
    return {"tokens": tokens, "products": products * weights * tokens, "peak": peak / MIB}


def _train(change: dict[str, Any], passes: int, products: int) -> Callable[..., tuple[float, int]]:
    """A trainer over all rows; `passes`: conversations per row, `products` per weight and token."""

    def run(folder: Path, work: Any, clock: Clock, tokens: int) -> tuple[float, int]:
        from tasks.training.direct import DpoRecipe, train_direct
        from tasks.training.reward import RewardRecipe, train_reward
        from tasks.training.sft import SftRecipe, train_sft

        stage = work.out.parent.name.split()[0]
        kind, train = {
            "sft": (SftRecipe, train_sft), "reward": (RewardRecipe, train_reward), "dpo": (DpoRecipe, train_direct)
        }[stage]  # fmt: skip
        inputs = {name: folder / name for name in ("base", "sft", "data", "preferences")}
        train(kind.model_validate({"epochs": 1, "batch_size": 8, **change}), inputs, work)
        return clock.share_per_second() * tokens * passes, products

    return run


def _decode(folder: Path, work: Any, clock: Clock, tokens: int) -> tuple[float, int]:
    from tasks.artifact import read_jsonl
    from tasks.models.chat import encode_prompt
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.sampling.local import decode

    tokenizer, model = load_tokenizer(folder / "base"), load_causal_lm([folder / "base"])
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in read_jsonl(folder / "data" / "rl.jsonl")]
    decode(model, tokenizer, prompts[:64], max_new_tokens=4, seed=0)
    started = _now()
    found = decode(model, tokenizer, prompts[:EPISODES], max_new_tokens=_longest(folder), seed=0, batch_size=EPISODES)
    return float(found.lengths.sum()) / (_now() - started), 2


def _online(name: str, products: int) -> Callable[..., tuple[float, int]]:
    """PPO or GRPO; tokens are those that were sampled, products those of sampling, scoring, reference and learning."""

    def run(folder: Path, work: Any, clock: Clock, tokens: int) -> tuple[float, int]:
        from tasks.training.grpo import GrpoRecipe, train_groups
        from tasks.training.ppo import PpoRecipe, train_ppo

        small: dict[str, Any] = {"updates": UPDATES, "max_new_tokens": _longest(folder), "missing_eos_penalty": 0.0}
        inputs = {each: folder / each for each in ("base", "sft", "data", "reward")}
        if name == "ppo":
            train_ppo(PpoRecipe.model_validate({**small, "episodes": EPISODES}), inputs, work)
        else:
            train_groups(GrpoRecipe.model_validate(small), inputs, work)
        return clock.share_per_second() * UPDATES * EPISODES * work.metrics["length"], products

    return run


def _longest(folder: Path) -> int:
    """How many tokens a completion may have."""
    width = json.loads((folder / "base" / "model" / "config.json").read_text())["hidden_size"]
    return next(shape["answer"] for shape in SHAPES.values() if shape["hidden"] == width)


_RUN: dict[str, Callable[..., tuple[float, int]]] = {
    "sft": _train({"adapter": {"kind": "full"}}, 1, 6),
    "sft lora": _train({}, 1, 4),
    "reward": _train({}, 2, 4),
    "dpo": _train({}, 2, 4),
    "decode": _decode,
    "ppo": _online("ppo", 10),
    "grpo": _online("grpo", 10),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
    else:
        main()
