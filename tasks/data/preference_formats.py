"""Existing preference files, read into one row form, with every broken pair named instead of trained on.

Three forms are understood, also mixed in one file of one JSON object per line:

- TRL with a prompt: `prompt`, `chosen`, `rejected`, each a string or a list of messages;
- TRL without a prompt: `chosen` and `rejected` are whole conversations as messages;
- transcripts (hh-rlhf): `chosen` and `rejected` are strings `"\\n\\nHuman: ...\\n\\nAssistant: ..."`.

A pair's prompt is what comes before the last assistant turn; it must be the same on both sides.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict

from tasks.artifact import InputError, Message, Row
from tasks.data.families import is_made
from tasks.recipe import stable_hash

Reason = Literal[
    "not JSON",
    "not an object",
    "chosen or rejected missing",
    "not text or messages",
    "transcript not parseable",
    "no answer at the end",
    "empty answer",
    "empty turn in the prompt",
    "turns do not alternate",
    "prompts differ",
    "identical answers",
    "duplicate",
]
"""Why a pair was dropped."""

TURN = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)
SPEAKERS: dict[str, str] = {"Human": "user", "Assistant": "assistant"}


class Dropped(TypedDict):
    """One line of a preference file that is not used."""

    line: int
    """Counted from 1."""
    reason: Reason
    excerpt: str
    """The first 120 characters of the line."""


class _Broken(Exception):
    """A pair that cannot be used; the only argument is the `Reason`."""


def read_preferences(path: Path) -> tuple[list[Row], list[Dropped]]:
    """The usable pairs of a preference file and the dropped lines.

    Rows are `{"id", "prompt_id", "prompt": messages, "chosen": [assistant], "rejected": [assistant]}`, in the order of
    the file; `id` is of the pair, `prompt_id` of the prompt (first 16 hex digits of the SHA-256 of its canonical JSON).
    Pairs of a synthesis keep `made`.
    Raises `InputError` when the file is missing, empty, or holds no usable pair.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path of the preference file in the recipe.")
    rows: dict[str, Row] = {}
    dropped: list[Dropped] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = _pair(line)
                if row["id"] in rows:
                    raise _Broken("duplicate")
                rows[row["id"]] = row
            except _Broken as broken:
                excerpt = line[:480].decode("utf-8", "replace").strip()[:120]
                dropped.append({"line": number, "reason": broken.args[0], "excerpt": excerpt})
    if not rows and not dropped:
        raise InputError(f"{path} is empty; one preference pair per line is expected.")
    if not rows:
        counts = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
        raise InputError(f"{path} holds no usable preference pair ({counts}); check its format.")
    return list(rows.values()), dropped


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many pairs were dropped for each reason, the most frequent first."""
    return dict(Counter(row["reason"] for row in dropped).most_common())


def _pair(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:  # also what is not UTF-8
        raise _Broken("not JSON") from error
    if not isinstance(row, dict):
        raise _Broken("not an object")
    if row.get("chosen") is None or row.get("rejected") is None:
        raise _Broken("chosen or rejected missing")
    prompt, chosen = _split(_conversation(row.get("prompt"), row["chosen"]))
    other, rejected = _split(_conversation(row.get("prompt"), row["rejected"]))
    _check_prompt(prompt)
    if prompt != other:
        raise _Broken("prompts differ")
    if chosen["content"].strip() == rejected["content"].strip():
        raise _Broken("identical answers")
    pair: Row = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    made = {"made": row["made"]} if is_made(row.get("made")) else {}
    return {"id": stable_hash(pair)[:16], "prompt_id": stable_hash(prompt)[:16], **pair, **made}


def _conversation(prompt: Any, answer: Any) -> list[Message]:
    """Prompt and answer as one list of messages, whatever form they came in."""
    if prompt is None and isinstance(answer, str):
        return _transcript(answer)
    asked, answered = _turns(prompt, "user"), _turns(answer, "assistant")
    repeats = len(answered) > len(asked) and answered[: len(asked)] == asked  # UltraFeedback's answers, whole
    return answered if repeats else asked + answered


def _turns(value: Any, role: str) -> list[Message]:
    if value is None:
        return []
    if isinstance(value, str):
        if role == "user" and value.startswith("\n\nHuman:"):
            return _transcript(value, open_ended=True)
        return [_message(role, value)]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise _Broken("not text or messages")
    return [_message(turn.get("role"), turn.get("content")) for turn in value]


def _transcript(text: str, *, open_ended: bool = False) -> list[Message]:
    """The turns of a transcript; an `open_ended` one may end with an empty `Assistant:`."""
    found = TURN.findall(text)
    if not found or not text.startswith(("\n\nHuman:", "\n\nAssistant:")):
        raise _Broken("transcript not parseable")
    turns = [_message(SPEAKERS[speaker], content.strip()) for speaker, content in found]
    if open_ended and turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    return turns


def _message(role: Any, content: Any) -> Message:
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise _Broken("not text or messages")
    if any("\ud800" <= letter <= "\udfff" for letter in content):  # half a character: cannot be written as UTF-8
        raise _Broken("not text or messages")
    return {"role": role, "content": content}


def _split(turns: list[Message]) -> tuple[list[Message], Message]:
    """Everything before the last turn, and the last turn, which must be the assistant's and say something."""
    if not turns or turns[-1]["role"] != "assistant":
        raise _Broken("no answer at the end")
    if not turns[-1]["content"].strip():
        raise _Broken("empty answer")
    return turns[:-1], turns[-1]


def _check_prompt(prompt: list[Message]) -> None:
    """Refuse what chat templates refuse: an optional system turn, then user and assistant in turn, the user last."""
    if any(not turn["content"].strip() for turn in prompt):
        raise _Broken("empty turn in the prompt")
    roles = [turn["role"] for turn in prompt]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    expected = ["user" if place % 2 == 0 else "assistant" for place in range(len(roles))]
    if roles != expected or len(roles) % 2 == 0:
        raise _Broken("turns do not alternate")
