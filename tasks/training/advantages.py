"""Rewards and advantages of sampled tokens. Tensors are `[rows, tokens]`; masks are true on sampled tokens."""

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of the mask (every token weighs the same, whatever completion it is of)."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_variance(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Variance (divided by the count) over the tokens of the mask."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def whiten(values: torch.Tensor, mask: torch.Tensor, shift: bool = True) -> torch.Tensor:
    """Scale to unit variance over the mask, and shift to mean zero unless told not to; zero outside the mask."""
    mean = masked_mean(values, mask)
    scaled = (values - mean) * torch.rsqrt(masked_variance(values, mask) + 1e-8)
    return (scaled if shift else scaled + mean) * mask


def token_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    reference: torch.Tensor,
    mask: torch.Tensor,
    kl_coefficient: float,
    likelihood_coefficient: float = 0.0,
) -> torch.Tensor:
    """-kl_coefficient * (log-probability - reference's) on every token, and the score `[rows]` on the last sampled one.

    The last sampled token is EOS in a finished completion; never a pad token. (Ziegler et al. 2019, equation 2.)
    likelihood_coefficient * the reference's log-probability is added on every token: with KL coefficient b and this one
    a, the best policy is proportional to reference^(1 + a/b) * exp(score / b), a sharpened reference for a prior.
    """
    rewards = (-kl_coefficient * (logprobs - reference) + likelihood_coefficient * reference) * mask
    last = (mask.sum(-1) - 1).clamp(min=0)
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and returns (Schulman et al. 2016), both zero outside the mask.

    `values[:, t]` is the value before token t. The value after the last token is zero, also where a completion was cut.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    ahead = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        ahead = (delta + gamma * lam * ahead) * mask[:, t]
        advantages[:, t] = ahead
        following = values[:, t] * mask[:, t]
    return advantages, (advantages + values) * mask


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect value model, 0 for a constant, below 0 for worse."""
    total = masked_variance(returns, mask)
    return float(1 - masked_variance(returns - values, mask) / total) if total > 0 else 0.0
