"""Prompts that leave room for their completions in the positions of a model; the others are left out, and told."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.artifact import InputError, Row, Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tasks.sampling.local import CausalLM


def with_room(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    max_new_tokens: int,
    limit: int | None,
    work: Work,
    kind: str,
) -> list[Row]:
    """The rows whose `prompt` and `max_new_tokens` more are within `limit` positions (None: nothing limits them).

    kind: what they are called where some are left out; their count is also the metric `KIND_prompts_too_long`. Raises
    `InputError` when there are rows and none has room.
    """
    from tasks.models.chat import encode_prompt

    if limit is None:
        return list(rows)
    lengths = [len(encode_prompt(tokenizer, row["prompt"])) for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length + max_new_tokens <= limit]
    over = len(rows) - len(kept)
    if not over:
        return kept
    shortest, most = min(lengths), max(lengths)
    if not kept:
        raise InputError(
            f"None of the {over} {kind} prompts ({shortest} to {most} tokens) leaves room for {max_new_tokens} tokens "
            f"in the model's {limit} positions; lower max_new_tokens, or shorten the prompts."
        )
    name = f"{kind}_prompts_too_long"
    work.log({name: over + work.metrics.get(name, 0)})
    work.notify(
        f"{over} of {len(rows)} {kind} prompts (the longest has {most} tokens) leave no room for {max_new_tokens} "
        f"tokens in the model's {limit} positions and are not used; lower max_new_tokens to use more of them."
    )
    return kept


def require_room(model: "CausalLM", prompt_ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise `InputError` where prompts and completions can be longer than the model's positions: some layouts fail
    there, others go on and say nothing of use."""
    from tasks.models.loading import positions

    limit, longest = positions(model), max(map(len, prompt_ids), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise InputError(
            f"The longest prompt ({longest} tokens) and max_new_tokens ({max_new_tokens}) are more than the model's "
            f"{limit} positions; lower max_new_tokens, or leave out the longest prompts."
        )
