"""Checkpoints by the clock that are only used when they are whole, and the reports of a training."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.artifact import Work
from tasks.models.prompts import SoftPrompted, load_trained, save_trained

TRAINED = "trained.safetensors"
"""What is trained of a soft prompt, in a checkpoint."""
WHOLE = "whole.json"
"""Written last into a checkpoint: the sizes of its files. A folder without it was cut short."""


class KeepsPrompts:
    """Beside transformers' Trainer: checkpoints of soft prompts hold what is trained. PEFT's hold what comes of it, and
    cannot be trained on."""

    model: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if isinstance(self.model, SoftPrompted) and output_dir is not None:
            save_trained(self.model, Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if isinstance(self.model, SoftPrompted):
            load_trained(self.model, Path(resume_from_checkpoint) / TRAINED)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]


class Reporting(TrainerCallback):
    """Moves the progress bar, hands on the curves, and keeps one whole checkpoint."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.saved = self.shown = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        if now - self.shown > 0.2 or state.global_step == state.max_steps:
            self.work.progress(state.global_step, state.max_steps, "training")
            self.shown = now
        if now - self.saved > self.work.checkpoint_seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        curves = {name: value for name, value in (logs or {}).items() if name != "epoch" and "train_" not in name}
        if curves and "total_flos" not in curves:
            self.report(curves, state)

    def report(self, curves: dict[str, float], state: TrainerState) -> None:
        """Hand on what was logged at a step."""
        self.work.log(curves, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()
        if not state.is_world_process_zero:
            return
        newest = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        seal(newest)
        for older in newest.parent.glob("checkpoint-*"):
            if older != newest:
                shutil.rmtree(older, ignore_errors=True)


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole: note its files' sizes, in a file that appears at once or not at all."""
    draft = checkpoint / f"{WHOLE}.draft"
    draft.write_text(json.dumps(_sizes(checkpoint)))
    os.replace(draft, checkpoint / WHOLE)


def last_checkpoint(scratch: Path) -> Path | None:
    """The newest whole checkpoint; what a kill left half written is removed."""
    whole = None
    for folder in sorted(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if _is_whole(folder):
            whole = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return whole


def _is_whole(checkpoint: Path) -> bool:
    try:
        expected = json.loads((checkpoint / WHOLE).read_text())
    except (OSError, ValueError):
        return False
    return expected == _sizes(checkpoint)


def _sizes(checkpoint: Path) -> dict[str, int]:
    return {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and not path.name.startswith(WHOLE)
    }
