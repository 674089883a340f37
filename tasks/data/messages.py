"""Turns of a conversation, as files have them under several names, in one form."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.artifact import InputError, Message
from tasks.data.rows import BadRow
from tasks.data.tools import numbered, text_of_parts, tool_message

_ROLES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
_SPEAKER, _SAID = ("role", "from", "speaker"), ("content", "value", "text")
_WEIGHTS = ("weight", "train", "training", "loss")
"""What says of an answer, by 0 or false, that it is not learnt from: OpenAI's key, and those of other trainers."""
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_EXCHANGE = (
    ("input", "human", "user", "prompt", "question", "instruction"),
    ("output", "assistant", "gpt", "bot", "response", "answer"),
)


def messages_of(value: Any, role: str) -> list[Message]:
    """Text of a role, one message or several, as messages. Raises `BadRow`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRow("has no prompt" if value == [] else "holds neither text nor messages")
    if all(isinstance(turn, str) for turn in value):  # LIMA's turns
        value = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(value)]
    if not all(isinstance(turn, dict) for turn in value):
        raise BadRow("holds neither text nor messages")
    found = [_message(each) for turn in value for each in _apart(turn)]
    if any(turn["role"] == "tool" for turn in found):
        found = [_with_written_calls(turn) for turn in found]
    return numbered(found)


def _with_written_calls(turn: Message) -> Message:
    """A turn with the calls that stand in its text, as Hermes writes them, where a tool answers in the conversation."""
    written = _CALL.findall(turn["content"])
    if turn["role"] != "assistant" or "tool_calls" in turn or not written:
        return turn
    try:
        called = tool_message({"role": "assistant", "tool_calls": [json.loads(each) for each in written]})
    except (InputError, ValueError, RecursionError) as error:
        raise BadRow("has a tool call that is not JSON") from error
    text = _CALL.sub("", turn["content"]).strip()
    return {**turn, "content": text, "tool_calls": (called or turn).get("tool_calls", [])}


def talk_of(value: Any) -> list[Message]:
    """A conversation: messages, perhaps as JSON text. Raises `BadRow`."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow("has messages that are not JSON") from error
    return messages_of(value, "user")


def _apart(turn: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The turns of an exchange, question and answer in one; any other turn as it is."""
    if _first(turn, _SPEAKER) is None:
        asked, answered = (_first(turn, names) for names in _EXCHANGE)
        if asked is not None and answered is not None:
            yield {"role": "user", "content": asked}
            yield {"role": "assistant", "content": answered}
            return
    yield turn


def _message(turn: Mapping[str, Any]) -> Message:
    speaker, said = _first(turn, _SPEAKER), _first(turn, _SAID)
    if said is None and isinstance(turn.get("parts"), list):  # Gemini's
        said = [{"type": "text", **part} if isinstance(part, dict) else part for part in turn["parts"]]
    turn = {**turn, "role": speaker.casefold() if isinstance(speaker, str) else speaker, "content": said}
    try:
        message = tool_message(turn)
    except InputError as error:
        raise BadRow(str(error)) from error
    if message is None:
        role, content = _ROLES.get(turn["role"]) if isinstance(speaker, str) else None, text_of_parts(said)
        if role is None or not isinstance(content, str):
            raise BadRow("has a message that is not text of system, user, assistant or tool")
        message = Message(role=role, content=content)
    if message["role"] == "assistant" and any(turn.get(name) in _NOT for name in _WEIGHTS):
        message["weight"] = 0
    return message


_NOT = (0, False)


def _first(turn: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)
