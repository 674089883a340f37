"""Scores of a trained reward model, the same in training's evaluation, in reinforcement learning and in reports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.artifact import Message
from tasks.models.chat import encode_completion
from tasks.models.loading import device, load_reward_model
from tasks.training.engine_batches import pad

BATCH_TOKENS = 8192
"""Padded tokens in one forward pass."""


class RewardScorer:
    """A reward artifact, ready to score text: it is rendered with the reward model's own template and tokenizer."""

    def __init__(self, base: Path, reward: Path) -> None:
        self.model, self.tokenizer = load_reward_model(base, reward)
        self._scale: dict[str, float] = json.loads((reward / "reward.json").read_text())

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """One reward per completion, read at its last token: EOS for a finished one, as in training.

        An unfinished completion is scored as it was cut, without EOS.
        """
        sequences = []
        for prompt, text, whole in zip(prompts, completions, finished, strict=True):
            ids, answer = encode_completion(self.tokenizer, prompt, text, whole)
            sequences.append([*ids, *answer])
        return score_sequences(self.model, sequences, int(self.tokenizer.pad_token_id))  # type: ignore[arg-type]

    def normalised(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """Rewards with the mean 0 and deviation 1 that they have on the training completions."""
        mean, std = self._scale["mean"], self._scale["std"] or 1.0
        return [(score - mean) / std for score in self.score(prompts, completions, finished)]


@torch.no_grad()
def score_sequences(model: Any, sequences: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    """Rewards of sequences of ids in their order, computed in batches of similar length; the model is in eval mode."""
    scores = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    while order:
        count = max(1, BATCH_TOKENS // len(sequences[order[-1]]))
        batch, order = order[-count:], order[:-count]
        input_ids = pad([sequences[i] for i in batch], pad_id).to(device())
        for i, score in zip(batch, model(input_ids=input_ids, use_cache=False).logits[:, 0].tolist(), strict=True):
            scores[i] = score
    return scores
