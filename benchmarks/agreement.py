"""Every statistic of agreement over a million judgements: seconds with a 95 % bootstrap interval, and memory.

python -m benchmarks.agreement [JUDGEMENTS]

Three annotators rank four completions of each record, with ties, rate them from 1 to 5, and flag some.
"""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measured import keep, show
from labeling.comparison import Comparison, Completion, Judgement, compare
from labeling.measures.agreement import (
    agreement,
    agreement_by_annotator,
    agreement_by_stratum,
    annotator_agreement,
    annotator_matrix,
    disagreement,
    rankings,
)
from labeling.measures.alpha import alpha_width, table_alpha
from labeling.measures.biases import length_bias, position_bias
from labeling.measures.bootstrap import Resampling
from labeling.measures.concordance import ORDERS, mean_concordance, mirrored, order_tables, rank_tables, shares_alike
from labeling.measures.kappa import fleiss_estimate, light_kappa
from labeling.measures.ratings import flag_agreement, rating_agreement

ANNOTATORS = ("ann", "ben", "cal")
COMPLETIONS = 4
SCALE = np.arange(2, 2 * COMPLETIONS + 1) / 2
"""Every mid-rank there may be."""


def main() -> None:
    """Measure, print and keep."""
    judgements = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    comparisons, given = _round(-(-judgements // len(ANNOTATORS)))
    before = _peak()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        seconds[name] = time.process_time() - cpu
        walls[name] = time.perf_counter() - wall
        return result

    walls: dict[str, float] = {}
    found = timed("all statistics of rankings: agreement()", lambda: agreement(given))
    after = _peak()
    _parts(given, timed)
    strata = {comparison.id: comparison.stratum for comparison in comparisons}
    timed("by stratum (4): agreement_by_stratum()", lambda: agreement_by_stratum(given, strata))
    timed("by annotator (3): annotator_agreement()", lambda: annotator_agreement(given))
    timed("pairwise by annotator: agreement_by_annotator()", lambda: agreement_by_annotator(given))
    timed("heat map: annotator_matrix()", lambda: annotator_matrix(given))
    timed("by record: disagreement()", lambda: disagreement(given))
    timed("ratings of a criterion: rating_agreement()", lambda: rating_agreement(given))
    timed("flags: flag_agreement()", lambda: flag_agreement(given))
    timed("positions: position_bias()", lambda: position_bias(comparisons, given))
    timed("length: length_bias()", lambda: length_bias(comparisons, given))
    result = {
        "judgements": len(given),
        "records": len(comparisons),
        "cpu_seconds": seconds,
        "wall_seconds": walls,
        "memory_gib": {"the judgements themselves": before, "peak of agreement()": after, "peak of all": _peak()},
        "figures": found.figures(),
    }
    show(
        f"{len(given):,} judgements", ["", "CPU s", "wall s"], [[name, seconds[name], walls[name]] for name in seconds]
    )
    show("memory", ["", "GiB"], list(result["memory_gib"].items()))
    show("figures", ["", ""], list(result["figures"].items()))
    keep("agreement", result)


def _parts(given: list[Judgement], timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    """What `agreement` is made of."""
    found = timed("  judgements to arrays", lambda: rankings(given))
    ranks, orders = rank_tables(found), order_tables(found)
    width = alpha_width(len(SCALE), "ordinal")
    drawn = timed("  1,000 draws", lambda: Resampling(len(found.records), samples=1000, seed=0, width=width))
    for metric in ("ordinal", "interval", "nominal"):
        extra = "" if metric == "ordinal" else " (not in agreement())"
        timed(f"  alpha, {metric}{extra}", lambda metric=metric: table_alpha(ranks, SCALE, drawn, metric))
    timed("  Kendall's W", lambda: mean_concordance(ranks, drawn))
    timed("  pairwise and tie-discounted", lambda: shares_alike(orders, drawn))
    both_ways = mirrored(orders)
    timed("  Cohen's kappa", lambda: light_kappa(both_ways, ORDERS, drawn))
    timed("  Fleiss' kappa", lambda: fleiss_estimate(both_ways, ORDERS, drawn))


def _round(records: int) -> tuple[list[Comparison], list[Judgement]]:
    """Noisy judgements of a hidden quality, in four strata."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(records, 1, COMPLETIONS))
    seen = quality + rng.normal(scale=1.0, size=(records, len(ANNOTATORS), COMPLETIONS))
    ratings = np.clip(np.round(seen + 3), 1, 5).astype(int)
    ranks = 6 - ratings  # equal ratings are ties
    unsafe = rng.random((records, len(ANNOTATORS))) < 0.1
    comparisons, judgements = [], []
    for record in range(records):
        name = f"record-{record}"
        texts = [Completion(f"{name}-{place}", "word " * (1 + place)) for place in range(COMPLETIONS)]
        comparisons.append(compare(name, [], texts, seed=0, stratum=f"stratum {record % 4}"))
        ids = [completion.id for completion in texts]
        for number, annotator in enumerate(ANNOTATORS):
            judgements.append(
                Judgement(
                    id=f"{name}/{annotator}",
                    record=name,
                    annotator=annotator,
                    status="submitted",
                    ranks=dict(zip(ids, ranks[record, number].tolist(), strict=True)),
                    guidelines="v1",
                    inserted_at="",
                    updated_at="",
                    ratings={"helpful": dict(zip(ids, ratings[record, number].tolist(), strict=True))},
                    flags=("unsafe",) if unsafe[record, number] else (),
                )
            )
    return comparisons, judgements


def _peak() -> float:
    """The most memory this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
