"""Conversations as token ids: one chat template for training, sampling and scoring.

A rendered conversation is cut where the assistant's text begins and ends, and each piece is tokenised by itself. So the
prompt's ids are a prefix of the conversation's ids for every tokenizer, and no merge reaches over the border.
Knows nothing about models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.artifact import InputError, Message, Row
from tasks.models.rendering import PROBE, REWRITTEN, UNENDED, render, why_unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids; `labels_mask` is 1 on the assistant's tokens, the EOS that ends each turn included, but
    for turns of weight 0."""

    input_ids: list[int]
    labels_mask: list[int]


def encode_conversation(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> Encoded:
    """Ids and assistant mask of a conversation; what the template puts after a final assistant turn is left out.

    Raises `InputError` when BOS is doubled or an assistant turn does not end with EOS.
    """
    text, spans = render(tokenizer, messages, generation_prompt=False)
    if messages and messages[-1]["role"] == "assistant" and spans:
        text = text[: spans[-1][1]]
    input_ids, turn = _tokenise(tokenizer, text, spans)
    said = [message for message in messages if message["role"] == "assistant"]
    _check(tokenizer, input_ids, turn, expected=len(said))
    learnt = [0, *(int("weight" not in message) for message in said)]
    return Encoded(input_ids, [learnt[place] for place in turn])


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Ids of the prompt with the generation prompt added: what a policy continues, and a prefix of the conversation."""
    text, spans = render(tokenizer, messages, generation_prompt=True)
    return _tokenise(tokenizer, text, spans)[0]


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[Message],
    completion: str,
    finished: bool = True,
    calls: Sequence[Row] = (),
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of one completion of it, with the tools it calls; only a finished one ends with EOS.

    Under a reward model's template that does not end turns with EOS, a finished completion ends as it closes a turn.
    Raises `InputError` where the template rewrites the prompt once it is answered.
    """
    if why_unmarked(tokenizer):
        return _encode_unmarked(tokenizer, prompt, _answer(completion, calls), finished)
    prompt_ids = encode_prompt(tokenizer, prompt)
    whole = encode_conversation(tokenizer, [*prompt, _answer(completion, calls)]).input_ids
    if whole[: len(prompt_ids)] != prompt_ids:
        raise InputError(REWRITTEN)
    answer = whole[len(prompt_ids) :]
    return prompt_ids, answer if finished else answer[:-1]


def _answer(completion: str, calls: Sequence[Row]) -> Message:
    answer: Message = {"role": "assistant", "content": completion}
    return {**answer, "tool_calls": list(calls)} if calls else answer


def _encode_unmarked(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], answered: Message, finished: bool
) -> tuple[list[int], list[int]]:
    before, text = _turn(tokenizer, prompt, answered)
    closing = closing_of(tokenizer)
    if not text.endswith(closing):
        raise InputError(REWRITTEN)
    answer, _ = _tokenise(tokenizer, text[: len(text) - len(closing)], [])
    ending = _tokenise(tokenizer, closing.rstrip(), [])[0] if finished else []
    return _tokenise(tokenizer, before, [])[0], [*answer, *ending]


def _turn(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], answer: Message) -> tuple[str, str]:
    """The rendered prompt, and what an answer adds to it."""
    before, _ = render(tokenizer, prompt, True)
    whole, _ = render(tokenizer, [*prompt, answer], False)
    if not whole.startswith(before):
        raise InputError(REWRITTEN)
    return before, whole[len(before) :]


def closing_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the template writes after an assistant's text.

    Raises `InputError` where that is nothing: a cut answer would look like a finished one.
    """
    cached = getattr(tokenizer, "_closing", None)
    if cached is None or cached[0] != tokenizer.chat_template:
        answer = "[[answer]]"
        _, text = _turn(tokenizer, PROBE[:1], _answer(answer, ()))
        cached = (tokenizer.chat_template, text.rpartition(answer)[2])
        tokenizer._closing = cached  # type: ignore[attr-defined]
    if not cached[1].strip():
        raise InputError(
            "The chat template writes nothing after an answer, so a cut answer would look like a finished one; "
            'set chat_template = "default".'
        )
    return cached[1]


def _tokenise(
    tokenizer: "PreTrainedTokenizerBase", text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Ids, and of each the number of the span that it lies in, counted from 1; 0 outside."""
    pieces: list[tuple[str, int]] = []
    position = 0
    for place, (begin, end) in enumerate([span for span in spans if span[1] > span[0]], 1):
        pieces += [(text[position:begin], 0), (text[begin:end], place)]
        position = end
    pieces = [(piece, mark) for piece, mark in [*pieces, (text[position:], 0)] if piece]
    if not pieces:
        return [], []
    encoded = _ids(tokenizer, [piece for piece, _ in pieces])
    input_ids: list[int] = []
    mask: list[int] = []
    for ids, (_, mark) in zip(encoded, pieces, strict=True):
        input_ids += ids
        mask += [mark] * len(ids)
    return input_ids, mask


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """What `tokenizer(texts, add_special_tokens=False)` gives, without what it costs beside the work on short texts."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.padding is not None or backend.truncation is not None:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]
    return [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]


def _check(tokenizer: "PreTrainedTokenizerBase", input_ids: list[int], turn: list[int], expected: int) -> None:
    bos: Any = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    template = str(tokenizer.chat_template)
    if bos is not None and input_ids.count(bos) > 1 and str(tokenizer.bos_token) not in template and bos != eos:
        raise InputError("The chat template writes the BOS token more than once; write it once, at the beginning.")
    if "bos_token" in template and bos is not None and input_ids[:1] != [bos]:
        raise InputError("The chat template uses the BOS token but does not begin with it; write it once, first.")
    ends = [i for i, place in enumerate(turn) if place and (i + 1 == len(turn) or turn[i + 1] != place)]
    if len(ends) != expected or any(input_ids[i] != eos for i in ends):
        raise InputError(UNENDED)
