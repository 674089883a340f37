"""What a recipe part is, and the stable form of it that goes into an artifact's key.

A recipe says *what* is computed. It holds no output path, URL, key or device: those say where, and never change an
identity.
"""

import hashlib
import importlib
import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tasks.artifact import InputError, PipelineError


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
    except AttributeError as error:
        raise ValueError(f"module '{module}' has no '{name}'") from error
    except Exception as error:  # the user's module may fail in any way when it is run
        raise ValueError(f"module '{module}' cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise ValueError(f"'{dotted}' is not a function")
    return function


def ask(dotted: str, row: Mapping[str, Any], text: str) -> Any:
    """What a user's function of (row, completion) says. Raises `InputError` when it fails."""
    try:
        return resolve(dotted)(row, text)
    except Exception as error:  # it may fail in any way
        place = f" {row['id']}" if "id" in row else ""
        raise InputError(
            f"{dotted} fails on row{place} ({type(error).__name__}: {error}), which has {', '.join(sorted(row))}; mend "
            "it, or give the data's rows what it needs."
        ) from error


def ask_number(dotted: str, row: Mapping[str, Any], text: str) -> float:
    """The same of a function that must say a number."""
    value = ask(dotted, row, text)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{dotted} says {value!r} of a completion; it must give a number.") from error


def _importable(dotted: str) -> str:
    resolve(dotted)
    return dotted


class _Code:
    """Marks a field whose value names code: the code's source belongs to the identity."""


Dotted = Annotated[str, AfterValidator(_importable), _Code()]
"""The dotted path of a Python function, `package.module:function`. Editing its module rebuilds what depends on it."""


def identity(part: BaseModel) -> dict[str, Any]:
    """The JSON form of a part that an artifact's key is made of: its values, and the source of code it names."""
    sources: dict[str, str] = {}
    for name, field in type(part).model_fields.items():
        if _names_code([*field.metadata, field.annotation]):
            value = getattr(part, name)
            for dotted in value if isinstance(value, (list, tuple)) else [value]:
                if dotted:
                    sources[dotted] = _source_digest(dotted)
        for inner in _parts(getattr(part, name)):
            sources |= identity(inner)["sources"]
    return {"values": part.model_dump(mode="json"), "sources": sources}


def _parts(value: Any) -> Iterator[BaseModel]:
    """The parts in a field: itself, or those in its list."""
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, BaseModel):
            yield each


def _names_code(marks: Iterable[Any]) -> bool:
    """Whether a field's type is `Dotted`, or holds it (`Dotted | None`, `list[Dotted]`)."""
    return any(isinstance(mark, _Code) or _names_code(get_args(mark)) for mark in marks)


def _source_digest(dotted: str) -> str:
    path = inspect.getsourcefile(resolve(dotted))
    if path is None:
        raise PipelineError(f"The source of {dotted} cannot be read to tie results to it; put it in a .py module.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def stable_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value; refuses what JSON cannot hold instead of guessing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class RecipeError(PipelineError, ValueError):
    """A recipe that cannot be run: the message names each key and what it allows."""


M = TypeVar("M", bound=BaseModel)


TAGS = ("kind", "source", "method")
"""What says which of several parts a table is."""


def load_recipe(model: type[M], path: Path, overrides: Sequence[str] = ()) -> M:
    """The recipe in a TOML file, with `key.sub=value` overrides. Raises `RecipeError`, one sentence for all faults.

    `extends = "other.toml"` (beside the file) starts from another recipe: tables are merged, but one of another kind,
    source or method replaces the other recipe's, as everything else does.
    """
    values = _read(path)
    for override in overrides:
        _override(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {'; '.join(explain(model, error))}.") from error


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}); give the path of a recipe (*.toml).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}; mend that line.") from error
    other = values.pop("extends", None)
    if other is None:
        return values
    if not isinstance(other, str) or path.resolve() in seen:
        raise RecipeError(f"{path}: 'extends' must name another recipe that does not extend this one; mend it.")
    return _merged(_read(path.parent / other, (*seen, path.resolve())), values)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    if any(tag in above and below.get(tag, above[tag]) != above[tag] for tag in TAGS):
        return dict(above)
    both = {
        name for name in below.keys() & above.keys() if isinstance(below[name], dict) and isinstance(above[name], dict)
    }
    return {**below, **above, **{name: _merged(below[name], above[name]) for name in both}}


