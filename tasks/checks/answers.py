"""Checks of a completion against a known answer, for `evaluate.checks`, `watch.checks` and rewards of kind "function".

Each takes a row with its `reference` and a completion. The right answer is the reference's `value`, or its `answer`; a
reference in a file that is not an object comes as a `value`. An answer may have `aliases` (TriviaQA's object of a
`value` and `aliases`), each as right.
"""

import json
import math
import re
from functools import lru_cache
from typing import Any

from tasks.artifact import Row

_NUMBER = re.compile(
    r"(?<![^\W_])(?<!\d\.)[-+]?"  # not within a word, nor behind a number's own point
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![.\w])\.\d+)(?:[eE][-+]?\d+)?"
)
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL | re.IGNORECASE)


def exact(row: Row, completion: str) -> bool:
    """Whether the completion is the right answer, whatever its case, spaces and closing full stop."""
    return _plain(completion) in map(_plain, _answers(row))


def contains(row: Row, completion: str) -> bool:
    """Whether the right answer stands in the completion, as words of its own and in any case."""
    answers = [r"\s+".join(map(re.escape, _plain(each).split())) for each in _answers(row)]
    return any(re.search(rf"(?<!\w){answer}(?!\w)", completion.casefold()) for answer in answers)


def number(row: Row, completion: str) -> bool:
    """Whether the last number of the completion is the last of the right answer ("... #### 1,234" is 1234).

    They may differ by the reference's `tolerance`, or by a part in a billion.
    """
    right = last_number(_answer(row))
    if right is None:
        raise ValueError(f"the right answer '{_answer(row)}' holds no number")
    found = last_number(completion)
    allowed = float(row["reference"].get("tolerance") or 0.0)
    return found is not None and math.isclose(found, right, rel_tol=1e-9, abs_tol=allowed)


def json_of_schema(row: Row, completion: str) -> bool:
    """Whether the completion is JSON as the reference's `schema` (JSON Schema) asks."""
    return follows(_of(row, "schema"), completion)


def last_number(text: str) -> float | None:
    """The last number of a text, None without one. Commas between thousands are read over; 3-2 ends with 2, not -2."""
    found = [match.group() for match in _NUMBER.finditer(text.replace("\u2212", "-"))]
    return float(found[-1].replace(",", "")) if found else None


def follows(schema: dict[str, Any] | None, completion: str) -> bool:
    """Whether a text is JSON, perhaps within a fence of three backticks, and as a schema asks where there is one.

    Raises `ValueError` for a schema that is none, or that refers to another one: nothing is fetched for it.
    """
    from referencing.exceptions import Unresolvable

    asked = _validator(json.dumps(schema))
    fenced = _FENCE.match(completion)
    try:
        value = json.loads(fenced.group(1) if fenced else completion, parse_constant=_no_number)
        return bool(asked.is_valid(value))
    except Unresolvable as error:
        raise ValueError(f"the schema refers to what is not in it: {error}") from error
    except (ValueError, RecursionError):
        return False


@lru_cache
def _validator(schema: str) -> Any:
    from jsonschema import validators
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    asked = json.loads(schema)
    asked = {} if asked is None else asked  # an empty schema is that of everything
    kind = validators.validator_for(asked, default=validators.Draft202012Validator)
    try:
        kind.check_schema(asked)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from error
    registry: Any = Registry()
    return kind(asked, registry=registry)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _answer(row: Row) -> str:
    return str(_of(row, "value", "answer"))


def _answers(row: Row) -> list[str]:
    """The right answer and its aliases, without empty ones."""
    answer = _of(row, "value", "answer")
    if not isinstance(answer, dict):
        return [str(answer)]
    return [str(each) for each in (answer.get("value"), *(answer.get("aliases") or ())) if each]


def _of(row: Row, *names: str) -> Any:
    reference = row.get("reference")
    found = [reference[name] for name in names if name in reference] if isinstance(reference, dict) else []
    if not found:
        raise ValueError(f"the row's reference has no '{names[0]}'")
    return found[0]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
