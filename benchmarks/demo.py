"""How long the demo takes, stage by stage, what a second run costs, and what the pipeline itself adds.

python -m benchmarks.demo
"""

import json
from pathlib import Path

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


def main() -> None:
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
    [base] = [stage for stage in first["stages"] if stage["name"] == "base"]
    loading = base["seconds"] - worked["base"]  # the first stage waits until the workers have imported torch
    result = {
        "services_up_seconds": up,
        "first_run_seconds": first_seconds,
        "second_run_seconds": second_seconds,
        "stage_seconds": worked,
        "loading_libraries_seconds": loading,
        "start_seconds": first_seconds - first["seconds"],
        "own_seconds": first["seconds"] - working - loading,
        "own_share": (first["seconds"] - working - loading) / first_seconds,
        "win_rate": first["win_rate"],
        "promoted": first["promoted"],
    }
    show("seconds in each stage", ["stage", "seconds"], list(worked.items()))
    show(
        "the demo",
        ["", ""],
        [
            ["services up (s)", up],
            ["first run (s)", first_seconds],
            ["second run, nothing to build (s)", second_seconds],
            ["of the first run: loading torch in the workers (s)", loading],
            ["of the first run: start and end of the command (s)", result["start_seconds"]],
            ["of the first run: Prefect, MLflow and store around the stages (s)", result["own_seconds"]],
            ["the same as a share", f"{result['own_share']:.1%}"],
        ],
    )
    keep("demo", result)


if __name__ == "__main__":
    main()
