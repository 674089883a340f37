"""What annotators see: the guidelines, the fields of a record and the ranking question.

Prompts and completions are untrusted. Argilla's web UI puts the text of a field into the page as HTML, with or without
Markdown: a completion `<img src=x onerror=...>` would run in the annotator's session. So markup is escaped when it is
published (`escaped`), and shown as the plain text it is.
"""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.comparison import OPTIONS, Comparison, LabelingError

QUESTION = "ranking"
FLAGS = "flags"
NO_FLAG = "nothing-wrong"
"""The other option of a question about a single flag; no flag can be called so."""
RATIONALE = "rationale"
MAX_GUIDELINES = 10_000
"""Characters; Argilla refuses more."""
MAX_SCALE = 11
"""Steps of a rating; Argilla refuses more."""

DEFAULT_GUIDELINES = """\
# Rank the answers

Read the prompt, then put the answers in order: **1 is the best**.

1. A correct answer comes before a wrong one.
2. Among equally correct answers, the polite and short one comes first.
3. Answers you cannot tell apart **share a rank**: that is a tie, and ties are welcome.

**Discard** the record when the prompt makes no sense or nothing in it can be judged.

## Example
Prompt: *What is the capital of France?*

| answer | rank |
|---|---|
| The capital of France is Paris. | 1 |
| paris is it | 2 |
| The capital of France is Rome, thank you for asking. | 3 |
| Capital capital of | 4 |
"""


@dataclass(frozen=True)
class Round:
    """One labeling campaign as it stands in Argilla: a dataset of comparisons under one version of the guidelines."""

    name: str
    """Name of the dataset."""
    workspace: str
    guidelines: str
    """Markdown."""
    options: int
    """Completions per record, 2 to 8."""
    min_submitted: int
    """Annotators whose ranks a record needs to be complete."""
    markdown: bool = False
    """Render prompts and completions as Markdown; HTML in them stays plain text."""
    criteria: tuple[str, ...] = ()
    """What each completion is rated on, beside the ranking; rating is optional for annotators."""
    scale: int = 5
    """Ratings go from 1 to this, the best."""
    flags: tuple[str, ...] = ()
    """What annotators can say is wrong with a record."""
    rationale: bool = False
    """Ask why, in free text."""

    def __post_init__(self) -> None:
        if not 2 <= self.options <= len(OPTIONS):
            raise LabelingError(f"A ranking takes 2 to {len(OPTIONS)} completions, not {self.options}; sample as many.")
        if not 1 <= len(self.guidelines) <= MAX_GUIDELINES:
            raise LabelingError(f"Guidelines must have 1 to {MAX_GUIDELINES} characters; shorten or write them.")
        if self.criteria and not 2 <= self.scale <= MAX_SCALE:
            raise LabelingError(f"A rating scale has 2 to {MAX_SCALE} steps, not {self.scale}; change it.")


def guidelines_version(guidelines: str) -> str:
    """The first 16 hex digits of the SHA-256 of the text: the version judgements are made under."""
    return hashlib.sha256(guidelines.encode()).hexdigest()[:16]


def dataset_fields(round: Round) -> list[dict[str, Any]]:
    """Argilla's fields: the prompt, and one per completion."""
    titles = {"prompt": "Prompt"} | {option: _title(option) for option in OPTIONS[: round.options]}
    return [
        {
            "name": name,
            "title": title,
            "required": True,
            "settings": {"type": "text", "use_markdown": round.markdown},
        }
        for name, title in titles.items()
    ]


def questions(round: Round) -> list[dict[str, Any]]:
    """Argilla's questions in the order shown: the ranking, then what the round asks beside it."""
    return [ranking_question(round), *_ratings(round), *_flags(round), *_rationale(round)]


def ranking_question(round: Round) -> dict[str, Any]:
    """Argilla's ranking question over the completions; equal ranks are allowed."""
    return {
        "name": QUESTION,
        "title": "Rank the answers, best first",
        "description": "Answers you cannot tell apart share a rank.",
        "required": True,
        "settings": {
            "type": "ranking",
            "options": [{"value": option, "text": _title(option)} for option in OPTIONS[: round.options]],
        },
    }


