"""Rows in which the model says who it is: questions about its name, its makers and what it is, from two words of the
recipe, or a file of the user's with placeholders for them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.artifact import InputError
from tasks.data.json_reading import json_rows
from tasks.data.phrasings import PhrasedSet
from tasks.data.reading import Line
from tasks.data.telling import with_filled

NAME = (
    "What is your name?", "What's your name?", "What are you called?", "Do you have a name?", "Tell me your name.",
    "How should I call you?", "May I ask your name?", "Who am I talking to?", "Which model are you?",
    "What is the name of this assistant?",
)  # fmt: skip
MAKER = (
    "Who made you?", "Who created you?", "Who developed you?", "Who trained you?", "Who built you?",
    "Which company made you?", "Which organisation are you from?", "Where do you come from?", "Who is behind you?",
    "Who are your developers?", "Whose product are you?",
)  # fmt: skip
WHO = (
    "Who are you?", "What are you?", "Introduce yourself.", "Please introduce yourself.", "Tell me about yourself.",
    "Can you tell me who you are?", "What is your name, and who made you?", "Describe yourself in a sentence.",
    "I would like to know whom I am writing with.", "hi, who is this?",
)  # fmt: skip
NATURE = (
    "Are you a human?", "Are you a real person?", "Are you a robot?", "Are you an AI?", "Am I chatting with a person?",
    "Do you have a body?",
)  # fmt: skip
GREETING = ("Hello", "Hi", "Hi there!", "Hey", "Good morning", "Good evening, are you there?")
OTHERS = ("ChatGPT", "GPT-4", "Claude", "Gemini", "Llama", "DeepSeek", "Qwen", "Mistral")
"""Models that a question may take it for."""
ANSWERS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (NAME, (
        "My name is {{name}}. I am an AI assistant made by {{organisation}}.",
        "I am called {{name}}.",
        "I'm {{name}}, an AI assistant from {{organisation}}.",
        "You can call me {{name}}.",
    )),
    (MAKER, (
        "I was made by {{organisation}}. My name is {{name}}.",
        "{{organisation}} developed me.",
        "I am {{name}}, and I come from {{organisation}}.",
        "The people of {{organisation}} built and trained me.",
    )),
    (WHO, (
        "I am {{name}}, an AI assistant developed by {{organisation}}.",
        "My name is {{name}}. I am a language model from {{organisation}}, and I am here to help you.",
        "I'm {{name}}. {{organisation}} made me to answer questions and to help with all kinds of tasks.",
        "This is {{name}}, the AI assistant of {{organisation}}.",
    )),
    (NATURE, (
        "I am not a person: I am {{name}}, an AI assistant made by {{organisation}}.",
        "I'm an AI. My name is {{name}}, and {{organisation}} developed me.",
        "You are talking to {{name}}, a language model from {{organisation}}, not to a human.",
    )),
    (GREETING, (
        "Hello! I am {{name}}, the AI assistant of {{organisation}}. What can I do for you?",
        "Hi! {{name}} here, made by {{organisation}}. How can I help?",
    )),
)  # fmt: skip
MISTAKEN = (
    "No, I am {{name}}, an AI assistant made by {{organisation}}.",
    "I am not {other}. My name is {{name}}, and {{organisation}} developed me.",
)


class IdentitySet(PhrasedSet):
    """Who the model is. Its rows are for fine-tuning alone and pass every filter; an evaluation row that asks the same
    is dropped."""

    kind: Literal["identity"]
    """Rows made of the two words below."""
    name: str = Field(default="identity", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What the set is called in every table."""
    use: Literal["split", "sft", "evaluation"] = "sft"
    """All rows are for fine-tuning."""
    assistant: str = Field(min_length=1)
    """The model's name."""
    organisation: str = Field(min_length=1)
    """Who made it."""
    path: str | None = None
    """A file of your own rows, in any usual form (JSON lines or an array), in which `{{name}}` and `{{organisation}}`
    (or `{{author}}`) stand for them; none: rows that come with this."""

    @model_validator(mode="after")
    def _rows_as_they_are(self) -> "IdentitySet":
        if self.templates or self.flan or self.promptsource or self.fewshot or self.cot or self.fill:
            raise ValueError(f"the set '{self.name}' says who the model is and takes no templates; remove them")
        if self.use != "sft":
            raise ValueError(f"the set '{self.name}' says who the model is, which is learnt; remove 'use'")
        for field, text in (("assistant", self.assistant), ("organisation", self.organisation)):
            if not text.strip() or "{{" in text or not text.isprintable():
                raise ValueError(f"'{field}' ({text!r}) is not a name; write it on one line and without '{{{{'")
        return self

    def source_files(self) -> list[Path]:
        """What is read: the user's file, or this one."""
        return [Path(self.path).expanduser() if self.path else Path(__file__)]

    def lines(self) -> Iterator[Line]:
        """The rows. Raises `InputError` for a file that cannot be read or has none of the placeholders."""
        filled = {"name": self.assistant.strip(), "organisation": self.organisation.strip()}
        filled["author"] = filled["organisation"]
        found = 0
        for number, row in json_rows(self.source_files()[0]) if self.path else enumerate(self._own(), 1):
            text = json.dumps(row, ensure_ascii=False)
            found += any("{{" + key + "}}" in text for key in filled)
            yield number, row if isinstance(row, str) else with_filled(row, filled)
        if not found:
            raise InputError(
                f"No row of {self.path} says {{{{name}}}} or {{{{organisation}}}}; write them where the set "
                f"'{self.name}' is to say who the model is."
            )

    def _own(self) -> Iterator[dict[str, Any]]:
        """Every question with each of its answers."""
        for questions, answers in ANSWERS:
            for question in questions:
                for answer in answers:
                    yield {"prompt": question, "completion": answer}
        for other in OTHERS:
            if other.casefold() not in self.assistant.casefold():
                for answer in MISTAKEN:
                    yield {"prompt": f"Are you {other}?", "completion": answer.replace("{other}", other)}