def _override(values: dict[str, Any], override: str) -> None:
    """Set one value in place: `sft.learning_rate=1e-4`, `policy.0.beta=1`, or by name or method `policy.dpo.beta=1`."""
    dotted, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {override} has no '='; write it as key.sub=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = dotted.strip().split(".")
    place: Any = values
    for name in parents:
        place = _item(place, name, override) if isinstance(place, list) else place.setdefault(name, {})
        if not isinstance(place, (dict, list)):
            raise RecipeError(f"--set {override}: '{name}' is not a table of the recipe; check the key.")
    if isinstance(place, list):
        raise RecipeError(f"--set {override}: say which entry, as in policy.0.{last} or policy.dpo.{last}.")
    place[last] = value


def _item(entries: list[Any], name: str, override: str) -> Any:
    for index, entry in enumerate(entries):
        if str(index) == name or (isinstance(entry, dict) and name in (entry.get("name"), entry.get("method"))):
            return entry
    raise RecipeError(f"--set {override}: no entry '{name}' in the recipe's list; use its number, name or method.")


def explain(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Each fault of a recipe as a clause that names the key and the allowed values."""
    clauses: list[str] = []
    places = [fault["loc"] for fault in error.errors()]
    for fault in error.errors():
        inside = [
            place for place in places if len(place) > len(fault["loc"]) and place[: len(fault["loc"])] == fault["loc"]
        ]
        if fault["type"] == "too_short" and inside:
            continue  # too few are left because of the faults told of those inside
        key = ".".join(_path(model, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            owner = _at(model, fault["loc"][:-1])
            allowed = f" (allowed: {', '.join(sorted(owner.model_fields))})" if owner else ""
            clauses.append(f"unknown key '{key}'{allowed}")
        elif fault["type"] == "missing":
            clauses.append(f"'{key}' is missing")
        else:
            clauses.append((f"'{key}': " if key else "") + fault["msg"].removeprefix("Value error, ").rstrip("."))
    return clauses


def _path(annotation: Any, location: Sequence[int | str]) -> list[str]:
    """A fault's location as the recipe writes it: without the tags by which pydantic tells the members of a union."""
    if not location:
        return []
    if get_origin(annotation) is Annotated:
        return _path(get_args(annotation)[0], location)
    first, rest = str(location[0]), location[1:]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(first)
        return [first, *(_path(field.annotation, rest) if field else map(str, rest))]
    if get_origin(annotation) in (list, tuple):
        return [first, *_path(get_args(annotation)[0], rest)]
    member = _tagged(annotation, location[0])
    return [first, *map(str, rest)] if member is None else _path(member, rest)


def _tagged(union: Any, tag: int | str) -> Any:
    """The member of a union that a tag stands for, if it is one."""
    for member in get_args(union):
        tags = [t for f in getattr(member, "model_fields", {}).values() for t in get_args(f.annotation)]
        if tag in tags or getattr(member, "__name__", None) == tag:
            return member
    return None


def _at(annotation: Any, location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model that a fault's location points into, through lists and unions."""
    if get_origin(annotation) is Annotated:
        return _at(get_args(annotation)[0], location)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not location:
            return annotation
        field = annotation.model_fields.get(str(location[0]))
        return _at(field.annotation, location[1:]) if field else None
    if get_origin(annotation) in (list, tuple):
        return _at(get_args(annotation)[0], location[1:]) if location else None
    if location and (member := _tagged(annotation, location[0])) is not None:  # a union: its location names the tag
        return _at(member, location[1:])
    members = [m for m in get_args(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    return _at(members[0], location) if len(members) == 1 else None
