"""How often, and how surely, a reward model agrees with held-out preferences. Knows numbers only, no model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
MATCHED = 0.1
"""Completions of a pair are of one length when they differ by no more than this share of the longer."""
AGREEMENT = {"hardly": (0.0, 1 / 3), "mostly": (1 / 3, 2 / 3), "clearly": (2 / 3, 1.0)}
"""How far people prefer the chosen completion: bands of the pair's weight before any decay, the upper end included."""


@dataclass(frozen=True)
class HeldOut:
    """One held-out pair as a reward model sees it."""

    prompt: int
    """Which prompt it is of: pairs of one prompt are not independent."""
    apart: float
    """r_chosen - r_rejected."""
    agreement: float
    """In (0, 1]: how far people prefer the chosen one."""
    stratum: str
    chosen_length: int
    """Tokens."""
    rejected_length: int

    @property
    def hit(self) -> float:
        return float(self.apart > 0) + 0.5 * float(self.apart == 0)

    @property
    def matched(self) -> bool:
        """Whether length tells nothing about which one is better."""
        longer = max(self.chosen_length, self.rejected_length)
        return abs(self.chosen_length - self.rejected_length) <= MATCHED * longer


def quality(apart: Sequence[Sequence[float]], seed: int) -> tuple[dict[str, float], "Figure"]:
    """Figures from r_chosen - r_rejected of pairs by prompt: accuracy (a tie counts half) with a 95 % interval by
    bootstrap over prompts, expected calibration error, log loss; and the reliability diagram."""
    margins = [np.asarray(group, dtype=float) for group in apart]
    hits = [(group > 0) + 0.5 * (group == 0) for group in margins]
    low, high = bootstrap(hits, seed) if len(hits) > 1 else (0.0, 1.0)  # one prompt says nothing of others
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


def by_part(pairs: Sequence[HeldOut], seed: int) -> list[dict[str, Any]]:
    """Accuracy with its 95 % interval, by stratum, by people's agreement, and by which completion is longer."""
    rows = []
    for part, value, some in _parts(pairs):
        groups: dict[int, list[float]] = {}
        for pair in some:
            groups.setdefault(pair.prompt, []).append(pair.hit)
        hits = [np.array(group) for group in groups.values()]
        low, high = bootstrap(hits, seed) if len(hits) > 1 else (0.0, 1.0)
        accuracy = float(np.concatenate(hits).mean())
        rows.append({"part": part, "value": value, "pairs": len(some), "accuracy": accuracy, "low": low, "high": high})
    return rows


def _parts(pairs: Sequence[HeldOut]) -> Iterator[tuple[str, str, list[HeldOut]]]:
    """What is there of each part: its kind, its name, its pairs."""
    strata = sorted({pair.stratum for pair in pairs})
    kinds = [("stratum", name, [p for p in pairs if p.stratum == name]) for name in strata if len(strata) > 1]
    kinds += [
        ("agreement", name, [p for p in pairs if low < p.agreement <= high]) for name, (low, high) in AGREEMENT.items()
    ]
    unlike = [pair for pair in pairs if not pair.matched]
    kinds += [
        ("length", "alike", [pair for pair in pairs if pair.matched]),
        ("length", "the better is longer", [p for p in unlike if p.chosen_length > p.rejected_length]),
        ("length", "the better is shorter", [p for p in unlike if p.chosen_length < p.rejected_length]),
    ]
    return ((kind, name, some) for kind, name, some in kinds if some)


def length_bias(rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]) -> float | None:
    """Spearman's correlation of reward and length over completions, each taken from the mean of its prompt.

    None where all lengths (or all rewards) of every prompt are alike.
    """
    from scipy.stats import spearmanr

    apart = [np.concatenate([np.subtract(g, np.mean(g)) for g in given]) for given in (rewards, lengths)]
    if any(np.ptp(values) < 1e-12 for values in apart):
        return None
    correlation, _ = spearmanr(apart[0], apart[1])
    return float(correlation)  # type: ignore[arg-type]


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
