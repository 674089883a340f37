"""The gate: whether the best candidate may become champion, with a reason in figures either way.

A candidate passes when it surely wins (the lower bound of its win rate), is not seen to be worse on the verifiable
checks, and has not collapsed. Checks are compared by their means on the same prompts, not by intervals: a policy that
pleases the judge while it states more wrong facts is refused even when the loss could be noise, because a wrong
refusal costs another round and a wrong promotion reaches people. `check_tolerance` softens that.

People may be asked too, blind, about the candidate that passes everything else and wins most (`shortlisted`): beside
the automatic win rates, or instead of them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

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
    people: Literal["no", "beside", "instead"] = "no"
    """Whether people compare it blind with the champion (SFT where there is none), and whether what they say is asked
    for beside the automatic win rates or instead of them. The limits of the win rates hold for people's too."""
    people_p: float = Field(default=0.05, gt=0, le=1)
    """The p value of people's sign test must be at most this: the interval of a few votes is too narrow."""

    @model_serializer(mode="wrap")
    def _as_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without people the part is what it was before they could be asked, and so are the keys made of it."""
        values = handler(self)
        return values if self.people != "no" else {k: v for k, v in values.items() if not k.startswith("people")}


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


def decide(recipe: GateRecipe, evaluation: Mapping[str, Any], people: Mapping[str, Any] | None = None) -> Decision:
    """Which candidate of an evaluation (the content of `evaluation.json`) becomes champion, if any.

    `people` is what they say of the shortlisted candidate against the champion, or against SFT where there is none (the
    content of a blind comparison's `result.json`); where the recipe asks for it nobody passes without.
    """
    decision = _decide(recipe, evaluation)
    if recipe.people == "no" or not decision.promoted:
        return decision
    best, champion = str(decision.best), "champion" in evaluation["models"]
    other, limit = ("the champion", recipe.min_win_rate_vs_champion) if champion else ("SFT", recipe.min_win_rate)
    refusals = list(_not_preferred(people or {}, other, limit, recipe.people_p))
    rest = {
        name: why or [f"people were asked about {best}, which wins more"] for name, why in decision.verdicts.items()
    }
    verdicts = {**rest, best: refusals}
    if refusals:
        return Decision(False, best, f"No candidate passed the gate ({best}: {refusals[0]}).", verdicts)
    said = f"people prefer it to {other} in {_interval((people or {})['win_rate'])}"
    return Decision(True, best, f"{decision.reason.removesuffix('.')}; {said}.", verdicts)


def shortlisted(recipe: GateRecipe, evaluation: Mapping[str, Any]) -> str | None:
    """The candidate that people are to compare: the best of those that pass without them; None when none does."""
    decision = _decide(recipe, evaluation)
    return decision.best if recipe.people != "no" and decision.promoted else None


def _decide(recipe: GateRecipe, evaluation: Mapping[str, Any]) -> Decision:
    """The decision without people."""
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
    """Decide on the evaluation in `inputs["evaluation"]`: `decision.json` holds the fields of `Decision`.

    `inputs["blind"]`, where there is one, is the people's comparison of the shortlisted candidate.
    """
    people = _read(inputs["blind"] / "result.json", "compare") if "blind" in inputs else None
    decision = decide(recipe, read_evaluation(inputs["evaluation"]), people)
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


def read_evaluation(artifact: Path) -> dict[str, Any]:
    """The figures of an evaluation artifact. Raises `PipelineError` when they cannot be read."""
    return _read(artifact / "evaluation.json", "evaluate")


def _read(path: Path, again: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({error}); {again} again.") from error


def _refusals(
    recipe: GateRecipe, model: Mapping[str, Any], sft: Mapping[str, Any], against_champion: bool
) -> Iterator[str]:
    """Why a candidate is refused, the gravest first. A figure that is missing or not a number refuses too."""
    judged = recipe.people != "instead"
    if judged:
        yield from _not_winning(model, "win_rate_vs_sft", "SFT", recipe.min_win_rate)
    if judged and against_champion:
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


def _not_preferred(people: Mapping[str, Any], other: str, limit: float, p_limit: float) -> Iterator[str]:
    """Why people's blind comparison refuses a candidate."""
    mean, low = _number(people, "win_rate", "mean"), _number(people, "win_rate", "low")
    p_value = _number(people, "sign_test", "p_value")
    if math.isnan(mean) or math.isnan(low) or math.isnan(p_value):
        yield f"people have not compared it with {other}"
    elif low <= limit:
        yield f"people prefer it to {other} in {mean:.3f}, with the lower bound {low:.3f}, not over {limit:g}"
    elif p_value > p_limit:
        yield f"people prefer it to {other} in {mean:.3f}, but the sign test's p is {p_value:.3g}, over {p_limit:g}"


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
    found = [("SFT", model["win_rate_vs_sft"])]
    if against_champion:
        found.append(("the champion", model["win_rate_vs_champion"]))
    wins = " and ".join(f"{_interval(rates['judge'])} against {other}" for other, rates in found if rates)
    said = f"it wins {wins}" if wins else "its win rate is unknown"
    checks = ", ".join(f"{check} {value['mean']:.3f}" for check, value in model["checks"].items())
    return f"{name} passed the gate: {said}{f'; {checks}' if checks else ''}; KL {model['kl_to_sft']:.1f}."


def _interval(rate: Mapping[str, float]) -> str:
    return f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
