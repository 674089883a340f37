"""promptsource's template files: YAML with Jinja phrasings of one data set, prompt and completion parted by `|||`.

Bach et al. 2022, "PromptSource". A file came with a data set and is not trusted: its tags are read by a loader that
makes plain mappings of them, and its Jinja is rendered in the sandbox.
"""

import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template, TemplateError

from tasks.artifact import InputError, Message
from tasks.data.columns import Read, typed
from tasks.data.rows import BadRow, PassedOver
from tasks.data.sandbox import TEMPLATE_FAULTS, Sandbox, filled, reason_of
from tasks.data.templates import Kind
from tasks.recipe import Part

SEPARATOR = "|||"
_SHIELD = secrets.token_hex(16)
"""Stands for the separator in a row's own texts while a template is rendered."""
_INDEXED = re.compile(r"\[\s*([A-Za-z_]\w*)(?:\s*\|\s*int)?\s*\]")
"""Columns that a template counts options by."""
_rng: ContextVar[Random] = ContextVar("rng")


class PromptsourceFile(Part):
    """Phrasings of a promptsource file, applied to any rows that have its columns."""

    path: str
    """The file, `templates.yaml`."""
    names: tuple[str, ...] = ()
    """Only these templates, by name; none: all."""
    original_only: bool = False
    """Only templates of the data set's own task, as their authors marked them."""

    def phrasings(self, types: Mapping[str, Read]) -> list["JinjaPhrasing"]:
        """The chosen phrasings. Raises `InputError` when the file, or one of the names, is not there.

        types: how to read columns of rows that are all texts.
        """
        found = read_promptsource(Path(self.path).expanduser())
        unknown = [name for name in self.names if name not in {phrasing.title for phrasing in found}]
        if unknown:
            titles = ", ".join(sorted(phrasing.title for phrasing in found))
            raise InputError(f"{self.path} has no template '{unknown[0]}'; its templates are {titles}.")
        chosen = [phrasing for phrasing in found if not self.names or phrasing.title in self.names]
        chosen = [phrasing for phrasing in chosen if phrasing.kind == "direct" or not self.original_only]
        if not chosen:
            raise InputError(f"{self.path} has no template of the original task; set original_only = false.")
        return [replace(phrasing, types=types) for phrasing in chosen]


@dataclass(frozen=True)
class JinjaPhrasing:
    """One template of a file."""

    title: str
    jinja: str
    answer_choices: str | None
    kind: Kind
    """"inverted" where the authors say that it is not the data set's original task."""
    metrics: tuple[str, ...]
    languages: tuple[str, ...]
    types: Mapping[str, Read] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"promptsource {self.title.strip()}"

    def say(self, row: Mapping[str, Any], rng: Random) -> tuple[list[Message], str | None]:
        """Prompt and completion; of several right completions one is drawn. Raises as `render` does.

        Where the template does not fit the values that texts stand for, it is filled with the texts.
        """
        try:
            prompt, targets = self.render(typed(row, self.types) if self.types else row, rng)
        except InputError:
            if not self.types:
                raise
            prompt, targets = self.render(row, rng)
        return [{"role": "user", "content": prompt}], rng.choice(targets)

    def render(self, row: Mapping[str, Any], rng: Random) -> tuple[str, list[str]]:
        """The prompt and all its targets. Raises `PassedOver` where the template has a condition that the row does
        not meet, `InputError` where it cannot be filled from it."""
        if "answer_choices" in row:
            raise BadRow("has a column 'answer_choices', which promptsource fills itself")
        if unlabelled := [name for name in set(_INDEXED.findall(self.jinja)) if _negative(row.get(name))]:
            raise BadRow(f"has no label: '{unlabelled[0]}' is negative, as data sets mark rows without one")
        shielded = {**_shielded(row), "answer_choices": self.choices(row, rng)}
        parts = self._rendered(self.jinja, shielded, rng).split(SEPARATOR)
        texts = [part.replace(_SHIELD, SEPARATOR).strip() for part in parts]
        if texts == [""]:
            raise PassedOver("is passed over by its templates")
        targets = [text for text in texts[1:] if text]
        if not texts[0] or not targets:
            raise BadRow("gives a template no prompt or no completion")
        return texts[0], targets

    def choices(self, row: Mapping[str, Any], rng: Random) -> list[str] | None:
        """The options of a row, where the template has any."""
        if self.answer_choices is None:
            return None
        text = self._rendered(self.answer_choices, _shielded(row), rng)
        return [choice.replace(_SHIELD, SEPARATOR).strip() for choice in text.split(SEPARATOR)]

    def _rendered(self, jinja: str, row: Mapping[str, Any], rng: Random) -> str:
        token = _rng.set(rng)
        try:
            return filled(_compiled(jinja), row)
        except TEMPLATE_FAULTS as error:
            message = f"The template '{self.title}' cannot be filled ({reason_of(error)}); mend it or the row."
            raise InputError(message) from error
        finally:
            _rng.reset(token)


def _negative(value: object) -> bool:
    return isinstance(value, (int, float)) and value < 0


def _choice(items: Sequence[Any]) -> Any:
    return _rng.get().choice(items)


def _most_frequent(items: Sequence[Any]) -> list[Any]:
    """The items that occur most often, in the order in which they are met."""
    counts = Counter(items)
    most = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == most]


_sandbox = Sandbox(undefined=StrictUndefined)
_sandbox.globals["zip"] = zip
_sandbox.filters |= {"choice": _choice, "random": _choice, "most_frequent": _most_frequent, "highlight": str}


@lru_cache(maxsize=4096)
def _compiled(jinja: str) -> Template:
    return _sandbox.from_string(jinja)


def _shielded(value: Any) -> Any:
    """A row whose texts do not hold the separator."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, _SHIELD)
    if isinstance(value, Mapping):
        return {key: _shielded(each) for key, each in value.items()}
    return [_shielded(each) for each in value] if isinstance(value, (list, tuple)) else value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; promptsource's own tags are plain mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))  # type: ignore[arg-type]


def read_promptsource(path: Path) -> list[JinjaPhrasing]:
    """Every template of a file, in its order. Raises `InputError` when it cannot be read or a template is broken."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path of the promptsource file in the recipe.") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not a promptsource file ({reason}); give its templates.yaml.") from error
    templates = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(templates, dict) or not templates:
        raise InputError(f"{path} has no templates; give a promptsource templates.yaml.")
    return [_phrasing(entry, path) for entry in templates.values()]


def _phrasing(entry: Any, path: Path) -> JinjaPhrasing:
    if not isinstance(entry, dict) or not isinstance(entry.get("jinja"), str):
        raise InputError(f"{path} has a template without 'jinja'; mend it.")
    title, choices = str(entry.get("name") or entry.get("id")), entry.get("answer_choices")
    for text in (entry["jinja"], choices):
        if text is not None:
            _check_syntax(str(text), title, path)
    metadata = entry.get("metadata") or {}
    return JinjaPhrasing(
        title,
        entry["jinja"],
        None if choices is None else str(choices),
        "inverted" if metadata.get("original_task") is False else "direct",
        tuple(map(str, metadata.get("metrics") or ())),
        tuple(map(str, metadata.get("languages") or ())),
    )


def _check_syntax(text: str, title: str, path: Path) -> None:
    try:
        _compiled(text)
    except (TemplateError, RecursionError, MemoryError) as error:
        reason = reason_of(error)
        raise InputError(f"{path}: the template '{title}' is not valid Jinja ({reason}); mend it.") from error
