"""A prompt from outside with what is known of its answers, and what every conversation must be."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

from tasks.artifact import Message, Row
from tasks.data.tools import NEXT, kind_of, with_calls


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


class LacksReasons(PassedOver):
    """A row without the reasons that a phrasing with reasons tells."""


def check_characters(row: Row) -> None:
    """Raise `BadRow` for a row with half a character in it."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise BadRow("has characters that cannot be written as UTF-8") from error


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


def answer_text(completion: list[Message]) -> list[str]:
    """What the one assistant message of a completion says; nothing without one. Raises `BadRow`."""
    if not completion:
        return []
    if len(completion) > 1 or completion[0]["role"] != "assistant":
        raise BadRow("has a completion that is not one assistant message")
    if not completion[0]["content"].strip() and "tool_calls" not in completion[0]:
        raise BadRow("has an empty completion")
    return [completion[0]["content"]]
