"""Best-of-n: how far the true value follows when the proxy is optimised harder and harder, without any training.

Gao et al. 2022 (arXiv 2210.10760) call the gap over-optimisation; the KL of best-of-n to the sampled policy is at most
ln n - (n - 1) / n nats (their section 2; Beirami et al. 2024, arXiv 2401.01879, on the bound).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.evaluation.winrate import bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def best_of_n(proxy: Sequence[float], truth: Sequence[float], n: int) -> tuple[float, float]:
    """Mean proxy and true value of the completion with the highest proxy among n drawn from these without replacement.

    Exact over all subsets (Nakano et al. 2021, arXiv 2112.09332, appendix): sorted by proxy, the i-th of N is the best
    one of C(i - 1, n - 1) of the C(N, n) subsets. Completions of one proxy share their chances. Raises `ValueError` for
    n under 1 or over N.
    """
    count = len(proxy)
    if not 1 <= n <= count or len(truth) != count:
        raise ValueError(f"the best of {n} cannot be drawn from {count} proxies and {len(truth)} true values")
    scores, values = np.asarray(proxy, dtype=float), np.asarray(truth, dtype=float)
    chances = np.array([math.comb(place, n - 1) for place in range(count)], dtype=float) / math.comb(count, n)
    which = np.unique(scores, return_inverse=True)[1]
    shared = np.bincount(which[np.argsort(scores, kind="stable")], weights=chances) / np.bincount(which)
    return float(shared[which] @ scores), float(shared[which] @ values)


def curve(
    proxy: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], samples: int, seed: int
) -> list[dict[str, Any]]:
    """For n = 1, 2, 4, ... the mean over prompts of proxy and truth, with the truth's 95 % interval.

    proxy, truth: for each prompt the values of its completions; n goes as far as the prompt with the fewest. Rows hold
    `n`, `kl` (nats), `proxy`, `truth`, `low`, `high`.
    """
    most = min(map(len, proxy))
    steps = [2**power for power in range(int(math.log2(most)) + 1)]
    rows = []
    for n in sorted({*steps, most}):
        found = [best_of_n(scores, values, n) for scores, values in zip(proxy, truth, strict=True)]
        interval = bootstrap([value for _, value in found], samples, seed)
        score = sum(score for score, _ in found) / len(found)
        bounds = {"truth": interval["mean"], "low": interval["low"], "high": interval["high"]}
        rows.append({"n": n, "kl": math.log(n) - (n - 1) / n, "proxy": score, **bounds})
    return rows


def figure(rows: Sequence[dict[str, Any]], truth: str) -> "Figure":
    """Proxy and truth over n, each on its own axis."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 4), layout="constrained")
    left = drawn.subplots()
    right = left.twinx()
    numbers = [row["n"] for row in rows]
    left.plot(numbers, [row["proxy"] for row in rows], "o-", color="C0", label="reward model (proxy)")
    spread = [[row["truth"] - row["low"] for row in rows], [row["high"] - row["truth"] for row in rows]]
    right.errorbar(numbers, [row["truth"] for row in rows], yerr=spread, fmt="s-", color="C1", capsize=3, label=truth)
    left.set_xscale("log", base=2)
    left.set_xticks(numbers, [str(n) for n in numbers])
    left.set(xlabel="n: the completion with the best reward among n", ylabel="reward of it")
    right.set_ylabel(f"{truth} of it, 95 % interval over prompts")
    drawn.legend(loc="outside upper center", ncols=2)
    return drawn
