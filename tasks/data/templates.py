"""Structured rows through natural-language templates into chat conversations.

Templates are Jinja2, rendered in a sandbox: a template that came with a data set cannot reach Python.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError
from pydantic import Field, field_validator

from tasks.artifact import InputError, Message
from tasks.data.sandbox import TEMPLATE_FAULTS, Sandbox, filled, reason_of
from tasks.recipe import Part

Kind = Literal["direct", "inverted", "cot"]
"""What a phrasing makes of a task: as it is, another way round (from the answer to the question), or with reasons."""
_sandbox = Sandbox(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class ChatTemplate(Part):
    """One way to say a structured row as a conversation; every value is a Jinja2 template over the row's columns."""

    prompt: str = Field(min_length=1)
    """What the user says, for example `Which aisle has the {{ item }}?`."""
    completion: str | None = None
    """What the assistant should answer; none: the row gives a prompt only."""
    system: str | None = None
    """The system message, where there is one."""
    kind: Kind = "direct"
    """"inverted": from the answer to the question, say; "cot": the answer after its reasons."""

    @field_validator("prompt", "completion", "system")
    @classmethod
    def _parsed(cls, template: str | None) -> str | None:
        try:
            _ = template is not None and _compiled(template)
        except InputError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return template


@lru_cache(maxsize=4096)
def _compiled(template: str) -> Template:
    try:
        return _sandbox.from_string(template)
    except (TemplateError, RecursionError, MemoryError) as error:
        raise InputError(
            f"The template '{_short(template)}' is not valid Jinja ({reason_of(error)}); mend it."
        ) from error


def render(template: str, row: Mapping[str, Any]) -> str:
    """One Jinja2 template filled from a row's columns. Raises `InputError` naming the column that is missing."""
    compiled = _compiled(template)
    try:
        return filled(compiled, row).strip()
    except TEMPLATE_FAULTS as error:
        reason = reason_of(error)
        raise InputError(
            f"The template '{_short(template)}' cannot be filled ({reason}); mend it or the row."
        ) from error


def _short(template: str) -> str:
    return " ".join(template[:80].split())


def converse(template: ChatTemplate, row: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
    """A structured row as (prompt messages, completion messages); the second is empty without a completion."""
    prompt: list[Message] = []
    if template.system is not None:
        prompt.append({"role": "system", "content": render(template.system, row)})
    prompt.append({"role": "user", "content": render(template.prompt, row)})
    if template.completion is None:
        return prompt, []
    return prompt, [{"role": "assistant", "content": render(template.completion, row)}]


def choose(templates: Sequence[ChatTemplate], row_number: int, per_row: int) -> list[ChatTemplate]:
    """The templates for one row: `per_row` of them, turning through the list so that all are used equally often."""
    count = min(per_row, len(templates))
    return [templates[(row_number * count + offset) % len(templates)] for offset in range(count)]
