"""What of conversations a model never sees: control tokens in their texts, words beside tool calls."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tasks.artifact import Message, Row
from tasks.models.rendering import RowRefused, render, special_strings, why_no_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BESIDE = "beside"
_CALLING: list[Message] = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": _BESIDE,
        "tool_calls": [{"id": "callprobe", "type": "function", "function": {"name": "probing", "arguments": "{}"}}],
    },
]


def unsaid(rows: Iterable[Row], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Sentences about what the tokenizer or its chat template leaves out of rows for SFT; none where nothing is."""
    special = special_strings(tokenizer)
    met: dict[str, None] = {}
    count = controlled = beside = 0
    for row in rows:
        count += 1
        texts = list(_texts(row))
        found = [token for token in special if any(token in text for text in texts)]
        met |= dict.fromkeys(found)
        controlled += bool(found)
        beside += any("tool_calls" in turn and turn["content"].strip() for turn in row.get("messages") or [])
    notices = []
    if controlled:
        notices.append(
            f"{controlled} of {count} rows hold control tokens of the tokenizer in their texts ({', '.join(met)}), "
            "which are left out; if a whole conversation stands in a text so, bring it as messages."
        )
    if beside and not why_no_tools(tokenizer) and _leaves_out_beside(tokenizer):
        notices.append(
            f"{beside} of {count} rows say something beside a tool call, which the chat template leaves out; to "
            'learn it, set chat_template = "default" or another template.'
        )
    return notices


def _leaves_out_beside(tokenizer: "PreTrainedTokenizerBase") -> bool:
    try:
        return _BESIDE not in render(tokenizer, _CALLING, False)[0]
    except RowRefused:  # such rows are refused, and told as that
        return False


def _texts(row: Row) -> Iterator[str]:
    """What people and models wrote in a row."""
    if isinstance(row.get("text"), str):
        yield row["text"]
    for turn in row.get("messages") or []:
        yield turn["content"]
        yield from (call["function"]["arguments"] for call in turn.get("tool_calls", ()))
