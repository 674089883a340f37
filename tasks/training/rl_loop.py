"""PPO's outer loop (updates, logging, checkpoints), and how PPO, GRPO and RLOO end: the artifact and its report."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tasks.artifact import Work, link_tree
from tasks.models.adapters import save
from tasks.sampling.local import CausalLM
from tasks.training import rl_checkpoint
from tasks.training.hyperparameters import OnlineHyperparameters
from tasks.training.policy_losses import k1, k3
from tasks.training.rl_checkpoint import Progress
from tasks.training.rollouts import Rollouts
from tasks.training.watch import HIGH, JUDGE, LOW, PREFIX, WIN_RATE, Watch, best_update, ended

SMOOTHED = 5
"""Final figures are means over this many last updates."""


def run(
    recipe: OnlineHyperparameters,
    step: Callable[[Progress], dict[str, float]],
    work: Work,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, Any],
    watch: Watch | None = None,
) -> Progress:
    """Call `step` for every update that a checkpoint in `work.scratch` does not already hold, until the recipe ends it;
    log what it returns."""
    if watch is not None:
        watch.begin()
    progress = rl_checkpoint.read(work.scratch, modules, optimizers)
    saved_at = time.monotonic()
    while not ended(recipe, progress.history):
        metrics = step(progress)
        progress.history.append(metrics)
        progress.update += 1
        if watch is not None:
            metrics |= watch.look(progress.history)
        work.log(metrics, step=progress.update)
        work.progress(progress.update, recipe.updates, f"reward {metrics['reward']:.2f}, KL {metrics['kl']:.2f}")
        if time.monotonic() - saved_at >= work.checkpoint_seconds and not ended(recipe, progress.history):
            rl_checkpoint.write(work.scratch, progress, modules, optimizers)
            if watch is not None:
                watch.prune(progress.history)
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
        **({} if rollouts.gap is None else {"engine_logprob_gap": rollouts.gap}),
    }


def finish(model: CausalLM, progress: Progress, work: Work, watch: Watch | None = None) -> None:
    """Write the policy, the table and figure of its updates, and the final metrics: means over the last updates up to
    the one whose policy is kept, and what was seen of that one."""
    history, kept = progress.history, progress.update
    folder = None
    if watch is not None:
        kept, folder = watch.kept(history)
    if folder is None:
        save(model, work.out)
    else:
        link_tree(folder, work.out)
    names = dict.fromkeys(name for metrics in history for name in metrics)
    rows = [{"update": i} | {name: metrics.get(name) for name in names} for i, metrics in enumerate(history, 1)]
    work.table("updates", rows)
    last = history[:kept][-SMOOTHED:]
    means = [name for name in last[-1] if not name.startswith(PREFIX)]
    work.log({name: sum(metrics[name] for metrics in last) / len(last) for name in means})
    work.log({name: value for name, value in last[-1].items() if name.startswith(PREFIX)})
    work.log({"updates": progress.update})
    work.figure("updates", _figure(history))


def _figure(history: list[dict[str, float]]) -> Any:
    from matplotlib.figure import Figure

    shown = {
        "reward": "reward",
        "kl": "KL to SFT (nats per completion)",
        "entropy": "entropy (nats)",
        "length": "tokens",
    }
    if any(WIN_RATE in metrics for metrics in history):
        shown |= {WIN_RATE: "held-out win rate over the first policy, 95 %", JUDGE: "held-out judge, mean"}
    figure = Figure(figsize=(9, 2.75 * len(shown) / 2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(len(shown) // 2, 2).flat, shown.items(), strict=True):
        seen = [(update, metrics) for update, metrics in enumerate(history, 1) if name in metrics]
        updates = [update for update, _ in seen]
        axes.plot(updates, [metrics[name] for _, metrics in seen])
        if name == WIN_RATE:
            axes.fill_between(updates, *([metrics[bound] for _, metrics in seen] for bound in (LOW, HIGH)), alpha=0.2)
            axes.axhline(0.5, color="grey", linewidth=0.8)
            axes.axvline(best_update(history), color="grey", linestyle=":")
        axes.set_title(label)
        axes.set_xlabel("update")
    return figure
