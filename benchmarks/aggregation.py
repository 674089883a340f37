"""Annotator-aware aggregation beside majority: recovering a hidden truth, predicting a held-out annotator, and the
reward model trained from the pairs.

python -m benchmarks.aggregation [--only simulated real reward] [--seeds N] [--domain FOLDER] [--real FOLDER]

Simulated annotators of known quality rank completions of known utility; a pair left undecided counts half right, and
p is 1/2 for it. Majority's probability is (1 + weight) / 2. Real annotators: the pandalm and squality files in FOLDER
(skipped where they are not): each annotator's orders are predicted from the others'. Reward models are the project's
own, on the demo's domain, judged by the hidden utility on prompts of their own. Brackets are 95 % intervals: over seeds
(Student's t) for simulated, by bootstrap over records or prompts for the others.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.measured import RESULTS, ROOT, keep, show
from benchmarks.real_annotators import comparison, pandalm, squality
from labeling.comparison import Judgement
from labeling.quality.reliability import annotator_quality
from labeling.rankings import Method, Preference, to_preferences
from labeling.simulated import SimulatedAnnotator

METHODS: tuple[Method, ...] = ("majority", "reliability")
SEEDS = 10
REWARD_SEEDS = 3
Crowd = Sequence[SimulatedAnnotator]
Hits = dict[str, dict[str, list[float]]]
"""Method -> record -> per pair: the probability given to what is better; over 1/2 is right."""
Truth = Mapping[str, Mapping[str, float]]
"""Record -> completion -> how good it is."""


def someone(name: str, noise: float = 0.5, **how: Any) -> SimulatedAnnotator:
    return SimulatedAnnotator(name, noise=noise, tie_margin=how.pop("tie_margin", 0.1), **how)


# name: (annotators, of whom so many judge each record)
MIXES: dict[str, tuple[Crowd, int]] = {
    "three good": ([someone("a"), someone("b"), someone("c")], 3),
    "two good, one careless": ([someone("a"), someone("b"), someone("x", careless=True)], 3),
    "two good, one contrary": ([someone("a"), someone("b"), someone("x", contrary=True)], 3),
    "unequal noise": ([someone("a", 0.2), someone("b", 1.0), someone("c", 2.0)], 3),
    "eight unequal, two each": ([someone(f"a{n}", 0.2 + 0.3 * n) for n in range(8)], 2),
    "six, two bad, two each": (
        [*(someone(f"a{n}") for n in range(4)), someone("x", careless=True), someone("y", contrary=True)],
        2,
    ),
    "one alone": ([someone("a")], 1),
}
REWARD_MIXES: dict[str, tuple[Crowd, int]] = {
    "two good, one careless": ([someone("a", 0.2), someone("b", 0.4), someone("x", careless=True)], 3),
    "two good, one contrary": ([someone("a", 0.2), someone("b", 0.4), someone("x", 0.3, contrary=True)], 3),
    "six, three bad, two each": (
        [
            *(someone(f"a{n}", 0.3) for n in range(3)),
            *(someone(f"x{n}", careless=True) for n in range(2)),
            someone("y", 0.3, contrary=True),
        ],
        2,
    ),
}


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--only", nargs="+", choices=["simulated", "real", "reward"], default=None)
    given.add_argument("--seeds", type=int, default=REWARD_SEEDS, help="of the reward models")
    given.add_argument("--domain", type=Path, help="keep the demo's base and completions here, and take them from here")
    given.add_argument("--real", type=Path, default=ROOT.parent / "shared" / "data")
    options = given.parse_args()
    path = RESULTS / "aggregation.json"
    result = json.loads(path.read_text()) if options.only and path.exists() else {}
    wanted = options.only or ["simulated", "real", "reward"]
    if "simulated" in wanted:
        result |= {"simulated": simulated(), "speed": speed()}
    if "real" in wanted:
        result["real"] = real(options.real)
    keep("aggregation", result)
    if "reward" in wanted:
        result["reward"] = {}
        for mix, figures in reward(options.seeds, options.domain):
            result["reward"][mix] = figures
            keep("aggregation", result)


def simulated() -> dict[str, Any]:
    """200 records of 4 completions with standard normal utilities, ten seeds."""
    result: dict[str, Any] = {}
    rows = []
    for mix, (crowd, each) in MIXES.items():
        figures: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for seed in range(SEEDS):
            draw = random.Random(seed)
            truth = {f"r{n}": {f"r{n}-{k}": draw.gauss(0, 1) for k in range(4)} for n in range(200)}
            comparisons = [comparison(name, list(utilities), seed) for name, utilities in truth.items()]
            judgements = _judged(crowd, each, truth, seed)
            for method in METHODS:
                found = to_preferences(comparisons, judgements, method).preferences
                figures[method].append(_recovered(found, truth))
        gain = [b["right"] - a["right"] for a, b in zip(*figures.values(), strict=True)]
        result[mix] = {
            method: {name: _student([f[name] for f in found]) for name in found[0]} for method, found in figures.items()
        }
        result[mix]["gain"] = _student(gain)
        a, b = (result[mix][method] for method in METHODS)
        rows.append(
            [
                mix,
                *(_said(a[n]) + " / " + _said(b[n]) for n in ("right", "brier", "log_loss")),
                _said(result[mix]["gain"]),
            ]
        )
    show("simulated, majority / reliability", ["annotators", "pairs right", "Brier", "log loss", "gain"], rows)
    return result


def speed() -> dict[str, float]:
    """Seconds for 100,000 judgements by 30 annotators, three for each record of four."""
    draw = random.Random(0)
    truth = {f"r{n}": {f"r{n}-{k}": draw.gauss(0, 1) for k in range(4)} for n in range(33_334)}
    judgements = _judged([someone(f"a{n}", 0.3 + n / 15) for n in range(30)], 3, truth, 0)
    comparisons = [comparison(name, list(utilities), 0) for name, utilities in truth.items()]
    result: dict[str, float] = {"judgements": len(judgements)}
    for method in METHODS:
        started = time.monotonic()
        to_preferences(comparisons, judgements, method)
        result[method] = time.monotonic() - started
    started = time.monotonic()
    annotator_quality(comparisons, judgements)
    result["annotator_quality"] = time.monotonic() - started
    show("seconds", list(result), [list(result.values())])
    return result


def real(folder: Path) -> dict[str, Any]:
    """Every annotator's strict orders, predicted from the pairs the others make."""
    result: dict[str, Any] = {}
    rows = []
    for name, read in (("pandalm", pandalm), ("squality", squality)):
        if not (folder / name).exists():
            print(f"{name} is not in {folder}; skipped")
            continue
        comparisons, judgements = read(folder / name)
        hits: Hits = {method: {} for method in METHODS}
        for annotator in sorted({each.annotator for each in judgements}):
            others = [each for each in judgements if each.annotator != annotator]
            orders = {each.record: each.ranks or {} for each in judgements if each.annotator == annotator}
            utilities = {record: {c: -float(rank) for c, rank in ranks.items()} for record, ranks in orders.items()}
            for method in METHODS:
                found = to_preferences(comparisons, others, method).preferences
                _add(hits[method], _chances(found, utilities))
        result[name] = _compared(hits)
        brier = [_said(result[name][f"{method}_brier"]) for method in METHODS]
        rows.append([name, *_cells(result[name]), " / ".join(brier)])
    show("predicting a held-out annotator", ["data", *METHODS, "gain", "pairs", "Brier"], rows)
    return result


