"""What a reward model does not know yet, by linear Bradley-Terry heads on frozen features of the completions.

A head gives a completion the reward `features @ head`, and the first of two is preferred with the probability
sigmoid(reward - reward) (Bradley and Terry 1952). Heads are cheap enough to have a posterior of them:

`disagreement`: heads fitted to bootstrap samples of the prompts differ in the probability they give to a pair (query
by committee, Seung et al. 1992; bagging, Breiman 1996; the deviation over reward models is what Christiano et al. 2017
choose pairs by).
`information`: how much the answers are expected to tell about the head, under Laplace's approximation of its posterior
(MacKay 1992): Houlsby et al. 2011 (BALD) say what to ask next by it. For a whole batch it is the determinant of the
posterior's precision (Bayesian D-optimal design, Chaloner and Verdinelli 1995; for rankings of language models'
answers: Mukherjee et al. 2024), so a second record of one kind is worth less than the first.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labeling.measures.bootstrap import Floats, Ints

PRECISIONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""What the prior's precision is chosen from, where the squared length of a difference of features is 1 on average."""
STEPS = 50
CLOSE = 1e-6
NEVER = -1e9
"""Worth of what is chosen last."""


@dataclass(frozen=True)
class Pairs:
    """Preferences as the heads learn from them."""

    apart: Floats
    """Features of the chosen less those of the rejected completion [pairs, dimensions]."""
    weights: Floats
    """[pairs]"""
    prompts: Ints
    """Number of each pair's prompt, from 0."""


@dataclass(frozen=True)
class Posterior:
    """What is known of the head: a normal distribution around the best one."""

    head: Floats
    """[dimensions]"""
    covariance: Floats
    """[dimensions, dimensions]"""
    evidence: float
    """Logarithm of the probability of the preferences under the prior."""
    precision: float
    """Of the prior: all weights have the mean 0 and the variance 1 / precision."""


def fit_head(pairs: Pairs, precision: float) -> Posterior:
    """The most probable head by Newton's method with halved steps, and the curvature there (Laplace)."""
    apart, weights = pairs.apart, pairs.weights
    identity = precision * np.eye(apart.shape[1])
    head = np.zeros(apart.shape[1])
    loss = _loss(apart, weights, head, precision)
    for _ in range(STEPS):
        likely = _sigmoid(apart @ head)
        slope = apart.T @ (weights * (1 - likely)) - precision * head
        step = np.linalg.solve((apart.T * (weights * likely * (1 - likely))) @ apart + identity, slope)
        size = 1.0
        while (found := _loss(apart, weights, head + size * step, precision)) > loss and size > CLOSE:
            size /= 2
        head, before, loss = head + size * step, loss, min(found, loss)
        if before - loss < CLOSE:
            break
    likely = _sigmoid(apart @ head)
    curvature = (apart.T * (weights * likely * (1 - likely))) @ apart + identity
    evidence = -loss + (len(head) * np.log(precision) - np.linalg.slogdet(curvature)[1]) / 2
    return Posterior(head, np.asarray(np.linalg.inv(curvature), dtype=float), float(evidence), precision)


def likeliest(pairs: Pairs) -> Posterior:
    """The posterior under the prior of `PRECISIONS` that the preferences speak for most (MacKay 1992)."""
    return max((fit_head(pairs, precision) for precision in PRECISIONS), key=lambda posterior: posterior.evidence)


@dataclass(frozen=True)
class Ensemble:
    """Heads of bootstrap samples."""

    heads: Floats
    """[members, dimensions]"""
    accuracy: float
    """Share of the pairs that heads order rightly whose samples did not hold their prompts; NaN without any."""


def bootstrap_heads(pairs: Pairs, members: int, seed: int, precision: float) -> Ensemble:
    """Heads fitted to as many prompts, each with all its pairs, drawn anew for each member."""
    generator = np.random.default_rng(seed)
    prompts = int(pairs.prompts.max(initial=-1)) + 1
    heads, right, judged = [], 0.0, 0
    for _ in range(members):
        times = np.bincount(generator.integers(prompts, size=prompts), minlength=prompts)[pairs.prompts]
        head = fit_head(Pairs(pairs.apart, pairs.weights * times, pairs.prompts), precision).head
        margins = (pairs.apart @ head)[times == 0]
        right += float(((margins > 0) + 0.5 * (margins == 0)).sum())
        judged += margins.size
        heads.append(head)
    return Ensemble(np.array(heads), right / judged if judged else float("nan"))


def disagreement(rewards: Floats) -> Floats:
    """Deviation over members of the probability that one completion beats another.

    rewards: [records, members, completions]; returns [records, completions, completions].
    """
    return _sigmoid(rewards[:, :, :, None] - rewards[:, :, None, :]).std(axis=1)


def uncertainty(features: Floats, posterior: Posterior) -> Floats:
    """What each pair's answer is expected to tell, to first order: p (1 - p) times the variance of the difference.

    features: [records, completions, dimensions]; returns [records, completions, completions].
    """
    rewards = features @ posterior.head
    likely = _sigmoid(rewards[:, :, None] - rewards[:, None, :])
    products = np.einsum("rad,de,rbe->rab", features, posterior.covariance, features, optimize=True)
    own = np.einsum("raa->ra", products)
    return likely * (1 - likely) * np.maximum(0.0, own[:, :, None] + own[:, None, :] - 2 * products)


