"""The heads of a reward model: people's ranking and criteria, each as an ensemble; and how they become one reward.

Knows numbers only, no model. Values are arrays [completions, criteria, members], the first criterion being the ranking.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks.artifact import InputError

OVERALL = "overall"
"""What the head that learns from rankings is called."""

Ensemble = Literal["mean", "worst", "uncertain"]


@dataclass(frozen=True)
class Heads:
    """What a reward model has heads for."""

    criteria: tuple[str, ...] = (OVERALL,)
    members: int = 1
    """Heads per criterion, each fitted to its own draw of the prompts."""

    @property
    def count(self) -> int:
        return len(self.criteria) * self.members

    def apart(self, values: np.ndarray) -> np.ndarray:
        """Outputs [completions, heads] by criterion and member."""
        return values.reshape(len(values), len(self.criteria), self.members)

    def place(self, criterion: str) -> int:
        """Raises `InputError` for a criterion without a head."""
        if criterion not in self.criteria:
            raise InputError(
                f"The reward model has no head for '{criterion}', only for {', '.join(self.criteria)}; name it in "
                "reward.criteria."
            )
        return self.criteria.index(criterion)


@dataclass(frozen=True)
class Scale:
    """Heads with mean and deviation of their rewards on the training completions, [criteria, members] each."""

    heads: Heads
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, heads: Heads, values: np.ndarray) -> "Scale":
        """From the rewards of the training completions."""
        return cls(heads, values.mean(0), values.std(0))

    def row(self) -> dict[str, Any]:
        """As JSON."""
        figures = {name: np.round(each, 6).tolist() for name, each in (("mean", self.mean), ("std", self.std))}
        return {"criteria": list(self.heads.criteria), "members": self.heads.members, **figures}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Scale":
        """The scale behind a row."""
        heads = Heads(tuple(row.get("criteria", [OVERALL])), row.get("members", 1))
        mean, std = (np.reshape(row[name], (len(heads.criteria), heads.members)) for name in ("mean", "std"))
        return cls(heads, mean, std)

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """Each head's rewards with mean 0 and deviation 1 on the training completions."""
        return (values - self.mean) / np.where(self.std > 0, self.std, 1.0)


def draws(key: str, members: int, seed: int) -> list[float]:
    """How often each member sees a prompt: bootstrap draws as Poisson counts (Oza and Russell 2001); one sees all once.

    `key` says which prompt. At least one member sees it.
    """
    if members == 1:
        return [1.0]
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    counts = np.random.default_rng(int.from_bytes(digest[:8])).poisson(1.0, members)
    return [float(count) for count in counts] if counts.any() else [1.0] * members


def of_ensemble(values: np.ndarray, ensemble: Ensemble, penalty: float) -> np.ndarray:
    """[completions, criteria, members] -> [completions, criteria]: the members' mean, their least ("worst"), or the
    mean less `penalty` times their variance ("uncertain"); Coste et al. 2023 (arXiv 2310.02743), section 3."""
    if ensemble == "worst":
        return values.min(-1)
    mean = values.mean(-1)
    return mean - penalty * values.var(-1) if ensemble == "uncertain" else mean


def of_criteria(
    values: np.ndarray,
    heads: Heads,
    weights: Mapping[str, float],
    combine: Literal["sum", "worst"],
    at_least: Mapping[str, float],
    shortfall: float,
) -> np.ndarray:
    """[completions, criteria] -> [completions]: the weighted sum, or the least of weight times value; less `shortfall`
    for each deviation that a criterion of `at_least` falls short of what it must reach.

    Without weights only the ranking counts. Raises `InputError` for a criterion without a head.
    """
    chosen = {heads.place(name): weight for name, weight in (weights or {OVERALL: 1.0}).items()}
    parts = np.stack([weight * values[:, place] for place, weight in chosen.items()], axis=1)
    total = parts.min(1) if combine == "worst" else parts.sum(1)
    for name, least in at_least.items():
        total = total - shortfall * np.maximum(0.0, least - values[:, heads.place(name)])
    return total
