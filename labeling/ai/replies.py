"""What a model behind an OpenAI-compatible endpoint sends: read as untrusted, with the tokens it counts."""

import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is not waited for longer."""

_HALF = re.compile("[\ud800-\udfff]")
"""Half a character (of a surrogate pair), which no file can hold."""


@dataclass(frozen=True)
class Reply:
    """What came back for one question."""

    text: str = ""
    whole: bool = True
    """False when it was cut at the token limit."""
    refused: str = ""
    """Why there is no text: empty when there is."""
    lasting: bool = True
    """Asking again would say the same."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counts them; None where it does not say."""


def read_completion(response: httpx.Response) -> Reply | None:
    """The first choice of a chat completion, None when the body is none."""
    try:
        body = response.json()
        choice = body["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    usage = body.get("usage")
    counts = [_count_of(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    tokens = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
    if finish == "content_filter" or choice["message"].get("refusal"):
        return Reply(refused="the model refuses to answer", **tokens)
    if not isinstance(content, str):
        return Reply(refused="an answer without text", **tokens)
    return Reply(_HALF.sub("\ufffd", content), whole=finish != "length", **tokens)


def _count_of(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def retry_after(response: httpx.Response) -> float:
    """Seconds the server asks to wait; 0 where it says nothing that can be read."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(float(value), LONGEST_WAIT)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()), LONGEST_WAIT)
    except (ValueError, TypeError):
        return 0.0
