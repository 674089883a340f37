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
    """The rows whose `prompt` and `max_new_tokens` more are within `limit` positions (None: nothing limits them), and
    that the chat template does not refuse.

    kind: what they are called where some are left out; their counts are also the metrics `KIND_prompts_too_long` and
    `KIND_prompts_refused`. Raises `InputError` when there are rows and none can be used.
    """
    lengths, refused = prompt_lengths(rows, tokenizer)
    fits = [length is not None and (limit is None or length + max_new_tokens <= limit) for length in lengths]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    known = [length for length in lengths if length is not None]
    over = len(known) - len(kept)
    if refused:
        if not known:
            raise InputError(
                f"The chat template refuses all {len(rows)} {kind} prompts (the first: {refused[0]}); mend them, or "
                "set another chat_template."
            )
        _count(f"{kind}_prompts_refused", len(refused), work)
        work.notify(
            f"The chat template refuses {len(refused)} of {len(rows)} {kind} prompts (the first: {refused[0]}), which "
            "are not used; mend them, or set another chat_template."
        )
    if not over:
        return kept
    if not kept:
        raise InputError(
            f"None of the {over} {kind} prompts ({min(known)} to {max(known)} tokens) leaves room for {max_new_tokens} "
            f"tokens in the model's {limit} positions; lower max_new_tokens, or shorten the prompts."
        )
    _count(f"{kind}_prompts_too_long", over, work)
    work.notify(
        f"{over} of {len(rows)} {kind} prompts (the longest has {max(known)} tokens) leave no room for "
        f"{max_new_tokens} tokens in the model's {limit} positions and are not used; lower max_new_tokens to use more "
        "of them."
    )
    return kept


def prompt_lengths(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int | None], list[str]]:
    """Tokens of each row's `prompt`, None where the chat template refuses it, and the reasons it has."""
    from tasks.models.chat import encode_prompt
    from tasks.models.rendering import RowRefused

    lengths: list[int | None] = []
    refused: list[str] = []
    for row in rows:
        try:
            lengths.append(len(encode_prompt(tokenizer, row["prompt"])))
        except RowRefused as error:
            lengths.append(None)
            refused.append(str(error.__cause__))
    return lengths, refused


def _count(name: str, more: int, work: Work) -> None:
    work.log({name: more + work.metrics.get(name, 0)})


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
