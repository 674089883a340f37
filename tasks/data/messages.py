"""Turns of a conversation, as files have them under several names, in one form."""

import json
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
    "model": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
_SPEAKER, _SAID = ("role", "from", "speaker"), ("content", "value", "text")
_WEIGHTS = ("weight", "train", "training", "loss")
"""What says of an answer, by 0 or false, that it is not learnt from: OpenAI's key, and those of other trainers."""
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
    return numbered([_message(each) for turn in value for each in _apart(turn)])


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
