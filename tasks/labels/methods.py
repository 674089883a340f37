"""The methods of selection that look at texts: prompts unlike each other, completions a reward is unsure about."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labeling.information import (
    Ensemble,
    Pairs,
    best_shown,
    bootstrap_heads,
    designs,
    disagreement,
    likeliest,
    most_informative,
    principal,
    uncertainty,
)
from labeling.selection import Pick, ngram_vectors, shuffled, spread, unit
from tasks.artifact import InputError, Message, Row, Work, read_jsonl
from tasks.labels.selection import SelectStage

DIMENSIONS = 128
"""Directions of the features that heads are fitted in."""
CHANCE = 0.55
"""Heads that order fewer of the pairs they have not seen rightly know nothing worth asking by."""

Floats = NDArray[np.float64]


def pick(
    recipe: SelectStage,
    rows: Sequence[Row],
    count: int,
    shown: Sequence[Sequence[int]],
    inputs: Mapping[str, Path],
    work: Work,
) -> tuple[list[Pick], list[Sequence[int]]]:
    """The picks of `diverse`, `disagreement` or `information`, and for each row the completions to show.

    shown: random ones, which `diverse` keeps.
    """
    order = shuffled([row["id"] for row in rows], work.seed)  # where values are equal the seed decides
    rows = [rows[place] for place in order]
    if recipe.method == "diverse":
        known = list({repr(row["prompt"]): row["prompt"] for row in _earlier(recipe, inputs)}.values())
        vectors = _prompts(recipe, [*(row["prompt"] for row in rows), *known], inputs, work)
        found = spread(vectors[: len(rows)], count, taken=vectors[len(rows) :], progress=_choosing(work))
        picks = [Pick(order[place], 1 - near, _unlike(near)) for place, near in found]
        return picks, list(shown)
    earlier = _earlier(recipe, inputs)
    if not earlier:
        raise InputError(
            f'select.method = "{recipe.method}" learns from preferences of an earlier round and there are none; '
            'label a first round with "random" or "diverse", or name the file of such preferences in select.earlier.'
        )
    features, pairs = _features(rows, earlier, inputs, work)
    weighed = recipe.method == "disagreement" and recipe.diversity > 0
    similar = _prompts(recipe, [row["prompt"] for row in rows], inputs, work) if weighed else np.zeros((len(rows), 1))
    picks, best = by_reward(recipe, rows, count, features, pairs, similar, work)
    telling: list[Sequence[int]] = [[] for _ in rows]
    for place, places in zip(order, best, strict=True):
        telling[place] = places
    return [Pick(order[each.place], each.score, each.why) for each in picks], telling


def _unlike(near: float) -> str:
    return f"unlike those before it (similarity {near:.2f} to the nearest)" if near > -1 else "the first"


def _prompts(
    recipe: SelectStage, prompts: Sequence[Sequence[Message]], inputs: Mapping[str, Path], work: Work
) -> Floats:
    """Unit vectors of the prompts."""
    if recipe.similarity == "ngrams":
        return ngram_vectors([" ".join(message["content"] for message in prompt) for prompt in prompts])
    from tasks.models.features import text_features

    found = text_features(
        [inputs["base"], inputs["sft"]],
        [(prompt, None, True) for prompt in prompts],
        lambda done, total: work.progress(done, total, "prompts read"),
    )
    return unit(found - found.mean(axis=0))  # what all prompts share tells none from another


def by_reward(
    recipe: SelectStage, rows: Sequence[Row], count: int, features: Floats, pairs: Pairs, similar: Floats, work: Work
) -> tuple[list[Pick], list[list[int]]]:
    """The picks by what heads learnt from earlier pairs are unsure about, and the completions to show of each row.

    features: [rows, completions, dimensions]; similar: unit vectors of the prompts, for `disagreement`.
    """
    posterior = likeliest(pairs)
    ensemble = bootstrap_heads(pairs, recipe.members, work.seed, posterior.precision)
    _tell(pairs, ensemble, work)
    by_information = recipe.method == "information"
    rewards = np.einsum("rad,md->rma", features, ensemble.heads)
    worth = uncertainty(features, posterior) if by_information else disagreement(rewards)
    alike = _same_text(rows)
    places = best_shown(worth, recipe.show or features.shape[1], alike)
    if by_information:
        taken = np.take_along_axis(features, places[:, :, None], axis=1)
        told = most_informative(designs(taken, posterior.head), posterior.covariance, count, _choosing(work))
        picks = [Pick(place, nats, f"its ranking is expected to tell {nats:.3f} nats") for place, nats in told]
        return picks, places.tolist()
    worth = np.where(alike, 0.0, worth)  # nobody can prefer one of them
    shown = np.take_along_axis(np.take_along_axis(worth, places[:, :, None], 1), places[:, None, :], 2)
    apart = shown.sum(axis=(1, 2)) / (places.shape[1] * (places.shape[1] - 1))
    chosen = spread(similar, count, worth=apart, diversity=recipe.diversity, progress=_choosing(work))
    why = "preference probabilities of the ensemble deviate by"
    return [Pick(place, float(apart[place]), f"{why} {apart[place]:.3f}") for place, _ in chosen], places.tolist()


def _tell(pairs: Pairs, ensemble: Ensemble, work: Work) -> None:
    """What the heads learnt from and how well they predict; a word to the person where that is badly."""
    work.log({"earlier_pairs": len(pairs.apart), "earlier_prompts": int(pairs.prompts.max()) + 1})
    if np.isnan(ensemble.accuracy):
        return
    work.log({"heads_accuracy": ensemble.accuracy})
    if ensemble.accuracy < CHANCE:
        work.notify(
            f"The reward heads order only {ensemble.accuracy:.0%} of the earlier pairs that they have not seen "
            'rightly, so what they are unsure about says little; take select.method = "random" or "diverse".'
        )


def _earlier(recipe: SelectStage, inputs: Mapping[str, Path]) -> list[Row]:
    """Preferences of an earlier round, if there are any."""
    path = inputs["preferences"] / "train.jsonl" if "preferences" in inputs else recipe.earlier
    return read_jsonl(path.expanduser()) if path else []


def _features(
    rows: Sequence[Row], earlier: Sequence[Row], inputs: Mapping[str, Path], work: Work
) -> tuple[Floats, Pairs]:
    """Features [rows, completions, dimensions] of the pool, and the earlier pairs in the same directions."""
    from tasks.models.features import Item, text_features

    sizes = {len(row["completions"]) for row in rows}
    if len(sizes) > 1:
        raise InputError("Prompts have different numbers of completions; sample the same number for each.")
    items: list[Item] = [
        (row["prompt"], each["text"], bool(each["finished"])) for row in rows for each in row["completions"]
    ]
    places: dict[str, int] = {}
    sides: dict[str, list[int]] = {"chosen": [], "rejected": []}
    for number, row in enumerate(earlier, 1):
        try:
            for side, found in sides.items():
                text, finished = row[side][-1]["content"], bool(row.get(f"{side}_finished", True))
                key = repr((row["prompt"], text, finished))
                if key not in places:
                    places[key] = len(items)
                    items.append((row["prompt"], text, finished))
                found.append(places[key])
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"Earlier preference {number} lacks or garbles {error}; mend or remove it.") from error
    raw = text_features(
        [inputs["base"], inputs["sft"]], items, lambda done, total: work.progress(done, total, "completions read")
    )
    pool = raw[: len(rows) * max(sizes)].reshape(len(rows), max(sizes), -1)
    features, apart = principal(pool, [raw[sides["chosen"]] - raw[sides["rejected"]]], DIMENSIONS)
    prompts: dict[str, int] = {}
    numbers = [prompts.setdefault(repr(row["prompt"]), len(prompts)) for row in earlier]
    weights = np.array([float(row.get("weight", 1.0)) for row in earlier])
    return features, Pairs(apart, weights, np.array(numbers))


def _same_text(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """[rows, completions, completions]: whether two completions read the same."""
    texts = np.array([[each["text"].strip() for each in row["completions"]] for row in rows])
    return texts[:, :, None] == texts[:, None, :]


def _choosing(work: Work) -> Callable[[int, int], None]:
    return lambda done, total: work.progress(done, total, "records chosen")
