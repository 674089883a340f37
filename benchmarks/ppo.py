"""PPO: seconds per update of ours and of TRL 1.12's trainer, its last, each in processes of its own, in turn.

python -m benchmarks.ppo [--domain FOLDER]

64 episodes, 4 minibatches, one epoch, every weight trained. 1M is the demo's SFT model with a reward model learnt from
its completions; the reward reached stands beside the time. 15M has random weights, so there it is time alone. TRL 1.12
is fetched from PyPI into a temporary folder and runs on the same torch and transformers. It collects garbage twice per
update; "without gc" leaves that out, which is the fairer figure for larger models. CPU seconds at one torch thread, the
first update left out.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from benchmarks.measured import ROOT, keep, show

TRL = "trl==1.12.0"
LENGTHS, LAST = (16, 64), 5
UPDATES = {"1M": 10, "15M": 4}
EPISODES, MINIBATCHES = 64, 4
RATES, KL = {"1M": 3e-4, "15M": 1e-7}, 0.1
"""Learning rates. Random weights must not learn: the two sides' completions would soon be of different lengths."""
SIDES = ("TRL", "TRL without gc", "ours")


def main() -> None:
    found: list[dict[str, Any]] = []
    from benchmarks.reward_arms import work_folder

    with work_folder(__doc__) as (folder, kept):
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "peer"), TRL]
        subprocess.run(install, check=True)
        _models(folder, kept)
        for size, updates in UPDATES.items():
            for length in LENGTHS:
                row: dict[str, Any] = {"model": size, "length": length, "updates": updates}
                for side in SIDES:
                    row[side] = _measured(side, folder, size, length, updates)
                found.append(
                    row | {f"ours over {side}": row[side]["seconds"] / row["ours"]["seconds"] for side in SIDES[:2]}
                )
                keep("ppo", found)
    cells = [
        [row["model"], row["length"]]
        + [row[side]["seconds"] for side in SIDES]
        + [row[f"ours over {side}"] for side in SIDES[:2]]
        + [row[side][what] for what in ("reward", "tokens") for side in SIDES]
        for row in found
    ]
    head = ["", "limit", *(f"{side} s" for side in SIDES), "ratio", "without gc"]
    head += [f"{what} {side}" for what in ("reward", "tokens") for side in SIDES]
    show(f"seconds per update, {EPISODES} episodes", head, cells)


def _measured(side: str, folder: Path, size: str, length: int, updates: int) -> dict[str, float]:
    """What one side's process says in its last line."""
    path = [str(folder / "peer")] * (side != "ours") + [str(ROOT)]
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ppo", side, str(folder / size), str(length), str(updates)],
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(path)},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _models(folder: Path, kept: Path) -> None:
    """`SIZE/policy/` and `SIZE/reward/`, each with `model/` and `tokenizer/`."""
    from benchmarks.pairs import WRONG, preferences
    from benchmarks.reward_arms import Domain
    from benchmarks.small_llama import ending, random_llama
    from tasks.artifact import Work, write_jsonl
    from tasks.models.loading import load_causal_lm, load_reward_model, load_tokenizer, start_reward_model
    from tasks.training.reward import train_reward

    domain = Domain(kept)
    tokenizer = load_tokenizer(domain.start["base"])
    for name in ("preferences", "out", "scratch"):
        (folder / "learnt" / name).mkdir(parents=True)
    write_jsonl(folder / "learnt" / "preferences" / "train.jsonl", preferences(domain, "train", WRONG))
    write_jsonl(folder / "learnt" / "preferences" / "validation.jsonl", [])
    learnt = folder / "learnt" / "out"
    inputs = {**domain.start, "preferences": folder / "learnt" / "preferences"}
    train_reward(domain.recipe.reward, inputs, Work(learnt, folder / "learnt" / "scratch"))
    large = ending(random_llama("15M", tokenizer), 25, 64)
    models: dict[str, tuple[Any, Any]] = {
        "1M": (load_causal_lm(list(domain.start.values())), load_reward_model(domain.start["base"], learnt)[0]),
        "15M": (large, start_reward_model(random_llama("15M", tokenizer, seed=1), tokenizer)),
    }
    for size, (policy, reward) in models.items():
        for name, model in (("policy", policy), ("reward", reward)):
            model.save_pretrained(folder / size / name / "model")
            tokenizer.save_pretrained(folder / size / name / "tokenizer")
        (folder / size / "reward" / "reward.json").write_text('{"mean": 0.0, "std": 1.0}\n')


