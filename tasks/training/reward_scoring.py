"""Scores of a trained reward model, the same in training's evaluation, in reinforcement learning and in reports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.artifact import Message
from tasks.models.chat import encode_completion
from tasks.models.loading import device, load_reward_model, positions, reads_last_token
from tasks.training.engine_batches import pad

BATCH_TOKENS = 8192
"""Padded tokens in one forward pass."""


class RewardScorer:
    """A reward artifact, ready to score text: it is rendered with the reward model's own template and tokenizer."""

    def __init__(self, base: Path, reward: Path) -> None:
        self.model, self.tokenizer = load_reward_model(base, reward)
        self._limit = positions(self.model)
        self._scale: dict[str, float] = json.loads((reward / "reward.json").read_text())

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """One reward per completion: a decoder's at the last token, an encoder's by its own pooling, as in training.

        A finished completion ends with EOS (an encoder's: with its separator), an unfinished one is scored as it was
        cut. Where both are longer than the model's positions, the prompt is cut from the left, see `shortened`.
        """
        sequences = []
        for prompt, text, whole in zip(prompts, completions, finished, strict=True):
            ids, answer = encode_completion(self.tokenizer, prompt, text, whole)
            sequences.append(shortened(ids, answer, self._limit, self.tokenizer.bos_token_id))
        return score_sequences(self.model, sequences, int(self.tokenizer.pad_token_id))  # type: ignore[arg-type]

    def normalised(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """Rewards with the mean 0 and deviation 1 that they have on the training completions."""
        mean, std = self._scale["mean"], self._scale["std"] or 1.0
        return [(score - mean) / std for score in self.score(prompts, completions, finished)]


def shortened(prompt: Sequence[int], completion: Sequence[int], limit: int | None, bos: Any) -> list[int]:
    """Prompt and completion as one sequence of at most `limit` ids. The prompt loses its oldest ids (BOS or CLS stay);
    only of a completion that is too long by itself the end is cut off, as sampling would have cut it."""
    if limit is None or len(prompt) + len(completion) <= limit:
        return [*prompt, *completion]
    first = [*prompt[:1]] if prompt[:1] == [bos] else []
    kept = completion[: limit - len(first)]
    left = limit - len(first) - len(kept)
    return [*first, *prompt[len(prompt) - left :], *kept]


def rewards_of(model: Any, input_ids: torch.Tensor, pad_id: int | None) -> torch.Tensor:
    """Rewards [rows] of ids [rows, length], padded on the right; the same in training and in scoring.

    pad_id: for encoders, which would attend to padding. A causal model, None, never does, and needs no mask.
    """
    if pad_id is None:
        return model(input_ids=input_ids, use_cache=False).logits[:, 0]
    return model(input_ids=input_ids, attention_mask=(input_ids != pad_id).long()).logits[:, 0]


@torch.no_grad()
def score_sequences(model: Any, sequences: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    """Rewards of sequences of ids in their order, computed in batches of similar length; the model is in eval mode."""
    scores = [0.0] * len(sequences)
    masked = None if reads_last_token(model) else pad_id
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    while order:
        count = max(1, BATCH_TOKENS // len(sequences[order[-1]]))
        batch, order = order[-count:], order[:-count]
        input_ids = pad([sequences[i] for i in batch], pad_id).to(device())
        for i, score in zip(batch, rewards_of(model, input_ids, masked).tolist(), strict=True):
            scores[i] = score
    return scores
