"""The Bradley-Terry loss over groups of completions, and how well a reward model predicts held-out preferences."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from tasks.artifact import Row, Work, link_tree
from tasks.evaluation.best_of import curve
from tasks.evaluation.best_of import figure as best_of_figure
from tasks.models.adapters import attach
from tasks.models.loading import (
    load_causal_lm,
    load_tokenizer,
    open_reward_base,
    reads_last_token,
    save_model,
    score_modules,
    start_reward_model,
)
from tasks.models.source import find_model, refer
from tasks.models.templates import prepare_tokenizer
from tasks.training.engine import Batch, Losses, Trainer, fit, keep_short, longest
from tasks.training.engine_pairs import Group, collate_groups, group_preferences
from tasks.training.reward import RewardRecipe
from tasks.training.reward_heads import Heads, Scale, draws
from tasks.training.reward_quality import HeldOut, by_part, length_bias, quality
from tasks.training.reward_scoring import outputs, score_heads


class RewardTrainer(Trainer):
    """-log sigmoid(r_chosen - r_rejected - margin) + centering (r_chosen + r_rejected)^2, weighted mean over pairs.

    Rewards are those of the head that a pair is about; with an ensemble, the mean over its members.
    """

    recipe: RewardRecipe
    pad_id: int | None = None
    """Set for an encoder, which must not attend to padding."""

    def losses(self, model: Any, batch: Batch) -> Losses:
        rewards = outputs(model, batch["input_ids"], self.pad_id).float()
        rewards = rewards.view(len(rewards), -1, self.recipe.members)
        chosen, rejected = (rewards[batch[side], batch["heads"]] for side in ("chosen", "rejected"))
        apart = chosen - rejected
        each = -logsigmoid(apart - self.recipe.margin * batch["margins"][:, None])
        each = each + self.recipe.centering * (chosen + rejected) ** 2
        weights = batch["weights"][:, None] * batch["draws"]
        figures = {
            "accuracy": (apart > 0).float().mean(),
            "margin": apart.mean(),
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
        }
        return (weights * each).mean(1).sum(), figures


def start(recipe: RewardRecipe, inputs: Mapping[str, Path], work: Work) -> tuple[Any, PreTrainedTokenizerBase]:
    """The recipe's own base, or the SFT model's body with fresh heads, and what the recipe trains attached.

    Dropout is off throughout. Another base is left where it is; the artifact says which one it is.
    """
    if recipe.base is None:
        tokenizer = load_tokenizer(inputs["base"])
        torch.manual_seed(work.seed)
        policy = load_causal_lm([inputs["base"], inputs["sft"]], trainable=True)
        model = start_reward_model(policy, tokenizer, recipe.heads.count)
        heads = score_modules(model)
    else:
        folder, commit = find_model(recipe.base, recipe.revision, "reward.base")
        tokenizer = prepare_tokenizer(load_tokenizer(folder), recipe.chat_template, scoring=True)
        torch.manual_seed(work.seed)
        model, heads = open_reward_base(folder, tokenizer, recipe.heads.count)
        if recipe.adapter.kind != "full":
            refer(work.out, recipe.base, folder, commit)
    return attach(_without_dropout(model), recipe.adapter, "SEQ_CLS", seed=work.seed, heads=heads), tokenizer


def fit_reward_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: RewardRecipe, work: Work
) -> list[Group]:
    """Train in place; returns the groups that were trained on."""
    groups = group_preferences(rows, tokenizer, (None, *recipe.criteria))
    for group in groups:
        group.draws = draws(json.dumps(group.prompt, sort_keys=True), recipe.members, work.seed)
    groups = keep_short(groups, [group.length for group in groups], recipe, model, work)
    pad_id = _pad_id(tokenizer)
    trainer = RewardTrainer(
        model, groups, [group.length for group in groups], lambda batch: collate_groups(batch, pad_id), recipe, work
    )
    trainer.recipe = recipe
    trainer.pad_id = None if reads_last_token(model) else pad_id
    work.log({"pairs": sum(len(group.pairs) for group in groups), "prompts": len(groups)})
    fit(trainer, work)
    return groups


def save_reward_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    sft: Path | None,
    recipe: RewardRecipe,
    work: Work,
) -> None:
    """Everything a scorer needs beside the base. `sft`: what an adapter is on; None: what `start` referred to."""
    save_model(model, tokenizer, work.out)
    tokenizer.save_pretrained(work.out / "tokenizer")
    if sft is not None and (work.out / "adapter").is_dir():
        _keep_start(model, sft, work.out)
    values = head_values(model, groups, recipe.heads, _pad_id(tokenizer))
    (work.out / "reward.json").write_text(json.dumps(Scale.of(recipe.heads, values).row()) + "\n")
    overall = values[:, 0].mean(-1)
    work.log({"reward_mean": round(float(overall.mean()), 6), "reward_std": round(float(overall.std()), 6)})


def report_quality(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: RewardRecipe, work: Work
) -> None:
    """Accuracy with its interval, calibration and its figure, on held-out preferences (too long ones left out)."""
    limit = longest(recipe, model)
    criteria = (None, *recipe.criteria)
    groups = [group for group in group_preferences(rows, tokenizer, criteria) if group.length <= limit]
    if not groups:
        return
    values = head_values(model, groups, recipe.heads, _pad_id(tokenizer))
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
            weight,
            group.stratum,
            *(len(group.sequences[place]) - group.prompt_length for place in (winner, loser)),
        )
        for number, (group, own) in enumerate(zip(groups, rewards, strict=True))
        for (winner, loser, weight, _), about in zip(group.pairs, group.heads, strict=True)
        if about == head
    ]


def _keep_start(model: Any, sft: Path, out: Path) -> None:
    """The adapter under the reward adapter travels with it; under a full fine-tune the reward model is stored whole."""
    if (sft / "adapter").is_dir():
        link_tree(sft / "adapter", out / "start" / "adapter")
        return
    shutil.rmtree(out / "adapter")
    model.merge_and_unload().save_pretrained(out / "model")


def _without_dropout(model: Any) -> Any:
    """Two scores of one text must not differ by chance, in training neither."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # what goes to a function, not through a module
                setattr(module, name, 0.0)
    return model


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)  # type: ignore[arg-type]
