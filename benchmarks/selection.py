"""How many judgements each way of selecting needs until the reward model is as good: learning curves on the demo.

python -m benchmarks.selection [--seeds N] [--trained N]

The demo's base and SFT model are built once and sample 8 completions for each of 240 prompts. A first round of random
records is ranked by the demo's three simulated annotators (one careless), then each method chooses the records, and the
completions shown, of the rounds after it. Accuracy is that on all pairs of different true utility of 96 other prompts.
The curves are those of a linear head on frozen features, over many seeds: the kind of model that `disagreement` and
`information` choose by, so it shows them at their best. For some seeds the project's own reward training, which is what
counts, is run on what `information` and `random` chose.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.measured import keep, show
from benchmarks.pool import SAMPLED, Pool, build_pool, preference_row, work_in
from labeling.comparison import Completion, Judgement, compare
from labeling.information import Pairs, likeliest
from labeling.rankings import to_preferences
from labeling.selection import at_random, shuffled, some_of, spread, stratified
from labeling.simulated import SimulatedAnnotator
from tasks.artifact import Work, write_jsonl
from tasks.data.shop import utility
from tasks.labels.methods import by_reward
from tasks.labels.selection import SelectRecipe
from tasks.training.reward import train_reward

ROUNDS = (16, 32, 64, 128)
"""Records judged after each round; the first round is random for all methods."""
TRAINED = (32, 64, 128)
"""After these the project's own reward model is trained, for the methods of `MODELS`."""
METHODS = ("random", "stratified", "diverse", "disagreement", "information")
MODELS = ("random", "information")
SHOWN = (4, 2)
"""Completions shown; reward models are trained for the first of these."""
DRAWS = 2000

Chosen = list[tuple[int, Sequence[int]]]
"""Places of rows, and of the completions shown."""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--seeds", type=int, default=20)
    given.add_argument("--trained", type=int, default=5, help="seeds for which reward models are trained")
    options = given.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlhf-selection-") as folder:
        pool = build_pool(Path(folder))
        result: dict[str, Any] = {"prompts": len(pool.rows), "held_out_pairs": len(pool.held_out)}
        for shown in SHOWN:
            trained = options.trained if shown == SHOWN[0] else 0
            heads, models = measure(pool, shown, options.seeds, trained, Path(folder))
            tell(result, f"head, {shown} of {SAMPLED} shown", heads, ROUNDS, pool.overlap)
            if trained:
                tell(result, f"reward model, {shown} of {SAMPLED} shown", models, TRAINED, pool.overlap)
            keep("selection", result | {"seconds": time.monotonic() - started})


@dataclass(frozen=True)
class Voted:
    """A preference that came out of a round."""

    record: int
    """Its record's number in the round."""
    place: int
    better: int
    worse: int
    weight: float


