"""Next-token training on masked rows: what SFT and pre-training share."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState

from tasks.artifact import InputError, Row, Work
from tasks.models.chat import Encoded, encode_conversation
from tasks.models.rendering import RowRefused, plain
from tasks.models.templates import check_special_tokens
from tasks.training.engine import Batch, Losses, Trainer, fit, keep_short
from tasks.training.engine_batches import LengthBatches, logits_at, pad
from tasks.training.hyperparameters import Hyperparameters
from tasks.training.packing import PackedBatches, Packing, apart, choose_packing
from tasks.training.precision import choose


class LanguageTrainer(Trainer):
    """Cross-entropy (mean over the marked tokens of a step) of the next token."""

    def losses(self, model: Any, batch: Batch) -> Losses:
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        keep = batch["mask"][:, 1:]
        targets = batch["input_ids"][:, 1:][keep]
        logits = logits_at(model, head, batch["input_ids"][:, :-1], keep, **apart(batch))
        summed = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return summed, {"token_accuracy": (logits.detach().argmax(dim=-1) == targets).float().mean()}


def encode_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    turns: Literal["all", "last"] = "all",
    refused: dict[int, str] | None = None,
) -> list[Encoded]:
    """Conversations as ids, their mask on all assistant turns or on the last alone; rows of plain `text` as documents.

    refused: gets the place and the reason of each row that the chat template refuses, which is left out then. Raises
    `InputError` naming the row that has no assistant turn or cannot be rendered.
    """
    check_special_tokens(tokenizer)
    encoded = []
    for number, row in enumerate(rows, 1):
        if isinstance(row.get("text"), str):
            encoded.append(_document(row["text"], tokenizer, not row.get("goes_on")))
            continue
        try:
            encoded.append(encode_conversation(tokenizer, row["messages"]))
        except RowRefused as error:
            if refused is None:
                raise InputError(f"Row {number} for SFT: {error}") from error
            refused[number] = str(error.__cause__)
            continue
        except InputError as error:
            raise InputError(f"Row {number} for SFT: {error}") from error
        except (KeyError, TypeError) as error:
            raise InputError(f"Row {number} for SFT is not a conversation ({error}); mend or remove it.") from error
        if not any(encoded[-1].labels_mask):
            raise InputError(f"Row {number} for SFT has no assistant turn to learn; mend or remove it.")
    return [_last_turn(each) for each in encoded] if turns == "last" else encoded


def _document(text: str, tokenizer: PreTrainedTokenizerBase, ends: bool) -> Encoded:
    """Plain text to go on pre-training on, after BOS and, where its document `ends`, before EOS: the loss is on all."""
    ids: Any = tokenizer(plain(tokenizer, text), add_special_tokens=False)["input_ids"]
    after = [tokenizer.eos_token_id] if ends else []
    ids = [each for each in (tokenizer.bos_token_id, *ids, *after) if each is not None]
    return Encoded(ids, [1] * len(ids))


def _last_turn(row: Encoded) -> Encoded:
    mask = row.labels_mask
    end = max(place for place, mark in enumerate(mask) if mark)
    begin = max((place for place, mark in enumerate(mask[:end]) if not mark), default=-1)
    return Encoded(row.input_ids, [int(begin < place <= end) for place in range(len(mask))])


def fit_language_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    recipe: Hyperparameters,
    work: Work,
    *callbacks: TrainerCallback,
    batches: type[LengthBatches] = LengthBatches,
    packing: Packing = "never",
    refused: int = 0,
) -> TrainerState:
    """Train on encoded rows; logs the curve of `loss`, the first and last losses and the share of padding as final
    figures, and the report `batching` says how rows were put together and why.

    batches: how rows that are not packed come together. packing: see `choose_packing`. refused: see `keep_short`.
    """
    rows = keep_short(rows, [len(row.input_ids) for row in rows], recipe, model, work, refused=refused)
    lengths = [len(row.input_ids) for row in rows]
    pad_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]

    def collate(batch: list[Encoded]) -> Batch:
        mask = pad([row.labels_mask for row in batch], 0).bool()
        return {
            "input_ids": pad([row.input_ids for row in batch], pad_id),
            "mask": mask,
            "items": int(mask[:, 1:].sum()),
        }

    attention = model.config._attn_implementation
    precision = choose(recipe.precision, sum(each.numel() for each in model.parameters()))
    pack, why = choose_packing(packing, model, rows, precision[0])
    chosen = PackedBatches if pack else batches
    trainer = LanguageTrainer(model, rows, lengths, pack or collate, recipe, work, chosen, precision)
    work.text("batching", f"{why}\n")
    work.log({"tokens": sum(lengths), "trained_tokens": sum(sum(row.labels_mask) for row in rows)})
    work.log({"padding_share": trainer.batches.padding_share(), "packed": pack is not None})
    fit(trainer, work, *callbacks)
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if curve:
        work.log({"first_loss": curve[0], "last_loss": curve[-1], "perplexity": math.exp(min(curve[-1], 50))})
    return trainer.state
