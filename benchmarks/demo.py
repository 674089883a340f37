"""How long the demo takes, stage by stage, what a second run costs, and what the pipeline itself adds.

python -m benchmarks.demo

The demo runs three times, each from nothing; what is shown is the run whose own cost is the middle one.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measured import fresh_home, keep, rlhf, show

SIDE_BY_SIDE = (
    ("base", "data"),
    ("sft",),
    ("sample",),
    ("label",),
    ("preferences",),
    ("reward", "dpo"),
    ("ppo", "grpo"),
    ("merge dpo", "merge ppo", "merge grpo"),
    ("evaluate",),
    ("gate",),
)
"""Stages that the lifecycle builds at the same time, in its order."""


RUNS = 3


def main() -> None:
    results = sorted((_demo() for _ in range(RUNS)), key=lambda result: result["own_share"])
    result = results[RUNS // 2]
    shares = [each["own_share"] for each in results]
    show("seconds in each stage", ["stage", "seconds"], list(result["stage_seconds"].items()))
    show(
        "the demo",
        ["", ""],
        [
            ["services up (s)", result["services_up_seconds"]],
            ["first run (s)", result["first_run_seconds"]],
            ["second run, nothing to build (s)", result["second_run_seconds"]],
            ["of the first run: not in a stage's own work (s)", result["around_stages_seconds"]],
            [
                "of that: what any Python process needs to import torch, transformers, peft and trl (s)",
                result["bare_import_seconds"],
            ],
            ["the rest: the command, Prefect, MLflow and the store (s)", result["own_seconds"]],
            ["the rest as a share of the first run", f"{result['own_share']:.1%}"],
            [f"the same in each of the {RUNS} runs", ", ".join(f"{share:.1%}" for share in shares)],
        ],
    )
    keep("demo", {**result, "own_share_of_runs": shares})


def _demo() -> dict[str, Any]:
    with fresh_home() as environment:
        _, up = rlhf(environment, "up")
        first, first_seconds = rlhf(environment, "run", "deployments/recipes/demo.toml")
        second, second_seconds = rlhf(environment, "run", "deployments/recipes/demo.toml")
        store = Path(environment["RLHF_HOME"]) / "store"
        worked = {
            stage["name"]: json.loads((store / stage["artifact"] / "manifest.json").read_text())["metrics"]["seconds"]
            for stage in first["stages"]
        }
    if any(not stage["reused"] for stage in second["stages"]):
        raise SystemExit("the second run built something: that is a fault of the store")
    working = sum(max(worked[name] for name in group) for group in SIDE_BY_SIDE)
    around = first_seconds - working  # what is neither training, sampling, labeling nor evaluating
    bare = _bare_import()
    return {
        "services_up_seconds": up,
        "first_run_seconds": first_seconds,
        "second_run_seconds": second_seconds,
        "stage_seconds": worked,
        "around_stages_seconds": around,
        "bare_import_seconds": bare,
        "own_seconds": around - bare,
        "own_share": (around - bare) / first_seconds,
        "win_rate": first["win_rate"],
        "promoted": first["promoted"],
    }


def _bare_import() -> float:
    """Wall seconds of a process that only imports what training needs; the second of two, when the files are cached."""
    command = [sys.executable, "-c", "import torch, transformers, peft, trl"]
    subprocess.run(command, check=True, capture_output=True)
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
