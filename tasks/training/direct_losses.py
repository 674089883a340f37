"""The losses of the direct methods, on log-probabilities of whole completions.

Shapes: n completions, p pairs; `chosen` and `rejected` are int64 `[p]`, places among the completions.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from tasks.training.direct import AnyDirect, DpoRecipe, IpoRecipe, KtoRecipe, OrpoRecipe, SimpoRecipe


@dataclass(frozen=True)
class Judged:
    """What a loss is computed from."""

    logps: torch.Tensor
    """float32 `[n]`: log-probability of each completion under the policy."""
    counts: torch.Tensor
    """int64 `[n]`: tokens of each completion."""
    reference: torch.Tensor
    """float32 `[n]`: log-probability under the SFT model; zeros where the method has no reference."""
    chosen: torch.Tensor
    rejected: torch.Tensor
    margins: torch.Tensor
    """float32 `[p]`: how far apart people put the two."""


def rewards(recipe: AnyDirect, judged: Judged) -> torch.Tensor:
    """The implicit reward of each completion, `[n]`: what the method widens between chosen and rejected."""
    match recipe:
        case OrpoRecipe():
            return log_odds(judged.logps / judged.counts)
        case SimpoRecipe():
            return recipe.beta * judged.logps / judged.counts
        case DpoRecipe(length_normalised=True) | IpoRecipe(length_normalised=True):
            return recipe.beta * (judged.logps - judged.reference) / judged.counts
        case _:
            return recipe.beta * (judged.logps - judged.reference)


def pair_losses(recipe: AnyDirect, judged: Judged) -> torch.Tensor:
    """The loss of each pair, `[p]`, without the SFT term. KTO has none; see `kto_losses`.

    DPO: -log sigmoid(h), with smoothing e: -(1 - e) log sigmoid(h) - e log sigmoid(-h), or unbiased under a share e of
    flipped pairs, -[(1 - e) log sigmoid(h) - e log sigmoid(-h)] / (1 - 2 e). IPO: (h / beta - 1 / (2 beta))^2.
    ORPO: -beta log sigmoid(log odds ratio). SimPO: -log sigmoid(h - gamma). h is the difference of the rewards, less
    the pair's margin.
    """
    reward = rewards(recipe, judged)
    apart = reward[judged.chosen] - reward[judged.rejected] - recipe.margin * judged.margins
    match recipe:
        case DpoRecipe(label_smoothing=e):
            flipped = -e if recipe.smoothing == "robust" else e
            return -((1 - e) * logsigmoid(apart) + flipped * logsigmoid(-apart)) / (1 - e + flipped)
        case IpoRecipe():
            return (apart / recipe.beta - 1 / (2 * recipe.beta)) ** 2
        case OrpoRecipe():
            return -recipe.beta * logsigmoid(apart)
        case SimpoRecipe():
            return -logsigmoid(apart - recipe.gamma)
        case _:
            raise TypeError(f"{recipe.method} has no loss of pairs")


def kto_losses(recipe: KtoRecipe, ratios: torch.Tensor, desirable: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
    """The loss of each completion: lambda - lambda sigmoid(+-beta (log-ratio - KL)), by whether it is desirable.

    `ratios` float32 `[n]`, `desirable` bool `[n]`; `kl` is a scalar without gradient, at least 0: how far the policy is
    from the reference on completions of other prompts.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, recipe.desirable_weight, recipe.undesirable_weight)
    return weight * (1 - torch.sigmoid(sign * recipe.beta * (ratios - kl)))


def log_odds(mean_logps: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = exp(mean log-probability per token); finite for p up to 1 - 1e-6."""
    bounded = mean_logps.clamp(max=-1e-6)
    return bounded - torch.log1p(-bounded.exp())
