"""Losses of completions under a language model, with and without their prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.artifact import InputError, Message
from tasks.data.rows import Example
from tasks.models.chat import encode_completion
from tasks.models.loading import batch_tokens, load_causal_lm, load_tokenizer, positions
from tasks.models.templates import prepare_tokenizer
from tasks.training.engine_batches import completion_logps, pad


class Scorer:
    """A model that tells the mean loss per token (nats) of completions."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = prepare_tokenizer(load_tokenizer(folder))
        self.model = load_causal_lm([folder])
        self.longest = positions(self.model) or 1 << 20

    def losses(self, examples: Sequence[Example], alone: bool, on_batch: Callable[[int], None]) -> np.ndarray:
        """The loss of each example's completion, its EOS included: after its prompt, or `alone` after BOS.

        A tokenizer without BOS has nothing before the first token of a completion alone, so that token counts in
        neither: both are means over the same tokens (Li et al. 2024).

        What is longer than the model can take is cut: a prompt from the left, a completion from the right. NaN where
        there is no completion to tell the loss of.
        """
        rows = [self._row(example, alone) if example.completions else ([], 0) for example in examples]
        found = np.full(len(rows), np.nan)
        places = sorted((i for i, (ids, _) in enumerate(rows) if ids), key=lambda i: len(rows[i][0]))
        while places:
            width = max(batch_tokens() // max(len(rows[places[-1]][0]), 1), 1)
            batch, places = places[-width:], places[:-width]  # the longest first, so a lack of memory shows at once
            summed, counted = self._logps([rows[i] for i in batch])
            found[batch] = (-summed / counted).cpu().numpy()
            on_batch(len(batch))
        return found

    def _row(self, example: Example, alone: bool) -> tuple[list[int], int]:
        """Ids, and from where on the loss counts."""
        try:
            prompt, text = example.prompt or _NOTHING, example.completions[0]
            before, answer = encode_completion(self.tokenizer, prompt, text, calls=example.calls)
        except InputError:
            return [], 0
        start = self.tokenizer.bos_token_id
        prompt = before if not alone and example.prompt else ([] if start is None else [int(start)])  # type: ignore[arg-type]
        answer = answer[: self.longest - 1]
        prompt = prompt[-(self.longest - len(answer)) :]
        begin = len(prompt) + (start is None)
        ids = [*prompt, *answer]
        return (ids, begin) if len(ids) > begin else ([], 0)

    @torch.inference_mode()
    def _logps(self, rows: Sequence[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.model.parameters()).device
        ids = pad([row for row, _ in rows], int(self.tokenizer.pad_token_id)).to(device)  # type: ignore[arg-type]
        mask = pad([[int(place >= begin) for place in range(len(row))] for row, begin in rows], 0).bool().to(device)
        head: Any = self.model.get_output_embeddings()
        return completion_logps(self.model, head, ids, mask)


_NOTHING: list[Message] = [{"role": "user", "content": "."}]
