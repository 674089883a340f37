"""Rows of a user's file, in any of the usual forms, as prompts with or without a completion.

Understood: `messages` (or ShareGPT's `conversations`), `prompt` with or without `completion` (text or messages),
Alpaca's `instruction`/`input`/`output`, self-instruct's `instances`, hh-rlhf transcripts, preference rows (`chosen` is
the answer), `question`/`answer`, FLAN's `inputs`/`targets`, MT-Bench's `turns`, and any columns at all when the recipe
gives templates for them.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tasks.artifact import InputError, Message, Row, iterate_jsonl
from tasks.data.preference_formats import SPEAKERS, TURN
from tasks.data.templates import ChatTemplate, choose, converse
from tasks.data.tools import NEXT, kind_of, numbered, text_of_parts, tool_message, with_calls, with_tools

_ROLES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Example:
    """A prompt from outside, with what is known about it."""

    prompt: list[Message]
    completions: list[str] = field(default_factory=list)
    """Demonstrated answers; empty for a prompt alone."""
    reference: Row | None = None
    """What checks need to judge a completion."""
    source: int | None = None
    """The row that several examples were made from: they stay in one split."""
    pair: Row | None = None
    """The preference that was read with it."""
    calls: list[Row] = field(default_factory=list)
    """The tools that the demonstrated answer calls (`Message.tool_calls`)."""
    form: str = "as it is"
    """The phrasing that it was told in."""
    kind: str = ""
    """Of which kind that phrasing is."""
    made: Row | None = None
    """How a row that a model wrote was made."""

    @property
    def answers(self) -> list[str]:
        """The demonstrated answers with the tools that they call, as texts."""
        return [with_calls(text, self.calls) for text in self.completions]


class BadRow(Exception):
    """A row that cannot be used: the reason, completing "the row ...", and perhaps a detail of this row."""


class PassedOver(BadRow):
    """A row that a phrasing has nothing to say of; another may."""


def read_examples(
    path: Path, on_bad_row: Literal["refuse", "drop"], templates: Sequence[ChatTemplate] = (), per_row: int = 1
) -> tuple[list[Example], list[Row]]:
    """The examples of a JSONL (or JSON array) file, and the dropped rows as `{"line", "reason", "excerpt"}`.

    Raises `InputError` when the file is missing or empty, when no row can be used, or at the first bad row if bad rows
    are refused.
    """
    examples: list[Example] = []
    dropped: list[Row] = []
    for number, row in enumerate(_records(path), 1):
        try:
            check_characters(row)
            examples += _templated(row, number, templates, per_row) if templates else [read_row(row)]
        except BadRow as bad:
            if on_bad_row == "refuse":
                what = f"{path} row {number} {' '.join(bad.args)}"
                raise InputError(f"{what}; mend or remove it, or set data.on_bad_row = 'drop'.") from bad
            excerpt = json.dumps(row, ensure_ascii=False)[:120].encode("utf-8", "replace").decode()
            dropped.append({"line": number, "reason": bad.args[0], "excerpt": excerpt})
    if not examples and not dropped:
        raise InputError(f"{path} is empty; one JSON object per line is expected.")
    if not examples:
        reason, count = Counter(row["reason"] for row in dropped).most_common(1)[0]
        raise InputError(f"{path} has no usable row: {count} of {len(dropped)} {reason}; check the file's format.")
    return examples, dropped


def _records(path: Path) -> Iterator[Row]:
    if path.suffix != ".json":
        yield from iterate_jsonl(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path in the recipe.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); mend it, or name a file of JSON lines .jsonl.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a JSON array of objects; mend it, or name a file of JSON lines .jsonl.")
    yield from rows


def check_characters(row: Row) -> None:
    """Raise `BadRow` for a row with half a character in it."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise BadRow("has characters that cannot be written as UTF-8") from error


def _templated(row: Row, number: int, templates: Sequence[ChatTemplate], per_row: int) -> list[Example]:
    examples: list[Example] = []
    for template in choose(templates, number - 1, per_row):
        try:
            prompt, completion = converse(template, row)
        except InputError as error:
            raise BadRow("does not fit a template", f"({error})") from error
        examples.append(Example(checked(prompt), _answer(completion), row.get("reference", row), number))
    return examples


def read_row(row: Row) -> Example:
    """The example of one row in one of the usual forms. Raises `BadRow`."""
    prompt, completion = _parts(row)
    reference = row.get("reference")
    if reference is not None and not isinstance(reference, dict):
        reference = {"value": reference}
    try:
        prompt = with_tools(row, prompt)
    except InputError as error:
        raise BadRow(str(error)) from error
    calls = completion[0].get("tool_calls", []) if completion else []
    return Example(checked(prompt), _answer(completion), reference, calls=calls)


