"""PPO's four roles in memory: four copies of a model, or adapters and heads on one.

python -m benchmarks.memory

A 15M Llama with random weights, updates of 16 episodes of at most 16 tokens, each way in a process of its own. "held"
counts every weight of policy, reference, value and reward model once, AdamW's moments apart. "peak" is how much the
process's resident memory grew from before the models were loaded to the highest seen, every 2 ms: activations, moments
and, for an adapter, the copy of its layers that it is folded into while sampling are in it.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measured import ROOT, keep, show

WAYS: dict[str, dict[str, Any]] = {
    "four copies": {"adapter": {"kind": "full"}, "value_model": "separate"},
    "adapters, reward apart": {"value_model": "separate"},
    "adapters on one base": {"value_model": "separate", "share_base": True},
    "one base, value head": {"share_base": True},
}
MIB = 2**20


def main() -> None:
    from benchmarks.reward_arms import work_folder

    found = []
    with work_folder(__doc__) as (folder, _):
        _models(folder)
        for way in WAYS:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", way, str(folder)],
                cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found.append({"way": way, **json.loads(done.stdout.splitlines()[-1])})
    first = found[0]
    for row in found:
        row["fewer"] = first["held"] / row["held"]
        row["fewer_at_peak"] = first["peak"] / row["peak"]
    keep("memory", found)
    names = ("held", "moments", "peak", "seconds", "fewer", "fewer_at_peak")
    show(
        "PPO at 15M parameters, MiB",
        ["", "weights held", "AdamW's moments", "peak", "CPU s per update", "held: times fewer", "at peak"],
        [[row["way"], *(row[name] for name in names)] for row in found],
    )


def _models(folder: Path) -> None:
    """`base/`, `reward/` (an adapter on it) and `whole/` (the same, every weight)."""
    import torch

    from benchmarks.small_llama import ending, random_llama, shop_tokenizer
    from tasks.models.adapters import LoraRecipe, attach, save
    from tasks.models.loading import load_causal_lm, start_reward_model

    tokenizer = shop_tokenizer()
    ending(random_llama("15M", tokenizer), 10, 16).save_pretrained(folder / "base" / "model")
    for name in ("base", "reward", "whole"):
        tokenizer.save_pretrained(folder / name / "tokenizer")
    base = load_causal_lm([folder / "base"])
    start_reward_model(base, tokenizer).save_pretrained(folder / "whole" / "model")
    reward: Any = attach(start_reward_model(base, tokenizer), LoraRecipe(), "SEQ_CLS")
    with torch.no_grad():
        for name, parameter in reward.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    save(reward, folder / "reward")
    for name in ("reward", "whole"):
        (folder / name / "reward.json").write_text('{"mean": 0.0, "std": 1.0}\n')


class Memory:
    """How far the process's resident memory grows."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.002)

    def grown(self) -> int:
        """Bytes from the beginning to the highest so far."""
        return self.most - self.before


def one(way: str, folder: Path) -> dict[str, float]:
    """One way's process: the first update is for warming up, the second is timed."""
    import torch

    from tasks.data.shop import rows
    from tasks.models.adapters import FullRecipe, attach
    from tasks.models.loading import load_causal_lm, load_tokenizer, twin
    from tasks.training.ppo import PpoRecipe
    from tasks.training.ppo_trainer import Ppo
    from tasks.training.reward_scoring import RewardScorer
    from tasks.training.rl_checkpoint import Progress
    from tasks.training.rollouts import encode_prompts

    torch.set_num_threads(1)
    recipe = PpoRecipe.model_validate({"episodes": 16, "max_new_tokens": 16, "value_epochs": 1} | WAYS[way])
    whole = isinstance(recipe.adapter, FullRecipe)
    tokenizer, prompts = load_tokenizer(folder / "base"), rows()
    memory = Memory()
    start = load_causal_lm([folder / "base"], trainable=whole)
    reward = folder / ("whole" if whole else "reward")
    scorer = RewardScorer(folder / "base", reward, start if recipe.share_base else None)
    trunk = attach(twin(start), recipe.adapter) if recipe.value_model == "separate" else None
    policy = attach(start, recipe.adapter)
    encoded = encode_prompts(tokenizer, prompts)
    ppo = Ppo(recipe, policy, tokenizer, encoded, scorer.normalised, seed=0, trunk=trunk)
    ppo.step(Progress())
    started = time.process_time()
    ppo.step(Progress(update=1))
    seconds = time.process_time() - started
    copies = [ppo.reference.copy] if ppo.reference.copy is not None else []
    models = [ppo.policy, *copies, ppo.modules["value"], scorer.model]
    held = {p.data_ptr(): p.nbytes for model in models for p in model.parameters()}
    moments = [
        value
        for optimizer in ppo.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    return {
        "held": sum(held.values()) / MIB,
        "moments": sum(each.nbytes for each in moments) / MIB,
        "peak": memory.grown() / MIB,
        "seconds": seconds,
    }


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in WAYS:
        print(json.dumps(one(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
