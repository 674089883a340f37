"""Frozen features: what a language model makes of texts, for cheap models on top of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.artifact import Message
from tasks.models.chat import encode_completion, encode_prompt
from tasks.models.loading import batch_tokens, load_causal_lm, load_tokenizer, positions

MOST = 512
"""Wider hidden states are projected at random to so many dimensions, which about keeps distances (Johnson and
Lindenstrauss 1984)."""

Item = tuple[Sequence[Message], str | None, bool]
"""A prompt, a completion of it or None, and whether the completion ended by itself."""


def text_features(
    chain: Sequence[Path], items: Sequence[Item], progress: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.float64]:
    """The mean last hidden state over each completion's tokens, or over the prompt's where there is none.

    chain: the artifacts of the model, e.g. [base, sft]. Returns [items, hidden size, or `MOST` where that is less].
    """
    tokenizer, model = load_tokenizer(chain[0]), load_causal_lm(chain)
    sequences: list[tuple[list[int], int]] = []
    for prompt, text, finished in items:
        if text is None:
            sequences.append((encode_prompt(tokenizer, prompt), 0))
        else:
            ids, answer = encode_completion(tokenizer, prompt, text, finished)
            # an empty completion that was cut has no token; the prompt's last stands for it
            sequences.append(([*ids, *answer], len(ids) if answer else len(ids) - 1))
    return _means(model, sequences, progress)


@torch.no_grad()
def _means(
    model: Any, sequences: Sequence[tuple[list[int], int]], progress: Callable[[int, int], None]
) -> NDArray[np.float64]:
    body = getattr(model, model.base_model_prefix)
    limit = positions(model)
    width = int(model.config.get_text_config().hidden_size)
    projection = None
    if width > MOST:
        projection = np.random.default_rng(0).standard_normal((width, MOST)) / np.sqrt(MOST)
    found = np.zeros((len(sequences), min(width, MOST)))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    while order:
        batch = order[-max(1, batch_tokens() // len(sequences[order[-1]][0])) :]
        order = order[: -len(batch)]
        longest = min(len(sequences[batch[-1]][0]), limit or len(sequences[batch[-1]][0]))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)  # what follows a text is not seen from it
        own = torch.zeros(len(batch), longest)
        for row, place in enumerate(batch):
            tokens, start = sequences[place]
            tokens, start = tokens[-longest:], max(0, start - max(0, len(tokens) - longest))
            ids[row, : len(tokens)] = torch.tensor(tokens)
            own[row, start : len(tokens)] = 1.0
        hidden = body(input_ids=ids.to(model.device), use_cache=False).last_hidden_state.float()
        means = torch.einsum("rtd,rt->rd", hidden, (own / own.sum(1, keepdim=True)).to(hidden.device))
        values = means.cpu().numpy().astype(float)
        found[batch] = values if projection is None else values @ projection
        progress(len(sequences) - len(order), len(sequences))
    return found
