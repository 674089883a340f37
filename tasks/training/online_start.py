"""What PPO, GRPO and RLOO begin with: the model that is trained, its prompts, and who judges completions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tasks.artifact import Row, Work, below, read_jsonl
from tasks.models.adapters import FullRecipe, QloraRecipe
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.training.hyperparameters import OnlineHyperparameters
from tasks.training.rewards import Rewards, rewards_of
from tasks.training.watch import watched_rows


@dataclass(frozen=True)
class Start:
    """Before the first update."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    """Base + sft, or `start`, merged: the policy without its adapter, and the reference."""
    rows: list[Row]
    """The RL prompts."""
    watched: list[Row]
    score: Rewards


def begin(recipe: OnlineHyperparameters, inputs: Mapping[str, Path], work: Work) -> Start:
    """Seed the generators and load what `inputs` hold."""
    set_seed(work.seed)
    model = load_causal_lm(
        [inputs[name] for name in below(inputs)],
        trainable=isinstance(recipe.adapter, FullRecipe),
        to_quantise=isinstance(recipe.adapter, QloraRecipe),
    )
    rows, watched = read_jsonl(inputs["data"] / "rl.jsonl"), watched_rows(recipe.watch, inputs["data"])
    score = rewards_of(recipe.rewards, inputs, [*rows, *watched], model if recipe.share_base else None)
    work.log({"shares_base": float(score.shares_base)})
    return Start(load_tokenizer(inputs["base"]), model, rows, watched, score)