def measure(
    pool: Pool, shown: int, seeds: int, trained: int, folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Accuracies by method [seeds, rounds] of the heads and of the trained reward models."""
    heads: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    models: dict[str, list[list[float]]] = {method: [] for method in MODELS}
    for seed in track(range(seeds), f"{shown} of {SAMPLED} shown"):
        for method in METHODS:
            after = rounds(pool, method, shown, seed)
            heads[method].append([head_accuracy(pool, votes) for votes in after.values()])
            if seed < trained and method in MODELS:
                models[method].append(
                    [model_accuracy(pool, after[n], seed, folder / f"{method}-{seed}-{n}") for n in TRAINED]
                )
    arrays = [{method: np.array(rows) for method, rows in found.items()} for found in (heads, models)]
    return arrays[0], arrays[1]


def rounds(pool: Pool, method: str, shown: int, seed: int) -> dict[int, list[Voted]]:
    """Records judged -> the preferences there are then."""
    judged: dict[int, Sequence[int]] = {}
    votes: list[Voted] = []
    after: dict[int, list[Voted]] = {}
    for total in ROUNDS:
        chosen = choose(pool, method if judged else "random", list(judged), total - len(judged), shown, seed, votes)
        for place, places in chosen:
            votes += judge(pool, place, places, seed, len(judged))
            judged[place] = places
        after[total] = list(votes)
    return after


def choose(
    pool: Pool, method: str, judged: Sequence[int], count: int, shown: int, seed: int, votes: Sequence[Voted]
) -> Chosen:
    """The records of the next round, as the stage would choose them of those that are left."""
    taken = set(judged)
    free = [place for place in shuffled([row["id"] for row in pool.rows], seed) if place not in taken]
    rows = [pool.rows[place] for place in free]
    ids = [row["id"] for row in rows]
    texts = [[each["text"] for each in row["completions"]] for row in rows]
    drawn: list[Sequence[int]] = [some_of(text, shown, seed, id) for text, id in zip(texts, ids, strict=True)]
    if method in ("disagreement", "information"):
        recipe = SelectRecipe.model_validate({"method": method, "show": shown}).in_round(pool.recipe.label)
        work = Work(Path(), Path(), seed=seed)
        picks, best = by_reward(
            recipe, rows, count, pool.features[free], pairs_of(pool, votes), pool.similar[free], work
        )
        return [(free[pick.place], best[pick.place]) for pick in picks]
    if method == "diverse":
        picked = [place for place, _ in spread(pool.similar[free], count, taken=pool.similar[list(judged)])]
    elif method == "stratified":
        kinds = [row["reference"]["kind"] for row in rows]
        picked = [pick.place for pick in stratified(ids, kinds, count, seed)]
    else:
        picked = [pick.place for pick in at_random(ids, count, seed)]
    return [(free[place], drawn[place]) for place in picked]


def judge(pool: Pool, place: int, places: Sequence[int], seed: int, record: int) -> list[Voted]:
    """The majority of the demo's annotators."""
    row = pool.rows[place]
    worth = {row["completions"][k]["id"]: utility(row, row["completions"][k]["text"]) for k in places}
    asked = compare(
        row["id"],
        row["prompt"],
        [Completion(row["completions"][k]["id"], row["completions"][k]["text"]) for k in places],
        seed,
    )
    judgements = []
    for each in pool.recipe.label.simulated:
        annotator = SimulatedAnnotator(**each.model_dump(), seed=seed)
        if not annotator.discards(row["id"]):
            ranks = annotator.rank(row["id"], worth)
            judgements.append(Judgement(each.name, row["id"], each.name, "submitted", ranks, "", "", ""))
    number = {row["completions"][k]["id"]: k for k in places}
    return [
        Voted(record, place, number[each.chosen], number[each.rejected], each.weight)
        for each in to_preferences([asked], judgements).preferences
    ]


def pairs_of(pool: Pool, votes: Sequence[Voted]) -> Pairs:
    return Pairs(
        np.array([pool.features[vote.place, vote.better] - pool.features[vote.place, vote.worse] for vote in votes]),
        np.array([vote.weight for vote in votes]),
        np.array([vote.record for vote in votes]),
    )


def head_accuracy(pool: Pool, votes: Sequence[Voted]) -> float:
    """Held-out accuracy of a linear head fitted to the preferences."""
    return float((pool.margins @ likeliest(pairs_of(pool, votes)).head > 0).mean())


def model_accuracy(pool: Pool, votes: Sequence[Voted], seed: int, folder: Path) -> float:
    """Held-out accuracy of the demo's reward model trained on the preferences."""
    rows = [preference_row(pool.rows[vote.place], vote.better, vote.worse, vote.weight) for vote in votes]
    write_jsonl(folder / "preferences" / "train.jsonl", rows)
    write_jsonl(folder / "preferences" / "validation.jsonl", pool.held_out)
    work = work_in(folder / "reward", seed)
    train_reward(pool.recipe.reward, {"base": pool.base, "sft": pool.sft, "preferences": folder / "preferences"}, work)
    return work.metrics["validation/accuracy"]


def tell(
    result: dict[str, Any], title: str, curves: Mapping[str, np.ndarray], records: Sequence[int], overlap: int
) -> None:
    """Add to the result, and print: mean accuracy, its difference from random in the same seeds, and the judgements
    needed for what random reaches in the end, with 95 % intervals by bootstrap over seeds."""
    judgements = overlap * np.array(records)
    found = {method: _figures(rows, curves["random"], judgements) for method, rows in curves.items()}
    result[title] = {"judgements": judgements.tolist(), "seeds": len(curves["random"]), "methods": found}
    head = ["method", *(f"{n} judgements" for n in judgements), "needed for random's best"]
    table = [
        [
            method,
            *(
                f"{mean:.3f} ({_interval(apart, '+.3f')})"
                for mean, apart in zip(each["accuracy"], each["over_random"], strict=True)
            ),
            _interval(each["needed"], ".0f"),
        ]
        for method, each in found.items()
    ]
    show(f"Accuracy of the {title} (beside random in the same seeds, 95 % interval)", head, table)


def _interval(figure: Sequence[float | None], form: str) -> str:
    value, low, high = ("never" if each is None else f"{each:{form}}" for each in figure)
    return f"{value} [{low}, {high}]"


def _figures(rows: np.ndarray, random: np.ndarray, judgements: np.ndarray) -> dict[str, Any]:
    drawn = np.random.default_rng(0).integers(len(rows), size=(DRAWS, len(rows)))
    apart = (rows - random)[drawn].mean(axis=1)
    means, goals = rows[drawn].mean(axis=1), random[drawn].mean(axis=1)[:, -1]
    needed = [_needed(curve, goal, judgements) for curve, goal in zip(means, goals, strict=True)]
    return {
        "accuracy": [round(float(each), 4) for each in rows.mean(axis=0)],
        "over_random": [
            [round(float(each), 4) for each in (middle, *np.percentile(column, [2.5, 97.5]))]
            for middle, column in zip((rows - random).mean(axis=0), apart.T, strict=True)
        ],
        "needed": [
            round(float(each), 1) if np.isfinite(each) else None
            for each in (
                _needed(rows.mean(axis=0), float(random.mean(axis=0)[-1]), judgements),
                *np.percentile(needed, [2.5, 97.5], method="inverted_cdf"),
            )
        ],
    }


def _needed(curve: np.ndarray, goal: float, judgements: np.ndarray) -> float:
    """Where a curve first reaches the goal, between its points on the logarithm of the judgements; infinite: never."""
    for place, accuracy in enumerate(curve):
        if accuracy >= goal - 1e-12:
            if place == 0:
                return float(judgements[0])
            share = (goal - curve[place - 1]) / (accuracy - curve[place - 1])
            return float(
                np.exp(np.log(judgements[place - 1]) + share * np.log(judgements[place] / judgements[place - 1]))
            )
    return float("inf")


if __name__ == "__main__":
    main()
