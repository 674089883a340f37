"""The Bradley-Terry loss over groups of completions, and how well a reward model predicts held-out preferences."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from tasks.artifact import Row, Work, link_tree
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
from tasks.training.reward_quality import HeldOut, by_part, length_bias, quality
from tasks.training.reward_scoring import rewards_of, score_sequences


class RewardTrainer(Trainer):
    """-log sigmoid(r_chosen - r_rejected - margin) + centering (r_chosen + r_rejected)^2, weighted mean over pairs."""

    recipe: RewardRecipe
    pad_id: int | None = None
    """Set for an encoder, which must not attend to padding."""

    def losses(self, model: Any, batch: Batch) -> Losses:
        rewards = rewards_of(model, batch["input_ids"], self.pad_id).float()
        chosen, rejected = rewards[batch["chosen"]], rewards[batch["rejected"]]
        apart = chosen - rejected
        each = -logsigmoid(apart - self.recipe.margin * batch["margins"])
        each = each + self.recipe.centering * (chosen + rejected) ** 2
        figures = {
            "accuracy": (apart > 0).float().mean(),
            "margin": apart.mean(),
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
        }
        return (batch["weights"] * each).sum(), figures


def start(recipe: RewardRecipe, inputs: Mapping[str, Path], work: Work) -> tuple[Any, PreTrainedTokenizerBase]:
    """The recipe's own base, or the SFT model's body with a fresh head, and what the recipe trains attached.

    Dropout is off throughout. Another base is left where it is; the artifact says which one it is.
    """
    if recipe.base is None:
        tokenizer = load_tokenizer(inputs["base"])
        torch.manual_seed(work.seed)
        model = start_reward_model(load_causal_lm([inputs["base"], inputs["sft"]], trainable=True), tokenizer)
        heads = score_modules(model)
    else:
        folder, commit = find_model(recipe.base, recipe.revision, "reward.base")
        tokenizer = prepare_tokenizer(load_tokenizer(folder), recipe.chat_template, scoring=True)
        torch.manual_seed(work.seed)
        model, heads = open_reward_base(folder, tokenizer)
        if recipe.adapter.kind != "full":
            refer(work.out, recipe.base, folder, commit)
    return attach(_without_dropout(model), recipe.adapter, "SEQ_CLS", seed=work.seed, heads=heads), tokenizer


def fit_reward_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: RewardRecipe, work: Work
) -> list[Group]:
    """Train in place; returns the groups that were trained on."""
    groups = group_preferences(rows, tokenizer)
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
    model: Any, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group], sft: Path | None, work: Work
) -> None:
    """Everything a scorer needs beside the base. `sft`: what an adapter is on; None: what `start` referred to."""
    save_model(model, tokenizer, work.out)
    tokenizer.save_pretrained(work.out / "tokenizer")
    if sft is not None and (work.out / "adapter").is_dir():
        _keep_start(model, sft, work.out)
    scores = score_sequences(model, [ids for group in groups for ids in group.sequences], _pad_id(tokenizer))
    scale = {"mean": round(fmean(scores), 6), "std": round(pstdev(scores), 6)}
    (work.out / "reward.json").write_text(json.dumps(scale) + "\n")
    work.log({"reward_mean": scale["mean"], "reward_std": scale["std"]})


def report_quality(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: RewardRecipe, work: Work
) -> None:
    """Accuracy with its interval, calibration and its figure, on held-out preferences (too long ones left out)."""
    limit = longest(recipe, model)
    groups = [group for group in group_preferences(rows, tokenizer) if group.length <= limit]
    if not groups:
        return
    rewards = group_rewards(model, groups, _pad_id(tokenizer))
    pairs = held_out(groups, rewards)
    apart = [[pair.apart for pair in pairs if pair.prompt == number] for number in range(len(groups))]
    report, figure = quality(apart, work.seed)
    lengths = [[len(ids) - group.prompt_length for ids in group.sequences] for group in groups]
    parts = by_part(pairs, work.seed)
    alike = next((row["accuracy"] for row in parts if row["value"] == "alike"), None)
    beside = {"length_correlation": length_bias(rewards, lengths), "accuracy_at_equal_length": alike}
    report |= {name: value for name, value in beside.items() if value is not None}
    work.log({f"validation/{name}": value for name, value in report.items()})
    work.figure("calibration", figure)
    work.table("accuracy", parts)


def group_rewards(model: Any, groups: Sequence[Group], pad_id: int) -> list[list[float]]:
    """The reward of every completion, by prompt."""
    scores = iter(score_sequences(model, [ids for group in groups for ids in group.sequences], pad_id))
    return [[next(scores) for _ in group.sequences] for group in groups]


def held_out(groups: Sequence[Group], rewards: Sequence[Sequence[float]]) -> list[HeldOut]:
    """Every pair with what the reward model makes of it."""
    return [
        HeldOut(
            number,
            own[winner] - own[loser],
            weight,
            group.stratum,
            *(len(group.sequences[place]) - group.prompt_length for place in (winner, loser)),
        )
        for number, (group, own) in enumerate(zip(groups, rewards, strict=True))
        for winner, loser, weight, _ in group.pairs
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
