"""Whether keeping the best policy seen in training helps, by the reward itself or by a check that knows right answers.

python -m benchmarks.watched [--seeds N] [--every N]

PPO and GRPO as in the demo, and again twice as long without the SFT model's likelihood in the reward, where they lose
facts. Each is trained three times alike; what differs is the policy it hands over.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.learning import DEMO
from benchmarks.measured import fresh_home, keep, rlhf, show

REGIMES = {"demo": "updates = 30", "unheld": "updates = 60, likelihood_coefficient = 0"}
KEPT = {
    "last": 'keep = "last"',
    "reward": 'keep = "best"',
    "check": 'keep = "best", judge = "tasks.data.shop:correct"',
}
HEAD = ["seed", "policy", "win rate vs SFT", "correct", "KL", "update kept", "gate"]


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--seeds", type=int, default=2)
    given.add_argument("--every", type=int, default=5, help="updates between two looks")
    options = given.parse_args()
    runs: list[dict[str, Any]] = []
    with fresh_home() as environment:
        rlhf(environment, "up")
        for seed in range(options.seeds):
            changes = [f"seed={seed}", f"name=watched-{seed}", f"policy={_policies(options.every)}"]
            arguments = [word for change in changes for word in ("--set", change)]
            document, seconds = rlhf(environment, "run", DEMO, *arguments)
            store = Path(environment["RLHF_HOME"]) / "store"
            runs.append({"seed": seed, "seconds": seconds, **_figures(document, store)})
            show(f"seed {seed}", HEAD, _rows(runs[-1]))
            keep("watched", {"every": options.every, "runs": runs})


def _policies(every: int) -> str:
    """TOML of every method in every regime with every rule of what is kept, all looked at alike."""
    check = 'checks = ["tasks.data.shop:correct"]'
    tables = [
        f'{{ name = "{method}-{regime}-{rule}", method = "{method}", {settings}, '
        f"watch = {{ every = {every}, {check}, {kept} }} }}"
        for regime, settings in REGIMES.items()
        for method in ("ppo", "grpo")
        for rule, kept in KEPT.items()
    ]
    return f"[{', '.join(tables)}]"


def _figures(document: Mapping[str, Any], store: Path) -> dict[str, Any]:
    keys = {stage["name"]: stage["artifact"] for stage in document["stages"]}
    found: dict[str, Any] = {}
    for candidate in document["candidates"]:
        name = candidate["name"]
        folder = store / keys[name]
        metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
        updates = json.loads((folder / "report" / "updates.json").read_text())
        looks = [dict(zip(updates["columns"], row, strict=True)) for row in updates["data"]]
        found[name] = {
            "win_rate": candidate["win_rate_vs_sft"]["judge"],
            "correct": candidate["checks"]["correct"]["mean"],
            "kl": candidate["kl_to_sft"],
            "refused": candidate["refused"],
            "kept": metrics["updates"] if name.endswith("-last") else metrics["best_update"],
            "looks": [
                {"update": row["update"], "win_rate": row["watch/win_rate"], "correct": row["watch/correct"]}
                for row in looks
                if row["watch/win_rate"] is not None
            ],
        }
    return {"sft_correct": document["sft"]["checks"]["correct"]["mean"], "candidates": found}


def _rows(run: Mapping[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = [[run["seed"], "SFT", "", run["sft_correct"], "", "", ""]]
    for name, figures in run["candidates"].items():
        rate = figures["win_rate"]
        interval = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        verdict = figures["refused"][0] if figures["refused"] else "passes"
        rows.append([run["seed"], name, interval, figures["correct"], figures["kl"], int(figures["kept"]), verdict])
    return rows


if __name__ == "__main__":
    main()
