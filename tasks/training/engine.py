"""transformers' Trainer with our own encoded rows, length-grouped batches and losses.

Precision, accumulation, schedules, checkpoints and several devices (Accelerate, FSDP) are the library's. A subclass
says what the loss of one batch is; the engine knows nothing about methods.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from tasks.artifact import InputError, Row, Work
from tasks.models.loading import positions
from tasks.models.prompts import installed
from tasks.training.engine_batches import LengthBatches
from tasks.training.engine_checkpoints import KeepsPrompts, Reporting, last_checkpoint
from tasks.training.hyperparameters import Hyperparameters
from tasks.training.precision import choose, name_here

Batch = dict[str, Any]
SCALES = re.compile(r"\b(ia3_l|lora_magnitude_vector|A_log|D)\b")
"""Parameters that are factors, or logarithms of them, whatever their shape."""
Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Trainer(KeepsPrompts, transformers.Trainer):
    """Base of the three trainers: `losses` gives a batch's summed loss, `items` what the sum is divided by.

    The division is by all items of one optimizer step, so accumulation and several devices do not change the loss.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Any],
        lengths: Sequence[int],
        collate: Callable[[list[Any]], Batch],
        recipe: Hyperparameters,
        work: Work,
        batches: type[LengthBatches] = LengthBatches,
        precision: tuple[bool, str] | None = None,
    ) -> None:
        """precision: what `choose` said, where something was computed in it already."""
        prompt = installed(model)
        if recipe.gradient_checkpointing and prompt is not None and prompt.is_prefix:
            raise InputError(
                "gradient_checkpointing computes layers again without the cache that a prefix below the model fills; "
                "leave it out."
            )
        self.batches = batches(lengths, recipe.batch_size, recipe.epochs, work.seed)
        bf16, reason = precision or choose(recipe.precision, sum(p.numel() for p in model.parameters()))
        work.log({"bf16": bf16})
        work.text("precision", reason)
        self.last: dict[str, float] = {}
        self._figures: dict[str, list[torch.Tensor]] = defaultdict(list)
        super().__init__(
            model=model,
            args=_arguments(recipe, work, bf16, len(self.batches) // recipe.accumulation),
            train_dataset=rows,  # type: ignore[arg-type]  # a list is a map-style dataset
            data_collator=collate,
            callbacks=[Reporting(work)],
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        self.batches.whole = self.args.world_size > 1

    def losses(self, model: Any, batch: Batch) -> Losses:
        """The loss summed over a batch's items, and figures (0-d tensors) to report as means over batches."""
        raise NotImplementedError

    def items(self, batch: Batch) -> float:
        """How much a batch weighs: tokens, or the sum of the pairs' weights."""
        return float(batch["items"])

    def get_train_dataloader(self) -> DataLoader:
        """All epochs' batches in one go, so that a resumed run continues at the same batch whatever was the epoch."""
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )
        return self.accelerator.prepare_data_loader(loader)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        summed, figures = self.losses(model, inputs)
        for name, figure in figures.items():
            self._figures[name].append(figure.detach())
        return summed * (self.accelerator.num_processes / num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, values in self._figures.items():
            logs[name] = torch.stack(values).float().mean().item()
        self._figures.clear()
        self.last |= logs
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Decay draws to zero, which is nothing for matrices alone: not for scales of any name (norms, DoRA's lengths,
        Mamba's), nor for the factors of (IA)^3, which are nothing at one."""
        matrices = {name for name, each in model.named_parameters() if each.dim() > 1 and not SCALES.search(name)}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def floating_point_ops(self, inputs: Batch) -> int:
        return 0  # the library walks over all parameters at every step for it

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        count = sum(self.items(batch) for batch in batch_samples)
        if self.args.world_size > 1:
            count = self.accelerator.gather(torch.tensor(count, device=device)).sum().item()  # type: ignore[union-attr]
        return max(count, 1e-8)


def fit(trainer: Trainer, work: Work, *callbacks: TrainerCallback) -> None:
    """Train to the end, from the last whole checkpoint in `work.scratch` where there is one."""
    for callback in callbacks:
        trainer.add_callback(callback)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    work.progress(0, len(trainer.batches) // trainer.args.gradient_accumulation_steps, "training")
    checkpoint = last_checkpoint(work.scratch)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.model.eval()  # type: ignore[union-attr]


def longest(recipe: Hyperparameters, model: Any, taken: int = 0) -> int:
    """How many tokens a row may have: the recipe's limit, or the model's positions where they are fewer.

    taken: positions of a soft prompt that is not there yet.
    """
    limit = positions(model)
    return recipe.max_length if limit is None else min(recipe.max_length, limit - taken)


def tell_refused(refused: Mapping[int, str], rows: Sequence[Row], recipe: Hyperparameters, work: Work) -> None:
    """Count and list the rows (by their number, from 1, with the reason) that the chat template refuses.

    Raises `InputError` where they are more than `recipe.dropped_limit` of all, or all.
    """
    work.log({"rows_refused": len(refused)})
    if not refused:
        return
    first = next(iter(refused.values()))
    if len(refused) == len(rows) or len(refused) > recipe.dropped_limit * len(rows):
        raise InputError(
            f"The chat template refuses {len(refused)} of {len(rows)} rows (the first: {first}); mend the rows, set "
            "another chat_template, or raise dropped_limit to train without them."
        )
    listed = [{"row": number, "set": rows[number - 1].get("set"), "reason": why} for number, why in refused.items()]
    work.table("refused", [each | {"begins": _beginning(rows[each["row"] - 1])} for each in listed])
    work.notify(
        f"The chat template refuses {len(refused)} of {len(rows)} rows (the first: {first}), which are not used; the "
        "run's table 'refused' lists them."
    )


def _beginning(row: Row) -> str:
    turns = row.get("messages") or row["prompt"]
    return next((turn["content"] for turn in turns if turn["role"] == "user"), "")[:200]


def keep_short(
    rows: Sequence[Any],
    lengths: Sequence[int],
    recipe: Hyperparameters,
    model: Any,
    work: Work,
    taken: int = 0,
    refused: int = 0,
) -> list[Any]:
    """The rows that fit `longest`; what is dropped is logged and told.

    refused: how many rows the chat template refused before. Raises `InputError` when more than `recipe.dropped_limit`
    of all are dropped for the one or the other, or when nothing is left.
    """
    limit = longest(recipe, model, taken)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    dropped = len(rows) - len(kept)
    work.log({"rows": len(kept), "rows_dropped": dropped, "tokens_dropped": sum(n for n in lengths if n > limit)})
    by_recipe = limit == recipe.max_length
    if not kept or (dropped and dropped + refused > recipe.dropped_limit * (len(rows) + refused)):
        beside = f", beside {refused} that the chat template refuses" if refused else ""
        remedies = "raise max_length, shorten the rows," if by_recipe else "the model takes no more: shorten the rows"
        raise InputError(
            f"{dropped} of {len(rows)} rows are longer than {limit} tokens{beside}; {remedies} or raise dropped_limit "
            "to train without them."
        )
    if dropped:
        remedy = "raise max_length" if by_recipe else "the model takes no more, so shorten them"
        work.notify(f"{dropped} of {len(rows)} rows are longer than {limit} tokens and not used; {remedy}.")
    return kept


def _arguments(recipe: Hyperparameters, work: Work, bf16: bool, steps: int) -> transformers.TrainingArguments:
    cuda = torch.cuda.is_available()
    return transformers.TrainingArguments(
        output_dir=str(work.scratch),
        num_train_epochs=1,  # the batch sampler holds all epochs
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(recipe.schedule, recipe.schedule),
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        activation_checkpointing=recipe.gradient_checkpointing,
        bf16=bf16,
        optim=name_here(recipe.optimizer),
        use_cpu=not cuda,
        seed=work.seed,
        logging_steps=10 if steps >= 20 else 1,  # a curve has two points at least
        logging_nan_inf_filter=False,
        save_strategy="no",  # the callback asks for checkpoints by the clock
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