def _parts(row: Row) -> tuple[list[Message], list[Message]]:
    conversation = row.get("messages") or row.get("conversations")
    if row.get("label") is False and conversation:
        raise BadRow("has an answer that somebody rated down")
    if conversation:
        turns = _with_system(row, _messages(conversation, "user"))
        if row.get("chosen"):
            return turns, _messages(row["chosen"], "assistant")
        return (turns[:-1], turns[-1:]) if turns[-1]["role"] == "assistant" else (turns, [])
    if row.get("chosen"):
        return _preferred(row)
    if row.get("prompt"):
        completion = row.get("completion") or row.get("response")
        prompt = _with_system(row, _messages(row["prompt"], "user"))
        return prompt, _messages(completion, "assistant") if completion else []
    if row.get("instruction"):
        return _instruction(row)
    for question, answer in _PAIRS:
        if row.get(question):
            completion = _messages(row[answer], "assistant") if row.get(answer) else []
            return _with_system(row, _messages(row[question], "user")), completion
    if isinstance(row.get("turns"), list) and row["turns"]:  # what follows the first turn answers a model's answer
        return _messages(row["turns"][0], "user"), []
    raise BadRow("has no prompt")


_PAIRS = (("question", "answer"), ("inputs", "targets"), ("input", "target"), ("input", "output"))


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    if not row.get("system") or turns[0]["role"] == "system":
        return turns
    return [*_messages([{"role": "system", "content": row["system"]}], "system"), *turns]


def _instruction(row: Row) -> tuple[list[Message], list[Message]]:
    """Alpaca's columns; self-instruct's, with the first of the instances; earlier turns in `history`."""
    instance = row
    if isinstance(row.get("instances"), list) and row["instances"] and isinstance(row["instances"][0], dict):
        instance = row["instances"][0]
    parts = [str(part).strip() for part in (row["instruction"], instance.get("input")) if part]
    turns = [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]
    history = row.get("history")
    if isinstance(history, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        earlier = [(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
        turns = [{"role": role, "content": text} for role, text in earlier] + turns
    output = instance.get("output")
    return _with_system(row, _messages(turns, "user")), _messages(output, "assistant") if output else []


def _preferred(row: Row) -> tuple[list[Message], list[Message]]:
    """A preference row's prompt and the answer that was preferred."""
    if isinstance(row["chosen"], str) and not row.get("prompt"):
        turns = transcript(row["chosen"])
    elif isinstance(row["chosen"], list) and not row.get("prompt"):
        turns = _messages(row["chosen"], "user")
    else:
        prompt = row["prompt"]
        said = transcript(prompt) if isinstance(prompt, str) and prompt.startswith("\n\nHuman:") else prompt
        turns = [*_messages(said, "user"), *_messages(row["chosen"], "assistant")]
        turns = [turn for turn in turns if turn["role"] != "assistant" or turn["content"].strip()]
    if turns[-1]["role"] != "assistant":
        raise BadRow("has no answer at the end of its conversation")
    return turns[:-1], turns[-1:]


def transcript(text: str) -> list[Message]:
    """The turns of an hh-rlhf transcript. Raises `BadRow` where it is none."""
    found = TURN.findall(text)
    if not found or not text.startswith(("\n\nHuman:", "\n\nAssistant:")):
        raise BadRow("is not a transcript of Human and Assistant")
    return [{"role": SPEAKERS[speaker], "content": content.strip()} for speaker, content in found]


def _messages(value: Any, role: str) -> list[Message]:
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):  # LIMA's turns
        value = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(value)]
    if isinstance(value, dict):  # one message
        value = [value]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow("holds neither text nor messages")
    if not value:
        raise BadRow("has no prompt")
    messages: list[Message] = []
    for turn in value:
        try:
            if (message := tool_message(turn)) is not None:
                messages.append(message)
                continue
        except InputError as error:
            raise BadRow(str(error)) from error
        role = turn.get("role", turn.get("from"))
        speaker = _ROLES.get(role) if isinstance(role, str) else None
        content = text_of_parts(turn.get("content", turn.get("value")))
        if speaker is None or not isinstance(content, str):
            raise BadRow("has a message that is not text of system, user, assistant or tool")
        messages.append({"role": speaker, "content": content})
    return numbered(messages)


def checked(prompt: list[Message]) -> list[Message]:
    """Refuse what chat templates refuse: an optional system turn, then user and assistant in turn, the user last.

    An assistant's turn that calls tools is followed by their results, and those by the assistant.
    """
    said = [turn for turn in prompt if turn["content"].strip() or kind_of(turn) in ("call", "tool")]
    kinds = [kind_of(turn) for turn in said]
    if "user" not in kinds:
        raise BadRow("has no prompt")
    if len(said) < len(prompt):
        raise BadRow("has an empty turn in its prompt")
    spoken = kinds[1:] if kinds[0] == "system" else kinds
    follows = all(after in NEXT.get(before, ()) for before, after in pairwise(spoken))
    if spoken[0] != "user" or not follows or spoken[-1] not in ("user", "tool"):
        raise BadRow("has turns that do not alternate")
    return prompt


def _answer(completion: list[Message]) -> list[str]:
    if not completion:
        return []
    if len(completion) > 1 or completion[0]["role"] != "assistant":
        raise BadRow("has a completion that is not one assistant message")
    if not completion[0]["content"].strip() and "tool_calls" not in completion[0]:
        raise BadRow("has an empty completion")
    return [completion[0]["content"]]
