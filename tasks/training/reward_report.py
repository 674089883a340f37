"""How well a reward model predicts held-out preferences: its figures, tables and curves in the run's record."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tasks.artifact import Row, Work
from tasks.evaluation.best_of import curve
from tasks.evaluation.best_of import figure as best_of_figure
from tasks.training.engine import longest
from tasks.training.engine_pairs import Group, group_preferences
from tasks.training.reward import RewardRecipe
from tasks.training.reward_heads import Heads, Scale
from tasks.training.reward_quality import HeldOut, by_part, length_bias, quality
from tasks.training.reward_scoring import score_heads


def report_quality(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: RewardRecipe, work: Work
) -> None:
    """Accuracy with its interval, calibration and its figure, on held-out preferences (without those that are
    too long, or that the chat template refuses)."""
    limit = longest(recipe, model)
    criteria = (None, *recipe.criteria)
    groups = [group for group in group_preferences(rows, tokenizer, criteria, {}) if group.length <= limit]
    if not groups:
        return
    values = head_values(model, groups, recipe.heads, pad_id_of(tokenizer))
    _report_heads(groups, values, recipe.heads, work)
    rewards = by_group(groups, values[:, 0].mean(-1))
    pairs = held_out(groups, rewards)
    report, figure = quality(apart_by_prompt(pairs), work.seed)
    lengths = [[len(ids) - group.prompt_length for ids in group.sequences] for group in groups]
    parts = by_part(pairs, work.seed)
    alike = next((row["accuracy"] for row in parts if row["value"] == "alike"), None)
    beside = {"length_correlation": length_bias(rewards, lengths), "accuracy_at_equal_length": alike}
    report |= {name: value for name, value in beside.items() if value is not None}
    work.log({f"validation/{name}": value for name, value in report.items()})
    work.figure("calibration", figure)
    work.table("accuracy", parts)
    _report_best_of_n(groups, rewards, work)


def _report_heads(groups: Sequence[Group], values: np.ndarray, heads: Heads, work: Work) -> None:
    """The accuracy of each criterion and member, and how far members differ, where there are several."""
    if heads.count == 1:
        return
    rows = []
    for place, criterion in enumerate(heads.criteria):
        for member in range(heads.members):
            own = values[:, place, member]
            pairs = held_out(groups, by_group(groups, own), place)
            figures = quality(apart_by_prompt(pairs), work.seed)[0] if pairs else {}
            rows.append({"criterion": criterion, "member": member, **figures})
        if place and (pairs := held_out(groups, by_group(groups, values[:, place].mean(-1)), place)):
            figures = quality(apart_by_prompt(pairs), work.seed)[0]
            work.log({f"validation/{criterion}/{name}": value for name, value in figures.items()})
    if heads.members > 1:
        scaled = Scale.of(heads, values).normalised(values)[:, 0]
        work.log({"validation/members_std": float(scaled.std(-1).mean())})
    columns = ("accuracy", "accuracy_low", "accuracy_high", "calibration_error", "log_loss", "pairs")
    work.table("heads", [{**row, **{name: row.get(name) for name in columns}} for row in rows])


def _report_best_of_n(groups: Sequence[Group], rewards: Sequence[Sequence[float]], work: Work) -> None:
    """The best-of-n curve against people: of the prompts with most completions, all of them judged."""
    whole = [place for place, group in enumerate(groups) if len(people_say(group)) == len(group.sequences)]
    most = max((len(groups[place].sequences) for place in whole), default=0)
    chosen = [place for place in whole if len(groups[place].sequences) == most]
    if most < 3 or len(chosen) < 2:
        return
    said = [list(people_say(groups[place]).values()) for place in chosen]
    rows = curve([rewards[place] for place in chosen], said, 2000, work.seed)
    work.table("best_of_n", rows)
    work.figure("best_of_n", best_of_figure(rows, "people's preference"))


def people_say(group: Group) -> dict[int, float]:
    """Place of a completion -> share of its pairs that it wins, each counting by how far people agree; in order."""
    won: dict[int, float] = {}
    judged: dict[int, float] = {}
    for (winner, loser, weight, _), head in zip(group.pairs, group.heads, strict=True):
        if head == 0:
            won[winner] = won.get(winner, 0.0) + weight
            for place in (winner, loser):
                judged[place] = judged.get(place, 0.0) + weight
    return {place: won.get(place, 0.0) / judged[place] for place in sorted(judged)}


def head_values(model: Any, groups: Sequence[Group], heads: Heads, pad_id: int) -> np.ndarray:
    """The rewards of every completion of the groups in turn, [completions, criteria, members]."""
    return heads.apart(score_heads(model, [ids for group in groups for ids in group.sequences], pad_id))


def by_group(groups: Sequence[Group], values: np.ndarray) -> list[list[float]]:
    """One value per completion, by prompt."""
    left = iter(values.tolist())
    return [[next(left) for _ in group.sequences] for group in groups]


def apart_by_prompt(pairs: Sequence[HeldOut]) -> list[list[float]]:
    """r_chosen - r_rejected by prompt; prompts without a pair are left out."""
    found: dict[int, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair.prompt, []).append(pair.apart)
    return list(found.values())


def held_out(groups: Sequence[Group], rewards: Sequence[Sequence[float]], head: int = 0) -> list[HeldOut]:
    """Every pair that is about this head's criterion, with what the reward model makes of it."""
    return [
        HeldOut(
            number,
            own[winner] - own[loser],
            agreement,
            group.stratum,
            *(len(group.sequences[place]) - group.prompt_length for place in (winner, loser)),
        )
        for number, (group, own) in enumerate(zip(groups, rewards, strict=True))
        for (winner, loser, *_), about, agreement in zip(group.pairs, group.heads, group.agreement, strict=True)
        if about == head
    ]


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token's id, which every prepared tokenizer has."""
    return int(tokenizer.pad_token_id)  # type: ignore[arg-type]
