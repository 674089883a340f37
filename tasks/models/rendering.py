"""A conversation as text by a chat template, and where in it the assistant speaks.

A template may mark the assistant's text with {% generation %}. Without such markers the text of a turn begins where the
rendered prompt before it ends, and ends with the next EOS. Knows nothing about ids.
"""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.artifact import InputError, Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = list[tuple[int, int]]
"""Where the assistant's text lies, EOS included: (begin, end) in characters."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
REWRITTEN = (
    "A prompt's ids are not the beginning of its conversation's ids under this chat template; "
    'set chat_template = "default".'
)
UNENDED = (
    "The chat template does not end every assistant turn with the EOS token, so the model would never learn to stop; "
    'set chat_template = "default", or the path of a template that writes eos_token after the assistant\'s text.'
)
PROBE: list[Message] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good bye"},
]
_CALL = {"function": {"name": "probing", "arguments": '{"place": "probed"}'}, "id": "callprobe", "type": "function"}
_TOOL = {"type": "function", "function": {"name": "prober", "description": "It probes.", "parameters": {}}}
_TOOL_PROBE: list[Message] = [
    {"role": "user", "content": "Hello", "tools": json.dumps([_TOOL])},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "outcome", "name": "probing", "tool_call_id": "callprobe"},
    {"role": "assistant", "content": "Good bye"},
]


class RowRefused(InputError):
    """The chat template raises at one conversation: its author's rule, such as one tool call at a time."""


def marks_assistant(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template says, with {% generation %}, what of a conversation is the assistant's text."""
    return isinstance(tokenizer.chat_template, str) and bool(_GENERATION.search(tokenizer.chat_template))


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], generation_prompt: bool
) -> tuple[str, Spans]:
    """The rendered text and where the assistant's text lies in it.

    Raises `RowRefused` where the template refuses the conversation, `InputError` where it would leave tools or their
    calls out of any.
    """
    if _uses_tools(messages) and (reason := why_no_tools(tokenizer)):
        raise InputError(reason)
    return _rendered(tokenizer, messages, generation_prompt)


