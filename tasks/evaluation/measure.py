"""From scored completions of several models to the figures of `evaluation.json`."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tasks.artifact import Row
from tasks.evaluation.best_of import curve as best_of_curve
from tasks.evaluation.text import distinct_n
from tasks.evaluation.winrate import Interval, bootstrap, win_rates

Scored = Mapping[str, Sequence[Row]]
"""For each model its rows of `samples.jsonl`, in the order of the prompts."""


def compare(
    samples: Scored,
    judge: str,
    checks: Sequence[str],
    bootstrap_samples: int,
    seed: int,
    fair: Collection[str] | None = None,
    best_of: Sequence[Row] = (),
) -> dict[str, Any]:
    """The content of `evaluation.json`: every model beside the SFT model, and beside the champion where there is one.

    `judge` is "utility" or "reward_model". All intervals are of the same resampled prompts; only those in `fair` (ids)
    count in comparisons with the champion, by default all. `best_of` are rows of more completions of the SFT model: the
    best-of-n curve is made of them.
    """
    models: dict[str, Any] = {}
    for name, rows in samples.items():
        figures = _figures(rows, checks, bootstrap_samples, seed)
        for other, key in (("sft", "win_rate_vs_sft"), ("champion", "win_rate_vs_champion")):
            compared = other in samples and name not in ("sft", other)
            ours, theirs = rows, samples.get(other, ())
            if other == "champion" and fair is not None:
                ours, theirs = ([row for row in each if row["id"] in fair] for each in (ours, theirs))
            figures[key] = _rates(ours, theirs, judge, bootstrap_samples, seed) if compared else None
        models[name] = figures
    return _rounded(
        {
            "baseline": "sft",
            "judge": judge,
            "prompts": len(samples["sft"]),
            **({} if fair is None else {"prompts_vs_champion": len(fair)}),
            **({"best_of": _best_of(best_of, bootstrap_samples, seed)} if best_of else {}),
            "models": models,
        }
    )


def values(rows: Sequence[Row], key: str) -> list[list[float]]:
    """A figure of every completion, by prompt; `checks.NAME` looks into the checks."""
    check = key.removeprefix("checks.")
    if check != key:
        return [[float(completion["checks"][check]) for completion in row["completions"]] for row in rows]
    return [[completion[key] for completion in row["completions"]] for row in rows]


def mean(rows: Sequence[Row], key: str) -> float:
    """The mean of a figure over the completions of all prompts, each prompt counting the same."""
    per_prompt = [sum(group) / len(group) for group in values(rows, key)]
    return sum(per_prompt) / len(per_prompt)


def _figures(rows: Sequence[Row], checks: Sequence[str], bootstrap_samples: int, seed: int) -> dict[str, Any]:
    texts = [completion["text"] for row in rows for completion in row["completions"]]
    judged = rows[0]["completions"][0]["utility"] is not None
    known = rows[0]["completions"][0]["kl"] is not None
    return {
        "checks": {name: _interval(values(rows, f"checks.{name}"), bootstrap_samples, seed) for name in checks},
        "kl_to_sft": mean(rows, "kl") if known else None,
        "length": mean(rows, "tokens"),
        "distinct_2": distinct_n(texts, 2),
        "finished": mean(rows, "finished"),
        "reward": mean(rows, "reward"),
        "utility": mean(rows, "utility") if judged else None,
    }


def _best_of(rows: Sequence[Row], bootstrap_samples: int, seed: int) -> list[dict[str, Any]]:
    return best_of_curve(values(rows, "reward"), values(rows, "utility"), bootstrap_samples, seed)


def _rates(
    ours: Sequence[Row], theirs: Sequence[Row], judge: str, bootstrap_samples: int, seed: int
) -> dict[str, Interval]:
    keys = {"judge": "utility" if judge == "utility" else "reward", "reward_model": "reward"}
    return {
        name: bootstrap(win_rates(values(ours, key), values(theirs, key)), bootstrap_samples, seed)
        for name, key in keys.items()
    }


def _interval(groups: Sequence[Sequence[float]], bootstrap_samples: int, seed: int) -> Interval:
    return bootstrap([sum(group) / len(group) for group in groups], bootstrap_samples, seed)


def _rounded(value: Any) -> Any:
    """Six digits: what differs between two runs of the same computation on other hardware is far below. NaN is null."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return value
