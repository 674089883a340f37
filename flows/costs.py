"""`rlhf plan --estimate`: what a run will cost, as a table."""

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.data import prepared
from flows.recipe import LifecycleRecipe
from flows.verbs import err, out
from tasks.estimating import Prices, estimate

PARTS = {
    "weights": "weights", "grads": "gradients", "AdamW": "optimizer", "activ.": "activations", "cache": "cache",
    "total": "total",
}  # fmt: skip


def show_costs(recipe: LifecycleRecipe, prices: Prices, as_json: bool) -> None:
    """Estimate, and print it."""
    with tempfile.TemporaryDirectory(prefix="rlhf-estimate-") as folder:
        data, left_out = prepared(recipe, Path(folder))
        with err.status("measuring a few steps"):
            found = estimate(recipe, prices, data)
    if left_out:
        found["notes"].append(
            f"What the filters {', '.join(left_out)} will drop is counted in: estimating asks no judge."
        )
    if as_json:
        print(json.dumps(found))
        return
    most = max(row["total"] for row in found["stages"])
    unit, size = ("GiB", 2**30) if most >= 10 * 2**30 else ("MiB", 2**20)
    table = Table("stage", "tokens", "trained", *PARTS, "hours", box=None)
    for row in found["stages"]:
        sizes = [row[part] for part in PARTS.values()]
        cells = ["?" if each is None else f"{each / size:.{1 if unit == 'GiB' else 0}f}" for each in sizes]
        counts = ["?" if row[name] is None else _count(row[name]) for name in ("tokens", "trainable")]
        table.add_row(row["stage"], *counts, *cells, f"{row['hours']:.2g}")
    rule = _bytes(found["stages"][0]["rule"])
    for note in found["notes"]:
        out.print(note)
    out.print(
        f"{found['parameters']:,} parameters; the rule (x 4 bytes x 1.2) says {rule}. By stage, memory of one process "
        f"at its highest in {unit}, and hours on this machine:"
    )
    out.print(table)
    out.print(_summary(found, prices, recipe.rounds))


def _summary(found: dict[str, Any], prices: Prices, rounds: int) -> str:
    judge = found["judge"]
    parts = [
        f"{found['machine_hours']:.3g} hours of this machine",
        f"{found['judgements']:,} judgements by people, {found['label_hours']:.3g} hours of their time",
    ]
    if judge:
        tokens = f"{_count(judge['prompt_tokens'])} tokens and at most {_count(judge['completion_tokens'])} of answers"
        each = " in each round" if rounds > 1 else ""
        parts.append(
            f"{judge['questions']:,} questions to the judge model{each}, {tokens}, at most {judge['cost']:,.2f}"
        )
    if prices.machine_hour or prices.label_hour or (judge and judge["cost"]):
        parts.append(f"{found['cost']:,.2f} in all")
    return ("" if rounds == 1 else f"{rounds} rounds: ") + "; ".join(parts)


def _count(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
