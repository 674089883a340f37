"""A model of rankings with ties by annotators of unequal skill.

Each completion of a record has a hidden score, standard normal before anybody is heard. An annotator chooses the best
of what is left, again and again: a set C (more than one: a tie) with probability proportional to

    exp(sensitivity * mean score of C + ties * (|C| - 1)).

That is the Plackett-Luce model with ties of Turner, van Etten, Firth and Kosmidis, "Modelling rankings in R" (2020),
which for two completions is Davidson's (1970), with one sensitivity per annotator as in Chen, Bennett, Collins-Thompson
and Horvitz, "Pairwise ranking aggregation in a crowdsourced setting" (2013). Who answers at random has sensitivity 0,
who answers the wrong way round a negative one. Scores are integrated out, not maximised: a record has two to five
judgements, and whoever agreed with his own maximum would look perfect.

Knows arrays only, nothing of comparisons and judgements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeling.quality.choices import Array, Block, grid, subsets

USUAL = np.array([1.5, -1.0])
"""(sensitivity, ties) of a round nobody knows: most people mean what they say, and tie now and then."""
ROUND_DEVIATION = np.array([0.75, 1.0])
"""Of a round from what is usual: where most answer at random, a stranger is not believed either."""
OWN_DEVIATION = np.array([1.0, 2.0])
"""Of one annotator from their round."""
CONTRARY = 0.05
"""Share of annotators who answer the wrong way round."""
EXPERT = np.array([5.0, -1.0])
"""(sensitivity, ties) of whoever said what is expected of gold comparisons; not fitted."""
LIMIT = 12.0
"""Of the size of a parameter."""
POINTS = 600
"""Points the scores of a record are integrated over, while fitting."""
FINE_POINTS = 4800
"""The same for the result."""
CHUNK = 4096
"""Records computed at once."""
RIVAL = 30.0
"""A solution this many nats less likely than another need not be looked at."""


@dataclass(frozen=True)
class Fit:
    """One solution."""

    parameters: Array
    """[annotators, (sensitivity, ties)]"""
    evidence: float
    """Log of prior times likelihood, scores integrated out."""
    evaluations: int


class Model:
    """The model on some blocks of records; `experts` have fixed parameters."""

    def __init__(self, blocks: Sequence[Block], annotators: int, experts: Sequence[int] = (), points: int = POINTS):
        self.blocks = blocks
        self.annotators = annotators
        self.fitted = np.setdiff1d(np.arange(annotators), np.array(experts, dtype=int))
        self.points = points

    def start(self) -> Array:
        """Everybody as nobody knows them."""
        parameters = np.tile(USUAL, (self.annotators, 1))
        parameters[np.setdiff1d(np.arange(self.annotators), self.fitted)] = EXPERT
        return parameters

    def fit(self, start: Array) -> Fit:
        """Climb the evidence from `start` (L-BFGS)."""
        from scipy.optimize import minimize  # a quarter of a second that no other verb should wait for

        def downhill(fitted: Array) -> tuple[float, Array]:
            parameters = start.copy()
            parameters[self.fitted] = fitted.reshape(-1, 2)
            evidence, gradient = self.climb(parameters)
            return -evidence, -gradient[self.fitted].ravel()

        bounds = [(-LIMIT, LIMIT)] * (2 * len(self.fitted))
        found = minimize(downhill, start[self.fitted].ravel(), jac=True, method="L-BFGS-B", bounds=bounds)
        parameters = start.copy()
        parameters[self.fitted] = found.x.reshape(-1, 2)
        return Fit(parameters, -float(found.fun), int(found.nfev))

    def solutions(self) -> list[tuple[float, Array]]:
        """(share, parameters) of the solutions worth counting.

        Turning every annotator round fits the judgements exactly as well; only gold comparisons and the prior tell the
        two apart. So the mirror image is climbed from too, and both count by their evidence: two annotators in perfect
        opposition cancel out instead of one being believed by chance.
        """
        found = [self.fit(self.start())]
        mirror = found[0].parameters.copy()
        mirror[self.fitted, 0] *= -1
        if self.climb(mirror)[0] > found[0].evidence - RIVAL:
            other = self.fit(mirror)
            if np.abs(other.parameters - found[0].parameters).max(initial=0) > 0.1:
                found.append(other)
        shares = np.exp([each.evidence - max(one.evidence for one in found) for each in found])
        return [(float(share), each.parameters) for share, each in zip(shares / shares.sum(), found, strict=True)]

    def beliefs(self, block: Block, parameters: Array) -> tuple[Array, Array]:
        """Per record: mean scores [records, size], and the probability [records, size, size] that the score of the
        first is above that of the second."""
        fine = Model([block], self.annotators, points=FINE_POINTS)
        scores = grid(block.size, FINE_POINTS).astype(np.float32)
        left, right = np.triu_indices(block.size, 1)
        above = (scores[left] > scores[right]).astype(np.float32) + 0.5 * (scores[left] == scores[right])
        means = np.empty((block.records, block.size))
        probabilities = np.full((block.records, block.size, block.size), 0.5)
        for rows, posterior, _ in fine._posteriors(block, parameters, max(1, CHUNK // 8)):
            means[rows] = posterior @ scores.T
            higher = np.clip(posterior @ above.T, 0, 1)
            probabilities[rows, left, right], probabilities[rows, right, left] = higher, 1 - higher
        return means, probabilities

    def prior(self, parameters: Array) -> tuple[float, Array]:
        """Log of the prior, less a constant, and its gradient.

        Annotators are spread around their round, which is put where it is likeliest; a contrary one is as sensitive as
        the others, with the other sign.
        """
        fitted = parameters[self.fitted]
        round, trust, odds = USUAL, np.ones(len(fitted)), np.zeros(len(fitted))
        weights = 1 / ROUND_DEVIATION**2 + len(fitted) / OWN_DEVIATION**2
        for _ in range(100):
            odds = np.clip(2 * fitted[:, 0] * round[0] / OWN_DEVIATION[0] ** 2, -500, 500)
            trust = (1 - CONTRARY) / (1 - CONTRARY + CONTRARY * np.exp(-odds))
            turned = fitted * np.stack([2 * trust - 1, np.ones(len(fitted))], axis=1)
            before = round
            round = (USUAL / ROUND_DEVIATION**2 + turned.sum(axis=0) / OWN_DEVIATION**2) / weights
            if np.abs(round - before).max() < 1e-9:
                break
        away = fitted - round
        flipped = np.log1p(-CONTRARY + CONTRARY * np.exp(-odds))
        value = -0.5 * float(((away / OWN_DEVIATION) ** 2).sum() + (((round - USUAL) / ROUND_DEVIATION) ** 2).sum())
        gradient = np.zeros_like(parameters)
        gradient[self.fitted] = -away / OWN_DEVIATION**2
        gradient[self.fitted, 0] -= (1 - trust) * 2 * round[0] / OWN_DEVIATION[0] ** 2
        return value + float(flipped.sum()), gradient

    def climb(self, parameters: Array) -> tuple[float, Array]:
        """The evidence at these parameters and its gradient, which is that of the complete likelihood where the scores
        are expected to be (Fisher's identity)."""
        evidence, gradient = self.prior(parameters)
        for block in self.blocks:
            scores = grid(block.size, self.points).astype(np.float32)
            means = np.empty((block.records, block.size))
            cells = np.zeros((block.counts.shape[1], scores.shape[1]), dtype=np.float32)
            for rows, posterior, log_likelihood in self._posteriors(block, parameters, CHUNK):
                evidence += log_likelihood
                means[rows] = posterior @ scores.T
                cells += block.counts[rows].T @ posterior
            chosen = (block.shares * means[block.record]).sum(axis=1)
            gradient[:, 0] += np.bincount(block.annotator, chosen, minlength=self.annotators)
            gradient[:, 1] += np.bincount(block.annotator, block.tied, minlength=self.annotators)
            gradient -= self._expected(block, cells, parameters)
        return evidence, gradient

    def _posteriors(self, block: Block, parameters: Array, chunk: int) -> Any:
        """Yield (records, their posterior over the points [records, points], log-likelihood of their judgements)."""
        scores = grid(block.size, self.points)
        normalisers = self._normalisers(block, parameters)
        drift = np.zeros((block.records, block.size))
        np.add.at(drift, block.record, parameters[block.annotator, :1] * block.shares)
        ties = np.bincount(block.record, parameters[block.annotator, 1] * block.tied, minlength=block.records)
        for first in range(0, block.records, chunk):
            rows = slice(first, min(first + chunk, block.records))
            logs = drift[rows].astype(np.float32) @ scores.astype(np.float32) - block.counts[rows] @ normalisers
            highest = logs.max(axis=1, keepdims=True)
            posterior = np.exp(logs - highest)
            total = posterior.sum(axis=1, keepdims=True)
            posterior /= total
            evidence = np.log(total / scores.shape[1]) + highest
            yield rows, posterior, float(evidence.sum(dtype=float) + ties[rows].sum())

    def _normalisers(self, block: Block, parameters: Array) -> Array:
        """Log of the sum over all sets that could be chosen [cells, points]."""
        means, extra, holds = subsets(block.size)
        score = means @ grid(block.size, self.points)
        owners, left = block.cells
        result = np.empty((len(owners), score.shape[1]), dtype=np.float32)
        for owner in np.unique(owners):
            mine = owners == owner
            logs = parameters[owner, 0] * score + parameters[owner, 1] * extra[:, None]
            shift = logs.max(axis=0)
            result[mine] = np.log(holds[left[mine] - 1] @ np.exp(logs - shift)) + shift
        return result

    def _expected(self, block: Block, cells: Array, parameters: Array) -> Array:
        """[annotators, 2]: the scores and the ties that were to be expected of each, the scores lying as in `cells`."""
        means, extra, holds = subsets(block.size)
        score = means @ grid(block.size, self.points)
        owners, left = block.cells
        result = np.zeros((self.annotators, 2))
        for owner in np.intersect1d(owners, self.fitted):
            mine = owners == owner
            inside = holds[left[mine] - 1]
            logs = parameters[owner, 0] * score + parameters[owner, 1] * extra[:, None]
            terms = np.exp(logs - logs.max(axis=0))
            chosen = terms * (inside.T @ (cells[mine] / (inside @ terms)))
            result[owner] = (chosen * score).sum(), extra @ chosen.sum(axis=1)
        return result
