"""Whether the demo learns, over seeds: win rates and correctness of DPO, PPO and GRPO, and what the gate said.

python -m benchmarks.learning [--seeds N] [--name NAME] [--recipe FILE] [--set KEY=VALUE ...]

`--set` changes the recipe (by default the demo's), as in `rlhf run`; the result of another one is kept under a name of
its own.
"""

import argparse
from typing import Any

from benchmarks.measured import fresh_home, keep, rlhf, show

DEMO = "deployments/recipes/demo.toml"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--seeds", type=int, default=5)
    given.add_argument("--name", default="learning")
    given.add_argument("--recipe", default=DEMO)
    given.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = given.parse_args()
    if (options.set or options.recipe != DEMO) and options.name == "learning":
        given.error("--set and --recipe need --name NAME, so that the demo's own figures are not overwritten")
    changes = [word for change in options.set for word in ("--set", change)]
    runs: list[dict[str, Any]] = []
    with fresh_home() as environment:
        rlhf(environment, "up")
        for seed in range(options.seeds):
            # each its own name: no champion of another seed
            arguments = ["--set", f"seed={seed}", "--set", f"name=learning-{seed}", *changes]
            document, seconds = rlhf(environment, "run", options.recipe, *arguments)
            runs.append({"seed": seed, "seconds": seconds, **_figures(document)})
            show(f"seed {seed}", HEAD, _rows(runs[-1]))
            keep(options.name, runs)  # after each seed: an interrupted benchmark loses little
    show("win rate against SFT (mean [95 % interval]) and share correct", HEAD, [row for r in runs for row in _rows(r)])


HEAD = ["seed", "model", "win rate vs SFT", "correct", "KL", "gate"]


def _figures(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "sft_correct": document["sft"]["checks"]["correct"]["mean"],
        "reason": document["reason"],
        "candidates": {
            c["name"]: {
                "win_rate": c["win_rate_vs_sft"]["judge"],
                "correct": c["checks"]["correct"]["mean"],
                "kl": c["kl_to_sft"],
                "refused": c["refused"],
            }
            for c in document["candidates"]
        },
    }


def _rows(run: dict[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = [[run["seed"], "SFT", "", run["sft_correct"], "", ""]]
    for name, figures in run["candidates"].items():
        rate = figures["win_rate"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        verdict = figures["refused"][0] if figures["refused"] else "passes"
        rows.append([run["seed"], name, interval, figures["correct"], figures["kl"], verdict])
    return rows


if __name__ == "__main__":
    main()
