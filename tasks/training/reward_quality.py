"""How often, and how surely, a reward model agrees with held-out preferences. Knows numbers only, no model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10


def quality(apart: Sequence[Sequence[float]], seed: int) -> tuple[dict[str, float], "Figure"]:
    """Figures from r_chosen - r_rejected of pairs by prompt: accuracy (a tie counts half) with a 95 % interval by
    bootstrap over prompts, expected calibration error, log loss; and the reliability diagram."""
    margins = [np.asarray(group, dtype=float) for group in apart]
    hits = [(group > 0) + 0.5 * (group == 0) for group in margins]
    low, high = bootstrap(hits, seed)
    every = np.concatenate(margins)
    stated, happened, counts = reliability(every)
    report = {
        "accuracy": float(np.concatenate(hits).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "calibration_error": float((counts * np.abs(stated - happened)).sum() / counts.sum()),
        "log_loss": float(np.logaddexp(0.0, -every).mean()),
        "pairs": float(len(every)),
    }
    return report, _diagram(stated, happened, counts, report["calibration_error"])


def bootstrap(hits: Sequence[np.ndarray], seed: int, draws: int = 2000) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the pooled mean when prompts (with all their pairs) are drawn anew."""
    sums = np.array([group.sum() for group in hits])
    sizes = np.array([len(group) for group in hits])
    drawn = np.random.default_rng(seed).integers(len(hits), size=(draws, len(hits)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def reliability(apart: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per bin of confidence from 0.5 to 1: mean confidence, share right, pairs; empty bins are left out.

    The model's pick in a pair is the completion of the higher reward, its confidence is sigmoid(|difference|).
    """
    confidence = 1 / (1 + np.exp(-np.abs(apart)))
    right = (apart > 0) + 0.5 * (apart == 0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    stated = np.bincount(bins, weights=confidence, minlength=BINS)[filled] / counts[filled]
    happened = np.bincount(bins, weights=right, minlength=BINS)[filled] / counts[filled]
    return stated, happened, counts[filled]


def _diagram(stated: np.ndarray, happened: np.ndarray, counts: np.ndarray, error: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5))
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="0.6", linestyle="--", label="calibrated")
    axes.scatter(stated, happened, s=20 + 200 * counts / counts.max(), label="held-out pairs (size: how many)")
    axes.plot(stated, happened)
    axes.set(
        xlabel="confidence of the reward model", ylabel="share it was right", xlim=(0.48, 1.02), ylim=(-0.02, 1.05)
    )
    axes.set_title(f"Calibration (expected error {error:.3f})")
    axes.legend(loc="lower right", fontsize=8)
    return figure
