"""What the benchmarks share: running `rlhf` in a home of its own, taking turns, and keeping what was measured."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RLHF = Path(sys.executable).with_name("rlhf")
T = TypeVar("T")


@contextmanager
def fresh_home() -> Iterator[dict[str, str]]:
    """The environment of an empty `RLHF_HOME` with services on free ports, stopped and removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="rlhf-benchmark-"))
    environment = {
        **os.environ,
        "RLHF_HOME": str(home),
        "RLHF_ARGILLA_VENV": os.environ.get("RLHF_ARGILLA_VENV", str(ROOT / ".rlhf" / "argilla-venv")),
        **{f"RLHF_{name}_PORT": str(_free_port()) for name in ("PREFECT", "MLFLOW", "ARGILLA")},
    }
    try:
        yield environment
    finally:
        subprocess.run([RLHF, "down"], env=environment, check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def rlhf(environment: Mapping[str, str], *arguments: str) -> tuple[dict[str, Any], float]:
    """The JSON document of one `rlhf` command, and its wall seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [RLHF, *arguments, "--json"], env=environment, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"rlhf {' '.join(arguments)} ended with {done.returncode}: {done.stdout}")
    return json.loads(done.stdout), seconds


def in_turn(contenders: Mapping[str, Callable[[int], T]], repeats: int) -> dict[str, list[tuple[float, T]]]:
    """What each cost and returned, called with the number of the repeat: all of them in turn, `repeats` times.

    Cost is in CPU seconds of this process, which others on the machine disturb least; that of one torch thread.
    """
    import torch

    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, T]]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, contender in contenders.items():
            started = time.process_time()
            returned = contender(repeat)
            found[name].append((time.process_time() - started, returned))
    return found


def keep(name: str, result: Any) -> None:
    """Write a result to `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
