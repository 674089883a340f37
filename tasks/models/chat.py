"""Conversations as token ids: one chat template for training, sampling and scoring.

A rendered conversation is cut where the assistant's text begins and ends, and each piece is tokenised by itself. So the
prompt's ids are a prefix of the conversation's ids for every tokenizer, and no merge reaches over the border.
Knows nothing about models.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.artifact import InputError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
REWRITTEN = (
    "A prompt's ids are not the beginning of its conversation's ids under this chat template; "
    'set chat_template = "default".'
)
PROBE: list[Message] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good bye"},
]


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids; `labels_mask` is 1 on the assistant's tokens, the EOS that ends each turn included."""

    input_ids: list[int]
    labels_mask: list[int]


def encode_conversation(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> Encoded:
    """Ids and assistant mask of a conversation; what the template puts after a final assistant turn is left out.

    Raises `InputError` when BOS is doubled or an assistant turn does not end with EOS.
    """
    text, spans = render(tokenizer, messages, generation_prompt=False)
    if messages and messages[-1]["role"] == "assistant" and spans:
        text = text[: spans[-1][1]]
    input_ids, mask = _tokenise(tokenizer, text, spans)
    _check(tokenizer, input_ids, mask, expected=sum(message["role"] == "assistant" for message in messages))
    return Encoded(input_ids, mask)


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Ids of the prompt with the generation prompt added: what a policy continues, and a prefix of the conversation."""
    text, spans = render(tokenizer, messages, generation_prompt=True)
    return _tokenise(tokenizer, text, spans)[0]


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], completion: str, finished: bool = True
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of one completion of it; only a finished completion ends with EOS.

    Under a template that does not mark the assistant's text, a finished completion ends as the template closes a turn.
    Raises `InputError` where the template rewrites the prompt once it is answered.
    """
    if not marks_assistant(tokenizer):
        return _encode_unmarked(tokenizer, prompt, completion, finished)
    prompt_ids = encode_prompt(tokenizer, prompt)
    whole = encode_conversation(tokenizer, [*prompt, {"role": "assistant", "content": completion}]).input_ids
    if whole[: len(prompt_ids)] != prompt_ids:
        raise InputError(REWRITTEN)
    answer = whole[len(prompt_ids) :]
    return prompt_ids, answer if finished else answer[:-1]


def _encode_unmarked(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], completion: str, finished: bool
) -> tuple[list[int], list[int]]:
    before, text = _turn(tokenizer, prompt, completion)
    closing = closing_of(tokenizer)
    if not text.endswith(closing):
        raise InputError(REWRITTEN)
    answer, _ = _tokenise(tokenizer, text[: len(text) - len(closing)], [])
    ending = _tokenise(tokenizer, closing.rstrip(), [])[0] if finished else []
    return _tokenise(tokenizer, before, [])[0], [*answer, *ending]


def _turn(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], completion: str) -> tuple[str, str]:
    """The rendered prompt, and what an answer adds to it."""
    before, _ = render(tokenizer, prompt, True)
    whole, _ = render(tokenizer, [*prompt, {"role": "assistant", "content": completion}], False)
    if not whole.startswith(before):
        raise InputError(REWRITTEN)
    return before, whole[len(before) :]


def closing_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What a template that does not mark the assistant's text writes after it.

    Raises `InputError` where that is nothing: a cut answer would look like a finished one.
    """
    cached = getattr(tokenizer, "_closing", None)
    if cached is None or cached[0] != tokenizer.chat_template:
        answer = "[[answer]]"
        _, text = _turn(tokenizer, PROBE[:1], answer)
        cached = (tokenizer.chat_template, text.rpartition(answer)[2])
        tokenizer._closing = cached  # type: ignore[attr-defined]
    if not cached[1].strip():
        raise InputError(
            "The chat template writes nothing after an answer, so a cut answer would look like a finished one; "
            'set chat_template = "default".'
        )
    return cached[1]


def marks_assistant(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template says, with {% generation %}, what of a conversation is the assistant's text."""
    return isinstance(tokenizer.chat_template, str) and bool(_GENERATION.search(tokenizer.chat_template))


def plain(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """The text without strings the tokenizer would read as control tokens: what people and models write is text."""
    special = _special_strings(tokenizer)
    while any(token in text for token in special):
        for token in special:
            text = text.replace(token, "")
    return text


def _special_strings(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    cached = getattr(tokenizer, "_control_strings", None)
    if cached is None or cached[0] != len(tokenizer):
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        cached = (len(tokenizer), tuple(sorted({*added, *tokenizer.all_special_tokens})))
        tokenizer._control_strings = cached  # type: ignore[attr-defined]
    return cached[1]


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], generation_prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and where the assistant's text lies in it, (begin, end) in characters."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    clean = [{"role": message["role"], "content": plain(tokenizer, message["content"])} for message in messages]
    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    try:
        rendered: Any = render_jinja_template(
            conversations=[clean],
            chat_template=str(tokenizer.chat_template),
            return_assistant_tokens_mask=marks_assistant(tokenizer),
            add_generation_prompt=generation_prompt,
            **special,
        )
    except TemplateError as error:
        raise InputError(f"The chat template refuses a row ({error}); mend the row or the template.") from error
    text, spans = str(rendered[0][0]), rendered[1][0] if rendered[1] else []
    eos = str(tokenizer.eos_token)
    return text, [
        (begin, end if text[begin:end].endswith(eos) or not text.startswith(eos, end) else end + len(eos))
        for begin, end in spans
    ]


def _tokenise(
    tokenizer: "PreTrainedTokenizerBase", text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    pieces: list[tuple[str, int]] = []
    position = 0
    for begin, end in spans:
        pieces += [(text[position:begin], 0), (text[begin:end], 1)]
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


def _check(tokenizer: "PreTrainedTokenizerBase", input_ids: list[int], mask: list[int], expected: int) -> None:
    bos: Any = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    template = str(tokenizer.chat_template)
    if bos is not None and input_ids.count(bos) > 1 and str(tokenizer.bos_token) not in template and bos != eos:
        raise InputError("The chat template writes the BOS token more than once; write it once, at the beginning.")
    if "bos_token" in template and bos is not None and input_ids[:1] != [bos]:
        raise InputError("The chat template uses the BOS token but does not begin with it; write it once, first.")
    ends = [i for i, mark in enumerate(mask) if mark and (i + 1 == len(mask) or not mask[i + 1])]
    if len(ends) != expected or any(input_ids[i] != eos for i in ends):
        raise InputError(
            "The chat template does not end every assistant turn with the EOS token inside {% generation %}, so the "
            'model would never learn to stop; set chat_template = "default".'
        )
