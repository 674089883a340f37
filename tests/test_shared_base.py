"""One model in memory for PPO's four roles: the reward model as an adapter on the weights the policy starts from."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tasks.artifact import Message
from tasks.models.adapters import LoraRecipe, attach
from tasks.models.loading import load_causal_lm
from tasks.training.grpo import GrpoRecipe, train_groups
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_scoring import RewardScorer, started_alike
from tests.tiny_models import work_in

PROMPT: list[Message] = [{"role": "user", "content": "Where is item 3?"}]
SMALL = {"updates": 3, "max_new_tokens": 5, "learning_rate": 5e-3}


@pytest.fixture
def inputs(tmp_path: Path, chain: dict[str, Path]) -> dict[str, Path]:
    """base, sft, a reward model on them, and prompts."""
    work = work_in(tmp_path / "reward")
    train_reward(RewardRecipe(adapter=LoraRecipe(rank=4), epochs=2), chain, work)
    data = tmp_path / "rl"
    data.mkdir()
    row = '{{"id": "{0}", "prompt": [{{"role": "user", "content": "Where is item {0}?"}}]}}'
    (data / "rl.jsonl").write_text("\n".join(row.format(i) for i in range(8)) + "\n")
    return {"base": chain["base"], "sft": chain["sft"], "reward": work.out, "data": data}


def held(models: Iterable[torch.nn.Module]) -> int:
    """Bytes of different parameters."""
    return sum({p.data_ptr(): p.nbytes for model in models for p in model.parameters()}.values())


def test_a_reward_model_on_shared_weights_scores_the_same(inputs: dict[str, Path]) -> None:
    start = load_causal_lm([inputs["base"], inputs["sft"]])
    before = {name: p.clone() for name, p in start.named_parameters()}
    apart, shared = (
        RewardScorer(inputs["base"], inputs["reward"]),
        RewardScorer(inputs["base"], inputs["reward"], start),
    )
    policy: Any = attach(start, LoraRecipe(rank=4))
    texts, ended = ["It is here.", "item 3", ""], [True, False, True]
    scores = [scorer.score([PROMPT] * 3, texts, ended) for scorer in (apart, shared)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and len({round(score, 4) for score in scores[0]}) == 3
    adapters = sum(p.nbytes for name, p in shared.model.named_parameters() if "lora" in name or "score" in name)
    assert held([policy, shared.model]) - held([policy]) == adapters
    assert held([policy, apart.model]) > 1.5 * held([policy])
    with torch.no_grad():
        for p in policy.parameters():
            p += p.requires_grad * 0.5
    assert shared.score([PROMPT] * 3, texts, ended) == scores[1], "the policy's adapter is not the reward model's"
    for name, p in policy.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(p, before[name.replace(".base_layer", "")])


def test_only_a_reward_model_on_the_same_start_can_share(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert started_alike(inputs)
    assert not started_alike({"start": inputs["sft"], "reward": inputs["reward"]}), "a later round's champion"
    other = shutil.copytree(inputs["sft"], tmp_path / "other")
    path = other / "adapter" / "adapter_model.safetensors"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not started_alike(inputs | {"sft": other})
    whole = tmp_path / "whole"
    (whole / "model").mkdir(parents=True)
    assert not started_alike(inputs | {"reward": whole})


@pytest.mark.parametrize(
    ("train", "recipe"),
    [
        (train_ppo, PpoRecipe.model_validate(SMALL | {"episodes": 8, "value_model": "separate"})),
        (train_groups, GrpoRecipe.model_validate(SMALL | {"prompts": 4, "completions_per_prompt": 4})),
    ],
)
def test_training_is_the_same_on_shared_weights(inputs: dict[str, Path], tmp_path: Path, train, recipe) -> None:
    curves = []
    for share in (False, True):
        seen: list[float] = []
        work = work_in(tmp_path / str(share))
        work.on_log = lambda metrics, step, seen=seen: seen.append(metrics.get("reward", 0.0))
        train(recipe.model_copy(update={"share_base": share}), inputs, work)
        assert work.metrics["shares_base"] == share
        curves.append(seen)
    assert curves[0] == pytest.approx(curves[1], abs=1e-3) and len(set(curves[0])) > 1


def test_weights_in_training_cannot_be_shared() -> None:
    with pytest.raises(ValidationError, match="share_base needs adapter"):
        PpoRecipe.model_validate({"share_base": True, "adapter": {"kind": "full"}})