def best_shown(worth: Floats, show: int, alike: NDArray[np.bool_] | None = None) -> Ints:
    """Which completions of each record to show: the pair that is worth most, then greedily the one that adds most.

    worth: [records, completions, completions], symmetric; alike: in the same shape, what is shown together only where
    there are not enough others. Returns places [records, show], ascending.
    """
    worth = worth.copy() if alike is None else np.where(alike, NEVER, worth)
    records, completions, _ = worth.shape
    rows = np.arange(records)
    worth[:, np.arange(completions), np.arange(completions)] = NEVER  # a pair is two
    first, second = np.divmod(worth.reshape(records, -1).argmax(axis=1), completions)
    chosen = np.stack([first, second], axis=1)
    while chosen.shape[1] < show:
        added = np.take_along_axis(worth, chosen[:, None, :], axis=2).sum(axis=2)
        added[rows[:, None], chosen] = -np.inf
        chosen = np.column_stack([chosen, added.argmax(axis=1)])
    return np.sort(chosen, axis=1)


def ranking_share(completions: int) -> float:
    """What a pair in a ranking tells as against a pair asked alone: 1 for two completions, 0.64 for four.

    From Plackett and Luce's model with equal utilities: at the choice among m completions each pair counts 1 / m^2, and
    both of a pair are still there with the probability m (m - 1) / (k (k - 1)).
    """
    k = completions
    return 4 * sum((m - 1) / m for m in range(2, k + 1)) / (k * (k - 1))


def designs(features: Floats, head: Floats) -> Floats:
    """For each record a matrix whose `A.T @ A` is the information of its ranking about the head.

    features: [records, shown, dimensions]; returns [records, shown - 1, dimensions]. The information is the sum over
    pairs of p (1 - p) times the outer product of their difference: the Laplacian of the graph of completions between
    their features, which has one eigenvalue of zero.
    """
    rewards = features @ head
    likely = _sigmoid(rewards[:, :, None] - rewards[:, None, :])
    edges = likely * (1 - likely) * ranking_share(features.shape[1])
    shown = np.arange(features.shape[1])
    edges[:, shown, shown] = 0.0
    laplacian = -edges
    laplacian[:, shown, shown] = edges.sum(axis=2)
    values, vectors = np.linalg.eigh(laplacian)
    roots = vectors[:, :, 1:] * np.sqrt(np.maximum(values[:, None, 1:], 0.0))
    return np.swapaxes(roots, 1, 2) @ features


def most_informative(
    records: Floats,
    covariance: Floats,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[int, float]]:
    """Greedily the records that tell most beside those before them, each with its nats.

    A record's gain can only shrink while others are chosen, so that most gains need not be computed again (the lazy
    greedy algorithm, Minoux 1978); the result is that of computing all of them, and within 1 - 1/e of the best batch
    (Nemhauser et al. 1978). records: [records, rows, dimensions] as `designs` makes them. Where gains are equal the
    earlier record is taken.
    """
    covariance = covariance.copy()
    count = min(count, len(records))
    queue = [(-_gain(record, covariance), place, 0) for place, record in enumerate(records)]
    heapq.heapify(queue)
    chosen: list[tuple[int, float]] = []
    while len(chosen) < count:
        gain, place, when = heapq.heappop(queue)
        if when < len(chosen):
            heapq.heappush(queue, (-_gain(records[place], covariance), place, len(chosen)))
            continue
        chosen.append((place, -gain))
        across = covariance @ records[place].T
        inner = np.eye(across.shape[1]) + records[place] @ across
        covariance -= across @ np.linalg.solve(inner, across.T)
        progress(len(chosen), count)
    return chosen


def principal(features: Floats, others: Sequence[Floats], dimensions: int) -> list[Floats]:
    """Features in the directions in which a record's completions differ most, scaled so that the squared length of a
    difference is 1 on average; `others` [..., dimensions] are changed alike.

    features: [records, completions, dimensions].
    """
    within = features - features.mean(axis=1, keepdims=True)
    flat = within.reshape(-1, features.shape[-1])
    values, vectors = np.linalg.eigh(flat.T @ flat / max(1, len(flat)))
    kept = vectors[:, ::-1][:, :dimensions]
    completions = features.shape[1]
    spread = 2 * completions / max(1, completions - 1) * float(values[::-1][:dimensions].sum())
    scale = 1 / np.sqrt(spread) if spread > 0 else 1.0
    return [each @ kept * scale for each in (features, *others)]


def _gain(record: Floats, covariance: Floats) -> float:
    return float(np.linalg.slogdet(np.eye(len(record)) + record @ covariance @ record.T)[1]) / 2


def _loss(apart: Floats, weights: Floats, head: Floats, precision: float) -> float:
    return float(weights @ np.logaddexp(0.0, -(apart @ head)) + precision * head @ head / 2)


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))
