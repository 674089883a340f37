"""PPO's arithmetic against values computed by hand: rewards' places, GAE, whitening, losses, KL estimators."""

import math

import pytest
import torch

from tasks.training.advantages import explained_variance, gae, masked_mean, masked_variance, token_rewards, whiten
from tasks.training.policy_losses import clipped_policy_loss, clipped_value_loss, k1, k3

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
"""Two completions of a five-token toy: one ended by EOS at its third token, one cut."""


def test_reward_is_on_the_last_sampled_token_not_on_pad():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5, 0.0, 0.0], [-1.0] * 5])
    reference = torch.tensor([[-1.5, -1.0, -0.5, -9.0, -9.0], [-1.0] * 5])
    rewards = token_rewards(torch.tensor([3.0, -2.0]), logprobs, reference, MASK, kl_coefficient=0.1)
    # -0.1 * (0.5, -1.0, 0.0) and the score 3 on the third token; nothing on the two pads
    assert torch.allclose(rewards[0], torch.tensor([-0.05, 0.1, 3.0, 0.0, 0.0]))
    assert torch.allclose(rewards[1], torch.tensor([0.0, 0.0, 0.0, 0.0, -2.0]))


def test_likelihood_of_the_reference_is_a_reward():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5, 0.0, 0.0]])
    reference = torch.tensor([[-1.5, -1.0, -0.5, -9.0, -9.0]])
    rewards = token_rewards(torch.tensor([3.0]), logprobs, reference, MASK[:1], 0.1, likelihood_coefficient=0.2)
    assert torch.allclose(rewards[0], torch.tensor([-0.05 - 0.3, 0.1 - 0.2, 3.0 - 0.1, 0.0, 0.0]))


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 7.0, 7.0]])  # what is on pads must not count
    values = torch.tensor([[0.5, 0.4, 0.6, 9.0, 9.0]])
    advantages, returns = gae(rewards, values, MASK[:1], gamma=1.0, lam=0.5)
    # deltas: t2: 1 - 0.6 = 0.4; t1: 0.6 - 0.4 = 0.2; t0: 0.4 - 0.5 = -0.1
    # advantages: 0.4; 0.2 + 0.5 * 0.4 = 0.4; -0.1 + 0.5 * 0.4 = 0.1
    assert torch.allclose(advantages, torch.tensor([[0.1, 0.4, 0.4, 0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.6, 0.8, 1.0, 0.0, 0.0]]))


def test_gae_with_lambda_one_is_the_discounted_return():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    values = torch.tensor([[0.3, -0.2, 0.9, 0.1, 0.7]])
    _, returns = gae(rewards, values, MASK[1:], gamma=0.5, lam=1.0)
    expected = [sum(r * 0.5**k for k, r in enumerate([1, 2, 3, 4, 5][t:])) for t in range(5)]
    assert torch.allclose(returns, torch.tensor([expected]))


def test_whitening_looks_at_sampled_tokens_only():
    values = torch.tensor([[1.0, 2.0, 3.0, 99.0, 99.0], [4.0, 5.0, 6.0, 7.0, 8.0]])
    white = whiten(values, MASK)
    assert float(masked_mean(white, MASK)) == pytest.approx(0, abs=1e-6)
    assert float(masked_variance(white, MASK)) == pytest.approx(1, abs=1e-5)
    assert (white[~MASK] == 0).all()
    kept = whiten(values, MASK, shift=False)
    assert float(masked_mean(kept, MASK)) == pytest.approx(4.5, abs=1e-5), "without shift the mean stays"


def test_policy_loss_by_hand():
    old = torch.zeros(1, 4)
    new = torch.tensor([[1.5, 1.5, 0.5, 1.1]]).log()
    advantages = torch.tensor([[1.0, -1.0, -1.0, 2.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, clipped = clipped_policy_loss(new, old, advantages, mask, clip=0.2)
    # ratio 1.5, A 1: clipped at 1.2; ratio 1.5, A -1: the worse, 1.5; ratio .5, A -1: .8; ratio 1.1, A 2: free
    assert torch.allclose(loss, torch.tensor([[-1.2, 1.5, 0.8, -2.2]]))
    assert clipped.tolist() == [[True, False, True, False]]


def test_policy_gradient_vanishes_where_clipped():
    new = torch.tensor([[1.5, 1.1]]).log().requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = clipped_policy_loss(new, torch.zeros(1, 2), torch.ones(1, 2), mask, clip=0.2)
    loss.sum().backward()
    assert new.grad is not None
    assert new.grad[0, 0] == 0
    assert float(new.grad[0, 1]) == pytest.approx(-1.1)


def test_value_loss_by_hand():
    old, returns = torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[1.0, 1.0, 5.0]])
    values = torch.tensor([[0.5, -1.0, 77.0]])
    mask = torch.tensor([[True, True, False]])
    loss, bound = clipped_value_loss(values, old, returns, mask, clip=0.2)
    # first: free (.5 - 1)^2 = .25 < bounded (.2 - 1)^2 = .64; second: free (-2)^2 = 4 > bounded (-.2 - 1)^2 = 1.44
    assert loss.flatten().tolist() == pytest.approx([0.5 * 0.64, 0.5 * 4.0, 0])
    assert bound.tolist() == [[True, False, False]]


def test_kl_estimators_agree_with_the_exact_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    exact = float((p * (p / q).log()).sum())
    mask = torch.ones(1, 3, dtype=torch.bool)
    for estimator in (k1, k3):
        expectation = float((p * estimator(p.log().unsqueeze(0), q.log().unsqueeze(0), mask)[0]).sum())
        assert expectation == pytest.approx(exact, abs=1e-6)
    assert (k3(p.log().unsqueeze(0), q.log().unsqueeze(0), mask) >= 0).all()
    assert float(k3(torch.tensor([[0.0]]), torch.tensor([[math.log(2)]]), mask[:, :1])) == pytest.approx(
        1 - math.log(2)
    )


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0, 50.0, 50.0], [4.0, 5.0, 6.0, 7.0, 8.0]])
    assert explained_variance(returns, returns, MASK) == pytest.approx(1)
    assert explained_variance(torch.zeros(2, 5), returns, MASK) == pytest.approx(0)
    assert explained_variance(-returns, returns, MASK) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(2, 5), MASK) == 0.0
