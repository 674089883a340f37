"""The gate: whether the best candidate may become champion, with a reason in figures either way.

A candidate passes when it surely wins (the lower bound of its win rate), is not seen to be worse on the verifiable
checks, and has not collapsed. Checks are compared by their means on the same prompts, not by intervals: a policy that
pleases the judge while it states more wrong facts is refused even when the loss could be noise, because a wrong
refusal costs another round and a wrong promotion reaches people. `check_tolerance` softens that.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifact import PipelineError, Work
from tasks.recipe import Part

NOT_CANDIDATES = ("sft", "champion")


class GateRecipe(Part):
    """What a candidate must show to become champion."""

    min_win_rate: float = Field(default=0.5, ge=0, le=1)
    """The lower bound of its win rate against SFT, by the judge, must be over this."""
    min_win_rate_vs_champion: float = Field(default=0.5, ge=0, le=1)
    """The lower bound of its win rate against the champion must be over this, where there is a champion."""
    check_tolerance: float = Field(default=0.0, ge=0, le=1)
    """How far the mean of a check may be below SFT's."""
    min_distinct_2: float = Field(default=0.5, ge=0)
    """Distinct-2 must be at least this share of SFT's; below it the policy says the same to everybody."""
    max_finished_drop: float = Field(default=0.05, ge=0, le=1)
    """How far the share of completions that end by themselves may be below SFT's."""
    min_length: float = Field(default=0.5, ge=0)
    """The mean length must be at least this share of SFT's."""
    max_length: float = Field(default=2.0, ge=0)
    """The mean length must be at most this multiple of SFT's."""
    max_kl: float = Field(default=40.0, gt=0)
    """The most nats per completion that it may be from the SFT model."""


@dataclass(frozen=True)
class Decision:
    """What the gate says."""

    promoted: bool
    best: str | None
    """The candidate that is promoted, else the one with the highest win rate; None without candidates."""
    reason: str
    """One sentence with the figures."""
    verdicts: dict[str, list[str]]
    """For each candidate why it is refused; empty: it passes."""


def decide(recipe: GateRecipe, evaluation: Mapping[str, Any]) -> Decision:
    """Which candidate of an evaluation (the content of `evaluation.json`) becomes champion, if any."""
    models: Mapping[str, Any] = evaluation["models"]
    against_champion = "champion" in models
    candidates = {name: model for name, model in models.items() if name not in NOT_CANDIDATES}
    if not candidates:
        return Decision(False, None, "There is no candidate to promote.", {})
    verdicts = {
        name: list(_refusals(recipe, model, models.get("sft", {}), against_champion))
        for name, model in candidates.items()
    }
    key = "win_rate_vs_champion" if against_champion else "win_rate_vs_sft"

    def rank(name: str) -> float:
        mean = _number(candidates[name], key, "judge", "mean")
        return -math.inf if math.isnan(mean) else mean

    passing = [name for name in candidates if not verdicts[name]]
    best = max(passing or candidates, key=rank)  # the first of equals
    if passing:
        return Decision(True, best, _praise(best, candidates[best], against_champion), verdicts)
    refused = "; ".join(f"{name}: {verdicts[name][0]}" for name in candidates)
    return Decision(False, best, f"No candidate passed the gate ({refused}).", verdicts)


def decide_gate(recipe: GateRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Decide on the evaluation in `inputs["evaluation"]`: `decision.json` holds the fields of `Decision`."""
    path = inputs["evaluation"] / "evaluation.json"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}); evaluate again.") from error
    decision = decide(recipe, evaluation)
    text = json.dumps(asdict(decision), indent=1, sort_keys=True, ensure_ascii=False)
    (work.out / "decision.json").write_text(text + "\n", encoding="utf-8")
    work.table(
        "verdicts",
        [
            {"candidate": name, "passed": not reasons, "reasons": "; ".join(reasons)}
            for name, reasons in decision.verdicts.items()
        ],
    )
    work.log({"promoted": decision.promoted, "passed": sum(not reasons for reasons in decision.verdicts.values())})


def _refusals(
    recipe: GateRecipe, model: Mapping[str, Any], sft: Mapping[str, Any], against_champion: bool
) -> Iterator[str]:
    """Why a candidate is refused, the gravest first. A figure that is missing or not a number refuses too."""
    yield from _not_winning(model, "win_rate_vs_sft", "SFT", recipe.min_win_rate)
    if against_champion:
        yield from _not_winning(model, "win_rate_vs_champion", "the champion", recipe.min_win_rate_vs_champion)
    for check in sorted({*model.get("checks", {}), *sft.get("checks", {})}):
        ours, theirs = _number(model, "checks", check, "mean"), _number(sft, "checks", check, "mean")
        yield from _outside(f"{check}", ours, low=theirs - recipe.check_tolerance, beside=theirs)
    distinct, finished, length = (_number(sft, name) for name in ("distinct_2", "finished", "length"))
    yield from _outside(
        "distinct-2", _number(model, "distinct_2"), low=recipe.min_distinct_2 * distinct, beside=distinct
    )
    yield from _outside(
        "the finished share", _number(model, "finished"), low=finished - recipe.max_finished_drop, beside=finished
    )
    yield from _outside(
        "the mean length", _number(model, "length"), recipe.min_length * length, recipe.max_length * length, length
    )
    yield from _outside("the KL to SFT", _number(model, "kl_to_sft"), high=recipe.max_kl)


def _not_winning(model: Mapping[str, Any], key: str, other: str, limit: float) -> Iterator[str]:
    mean, low = _number(model, key, "judge", "mean"), _number(model, key, "judge", "low")
    if math.isnan(mean) or math.isnan(low):
        yield f"its win rate against {other} is missing or not a number"
    elif low <= limit:
        yield f"its win rate against {other}, {mean:.3f}, has the lower bound {low:.3f}, not over {limit:g}"


def _outside(
    what: str, value: float, low: float = -math.inf, high: float = math.inf, beside: float | None = None
) -> Iterator[str]:
    sft = "" if beside is None else f" (SFT {beside:.3f})"
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        yield f"{what} is missing or not a number"
    elif value < low:
        yield f"{what}, {value:.3f}, is below {low:.3f}{sft}"
    elif value > high:
        yield f"{what}, {value:.3f}, is over {high:.3f}{sft}"


def _number(values: Any, *path: str) -> float:
    """A figure deep in an evaluation; not a number where it is missing or is none."""
    for step in path:
        values = values.get(step) if isinstance(values, Mapping) else None
    if isinstance(values, bool) or not isinstance(values, int | float) or not math.isfinite(values):
        return math.nan
    return float(values)


def _praise(name: str, model: Mapping[str, Any], against_champion: bool) -> str:
    rates = [("SFT", model["win_rate_vs_sft"]["judge"])]
    if against_champion:
        rates.append(("the champion", model["win_rate_vs_champion"]["judge"]))
    wins = " and ".join(f"{r['mean']:.3f} [{r['low']:.3f}, {r['high']:.3f}] against {other}" for other, r in rates)
    checks = ", ".join(f"{check} {value['mean']:.3f}" for check, value in model["checks"].items())
    return f"{name} passed the gate: it wins {wins}{f'; {checks}' if checks else ''}; KL {model['kl_to_sft']:.1f}."
