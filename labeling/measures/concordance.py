"""Rankings against each other: Kendall's W with ties, and the order of each two items, alike or not."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labeling.comparison import Ranks
from labeling.measures.bootstrap import Estimate, Floats, Ints, Resampling
from labeling.measures.tables import MISSING, Answers, Table, midranked, tables_of

ORDERS = 3
"""Better, tie, worse."""


def midranks(ranks: Ranks) -> dict[str, float]:
    """Ranks on one scale, whatever gaps an annotator left: ties share the mean of the places they take up.

    1, 1, 3 and 1, 1, 2 both become 1.5, 1.5, 3.
    """
    return dict(zip(ranks, midranked(np.array([list(ranks.values())], dtype=float))[0].tolist(), strict=True))


def kendalls_w(ranks: NDArray) -> float:
    """Kendall's coefficient of concordance of mid-ranks [annotators, items], corrected for ties.

    `W = (12 S) / (m^2 (n^3 - n) - m sum T)` with S the squared deviations of the rank sums and T = sum(t^3 - t) over
    each annotator's groups of ties. Kendall and Gibbons, "Rank Correlation Methods" (1990). NaN when everybody ties
    everything, and for one annotator.
    """
    return float(_concordances(np.zeros(len(ranks), dtype=int), ranks)[0]) if len(ranks) else math.nan


def pairwise_agreement(ranks: NDArray) -> tuple[float, int]:
    """How many (two annotators, two items) of ranks [annotators, items] are ordered alike, and how many there are."""
    alike, pairs = _alike(_orders(ranks))
    return float(alike), pairs


def tie_discounted_agreement(ranks: NDArray) -> float:
    """Pairwise agreement of ranks [annotators, items] in which a tie against a preference counts half.

    `1 - |o_1 - o_2| / 2`, averaged over (two annotators, two items), with o = -1 better, 0 tie, 1 worse: 1 for the same
    order or two ties, 1/2 for one tie, 0 for opposite orders. Zhou et al., "LIMA: Less Is More for Alignment" (2023,
    arXiv 2305.11206), compare people and GPT-4 by it. NaN for one annotator.
    """
    orders = _orders(ranks)
    left, right = np.triu_indices(len(orders), 1)
    apart = np.abs(orders[left] - orders[right])
    return float(1 - apart.mean() / 2) if apart.size else math.nan


def rank_tables(found: Answers) -> list[Table]:
    """A unit is a completion, its category the mid-rank 1, 1.5, 2, ..."""
    doubled = [np.nan_to_num(2 * block.values - 2, nan=MISSING).astype(np.int16) for block in found.blocks]
    return tables_of(found, doubled)


def order_tables(found: Answers) -> list[Table]:
    """A unit is two completions of a record; its category is 0 when the first is better, 1 for a tie, 2 for worse."""
    return tables_of(found, [np.nan_to_num(_orders(b.values) + 1, nan=MISSING).astype(np.int8) for b in found.blocks])


def mirrored(orders: Sequence[Table]) -> list[Table]:
    """The orders with every pair of completions taken both ways round.

    Which of two completions stands on the left is arbitrary, and kappas would change with it: their chance is made of
    how often each annotator says *better* and *worse*. Both ways round, chance is `t_1 t_2 + (1 - t_1) (1 - t_2) / 2`,
    with t how much each annotator ties.
    """
    turned = [np.where(table.codes == MISSING, MISSING, ORDERS - 1 - table.codes) for table in orders]
    return [
        replace(table, codes=np.concatenate([table.codes, other], axis=1))
        for table, other in zip(orders, turned, strict=True)
    ]


def shares_alike(orders: Sequence[Table], resampling: Resampling) -> tuple[Estimate, Estimate]:
    """Pairwise and tie-discounted agreement."""
    alike, apart, pairs = (np.zeros((resampling.groups, 1)) for _ in range(3))
    for table in orders:
        for left, right in table.dyads():
            same, both = compared(table, left, right)
            steps = np.abs(table.codes[left] - table.codes[right]) * both
            alike += resampling.sums(table.owner[left], same.sum(axis=1))
            apart += resampling.sums(table.owner[left], steps.sum(axis=1))
            pairs += resampling.sums(table.owner[left], both.sum(axis=1))
    return resampling.ratio(alike, pairs), resampling.ratio(pairs - apart / 2, pairs)


def mean_concordance(ranks: Sequence[Table], resampling: Resampling) -> Estimate:
    """The mean of Kendall's W over the records where it is defined, of those who ranked every completion."""
    total, defined = np.zeros((resampling.groups, 1)), np.zeros((resampling.groups, 1))
    for table in ranks:
        whole = (table.codes != MISSING).all(axis=1)
        items = table.item[whole]
        owners = table.owner[whole][np.flatnonzero(np.diff(items, prepend=-1))]
        values = _concordances(items, table.codes[whole] / 2 + 1)
        known = ~np.isnan(values)
        total += resampling.sums(owners[known], values[known])
        defined += resampling.sums(owners[known])
    return resampling.ratio(total, defined)


def compared(table: Table, left: Ints, right: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where two rows hold the same category, and where both hold one [dyads, columns]."""
    one, other = table.codes[left], table.codes[right]
    both = (one != MISSING) & (other != MISSING)
    return (one == other) & both, both


def _orders(ranks: Floats) -> Floats:
    """-1 better, 0 tie, 1 worse of each two items [annotators, pairs], NaN where one of them has no rank."""
    first, second = np.triu_indices(ranks.shape[1], 1)
    return np.sign(ranks[:, first] - ranks[:, second])


def _alike(orders: Floats) -> tuple[int, int]:
    left, right = np.triu_indices(orders.shape[0], 1)
    return int((orders[left] == orders[right]).sum()), int((~np.isnan(orders[left] - orders[right])).sum())


def _concordances(items: Ints, ranks: Floats) -> Floats:
    """Kendall's W of each item, which has the rows of the same number in `items` [rows], sorted; ranks [rows, n]."""
    starts = np.flatnonzero(np.diff(items, prepend=-1))
    if not starts.size:
        return np.zeros(0)
    m = np.diff(starts, append=items.size)
    n = ranks.shape[1]
    sums = np.add.reduceat(ranks, starts, axis=0)
    squares = ((sums - sums.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    # A group of t ties has t items that each equal t: sum(t^3 - t) is the sum over items of t^2 - 1.
    equal = np.zeros(ranks.shape)
    for column in range(n):
        equal += ranks == ranks[:, column, None]
    ties = np.add.reduceat((equal**2 - 1).sum(axis=1), starts)
    spread = m**2 * (n**3 - n) - m * ties
    defined = (m > 1) & (spread > 0)
    return np.where(defined, 12 * squares / np.where(defined, spread, 1), np.nan)