def ours(folder: Path, length: int, updates: int) -> dict[str, float]:
    from tasks.data.shop import rows
    from tasks.models.adapters import FullRecipe, attach
    from tasks.models.loading import load_causal_lm, load_tokenizer
    from tasks.training.ppo import PpoRecipe
    from tasks.training.ppo_trainer import Ppo
    from tasks.training.reward_scoring import RewardScorer
    from tasks.training.rl_checkpoint import Progress
    from tasks.training.rollouts import encode_prompts

    tokenizer = load_tokenizer(folder / "policy")
    recipe = PpoRecipe(
        adapter=FullRecipe(), updates=updates, episodes=EPISODES, minibatches=MINIBATCHES, max_new_tokens=length,
        learning_rate=RATES[folder.name], kl_coefficient=KL, missing_eos_penalty=0.0, likelihood_coefficient=0.0,
    )  # fmt: skip
    policy = attach(load_causal_lm([folder / "policy"], trainable=True), recipe.adapter)
    score = RewardScorer(folder / "policy", folder / "reward").score
    ppo = Ppo(recipe, policy, tokenizer, encode_prompts(tokenizer, rows()), score, seed=0)
    progress, times, history = Progress(), [], []
    for _ in range(updates):
        history.append(ppo.step(progress))
        progress.update += 1
        times.append(time.process_time())
    return _outcome(times, [row["reward"] for row in history], [row["length"] for row in history])


def theirs(folder: Path, length: int, updates: int, collects: bool) -> dict[str, float]:
    """TRL 1.12's: nothing that imports our trainers may be imported here."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import (  # type: ignore[import-not-found]  # of TRL 1.12, in its own environment
        PPOConfig,
        PPOTrainer,
        ppo_trainer,
    )

    from tasks.data.shop import rows
    from tasks.models.chat import encode_prompt

    if not collects:
        ppo_trainer.gc = SimpleNamespace(collect=lambda: 0)
    times: list[float] = []
    lengths: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            times.append(time.process_time())

    def truncated(stop: int, pad: int, responses: Any) -> Any:
        kept = truncate(stop, pad, responses)
        lengths.append(float((kept != pad).sum(-1).float().mean()))
        return kept

    truncate, ppo_trainer.truncate_response = ppo_trainer.truncate_response, truncated
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy" / "tokenizer", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy" / "model") for _ in range(2))
    value, reward = (AutoModelForSequenceClassification.from_pretrained(folder / "reward" / "model") for _ in range(2))
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=EPISODES,  # of which a minibatch takes its share
            num_mini_batches=MINIBATCHES,
            num_ppo_epochs=1,
            total_episodes=EPISODES * updates,
            local_rollout_forward_batch_size=EPISODES,
            response_length=length,
            stop_token="eos",
            temperature=1.0,
            learning_rate=RATES[folder.name],
            lr_scheduler_type="constant",
            kl_coef=KL,
            num_sample_generations=0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": encode_prompt(tokenizer, row["prompt"])} for row in rows()]),
        callbacks=[Clock()],
    )
    trainer.train()
    return _outcome(times, [row["objective/scores"] for row in trainer.state.log_history], lengths)


def _outcome(times: list[float], rewards: list[float], lengths: list[float]) -> dict[str, float]:
    return {
        "seconds": (times[-1] - times[0]) / (len(times) - 1),
        "reward": fmean(rewards[-LAST:]),
        "tokens": fmean(lengths[-LAST:]),
    }


def one(side: str, folder: str, length: str, updates: str) -> None:
    """One side's process."""
    import torch

    torch.set_num_threads(1)
    given = Path(folder), int(length), int(updates)
    print(json.dumps(ours(*given) if side == "ours" else theirs(*given, collects=side == "TRL")))


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 5 else main()
