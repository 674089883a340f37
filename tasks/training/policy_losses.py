"""Clipped losses of PPO and GRPO and the estimators of KL. Tensors are `[rows, tokens]`, masks true where sampled."""

import torch


def clipped_policy_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's surrogate (Schulman et al. 2017, equation 7), negated, per token; and where clipping cut the gradient."""
    ratio = torch.exp((logprobs - old) * mask)
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.max(free, bounded) * mask, (bounded > free) & mask


def clipped_value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error, at least that of the value kept within `clip` of the old, per token; where it bound."""
    near = old + (values - old).clamp(-clip, clip)
    free, bounded = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.max(free, bounded) * mask, (bounded > free) & mask


def k1(logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Per token log p - log q: an unbiased estimate of KL(p || q) on samples of p, may be negative."""
    return (logprobs - reference) * mask


def k3(logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Per token q/p - 1 - log(q/p): unbiased too, never negative, less spread (Schulman 2020, "Approximating KL")."""
    difference = (reference - logprobs) * mask
    return (difference.exp() - 1 - difference) * mask
