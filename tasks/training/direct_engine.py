"""Training by the direct methods over groups of completions; the reference's log-probabilities are computed once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.artifact import PipelineError, Row, Work
from tasks.models.adapters import PromptRecipe
from tasks.models.dropout import without_dropout
from tasks.models.loading import device
from tasks.training.direct import AnyDirect, KtoRecipe, OrpoRecipe, SimpoRecipe
from tasks.training.direct_losses import Judged, kto_losses, pair_losses, rewards
from tasks.training.engine import Batch, Losses, Trainer, fit
from tasks.training.engine_batches import completion_logps
from tasks.training.engine_pairs import Group, collate_groups, mismatch, usable_groups
from tasks.training.precision import autocast, choose
from tasks.training.watch import hand_over, watching

REPORTED = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


class DirectTrainer(Trainer):
    """The recipe's loss and the SFT term, mean over pairs by weight (KTO: over completions by weight)."""

    recipe: AnyDirect

    def losses(self, model: Any, batch: Batch) -> Losses:
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logps, counts = completion_logps(model, head, batch["input_ids"], batch["mask"])
        chosen, rejected = batch["chosen"], batch["rejected"]
        judged = Judged(logps, counts, batch["reference"], chosen, rejected, batch["margins"])
        if isinstance(self.recipe, KtoRecipe):
            summed = self._kto(self.recipe, judged, batch)
        else:
            summed = (batch["weights"] * self._pairs(judged)).sum()
        reward = rewards(self.recipe, judged).detach()
        figures = {
            "rewards/chosen": reward[chosen].mean(),
            "rewards/rejected": reward[rejected].mean(),
            "rewards/accuracies": (reward[chosen] > reward[rejected]).float().mean(),
            "rewards/margins": (reward[chosen] - reward[rejected]).mean(),
            "logps/chosen": logps[chosen].mean(),
            "logps/rejected": logps[rejected].mean(),
            "length/chosen": counts[chosen].float().mean(),
            "length/rejected": counts[rejected].float().mean(),
        }
        if has_reference(self.recipe):
            figures["log_ratio/chosen"] = (logps - batch["reference"])[chosen].mean()
        return summed, figures

    def items(self, batch: Batch) -> float:
        return float(_standing(batch).abs().sum()) if isinstance(self.recipe, KtoRecipe) else super().items(batch)

    def _pairs(self, judged: Judged) -> torch.Tensor:
        each = pair_losses(self.recipe, judged)
        if self.recipe.sft_weight:
            each = each - self.recipe.sft_weight * (judged.logps / judged.counts)[judged.chosen]
        return each

    def _kto(self, recipe: KtoRecipe, judged: Judged, batch: Batch) -> torch.Tensor:
        ratios, standing = judged.logps - judged.reference, _standing(batch)
        kl = ratios.detach()[batch["mismatched"]].mean().clamp(min=0)
        each = kto_losses(recipe, ratios, standing > 0, kl)
        each = each - recipe.sft_weight * (standing > 0) * judged.logps / judged.counts
        return (standing.abs() * each).sum()


def _standing(batch: Batch) -> torch.Tensor:
    """What each completion won less what it lost over the pairs it is in, `[n]` in [-1, 1]; 0 says nothing."""
    balance, pairs = (torch.zeros(len(batch["input_ids"]), device=batch["weights"].device) for _ in range(2))
    for side, sign in ((batch["chosen"], 1), (batch["rejected"], -1)):
        balance.index_add_(0, side, sign * batch["weights"])
        pairs.index_add_(0, side, torch.ones_like(batch["weights"]))
    return balance / pairs.clamp(min=1)


def has_reference(recipe: AnyDirect) -> bool:
    """Whether the method compares the policy with the SFT model."""
    return not isinstance(recipe, OrpoRecipe | SimpoRecipe)


def fit_direct(
    model: Any,
    attach: Callable[[Any], Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: AnyDirect,
    work: Work,
    watched: Sequence[Row] = (),
) -> Any:
    """Train what `attach` makes of the SFT model, and write it; the reference is that model as it came, in eval mode,
    and it has no dropout of its own in training: the ratios to the reference would be noise.

    watched: the prompts to watch it on. Returns the policy as it is after the last step.
    """
    pad_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    taken = recipe.adapter.virtual_tokens if isinstance(recipe.adapter, PromptRecipe) else 0
    groups = usable_groups(rows, tokenizer, recipe, model, work, taken=taken)
    groups.sort(key=lambda group: group.length)
    if isinstance(recipe, KtoRecipe):
        mismatch(groups)
    precision = choose(recipe.precision, sum(p.numel() for p in model.parameters()))
    with autocast(precision[0]):  # as in training, or the ratios would be rounding
        before = group_logps(model, groups, pad_id, recipe.batch_size) if has_reference(recipe) else _zeros(groups)
    for group, logps in zip(groups, before, strict=True):
        group.reference = logps
    policy = attach(without_dropout(model))
    if has_reference(recipe) and not isinstance(recipe.adapter, PromptRecipe):  # a prompt changes what it starts from
        with autocast(precision[0]):
            check_start(policy, groups[: recipe.batch_size], pad_id, recipe.batch_size)
    lengths = [group.length for group in groups]
    trainer = DirectTrainer(
        policy, groups, lengths, lambda batch: collate_groups(batch, pad_id), recipe, work, precision=precision
    )
    trainer.recipe = recipe
    work.log({"pairs": sum(len(group.pairs) for group in groups), "prompts": len(groups)})
    callbacks = watching(recipe, policy, tokenizer, watched, work)
    fit(trainer, work, *callbacks)
    work.log({name: trainer.last[name] for name in REPORTED if name in trainer.last})
    hand_over(policy, tokenizer, callbacks, trainer.state, work)
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


def check_start(policy: Any, groups: Sequence[Group], pad_id: int, batch_size: int) -> None:
    """Raise `PipelineError` unless the policy is the reference before the first step: KL 0, so DPO's loss is ln 2."""
    now = group_logps(policy, groups, pad_id, batch_size)
    worst = max(
        abs(own - reference)
        for logps, group in zip(now, groups, strict=True)
        for own, reference in zip(logps, group.reference, strict=True)
    )
    if worst > (0.5 if torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu") else 1e-3):
        raise PipelineError(
            f"Training would not start from its reference (log-probabilities differ by {worst:.2g}); "
            "rebuild the SFT artifact, and report this if it stays."
        )


def _zeros(groups: Sequence[Group]) -> list[list[float]]:
    return [[0.0] * len(group.sequences) for group in groups]