def reward(seeds: int, folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reward models from the pairs of either method; the share of held-out pairs they order by the hidden utility."""
    import torch

    from benchmarks.reward_arms import Domain

    torch.set_num_threads(1)
    rows = []
    with TemporaryDirectory(prefix="rlhf-aggregation-") as temporary:
        domain = Domain(folder or Path(temporary))
        truth = domain.utilities("train")
        for mix, (crowd, each) in REWARD_MIXES.items():
            hits: Hits = {method: {} for method in METHODS}
            for seed in range(seeds):
                judgements = _judged(crowd, each, truth, seed)
                for method in METHODS:
                    outcome = to_preferences(domain.comparisons("train", seed), judgements, method)
                    scores = domain.reward_model(outcome.preferences, seed)
                    _add(hits[method], _scored(scores, domain.utilities("validation")))
            compared = _compared(hits)
            found = {"seeds": seeds, **{name: compared[name] for name in ("pairs", "records", *METHODS, "gain")}}
            rows.append([mix, *_cells(found)])
            show("reward model's accuracy on held-out pairs", ["annotators", *METHODS, "gain", "pairs"], rows)
            yield mix, found


def _judged(crowd: Crowd, each: int, truth: Truth, seed: int) -> list[Judgement]:
    """`each` annotators of the crowd, drawn per record, rank it."""
    draw = random.Random(f"assignment/{seed}")
    judgements = []
    for record, utilities in truth.items():
        for annotator in draw.sample(list(crowd), each):
            drawn = SimulatedAnnotator(**{**vars(annotator), "seed": seed})
            ranks = drawn.rank(record, utilities)
            judgements.append(
                Judgement(f"{record}/{annotator.name}", record, annotator.name, "submitted", ranks, "v1", "", "")
            )
    return judgements


def _recovered(preferences: Sequence[Preference], truth: Truth) -> dict[str, float]:
    """How often, and how surely, the better completion of a pair is found."""
    sure = np.concatenate([np.array(each) for each in _chances(preferences, truth).values()])
    return {
        "right": float(_right(sure).mean()),
        "brier": float(((1 - sure) ** 2).mean()),
        "log_loss": float(-np.log(np.clip(sure, 0.01, 0.99)).mean()),
    }


def _chances(preferences: Sequence[Preference], truth: Truth) -> dict[str, list[float]]:
    """Per pair of a record: the probability given to what is truly better; 1/2 where nothing was decided."""
    believed = {(each.record, each.chosen, each.rejected): (1 + each.weight) / 2 for each in preferences}

    def of(record: str, better: str, worse: str) -> float:
        return believed.get((record, better, worse), 1 - believed.get((record, worse, better), 0.5))

    return _each_pair(truth, of)


def _right(chances: np.ndarray) -> np.ndarray:
    return (chances > 0.5) + 0.5 * (chances == 0.5)


def _scored(scores: Truth, truth: Truth) -> dict[str, list[float]]:
    return _each_pair(truth, lambda record, better, worse: float(scores[record][better] > scores[record][worse]))


def _each_pair(truth: Truth, right: Callable[[str, str, str], float]) -> dict[str, list[float]]:
    return {
        record: [
            right(record, *sorted(pair, key=lambda name: -utilities[name]))
            for pair in combinations(utilities, 2)
            if utilities[pair[0]] != utilities[pair[1]]
        ]
        for record, utilities in truth.items()
    }


def _add(hits: dict[str, list[float]], more: Mapping[str, list[float]]) -> None:
    for record, each in more.items():
        hits.setdefault(record, []).extend(each)


def _student(values: Sequence[float]) -> dict[str, float]:
    mean = float(np.mean(values))
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _compared(hits: Hits, draws: int = 2000) -> dict[str, Any]:
    """Share right by method and the gain, with intervals from drawing the records anew, all their pairs with them."""
    sizes = np.array([len(each) for each in hits[METHODS[0]].values()])
    sums = {method: _sums(found, _right) for method, found in hits.items()}
    drawn = np.random.default_rng(0).integers(len(sizes), size=(draws, len(sizes)))
    totals = sizes[drawn].sum(axis=1)
    sums["gain"] = sums["reliability"] - sums["majority"]
    sums |= {f"{method}_brier": _sums(found, lambda chances: (1 - chances) ** 2) for method, found in hits.items()}
    result: dict[str, Any] = {"pairs": int(sizes.sum()), "records": len(sizes)}
    for name, each in sums.items():
        low, high = np.quantile(each[drawn].sum(axis=1) / totals, [0.025, 0.975])
        result[name] = {"mean": float(each.sum() / sizes.sum()), "low": float(low), "high": float(high)}
    return result


def _sums(found: Mapping[str, list[float]], figure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.array([figure(np.array(each)).sum() for each in found.values()])


def _cells(found: Mapping[str, Any]) -> Iterator[Any]:
    yield from (_said(found[name]) for name in (*METHODS, "gain"))
    yield found["pairs"]


def _said(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    main()
