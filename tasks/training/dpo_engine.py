"""The DPO loss over groups of completions, against log-probabilities of the reference computed once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from tasks.artifact import PipelineError, Row, Work
from tasks.models.loading import device
from tasks.training.dpo import DpoRecipe
from tasks.training.engine import Batch, Losses, Trainer, fit, keep_short
from tasks.training.engine_batches import completion_logps
from tasks.training.engine_pairs import Group, collate_groups, group_preferences


class DpoTrainer(Trainer):
    """-w log sigmoid(beta (log-ratio of chosen - log-ratio of rejected) - margin), mean over pairs by weight."""

    recipe: DpoRecipe

    def losses(self, model: Any, batch: Batch) -> Losses:
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logps, counts = completion_logps(model, head, batch["input_ids"], batch["mask"])
        chosen, rejected = batch["chosen"], batch["rejected"]
        ratios = log_ratios(logps, counts, batch["reference"], self.recipe)
        rewards = self.recipe.beta * ratios
        apart = rewards[chosen] - rewards[rejected]
        each = -logsigmoid(apart - self.recipe.margin * batch["margins"])
        if self.recipe.sft_weight:
            each = each - self.recipe.sft_weight * logps[chosen] / counts[chosen]
        figures = {
            "rewards/chosen": rewards[chosen].mean(),
            "rewards/rejected": rewards[rejected].mean(),
            "rewards/accuracies": (apart > 0).float().mean(),
            "rewards/margins": apart.mean(),
            "logps/chosen": logps[chosen].mean(),
            "logps/rejected": logps[rejected].mean(),
            "length/chosen": counts[chosen].float().mean(),
            "length/rejected": counts[rejected].float().mean(),
        }
        return (batch["weights"] * each).sum(), figures


def log_ratios(logps: torch.Tensor, counts: torch.Tensor, reference: torch.Tensor, recipe: DpoRecipe) -> torch.Tensor:
    """log pi(completion) - log pi_ref(completion) per sequence, per token if the recipe says so."""
    ratios = logps - reference
    return ratios / counts if recipe.length_normalised else ratios


def fit_dpo(
    model: Any,
    attach: Callable[[Any], Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: DpoRecipe,
    work: Work,
) -> Any:
    """Train what `attach` makes of the SFT model; the reference is the SFT model as it came, in eval mode."""
    pad_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    groups = group_preferences(rows, tokenizer)
    groups = keep_short(groups, [group.length for group in groups], recipe, model, work)
    groups.sort(key=lambda group: group.length)
    for group, logps in zip(groups, group_logps(model, groups, pad_id, recipe.batch_size), strict=True):
        group.reference = logps
    policy = attach(model)
    trainer = DpoTrainer(
        policy, groups, [group.length for group in groups], lambda batch: collate_groups(batch, pad_id), recipe, work
    )
    trainer.recipe = recipe
    check_start(policy, groups[: recipe.batch_size], pad_id, recipe)
    work.log({"pairs": sum(len(group.pairs) for group in groups), "prompts": len(groups)})
    fit(trainer, work)
    work.log({name: trainer.last[name] for name in ("rewards/accuracies", "rewards/margins") if name in trainer.last})
    return policy


@torch.no_grad()
def group_logps(model: Any, groups: Sequence[Group], pad_id: int, batch_size: int) -> list[list[float]]:
    """Log-probability of every completion, by group, with the model in eval mode."""
    training, head = model.training, model.get_output_embeddings()
    model.eval()
    found: list[list[float]] = []
    for begin in range(0, len(groups), batch_size):
        some = groups[begin : begin + batch_size]
        batch = collate_groups(some, pad_id)
        logps, _ = completion_logps(model, head, batch["input_ids"].to(device()), batch["mask"].to(device()))
        values = iter(logps.tolist())
        found += [[next(values) for _ in group.sequences] for group in some]
    model.train(training)
    return found


def check_start(policy: Any, groups: Sequence[Group], pad_id: int, recipe: DpoRecipe) -> None:
    """Raise `PipelineError` unless the policy is the reference before the first step: KL 0 and loss ln 2."""
    now = group_logps(policy, groups, pad_id, recipe.batch_size)
    moved = [
        [own - reference for own, reference in zip(logps, group.reference, strict=True)]
        for logps, group in zip(now, groups, strict=True)
    ]
    worst = max(abs(ratio) for ratios in moved for ratio in ratios)
    losses = [
        math.log1p(math.exp(-recipe.beta * (ratios[winner] - ratios[loser])))
        for ratios, group in zip(moved, groups, strict=True)
        for winner, loser, _, _ in group.pairs
    ]
    tolerance = 5e-2 if torch.cuda.is_available() else 1e-4
    if abs(sum(losses) / len(losses) - math.log(2)) > tolerance or worst > 10 * tolerance:
        raise PipelineError(
            f"DPO would not start from its reference (log-probabilities differ by {worst:.2g}); "
            "rebuild the SFT artifact, and report this if it stays."
        )
