"""Stage: rejection sampling: fine-tune on the best of several completions of each prompt, as the reward model sees it.

Also known as best-of-n or RAFT (Dong et al. 2023); Llama 2 (Touvron et al. 2023) does it before PPO.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from tasks.artifact import InputError, Row, Work, below, read_jsonl, write_jsonl
from tasks.sampling.engine import Engine, EngineName
from tasks.training.hyperparameters import Hyperparameters, WatchRecipe
from tasks.training.rewards import ModelReward, Score, Terms, rewards_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.sampling.local import Completion


class RejectionRecipe(Hyperparameters):
    """Sample, keep the best, imitate it."""

    method: Literal["rejection"] = "rejection"
    """The optimiser."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """What the candidate is called; the method's name when left out."""
    epochs: float = Field(default=2, gt=0)
    """Passes over the best completions."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    batch_size: int = Field(default=16, ge=1)
    """Completions in one forward pass."""
    samples: int = Field(default=16, ge=2)
    """Completions sampled for each RL prompt."""
    keep: int = Field(default=2, ge=1)
    """How many of them are imitated: the best that differ and that EOS ended."""
    engine: EngineName = "local"
    """Draws the completions. local: in this process. vllm: a vLLM server that runs until they are drawn."""
    rewards: Terms = Field(default=(ModelReward(),), min_length=1)
    """What decides which are the best: a weighted sum, as for `ppo`."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Divides the logits."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens that holds this much probability."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longer completions are cut, and never imitated."""
    likelihood_coefficient: float = Field(default=0.2, ge=0)
    """Added to the score per nat of the log-probability under the model that samples; see `ppo`."""
    decode_batch_size: int = Field(default=128, ge=1)
    """Rows decoded at once."""
    watch: WatchRecipe = WatchRecipe()
    """Held-out win rates while it imitates, the best policy and an early end by them."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.keep >= self.samples:
            raise ValueError(f"keep ({self.keep}) must be less than samples ({self.samples}), or nothing is rejected")
        return self


def train_rejection(recipe: RejectionRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """inputs: base, sft (or `start`), reward, data. Writes `adapter/` or `model/`, and `imitated.jsonl`: the rows it
    learnt from. The sampled rows and their figures survive a kill in `work.scratch`. Raises `InputError` without a
    finished completion.
    """
    from tasks.models.adapters import attach
    from tasks.models.loading import load_causal_lm, load_tokenizer, positions
    from tasks.sampling.room import with_room
    from tasks.training.sft_engine import encode_rows, fit_language_model
    from tasks.training.watch import hand_over, watched_rows, watching

    prompts = read_jsonl(inputs["data"] / "rl.jsonl")
    if not prompts:
        raise InputError("There are no RL prompts; raise the data recipe's share for RL.")
    tokenizer = load_tokenizer(inputs["base"])
    model = load_causal_lm([inputs[name] for name in below(inputs)], trainable=True)
    prompts = with_room(prompts, tokenizer, recipe.max_new_tokens, positions(model), work, "rl")
    kept, figures = work.scratch / "imitated.jsonl", work.scratch / "sampled.json"
    watched = watched_rows(recipe.watch, inputs["data"])
    asked = watched and recipe.watch.judge is None
    sampled = kept.exists() and figures.exists()
    score = rewards_of(recipe.rewards, inputs, [*prompts, *watched]) if asked or not sampled else None
    if not sampled:
        assert score is not None
        write_jsonl(kept.with_suffix(".part"), sample_best(recipe, model, tokenizer, prompts, score, work))
        figures.write_text(json.dumps(work.metrics))
        kept.with_suffix(".part").replace(kept)
    work.log(json.loads(figures.read_text()))
    rows = read_jsonl(kept)
    if not rows:
        raise InputError("No sampled completion ended by itself; raise the policy's max_new_tokens.")
    write_jsonl(work.out / "imitated.jsonl", rows)
    work.log({"imitated": len(rows), "imitated_score": sum(row["score"] for row in rows) / len(rows)})
    policy = attach(model, recipe.adapter, seed=work.seed)
    callbacks = watching(recipe, policy, tokenizer, watched, work, score)
    state = fit_language_model(policy, tokenizer, encode_rows(rows, tokenizer), recipe, work, *callbacks)
    hand_over(policy, tokenizer, callbacks, state, work)


def sample_best(
    recipe: RejectionRecipe,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Row],
    score: Score,
    work: Work,
) -> list[Row]:
    """The best completions of every prompt: rows with `messages`, the `score` and the mean score of all `samples`."""
    from tasks.models.chat import encode_prompt

    with Engine(recipe.engine, work) as engine:
        groups = engine.generate(
            model,
            tokenizer,
            [encode_prompt(tokenizer, row["prompt"]) for row in prompts],
            n=recipe.samples,
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            seed=work.seed,
            batch_size=recipe.decode_batch_size,
            progress=lambda done, total: work.progress(done, total, "prompts sampled"),
        )
    every = [(row["prompt"], each) for row, group in zip(prompts, groups, strict=True) for each in group]
    work.progress(0, 1, "scoring")
    scores = score([p for p, _ in every], [each.text for _, each in every], [each.finished for _, each in every])
    held = recipe.likelihood_coefficient
    sums = [value + held * sum(each.logprobs) for value, (_, each) in zip(scores, every, strict=True)]
    totals = iter(sums)
    rows: list[Row] = []
    for row, group in zip(prompts, groups, strict=True):
        scored = [(next(totals), each) for each in group]
        mean = sum(value for value, _ in scored) / len(scored)
        best = {each.text.strip(): value for value, each in sorted(scored, key=lambda it: it[0]) if each.finished}
        for text, value in sorted(best.items(), key=lambda it: -it[1])[: recipe.keep]:
            turns = [*row["prompt"], {"role": "assistant", "content": text}]
            rows.append({"messages": turns, "score": round(value, 4), "mean_of_samples": round(mean, 4)})
    work.log(
        {
            "sampled_score": sum(sums) / len(sums),
            "reward": sum(scores) / len(scores),
            "finished_share": _finished([each for _, each in every]),
        }
    )
    return rows


def _finished(completions: Sequence["Completion"]) -> float:
    return sum(each.finished for each in completions) / len(completions)
