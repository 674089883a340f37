"""Win rates of one model's completions over another's on the same prompts, and bootstrap intervals over prompts."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np


class Interval(TypedDict):
    """A mean over prompts with its 95 % interval."""

    mean: float
    low: float
    high: float


def win_rates(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> np.ndarray:
    """Per prompt the share of pairs (one completion of each model) that ours wins; a tie counts half.

    ours, theirs: for each prompt the scores of its completions, any number of them (at least one) on either side.
    Returns float64 `[prompts]`. Raises `ValueError` when the prompts do not match or a prompt has no completion.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} prompts cannot be compared with {len(theirs)}")
    rates = np.empty(len(ours))
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if len(mine) == 0 or len(other) == 0:
            raise ValueError(f"prompt {place} has no completion")
        difference = np.subtract.outer(np.asarray(mine, dtype=float), np.asarray(other, dtype=float))
        rates[place] = (0.5 * (np.sign(difference) + 1)).mean()
    return rates


def bootstrap(values: Sequence[float] | np.ndarray, samples: int, seed: int, confidence: float = 0.95) -> Interval:
    """The mean of per-prompt values with its percentile bootstrap interval over prompts (Efron, 1979).

    It speaks of other prompts like these, not of another training seed, whose spread is usually larger. A value that is
    not a number makes everything not a number. Raises `ValueError` without values.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("there is nothing to average")
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, 2_000_000 // values.size)  # bounds the memory of the drawn indices
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn = rng.integers(values.size, size=(count, values.size))
        means[start : start + count] = values[drawn].mean(axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
