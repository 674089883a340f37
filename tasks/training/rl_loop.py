"""The outer loop that PPO and GRPO share: updates, logging, checkpoints, the artifact's files and its report."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tasks.artifact import Work
from tasks.models.adapters import save
from tasks.sampling.local import CausalLM
from tasks.training import rl_checkpoint
from tasks.training.policy_losses import k1, k3
from tasks.training.rl_checkpoint import Progress
from tasks.training.rollouts import Rollouts

SMOOTHED = 5
"""Final figures are means over this many last updates."""


def run(
    updates: int,
    step: Callable[[Progress], dict[str, float]],
    work: Work,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, Any],
) -> Progress:
    """Call `step` for every update that a checkpoint in `work.scratch` does not already hold; log what it returns."""
    progress = rl_checkpoint.read(work.scratch, modules, optimizers)
    saved_at = time.monotonic()
    while progress.update < updates:
        metrics = step(progress)
        progress.history.append(metrics)
        progress.update += 1
        work.log(metrics, step=progress.update)
        work.progress(progress.update, updates, f"reward {metrics['reward']:.2f}, KL {metrics['kl']:.2f}")
        if time.monotonic() - saved_at >= work.checkpoint_seconds and progress.update < updates:
            rl_checkpoint.write(work.scratch, progress, modules, optimizers)
            saved_at = time.monotonic()
    return progress


def core_metrics(rollouts: Rollouts) -> dict[str, float]:
    """What every on-policy method logs of its samples; KL to the reference is summed over a completion's tokens."""
    first = k1(rollouts.logprobs, rollouts.reference, rollouts.mask).sum(-1)
    third = k3(rollouts.logprobs, rollouts.reference, rollouts.mask).sum(-1)
    return {
        "reward": float(rollouts.scores.mean()),
        "reward_std": float(rollouts.scores.std(correction=0)),
        "kl": float(first.mean()),
        "kl_k3": float(third.mean()),
        "reference_logprob": float(rollouts.reference.sum(-1).mean()),
        "length": float(rollouts.lengths.float().mean()),
        "finished_share": float(rollouts.finished.float().mean()),
    }


def finish(model: CausalLM, progress: Progress, work: Work) -> None:
    """Write the policy, the table and figure of its updates, and the final metrics (means over the last updates)."""
    save(model, work.out)
    rows = [{"update": i + 1, **metrics} for i, metrics in enumerate(progress.history)]
    work.table("updates", rows)
    last = progress.history[-SMOOTHED:]
    work.log({name: sum(metrics[name] for metrics in last) / len(last) for name in progress.history[-1]})
    work.log({"updates": progress.update})
    work.figure("updates", _figure(progress.history))


def _figure(history: list[dict[str, float]]) -> Any:
    from matplotlib.figure import Figure

    shown = {
        "reward": "reward",
        "kl": "KL to SFT (nats per completion)",
        "entropy": "entropy (nats)",
        "length": "tokens",
    }
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, shown.items(), strict=True):
        axes.plot(range(1, len(history) + 1), [metrics[name] for metrics in history])
        axes.set_title(label)
        axes.set_xlabel("update")
    return figure