def why_unmarked(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Why the assistant's text cannot be told from the rest under the chat template; None where it can."""

    def probe() -> str | None:
        turns: list[dict[str, Any]] = [{**each} for each in PROBE]
        try:
            _spans(tokenizer, turns, None, _by_template(tokenizer, turns, None, False)[0], str(tokenizer.eos_token))
        except InputError as error:
            return str(error)
        return None

    return None if marks_assistant(tokenizer) else _once(tokenizer, "_unmarked", probe)


def why_no_tools(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Why the chat template cannot tell a conversation with tools; None where it can."""

    def probe() -> str | None:
        reason = 'set chat_template = "default", take a template that has tools, or leave such rows out.'
        try:
            text, spans = _rendered(tokenizer, _TOOL_PROBE, False)
        except InputError as error:
            return f"The chat template cannot tell tool calls ({error}); {reason}"
        called = text[slice(*spans[0])] if spans else text
        missing = [
            what
            for what, there in (
                ("the tools' definitions", "prober" in text),
                ("the assistant's tool calls", all(word in called for word in ("probing", "place", "probed"))),
                ("the tools' results", "outcome" in text),
            )
            if not there
        ]
        return f"The chat template leaves out {' and '.join(missing)}; {reason}" if missing else None

    return _once(tokenizer, "_no_tools", probe)


def plain(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """The text without strings the tokenizer would read as control tokens: what people and models write is text."""
    special = special_strings(tokenizer)
    while any(token in text for token in special):
        for token in special:
            text = text.replace(token, "")
    return text


def special_strings(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """All strings that the tokenizer reads as control tokens."""
    cached = getattr(tokenizer, "_control_strings", None)
    if cached is None or cached[0] != len(tokenizer):
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        cached = (len(tokenizer), tuple(sorted({*added, *tokenizer.all_special_tokens})))
        tokenizer._control_strings = cached  # type: ignore[attr-defined]
    return cached[1]


def _uses_tools(messages: Sequence[Message]) -> bool:
    return any("tools" in each or "tool_calls" in each or each["role"] == "tool" for each in messages)


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], generation_prompt: bool
) -> tuple[str, Spans]:
    turns: list[dict[str, Any]] = [_clean(tokenizer, each) for each in messages]
    tools = _plain_values(tokenizer, json.loads(messages[0].get("tools", "null"))) if messages else None
    if turns and turns[0]["role"] == "system" and not _knows_system(tokenizer):
        turns = _folded(turns)
    text, spans = _by_template(tokenizer, turns, tools, generation_prompt)
    eos = str(tokenizer.eos_token)
    if not marks_assistant(tokenizer):
        return text, _spans(tokenizer, turns, tools, text, eos) if why_unmarked(tokenizer) is None else []
    return text, [
        (begin, end if text[begin:end].endswith(eos) or not text.startswith(eos, end) else end + len(eos))
        for begin, end in spans
    ]


def _by_template(
    tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, Any]], tools: Any, generation_prompt: bool
) -> tuple[str, Spans]:
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    try:
        rendered: Any = render_jinja_template(
            conversations=[turns],
            tools=tools,
            chat_template=str(tokenizer.chat_template),
            return_assistant_tokens_mask=marks_assistant(tokenizer),
            add_generation_prompt=generation_prompt,
            **special,
        )
    except (TemplateError, TypeError) as error:  # the latter where a template adds None to a text
        raise RowRefused(f"The chat template refuses a row ({error}); mend the row or the template.") from error
    return str(rendered[0][0]), list(rendered[1][0]) if rendered[1] else []


def _spans(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, Any]], tools: Any, text: str, eos: str) -> Spans:
    """Each assistant turn from the end of the prompt before it to the next EOS, for a template without markers.

    Text of people and models holds no EOS (`plain`), so the next one is the template's.
    """
    begins: list[int] = []
    for place, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = _by_template(tokenizer, turns[:place], tools, True)[0]
            if not text.startswith(before):
                raise InputError(REWRITTEN)
            begins.append(len(before))
    ends = [text.find(eos, begin) + len(eos) for begin in begins]
    if any(end < begin + len(eos) for begin, end in zip(begins, ends, strict=True)) or any(
        end > begin for end, begin in zip(ends, begins[1:], strict=False)
    ):
        raise InputError(UNENDED)
    return list(zip(begins, ends, strict=True))


def _knows_system(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the template takes a system turn; Gemma's and older Mistral's raise an error."""

    def probe() -> bool:
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
        try:
            return "Be kind." in _by_template(tokenizer, turns, None, False)[0]
        except InputError:
            return False

    return _once(tokenizer, "_system_known", probe)


def _folded(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system turn's text before the first user turn's, where a template has no system role."""
    system, *others = turns
    if not others or others[0]["role"] != "user":
        return turns
    return [{**others[0], "content": f"{system['content']}\n\n{others[0]['content']}"}, *others[1:]]


def _clean(tokenizer: "PreTrainedTokenizerBase", message: Message) -> dict[str, Any]:
    """A message as templates take it: no control tokens in its text, the arguments of tool calls parsed."""
    turn: dict[str, Any] = {"role": message["role"], "content": plain(tokenizer, message["content"])}
    turn |= {key: plain(tokenizer, str(message.get(key))) for key in ("name", "tool_call_id") if key in message}
    if "tool_calls" in message:
        turn["tool_calls"] = [_plain_values(tokenizer, _parsed(call)) for call in message["tool_calls"]]
    return turn


def _parsed(call: Row) -> Row:
    return {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}


def _plain_values(tokenizer: "PreTrainedTokenizerBase", value: Any) -> Any:
    """The same structure with `plain` texts."""
    if isinstance(value, str):
        return plain(tokenizer, value)
    if isinstance(value, list):
        return [_plain_values(tokenizer, each) for each in value]
    if isinstance(value, dict):
        return {plain(tokenizer, key): _plain_values(tokenizer, each) for key, each in value.items()}
    return value


def _once(tokenizer: "PreTrainedTokenizerBase", name: str, find: Any) -> Any:
    """What `find` says about the tokenizer's present template and EOS, asked once."""
    state = (tokenizer.chat_template, tokenizer.eos_token)
    cached = getattr(tokenizer, name, None)
    if cached is None or cached[0] != state:
        cached = (state, find())
        setattr(tokenizer, name, cached)
    return cached[1]
