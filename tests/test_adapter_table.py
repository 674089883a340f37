"""Every adapter by every method, run; docs/adapters.md says what came of it.

RLHF_WRITE=1 writes the table anew.
"""

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from flows.recipe import PolicyRecipe
from tasks.artifact import Work, write_jsonl
from tasks.merging import MergeRecipe, merge_policy
from tasks.models.loading import load_causal_lm
from tasks.training.direct import DIRECT, train_direct
from tasks.training.grpo import train_groups
from tasks.training.ppo import train_ppo
from tasks.training.rejection import train_rejection
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_scoring import RewardScorer
from tasks.training.sft import SftRecipe, train_sft
from tests.tiny_models import demonstrations, preferences, tiny_base, work_in

TABLE = Path(__file__).parents[1] / "docs" / "adapters.md"
BEGIN, END = "<!-- what ran -->\n", "<!-- end -->\n"
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4, "ranks": {"q_proj": 2}, "rank_stabilised": True},
    "lora, targets = \"attention\"": {"kind": "lora", "rank": 4, "targets": "attention"},
    "lora, dropout": {"kind": "lora", "rank": 4, "dropout": 0.1},
    "lora, bias": {"kind": "lora", "rank": 4, "bias": "all"},
    "qlora": {"kind": "qlora", "rank": 4},
    "dora": {"kind": "dora", "rank": 4},
    "ia3": {"kind": "ia3"},
    "prompt_tuning": {"kind": "prompt_tuning", "virtual_tokens": 4},
    "p_tuning": {"kind": "p_tuning", "virtual_tokens": 4},
    "prefix_tuning": {"kind": "prefix_tuning", "virtual_tokens": 4},
}  # fmt: skip
ON_POLICY = {"updates": 2, "max_new_tokens": 4}
GROUPS = ON_POLICY | {"prompts": 2, "completions_per_prompt": 2}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "reward": {},
    **{method: {} for method in DIRECT},
    "ppo": ON_POLICY | {"episodes": 4},
    "grpo": GROUPS,
    "rloo": GROUPS,
    "rejection": {"samples": 6, "keep": 1, "max_new_tokens": 40, "batch_size": 1},
}
TRAIN: dict[str, Callable[..., None]] = {
    **{method: train_direct for method in DIRECT},
    "ppo": train_ppo, "grpo": train_groups, "rloo": train_groups, "rejection": train_rejection,
}  # fmt: skip
IDS = torch.tensor([[1, 9, 33, 40]])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What all methods start from."""
    root = tmp_path_factory.mktemp("inputs")
    base, data = tiny_base(root / "base"), demonstrations(root / "data")
    write_jsonl(data / "rl.jsonl", [{"id": str(n), "prompt": [_asks(n)]} for n in range(4)])
    sft, reward = work_in(root / "sft"), work_in(root / "reward")
    train_sft(SftRecipe.model_validate({"adapter": ADAPTERS["lora"], "epochs": 8}), {"base": base, "data": data}, sft)
    given = {"base": base, "sft": sft.out, "data": data, "preferences": preferences(root / "preferences")}
    train_reward(RewardRecipe.model_validate({"adapter": ADAPTERS["lora"], "epochs": 1}), given, reward)
    return given | {"reward": reward.out}


def _asks(n: int) -> dict[str, str]:
    return {"role": "user", "content": f"Where is item {n}?"}


def run(method: str, adapter: dict[str, Any], inputs: dict[str, Path], work: Work, merged: Work) -> None:
    """Train, and use what was trained. Raises `ValidationError` where the recipe is refused."""
    part = METHODS[method] | {"adapter": adapter} | ({} if "updates" in METHODS[method] else {"epochs": 1})
    if method == "reward":
        train_reward(RewardRecipe.model_validate(part), inputs, work)
        scores = RewardScorer(inputs["base"], work.out).score([[_asks(1)]] * 2, ["Aisle 3.", "Go away."], [True] * 2)
        assert scores[0] != scores[1]
        return
    if method == "sft":
        train_sft(SftRecipe.model_validate(part), inputs, work)
        chain = {"base": inputs["base"], "policy": work.out}
    else:
        recipe: Any = TypeAdapter(PolicyRecipe).validate_python({"method": method, **part})
        TRAIN[method](recipe, inputs, work)
        chain = {"base": inputs["base"], "sft": inputs["sft"], "policy": work.out}
    merge_policy(MergeRecipe(), chain, merged)
    before, after = load_causal_lm(list(chain.values())[:-1]), load_causal_lm([merged.out])
    assert not torch.equal(before(input_ids=IDS).logits, after(input_ids=IDS).logits)


def _recorded() -> dict[str, list[str]]:
    """The table's rows in the file, by adapter."""
    text = TABLE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.slow
def test_the_table_says_what_runs(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows, reasons = {}, []
    for name, adapter in ADAPTERS.items():
        if adapter["kind"] == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
            rows[name] = _recorded()[name]  # `make qlora` runs them
            continue
        cells = []
        for method in METHODS:
            folder = tmp_path / f"{name}-{method}"
            try:
                run(method, adapter, inputs, work_in(folder / "work"), work_in(folder / "merged"))
                cells.append("yes")
            except ValidationError as error:
                reason = re.sub(r"\b(PPO|GRPO|RLOO)\b", "the method", error.errors()[0]["msg"].partition(", ")[2])
                reasons += [reason] if reason not in reasons else []
                cells.append(f"no ({reasons.index(reason) + 1})")
        rows[name] = cells
    lines = [f"| adapter | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(cells)} |" for name, cells in rows.items()]
    text = "\n".join([*lines, "", *(f"{number}. {reason}." for number, reason in enumerate(reasons, 1))]) + "\n"
    before, _, rest = TABLE.read_text().partition(BEGIN)
    written = before + BEGIN + text + END + rest.partition(END)[2]
    if os.environ.get("RLHF_WRITE"):
        TABLE.write_text(written)
    assert TABLE.read_text() == written, "run it with RLHF_WRITE=1, and read what has changed"
