"""Tools in conversations: OpenAI's messages and ShareGPT's `function_call` and `observation` turns, in one form.

That form is OpenAI's: `tool_calls` on an assistant's message, with arguments as JSON text, and messages of the role
`tool`. The tools there are stand on the first message, as JSON text too: in text the order of a schema's keys is kept.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifact import InputError, Message, Row

_RESULT = ("tool", "observation", "function", "function_response")
_CALL = "function_call"
_FUNCTION = "function"
NEXT = {"user": {"assistant", "call"}, "assistant": {"user"}, "call": {"tool"}, "tool": {"tool", "assistant", "call"}}
"""What kind of turn may follow which; see `kind_of`."""


def text_of_parts(content: Any) -> Any:
    """OpenAI's content parts as one text, where all of them are text; anything else as it is."""
    parts = content if isinstance(content, list) and content else [None]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content


def tool_message(turn: Mapping[str, Any]) -> Message | None:
    """A turn that calls a tool or holds its result; None for any other. Raises `InputError` for a garbled one."""
    speaker = turn.get("role", turn.get("from"))
    content = text_of_parts(turn.get("content", turn.get("value")))
    if speaker in _RESULT:
        message: Message = {"role": "tool", "content": content if isinstance(content, str) else _text(content)}
        if isinstance(turn.get("tool_call_id"), str):
            message["tool_call_id"] = turn["tool_call_id"]
        if isinstance(turn.get("name"), str):
            message["name"] = turn["name"]
        return message
    if speaker == _CALL:
        called = _parsed(content)
        return {"role": "assistant", "content": "", "tool_calls": _calls(called)}
    if speaker in ("assistant", "gpt") and (called := turn.get("tool_calls") or turn.get(_CALL)):
        text = content if isinstance(content, str) else ""
        return {"role": "assistant", "content": text, "tool_calls": _calls(called)}
    return None


def numbered(messages: Sequence[Message]) -> list[Message]:
    """The messages with an id on every call that has none, and on every result that of the call it answers."""
    count, open_calls, done = 0, [], []
    for message in messages:
        if "tool_calls" in message:
            calls = [{"id": f"call{count + place:05d}", **call} for place, call in enumerate(message["tool_calls"])]
            count += len(calls)
            open_calls = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and "tool_call_id" not in message and open_calls:
            message = {**message, "tool_call_id": open_calls.pop(0)}
        done.append(message)
    return done


def with_tools(row: Row, prompt: list[Message]) -> list[Message]:
    """The prompt with the row's `tools` (or `functions`) on its first message. Raises `InputError` for garbled ones."""
    tools = _parsed(row.get("tools") or row.get("functions") or [])
    if not tools or not prompt:
        return prompt
    if not isinstance(tools, list):
        raise InputError("has tools that are not function schemas")
    bare = [not (isinstance(each, dict) and _FUNCTION in each) for each in tools]
    schemas = [{"type": _FUNCTION, _FUNCTION: each} if one else each for each, one in zip(tools, bare, strict=True)]
    if not all(isinstance(each[_FUNCTION], dict) and isinstance(each[_FUNCTION].get("name"), str) for each in schemas):
        raise InputError("has tools that are not function schemas")
    return [{**prompt[0], "tools": _text(schemas)}, *prompt[1:]]


def kind_of(message: Message) -> str:
    """The role, and "call" for an assistant's turn that calls tools."""
    return "call" if "tool_calls" in message else message["role"]


def with_calls(text: str, calls: Sequence[Row]) -> str:
    """What a turn says and the tools that it calls, each with its arguments, as one text."""
    called = [f"{call[_FUNCTION]['name']} {call[_FUNCTION]['arguments']}" for call in calls]
    return "\n".join([text, *called] if text else called)


def text_of(message: Message) -> str:
    """A turn with its calls as one text."""
    return with_calls(message["content"], message.get("tool_calls", []))


def _calls(called: Any) -> list[Row]:
    calls = []
    for each in called if isinstance(called, list) else [called]:
        function = each.get(_FUNCTION, each) if isinstance(each, dict) else {}
        name, arguments = function.get("name"), function.get("arguments", function.get("parameters", {}))
        if not isinstance(name, str):
            raise InputError("has a tool call without a name")
        arguments = _parsed(arguments or "{}")
        if not isinstance(arguments, dict):
            raise InputError("has a tool call whose arguments are not a JSON object")
        call: Row = {"type": _FUNCTION, _FUNCTION: {"name": name, "arguments": _text(arguments)}}
        calls.append({**call, "id": each["id"]} if isinstance(each.get("id"), str) else call)
    return calls


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InputError("has tools or tool calls that are not JSON") from error


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
