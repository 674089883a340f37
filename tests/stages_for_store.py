"""Small stage functions for the tests of store and workers (worker processes import them by name)."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tasks.artifact import InputError, Work
from tasks.recipe import Part


class Sum(Part):
    """Adds numbers."""

    add: int = 1
    report: str = "note"


def add(recipe: Sum, inputs: Mapping[str, Path], work: Work) -> None:
    """Sum of the inputs and `add`; `report` only goes into the report."""
    total = recipe.add + sum(int((path / "total.txt").read_text()) for path in inputs.values())
    for step in range(3):
        work.log({"partial": total * step}, step=step)
        work.progress(step + 1, 3)
    (work.out / "total.txt").write_text(str(total))
    (work.out / "report").mkdir()
    (work.out / "report" / "note.txt").write_text(f"{recipe.report} {work.key}")
    work.table("numbers", [{"total": total}])
    work.log({"total": total})


class Counted(Part):
    """Counts to `steps`, killed on the way the first time."""

    steps: int = 6
    die_at: int | None = None


def count(recipe: Counted, inputs: Mapping[str, Path], work: Work) -> None:
    """Writes what it counted, with a checkpoint per step; dies by SIGKILL at `die_at` unless resumed."""
    checkpoint = work.scratch / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    (work.out / "half.txt").write_text("half")
    for step in range(first, recipe.steps):
        if first == 0 and step == recipe.die_at:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        work.log({"step": step}, step=step)
        checkpoint.write_text(str(step + 1))
    (work.out / "half.txt").unlink()
    (work.out / "counted.txt").write_text(f"{first} to {recipe.steps}")


def rest(recipe: Sum, inputs: Mapping[str, Path], work: Work) -> None:
    """Takes so long that somebody interrupts it."""
    (work.scratch / "begun").touch()
    time.sleep(600)


def refuse(recipe: Sum, inputs: Mapping[str, Path], work: Work) -> None:
    """Fails as a stage does for bad input."""
    (work.out / "half.txt").write_text("half")
    raise InputError("The data is empty; give a file with rows.")


def see(recipe: Sum, inputs: Mapping[str, Path], work: Work) -> None:
    """Logs the number of the GPU this process was given, and waits so that others run beside it."""
    time.sleep(1)
    work.log({"gpu": float(os.environ["CUDA_VISIBLE_DEVICES"])})
