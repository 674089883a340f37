"""Scores of a trained reward model, the same in training's evaluation, in reinforcement learning and in reports."""

import filecmp
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.artifact import Message, below
from tasks.models.chat import encode_completion
from tasks.models.loading import batch_tokens, device, load_reward_model, positions, reads_last_token
from tasks.training.engine_batches import pad
from tasks.training.reward_heads import Scale, of_criteria, of_ensemble
from tasks.training.rewards import ModelReward


class RewardScorer:
    """A reward artifact, ready to score text: it is rendered with the reward model's own template and tokenizer."""

    def __init__(self, base: Path, reward: Path, start: PreTrainedModel | None = None) -> None:
        """start: the model under the reward's adapter, if it is loaded already (`started_alike`): its weights are
        shared, and the adapter stays apart from them."""
        self.model, self.tokenizer = load_reward_model(base, reward, start)
        self.scale = Scale.read(json.loads((reward / "reward.json").read_text()))
        self._limit = positions(self.model)

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """The ranking's reward of each completion, the mean of its members."""
        return self.values(prompts, completions, finished)[:, 0].mean(-1).tolist()

    def values(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str], finished: Sequence[bool]
    ) -> np.ndarray:
        """Rewards [completions, criteria, members]: a decoder's at the last token, an encoder's by its own pooling.

        A finished completion ends with EOS (an encoder's: with its separator), an unfinished one is scored as it was
        cut. Where both are longer than the model's positions, the prompt is cut from the left, see `shortened`.
        """
        sequences = []
        for prompt, text, whole in zip(prompts, completions, finished, strict=True):
            ids, answer = encode_completion(self.tokenizer, prompt, text, whole)
            sequences.append(shortened(ids, answer, self._limit, self.tokenizer.bos_token_id))
        pad_id = int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
        return self.scale.heads.apart(score_heads(self.model, sequences, pad_id))

    def normalised(
        self,
        prompts: Sequence[Sequence[Message]],
        completions: Sequence[str],
        finished: Sequence[bool],
        term: ModelReward | None = None,
    ) -> list[float]:
        """Rewards with the mean 0 and deviation 1 that each head has on the training completions, combined as a term
        says; by default the ranking's, the mean of its members."""
        term = term or ModelReward()
        values = self.scale.normalised(self.values(prompts, completions, finished))
        each = of_ensemble(values, term.ensemble, term.penalty)
        heads = self.scale.heads
        return of_criteria(each, heads, term.criteria, term.combine, term.at_least, term.shortfall).tolist()


def started_alike(inputs: Mapping[str, Path]) -> bool:
    """Whether a stage's reward model is an adapter on the very model that its policy starts from: on the same SFT
    adapter, to the byte."""
    if below(inputs) != ("base", "sft"):
        return False
    ours, theirs = inputs["reward"] / "start" / "adapter", inputs["sft"] / "adapter"
    names = ("adapter_config.json", "adapter_model.safetensors")
    return (
        (inputs["reward"] / "adapter").is_dir()
        and all((ours / name).is_file() and (theirs / name).is_file() for name in names)
        and all(filecmp.cmp(ours / name, theirs / name, shallow=False) for name in names)
    )


def shortened(prompt: Sequence[int], completion: Sequence[int], limit: int | None, bos: Any) -> list[int]:
    """Prompt and completion as one sequence of at most `limit` ids. The prompt loses its oldest ids (BOS or CLS stay);
    only of a completion that is too long by itself the end is cut off, as sampling would have cut it."""
    if limit is None or len(prompt) + len(completion) <= limit:
        return [*prompt, *completion]
    first = [*prompt[:1]] if prompt[:1] == [bos] else []
    kept = completion[: limit - len(first)]
    left = limit - len(first) - len(kept)
    return [*first, *prompt[len(prompt) - left :], *kept]


def outputs(model: Any, input_ids: torch.Tensor, pad_id: int | None) -> torch.Tensor:
    """What each head gives, [rows, heads], to ids [rows, length] padded on the right; in training as in scoring.

    pad_id: for encoders, which would attend to padding. A causal model, None, never does, and needs no mask.
    """
    if pad_id is None:
        return model(input_ids=input_ids, use_cache=False).logits
    return model(input_ids=input_ids, attention_mask=(input_ids != pad_id).long()).logits


@torch.no_grad()
def score_heads(model: Any, sequences: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """What each head gives to sequences of ids, [sequences, heads] in their order; computed in batches of similar
    length, the model in eval mode."""
    scores = np.zeros((len(sequences), model.config.num_labels))
    masked = None if reads_last_token(model) else pad_id
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    while order:
        count = max(1, batch_tokens() // len(sequences[order[-1]]))
        batch, order = order[-count:], order[:-count]
        input_ids = pad([sequences[i] for i in batch], pad_id).to(device())
        scores[batch] = outputs(model, input_ids, masked).double().cpu().numpy()
    return scores
