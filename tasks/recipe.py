"""What a recipe part is, and the stable form of it that goes into an artifact's key.

A recipe says *what* is computed. It holds no output path, URL, key or device: those say where, and never change an
identity.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from tasks.artifact import PipelineError


class Part(BaseModel):
    """One part of a recipe: frozen, no unknown keys, every field documented by the docstring under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def resolve(dotted: str) -> Callable[..., Any]:
    """The function behind `package.module:name`. Raises `ValueError` with the reason when there is none."""
    module, _, name = dotted.partition(":")
    if not name:
        raise ValueError(f"'{dotted}' is not of the form package.module:function")
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"module '{module}' cannot be imported ({error})") from error
    except AttributeError as error:
        raise ValueError(f"module '{module}' has no '{name}'") from error
    if not callable(function):
        raise ValueError(f"'{dotted}' is not a function")
    return function


def _importable(dotted: str) -> str:
    resolve(dotted)
    return dotted


class _Code:
    """Marks a field whose value names code: the code's source belongs to the identity."""


Dotted = Annotated[str, AfterValidator(_importable), _Code()]
"""The dotted path of a Python function, `package.module:function`. Editing its module rebuilds what depends on it."""


def identity(part: BaseModel) -> dict[str, Any]:
    """The JSON form of a part that an artifact's key is made of: its values, and the source of code it names."""
    values = part.model_dump(mode="json")
    sources: dict[str, str] = {}
    for name, field in type(part).model_fields.items():
        if any(isinstance(mark, _Code) for mark in field.metadata) or "_Code" in repr(field.annotation):
            value = getattr(part, name)
            for dotted in value if isinstance(value, (list, tuple)) else [value]:
                if dotted:
                    sources[dotted] = _source_digest(dotted)
    return {"values": values, "sources": sources} if sources else {"values": values}


def _source_digest(dotted: str) -> str:
    path = inspect.getsourcefile(resolve(dotted))
    if path is None:
        raise PipelineError(f"The source of {dotted} cannot be read to tie results to it; put it in a .py module.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def stable_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value; refuses what JSON cannot hold instead of guessing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
