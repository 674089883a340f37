"""Checkpoints of a reinforcement-learning loop that survive kill -9: written aside, then renamed.

All randomness of the loops is a function of the seed and the update's number, so no generator's state is kept.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


@dataclass
class Progress:
    """How far a run has come."""

    update: int = 0
    """Updates done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """What was logged at each of them."""
    state: dict[str, float] = field(default_factory=dict)
    """Numbers a method carries from update to update (its KL coefficient, say)."""


def write(
    scratch: Path, progress: Progress, modules: Mapping[str, torch.nn.Module], optimizers: Mapping[str, Any]
) -> None:
    """Keep the trainable weights, the optimizers' states and the progress; older checkpoints are removed."""
    final = scratch / f"update-{progress.update:06d}"
    if final.exists():
        return
    partial = scratch / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in modules.items():
        save_file(
            {key: p.detach().contiguous() for key, p in _trainable(module).items()}, partial / f"{name}.safetensors"
        )
    for name, optimizer in optimizers.items():
        torch.save(optimizer.state_dict(), partial / f"{name}.pt")
    record = {"update": progress.update, "history": progress.history, "state": progress.state}
    (partial / "progress.json").write_text(json.dumps(record))
    partial.rename(final)
    for other in scratch.glob("update-*"):
        if other != final:
            shutil.rmtree(other)


def read(scratch: Path, modules: Mapping[str, torch.nn.Module], optimizers: Mapping[str, Any]) -> Progress:
    """Load the newest checkpoint into `modules` and `optimizers`; a fresh `Progress` where there is none."""
    found = sorted(path for path in scratch.glob("update-*") if path.suffix != ".partial")
    if not found:
        return Progress()
    folder = found[-1]
    for name, module in modules.items():
        saved, current = load_file(folder / f"{name}.safetensors"), _trainable(module)
        assert saved.keys() == current.keys(), "a checkpoint belongs to one artifact key, hence to one model"
        with torch.no_grad():
            for key, parameter in current.items():
                parameter.copy_(saved[key])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return Progress(**json.loads((folder / "progress.json").read_text()))


def _trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