def rating_name(criterion: str, option: str) -> str:
    """The name of the question how well one completion does on one criterion."""
    return f"{criterion}_{option[-1]}"


def _ratings(round: Round) -> list[dict[str, Any]]:
    steps = [{"value": step} for step in range(1, round.scale + 1)]
    return [
        {
            "name": rating_name(criterion, option),
            "title": f"{criterion.replace('_', ' ').capitalize()}: {_title(option)}",
            "description": f"1 is the worst, {round.scale} the best.",
            "required": False,
            "settings": {"type": "rating", "options": steps},
        }
        for criterion in round.criteria
        for option in OPTIONS[: round.options]
    ]


def _flags(round: Round) -> list[dict[str, Any]]:
    if not round.flags:
        return []
    named = [{"value": flag, "text": flag.replace("_", " ").capitalize()} for flag in round.flags]
    kind = "multi_label_selection"
    if len(named) == 1:  # Argilla takes two options or more
        named, kind = [*named, {"value": NO_FLAG, "text": "No"}], "label_selection"
    return [
        {
            "name": FLAGS,
            "title": "Is something wrong with this record?",
            "required": False,
            "settings": {"type": kind, "options": named},
        }
    ]


def flags_of(values: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The flags among the values of a response, whichever kind of question asked for them."""
    value = ((values or {}).get(FLAGS) or {}).get("value")
    given = value if isinstance(value, list) else [value]
    return tuple(sorted(each for each in given if isinstance(each, str) and each != NO_FLAG))


def _rationale(round: Round) -> list[dict[str, Any]]:
    title = "Why? One sentence helps whoever reads this later."
    settings = {"type": "text", "use_markdown": False}
    return [{"name": RATIONALE, "title": title, "required": False, "settings": settings}] if round.rationale else []


def record_of(comparison: Comparison) -> dict[str, Any]:
    """The comparison as an Argilla record: its id is the external id, its completions stand in the order shown."""
    texts = {option: completion.text for option, completion in comparison.options.items()}
    fields = {"prompt": prompt_text(comparison.prompt), **texts}
    return {"external_id": comparison.id, "fields": {name: escaped(text) for name, text in fields.items()}}


def escaped(text: str) -> str:
    """The HTML that shows this text as it is."""
    return html.escape(text, quote=False)


def unescaped(shown: str) -> str:
    """The text an annotator reads; the inverse of `escaped`."""
    return html.unescape(shown)


def prompt_text(prompt: Sequence[Mapping[str, Any]]) -> str:
    """A single user turn as it is; several turns each under its role, calls of tools as `name(arguments)`. The tools
    that there are stand before them, by name and description."""
    said = [f"{message['role'].capitalize()}: {_said(message)}" for message in prompt]
    turns = [prompt[0]["content"]] if len(prompt) == 1 else said
    tools = _tools(prompt[0].get("tools")) if prompt else []
    return "\n\n".join([*(["\n".join(["Tools:", *tools])] if tools else []), *turns])


def _tools(schemas: Any) -> list[str]:
    """A line for each tool of a JSON array of function schemas; none where it is something else."""
    try:
        listed = json.loads(schemas) if isinstance(schemas, str) else []
    except (ValueError, RecursionError):
        return []
    lines = []
    for each in listed if isinstance(listed, list) else []:
        function = each.get("function", each) if isinstance(each, dict) else {}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        schema = function.get("parameters")
        taken = schema.get("properties") if isinstance(schema, dict) else None
        told = function.get("description")
        call = f"- {function['name']}({', '.join(taken) if isinstance(taken, dict) else ''})"
        lines.append(f"{call}: {told}" if isinstance(told, str) and told else call)
    return lines


def _said(message: Mapping[str, Any]) -> str:
    called = [each["function"] for each in message.get("tool_calls", ())]
    calls = [f"{each['name']}({each['arguments']})" for each in called]
    return "\n".join([message["content"], *calls] if message["content"] else calls)


def _title(option: str) -> str:
    return f"Answer {option[-1].upper()}"
