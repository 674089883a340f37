"""The Bradley-Terry loss over groups of completions; what a reward model starts from, and what of it is kept."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.artifact import InputError, Row, Work, link_tree
from tasks.models.adapters import PromptRecipe, QloraRecipe, attach, save_whole
from tasks.models.dropout import without_dropout
from tasks.models.loading import (
    device,
    load_causal_lm,
    load_tokenizer,
    merge_adapter,
    open_reward_base,
    reads_last_token,
    save_model,
    score_modules,
    start_reward_model,
)
from tasks.models.quantised import is_quantised
from tasks.models.source import find_model, refer
from tasks.models.templates import prepare_tokenizer
from tasks.training.engine import Batch, Losses, Trainer, fit
from tasks.training.engine_pairs import Group, collate_groups, usable_groups
from tasks.training.reward import RewardRecipe
from tasks.training.reward_heads import Scale, draws
from tasks.training.reward_report import head_values, pad_id_of
from tasks.training.reward_scoring import outputs


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

    Dropout is off throughout: two scores of one text must not differ by chance, in training neither. Another base is
    left where it is; the artifact says which one it is.
    """
    model, heads, tokenizer = _opened(recipe, inputs, work)
    if isinstance(recipe.adapter, PromptRecipe) and not reads_last_token(model):
        raise InputError(
            f"A soft prompt ('{recipe.adapter.kind}') goes before a decoder, and reward.base is an encoder; take "
            'adapter.kind = "lora".'
        )
    return attach(without_dropout(model), recipe.adapter, "SEQ_CLS", seed=work.seed, heads=heads), tokenizer


def _opened(
    recipe: RewardRecipe, inputs: Mapping[str, Path], work: Work
) -> tuple[PreTrainedModel, list[str], PreTrainedTokenizerBase]:
    """The model to train, the names of its modules that are new, and its tokenizer."""
    if recipe.base is None:
        tokenizer = load_tokenizer(inputs["base"])
        torch.manual_seed(work.seed)
        small = isinstance(recipe.adapter, QloraRecipe)
        policy = load_causal_lm([inputs["base"], inputs["sft"]], trainable=True, to_quantise=small)
        model = start_reward_model(policy, tokenizer, recipe.heads.count)
        return model, score_modules(model), tokenizer
    folder, commit = find_model(recipe.base, recipe.revision, "reward.base")
    tokenizer = prepare_tokenizer(load_tokenizer(folder), recipe.chat_template, scoring=True)
    torch.manual_seed(work.seed)
    if recipe.adapter.kind != "full":
        refer(work.out, recipe.base, folder, commit)
    return *open_reward_base(folder, tokenizer, recipe.heads.count), tokenizer


def fit_reward_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: RewardRecipe, work: Work
) -> list[Group]:
    """Train in place; returns the groups that were trained on."""
    groups = usable_groups(rows, tokenizer, recipe, model, work, (None, *recipe.criteria))
    for group in groups:
        group.draws = draws(json.dumps(group.prompt, sort_keys=True), recipe.members, work.seed)
    pad_id = pad_id_of(tokenizer)
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
    inputs: Mapping[str, Path],
    recipe: RewardRecipe,
    work: Work,
) -> Any:
    """Everything a scorer needs beside the base; returns the model as a scorer will use it (on full weights)."""
    save_model(model, tokenizer, work.out)
    tokenizer.save_pretrained(work.out / "tokenizer")
    if is_quantised(model):
        model = merge_adapter(_opened(recipe, inputs, work)[0], work.out / "adapter").eval()
        model.to(device())  # type: ignore[arg-type]
    if recipe.base is None and (work.out / "adapter").is_dir():
        _keep_start(model, inputs["sft"], work.out)
    values = head_values(model, groups, recipe.heads, pad_id_of(tokenizer))
    (work.out / "reward.json").write_text(json.dumps(Scale.of(recipe.heads, values).row()) + "\n")
    overall = values[:, 0].mean(-1)
    work.log({"reward_mean": round(float(overall.mean()), 6), "reward_std": round(float(overall.std()), 6)})
    return model


def _keep_start(model: Any, sft: Path, out: Path) -> None:
    """The adapter under the reward adapter travels with it; under a full fine-tune the reward model is stored whole."""
    if (sft / "adapter").is_dir():
        link_tree(sft / "adapter", out / "start" / "adapter")
        return
    shutil.rmtree(out / "adapter")
    save_whole(model.merge_and_unload() if isinstance(model, PeftModel) else model, out)
