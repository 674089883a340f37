"""Rows in any of the usual forms, as prompts with or without a completion.

Understood: `messages` (or ShareGPT's `conversations`); a prompt column beside a completion column, with what belongs to
the prompt (Alpaca's `input`, Dolly's `context`) and a system prompt; self-instruct's `instances`; preference rows
(`chosen` is the answer); MT-Bench's `turns`; transcripts. Any other columns need templates or other names.
"""

from collections.abc import Iterator
from typing import Any

from tasks.artifact import InputError, Message, Row
from tasks.data.messages import messages_of, talk_of
from tasks.data.rows import BadRow, Example, answer_text, checked
from tasks.data.tools import with_tools
from tasks.data.transcripts import asked_in, told_in, transcript

_TALKS = ("messages", "conversations", "conversation", "dialogue", "dialog", "contents")
_ASKED = ("prompt", "instruction", "question", "query", "inputs", "input", "problem", "user", "human")
_ANSWERED = (
    "completion", "response", "output", "solution", "answer", "targets", "target", "assistant", "gpt", "answers",
)  # fmt: skip
_GIVEN = ("input", "context")
"""What the prompt speaks of, where another column asks."""
_SYSTEMS = ("system", "system_prompt", "system_message")
_USED = {*_TALKS, *_ASKED, *_ANSWERED, *_GIVEN, *_SYSTEMS, "chosen", "rejected", "history", "reference", "made"}
_KNOWN = {*_USED, "turns", "text", "instances", "label", "kto_tag", "tools", "functions"}
_ABOUT = {
    "id", "uid", "uuid", "key", "url", "name", "source", "dataset", "category", "categories", "task", "type", "lang",
    "language", "license", "split", "subset", "domain", "topic", "tags", "date", "model",
}  # fmt: skip
"""Columns that tell of a row and are no part of it."""
_UNLEARNT = "has only answers of weight 0"
Told = tuple[list[Message], list[Message]]
"""A prompt, and the message that answers it, if any."""


def read_row(row: Row) -> list[Example]:
    """The conversations of one row: one, but for a task with several instances. Raises `BadRow`."""
    row = _lowered(row)
    reference = row.get("reference")
    if reference is not None and not isinstance(reference, dict):
        reference = {"value": reference}
    examples: list[Example] = []
    for prompt, completion in _told(row):
        if completion and _rated_down(row):
            raise BadRow("has an answer that somebody rated down")
        try:
            prompt = with_tools(row, prompt)
        except InputError as error:
            raise BadRow(str(error)) from error
        calls = completion[0].get("tool_calls", []) if completion else []
        examples.append(Example(checked(prompt), answer_text(completion), reference, calls=calls))
    return examples


def left_over(row: Row) -> list[str]:
    """Columns of text that are no part of any form: one of them may be the answer that a prompt alone lacks."""
    return [
        name
        for name, value in _lowered(row).items()
        if isinstance(value, str) and value.strip() and name not in _USED | _ABOUT and not name.endswith("_id")
    ]


def _lowered(row: Row) -> Row:
    """A row without a prompt with its columns in the case that forms know: `Instruction` is `instruction`."""
    if _present(row, (*_TALKS, *_ASKED, "chosen", "turns", "text")):
        return row
    return {(low if (low := name.casefold()) in _KNOWN and low not in row else name): row[name] for name in row}


def prompt_of(row: Row) -> list[Message]:
    """The prompt of a row's columns, perhaps a conversation; none where it has none. Raises `BadRow`."""
    if talk := _present(row, _TALKS):
        return _with_system(row, talk_of(row[talk]))
    asked = _asking(row)
    return _asked(row, row, asked) if asked else []


def answered_by(asked: list[Message], answer: Any) -> list[Message]:
    """The conversation of a prompt and its answer, which may be a whole conversation. Raises `BadRow`."""
    if isinstance(answer, str) and (not asked or answer.startswith("\n\nHuman:")):
        turns = transcript(answer)
        if not turns:
            raise BadRow("is not a transcript of Human and Assistant")
        return turns
    said = messages_of(answer, "assistant" if asked else "user")
    if said[0]["role"] != "assistant":  # it repeats the prompt, as UltraFeedback's answers do
        system = [turn for turn in asked[:1] if turn["role"] == "system" and said[0]["role"] != "system"]
        return [*system, *said]
    return asked if asked[-1:] == said else [*asked, *said]


