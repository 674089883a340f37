"""SFT: real (not padding) tokens per second of ours and of TRL's own trainer, and the loss they reach, in one process.

python -m benchmarks.sft [--repeats N]

Conversations about the shop, short ones (a question and its answer) and long ones (answers about many items), on a
Llama of 1M parameters with random weights, every weight trained: the same model, rows, epochs, batch size and learning
rates. "TRL" is its default without bf16 and without activation checkpoints, which cost time on a CPU.
CPU seconds at one torch thread from rows in memory to the trained model. The loss is that of the assistant's tokens of
held-out conversations, measured the same way for all.
"""

import argparse
import random
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.measured import in_turn, keep, show
from benchmarks.small_llama import random_llama, shop_tokenizer
from tasks.artifact import Row, Work
from tasks.data.shop import demonstrations, rows
from tasks.models.adapters import FullRecipe
from tasks.training.engine_batches import TokenBatches, logits_at, pad
from tasks.training.sft import SftRecipe
from tasks.training.sft_engine import encode_rows, fit_language_model

KINDS = {"short": (1, 2), "long": (9, 33)}
"""How many statements an answer holds: at least, and fewer than."""
TRAIN = {"short": 1600, "long": 240}
HELD_OUT = {"short": 200, "long": 60}
Outcome = tuple[float, float, float]
"""CPU seconds; held-out loss; share of padding (none told by TRL)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    tokenizer, found = shop_tokenizer(), []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            sides = Sides(kind, tokenizer, Path(folder))
            contenders = {
                "TRL, as it comes": partial(sides.theirs, gradient_checkpointing=True, bf16=True),
                "TRL": sides.theirs,
                "TRL, grouped by length": partial(sides.theirs, train_sampling_strategy="group_by_length"),
                "ours": sides.ours,
            }
            runs = in_turn(contenders, repeats)
        for name, outcomes in runs.items():
            seconds, loss, padding = (fmean(column) for column in zip(*(each for _, each in outcomes), strict=True))
            found.append(
                {
                    "rows": kind, "tokens": sides.mean, "side": name, "tokens_per_second": sides.tokens / seconds,
                    "loss": loss, "padding_share": padding, "seconds": [each[0] for _, each in outcomes],
                }
            )  # fmt: skip
        for row in found[-len(contenders) :]:
            row["ours_over"] = found[-1]["tokens_per_second"] / row["tokens_per_second"]
        keep("sft", found)
    columns = ["rows", "tokens", "side", "tokens_per_second", "ours_over", "loss", "padding_share"]
    show("SFT", columns, [[row[column] for column in columns] for row in found])


@dataclass
class Sides:
    """One kind of rows, learnt from by each side."""

    kind: str
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def __post_init__(self) -> None:
        texts = conversations(self.kind, TRAIN[self.kind] + HELD_OUT[self.kind])
        self.rows, self.held_out = texts[: TRAIN[self.kind]], encode_rows(texts[TRAIN[self.kind] :], self.tokenizer)
        self.recipe = SftRecipe(adapter=FullRecipe(), epochs=2, learning_rate=2e-3, batch_size=16)
        lengths = [len(each.input_ids) for each in encode_rows(self.rows, self.tokenizer)]
        self.mean, self.tokens = fmean(lengths), sum(lengths) * self.recipe.epochs

    def ours(self, seed: int) -> Outcome:
        model: Any = random_llama("1M", self.tokenizer, seed)
        work = self._work(seed)
        began = time.process_time()
        rows = encode_rows(self.rows, self.tokenizer)
        fit_language_model(model.train(), self.tokenizer, rows, self.recipe, work, batches=TokenBatches)
        return time.process_time() - began, self._loss(model), work.metrics.get("padding_share", float("nan"))

    def theirs(self, seed: int, **settings: Any) -> Outcome:
        model: Any = random_llama("1M", self.tokenizer, seed)
        began = time.process_time()
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(self.folder / "trl"),
                learning_rate=self.recipe.learning_rate,
                lr_scheduler_type=self.recipe.schedule,
                warmup_steps=self.recipe.warmup,
                num_train_epochs=self.recipe.epochs,
                per_device_train_batch_size=self.recipe.batch_size,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
                **{"gradient_checkpointing": False, "bf16": False, **settings},
            ),
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list(
                [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in self.rows]
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return time.process_time() - began, self._loss(model), float("nan")

    @torch.no_grad()
    def _loss(self, model: Any) -> float:
        """Mean cross-entropy over the assistant's tokens of the held-out conversations."""
        losses: list[float] = []
        for row in self.held_out:
            ids, keep = torch.tensor([row.input_ids]), pad([row.labels_mask], 0).bool()[:, 1:]
            logits = logits_at(model.eval(), model.lm_head, ids[:, :-1], keep)
            losses += torch.nn.functional.cross_entropy(logits, ids[:, 1:][keep], reduction="none").tolist()
        return fmean(losses)

    def _work(self, seed: int) -> Work:
        folders = [self.folder / f"{time.monotonic_ns()}" / each for each in ("out", "scratch")]
        for each in folders:
            each.mkdir(parents=True)
        return Work(*folders, seed=seed, checkpoint_seconds=1e9)


def conversations(kind: str, count: int) -> list[Row]:
    """Questions about the shop; an answer is one of the shop's, or several of other questions behind one another."""
    draw, asked = random.Random(kind), rows()
    answers = [demonstrations(row, 4, 0, wrong=0.0, polite=0.5, rude=0.0, long=0.1) for row in asked]
    made = []
    for _ in range(count):
        places = [draw.randrange(len(asked)) for _ in range(draw.randrange(*KINDS[kind]))]
        text = " ".join(draw.choice(answers[place]) for place in places)
        made.append({"messages": [*asked[places[0]]["prompt"], {"role": "assistant", "content": text}]})
    return made


if __name__ == "__main__":
    main()
