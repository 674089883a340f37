"""Beam search by transformers' `generate`: the n most likely continuations it finds, instead of n samples."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tasks.sampling.layouts import batches_of
from tasks.sampling.local import Completion, Progress, entries_of, output_layer
from tasks.sampling.room import require_room


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    n: int,
    max_new_tokens: int,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[list[Completion]]:
    """n different completions for each prompt, the likeliest per token first; `batch_size` counts beams.

    Prompts of like length are searched together, padded on the left.
    """
    require_room(model, prompt_ids, max_new_tokens)
    own = model.generation_config
    model.generation_config = GenerationConfig()  # its penalties and the like would change what is likely
    try:
        return _searched(model, tokenizer, prompt_ids, n, max_new_tokens, max(1, batch_size // n), progress)
    finally:
        model.generation_config = own


def _searched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    n: int,
    max_new_tokens: int,
    size: int,
    progress: Progress | None,
) -> list[list[Completion]]:
    """`size` prompts at a time."""
    found: dict[int, list[Completion]] = {}
    eos, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    beyond = list(range(entries_of(tokenizer), output_layer(model).weight.shape[0]))
    for places in batches_of(model, prompt_ids, size):
        width = len(prompt_ids[places[0]])
        rows = [[pad] * (width - len(prompt_ids[i])) + list(prompt_ids[i]) for i in places]
        seen = [[0] * (width - len(prompt_ids[i])) + [1] * len(prompt_ids[i]) for i in places]
        searched: Any = model.generate(  # type: ignore[operator]  # the library's mixin
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            max_new_tokens=max_new_tokens, num_beams=n, num_return_sequences=n, do_sample=False,
            eos_token_id=eos, pad_token_id=pad, return_dict_in_generate=True, output_scores=True,
            suppress_tokens=beyond or None,
        )  # fmt: skip
        scores = model.compute_transition_scores(  # type: ignore[operator]
            searched.sequences, searched.scores, searched.beam_indices, normalize_logits=False
        )
        for row, place in enumerate(place for place in places for _ in range(n)):
            ids = searched.sequences[row, width:].tolist()
            ids = ids[: ids.index(eos) + 1] if eos in ids else ids
            text = tokenizer.decode(ids, skip_special_tokens=True)
            done = Completion(ids, str(text), ids[-1:] == [eos], scores[row, : len(ids)].tolist())
            found.setdefault(place, []).append(done)
        if progress is not None:
            progress(len(found), len(prompt_ids))
    return [found[place] for place in range(len(prompt_ids))]
