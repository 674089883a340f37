"""Existing preference files, read into one row form, with every broken pair named instead of trained on.

Three forms are understood, also mixed in one file:

- with a prompt: `prompt` (or any other column that asks, or `conversations`), `chosen`, `rejected`, each a string or
  messages; the answers may be whole conversations that begin with the prompt;
- without a prompt: `chosen` and `rejected` are whole conversations as messages;
- transcripts (hh-rlhf): `chosen` and `rejected` are strings `"\\n\\nHuman: ...\\n\\nAssistant: ..."`.

A pair's prompt is what comes before the last assistant turn; it must be the same on both sides.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict

from tasks.artifact import InputError, Message, Row
from tasks.data.families import is_made
from tasks.data.files import excerpt_of, file_rows
from tasks.data.forms import answered_by, prompt_of
from tasks.data.json_reading import NO_OBJECT
from tasks.data.rows import BadRow, check_characters
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
    Pairs of a synthesis keep `made`. Raises `InputError` when the file is missing, empty, cannot be read, or holds no
    usable pair.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path of the preference file in the recipe.")
    rows: dict[str, Row] = {}
    dropped: list[Dropped] = []
    for number, found in file_rows(path):
        try:
            row = _pair(found)
            if row["id"] in rows:
                raise _Broken("duplicate")
            rows[row["id"]] = row
        except _Broken as broken:
            dropped.append({"line": number, "reason": broken.args[0], "excerpt": excerpt_of(found)})
    if not rows and not dropped:
        raise InputError(f"{path} is empty; one preference pair per line is expected.")
    if not rows:
        counts = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
        raise InputError(f"{path} holds no usable preference pair ({counts}); check its format.")
    return list(rows.values()), dropped


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many pairs were dropped for each reason, the most frequent first."""
    return dict(Counter(row["reason"] for row in dropped).most_common())


def _pair(row: Row | str) -> Row:
    if isinstance(row, str):
        raise _Broken("not an object" if row == NO_OBJECT else "not JSON")
    if row.get("chosen") is None or row.get("rejected") is None:
        raise _Broken("chosen or rejected missing")
    sides = [_split(_conversation(row, row[side])) for side in ("chosen", "rejected")]
    (prompt, chosen), (other, rejected) = sides
    _check_prompt(prompt)
    if prompt != other:
        raise _Broken("prompts differ")
    if chosen["content"].strip() == rejected["content"].strip():
        raise _Broken("identical answers")
    pair: Row = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    made = {"made": row["made"]} if is_made(row.get("made")) else {}
    return {"id": stable_hash(pair)[:16], "prompt_id": stable_hash(prompt)[:16], **pair, **made}


def _conversation(row: Row, answer: Any) -> list[Message]:
    """Prompt and answer as one list of messages, whatever form they came in."""
    try:
        check_characters(row)
        turns = answered_by(prompt_of(row), answer)
    except BadRow as bad:
        raise _Broken("transcript not parseable" if "transcript" in bad.args[0] else "not text or messages") from bad
    if any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        raise _Broken("not text or messages")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


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