def _told(row: Row) -> Iterator[Told]:
    if row.get("chosen"):
        turns = answered_by(prompt_of(row), row["chosen"])
        if turns[-1]["role"] != "assistant":
            raise BadRow("has no answer at the end of its conversation")
        yield turns[:-1], turns[-1:]
    elif _present(row, _TALKS):
        yield _learnt(prompt_of(row))
    elif asked := _asking(row):
        instances = row.get("instances")
        several = isinstance(instances, list) and instances and all(isinstance(each, dict) for each in instances)
        for instance in instances if several else [row]:  # type: ignore[union-attr]
            answered = _answering(instance, asked)
            calls = answered == "answers" and bool(row.get("tools"))  # xLAM's
            role = "function_call" if calls else "assistant"
            yield _asked(row, instance, asked), _answer(instance[answered], row[asked], role) if answered else []
    elif isinstance(row.get("turns"), list) and row["turns"]:  # what follows the first turn answers a model's answer
        yield messages_of(row["turns"][0], "user"), []
    elif isinstance(row.get("text"), str) and (turns := told_in(row["text"])):
        yield _learnt(turns)
    else:
        raise BadRow("has no prompt")


def _learnt(turns: list[Message]) -> Told:
    """A conversation up to the last answer that is learnt from: nothing before it depends on what follows."""
    if turns[-1]["role"] != "assistant":
        return turns, []
    last = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and "weight" not in turn]
    if not last:
        raise BadRow(_UNLEARNT)
    return turns[: last[-1]], turns[last[-1] : last[-1] + 1]


def _asking(row: Row) -> str | None:
    """The column that asks."""
    asked = _present(row, _ASKED)
    if asked == "prompt" and row.get("instruction") and _present(row, _ANSWERED) not in ("completion", "response"):
        return "instruction"  # beside it, `prompt` is the whole text, often with the answer
    return asked


def _answering(row: Row, asked: str) -> str | None:
    """The column that answers. A number there is an answer, though none that can be used."""
    return next((n for n in _ANSWERED if n != asked and row.get(n) is not None and row[n] not in ("", [])), None)


def _asked(row: Row, instance: Row, asked: str) -> list[Message]:
    value = row[asked]
    turns = asked_in(value) if isinstance(value, str) else []
    if not turns and isinstance(value, str):
        given = [str(instance[name]) for name in _GIVEN if name != asked and isinstance(instance.get(name), (str, int))]
        new = [each.strip() for each in given if each.strip() not in value]
        text = "\n\n".join([value.strip(), *new]) if new or asked == "instruction" else value
        turns = messages_of(text, "user")
    history = row.get("history")
    earlier: list[Message] = []
    if isinstance(history, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        told = [text for pair in history for text in pair]
        earlier = messages_of(told, "user") if told else []
    return _with_system(row, [*earlier, *(turns or messages_of(value, "user"))])


def _answer(answer: Any, asked: Any, role: str) -> list[Message]:
    """The message that answers; of several right answers, as SQuAD's rows list them, the first."""
    if isinstance(answer, dict) and isinstance(answer.get("text"), list) and answer["text"]:
        answer = answer["text"][0]
    if isinstance(answer, str) and isinstance(asked, str) and transcript(asked):
        answer = answer.strip()  # what stands after the last colon
    said = messages_of(answer, role)
    if any("weight" in turn for turn in said):
        raise BadRow(_UNLEARNT)
    return said


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    name = _present(row, _SYSTEMS)
    if not name or turns[0]["role"] == "system":
        return turns
    return [*messages_of([{"role": "system", "content": row[name]}], "system"), *turns]


def _rated_down(row: Row) -> bool:
    """Whether people did not want the answer (KTO's `label`, which is a number only in that form)."""
    label = row.get("label", row.get("kto_tag"))
    if isinstance(label, bool):
        return not label
    if isinstance(label, str) and label.casefold() in ("true", "false"):
        return label.casefold() == "false"
    return label in (0, "0") and _present(row, (*_TALKS, "completion")) is not None


def _present(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name)), None)
