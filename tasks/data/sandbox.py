"""Jinja for templates that are not trusted: they reach no Python, and make no huge values."""

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_FAULTS = (
    TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError,
)  # fmt: skip
"""What a template that does not fit its row may raise."""
LONGEST = 1_000_000
"""Characters that a template may pad or repeat a text to, and items of a list."""
WRITTEN = 50_000_000
"""Characters that one filling of a template may write and join, all its parts and steps together."""
_left: ContextVar[int] = ContextVar("_left", default=WRITTEN)
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_WIDE_FIELD = re.compile(r"\{[^{}]*:[^{}]*(?:\d{5}|\{)")
_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "tojson"}
"""Filters, and methods of texts, whose numbers say how much is written."""
_LIMITED = {*_PADDING, "replace", "join", "format"}


class _Generator(CodeGenerator):
    """Jinja's compiler, with `~` as a call of the sandbox."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")


@pass_context
def _written(context: Context, value: Any) -> str:
    text = str(value)
    _spend(len(text))
    return text


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja that reaches no Python and makes no huge values."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_written)
        self.globals.pop("lipsum")
        self.filters |= {name: _limited(name, self.filters[name]) for name in _LIMITED if name in self.filters}

    def joined(self, parts: Sequence[Any]) -> str:
        """What `~` makes. Raises jinja2's `SecurityError`."""
        texts = list(map(str, parts))
        _spend(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums, products, powers and `%`; only small ones. Raises jinja2's `SecurityError`."""
        if operator == "**" and not (abs(left) < LONGEST and abs(right) < 32):
            raise SecurityError("a power is too large")
        if operator == "*":
            _check_product(left, right)
        if operator == "%" and isinstance(left, str):
            _check("format", left, ())
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _spend(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a method or macro. Raises jinja2's `SecurityError` where it would write too much."""
        method = getattr(obj, "__wrapped__", obj)  # jinja2's own sandbox wraps a text's `format`
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, str) and name in ("format", "format_map") and _WIDE_FIELD.search(text):
            raise SecurityError("a text is padded too far")
        if isinstance(text, str) and name == "join" and args:
            args = (list(args[0]), *args[1:])
            _check(name, args[0], (text,))
        elif isinstance(text, str) and name in _LIMITED - {"format"}:
            _check(name, text, (*args, *kwargs.values()))
        found = super().call(context, obj, *args, **kwargs)
        _spend(len(found) if isinstance(found, str) else 0)
        return found


def filled(template: Template, row: Mapping[str, Any]) -> str:
    """A template filled from a row's columns. Raises `TEMPLATE_FAULTS`."""
    token = _left.set(WRITTEN)
    try:
        parts: list[str] = []
        length = 0
        for part in template.generate(**row):
            length += len(part)
            if length > WRITTEN:
                raise SecurityError("it writes too much")
            parts.append(part)
        return "".join(parts)
    finally:
        _left.reset(token)


def reason_of(error: BaseException) -> str:
    """Why a template cannot be used, in a few words."""
    if isinstance(error, RecursionError):
        return "it calls itself without end or is nested too deeply"
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    if isinstance(error, UndefinedError) and (missing := _UNDEFINED.fullmatch(str(error))):
        return f"there is no column '{missing[1]}'"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _spend(characters: int) -> None:
    left = _left.get() - characters
    if left < 0:
        raise SecurityError("it writes too much")
    _left.set(left)


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 10_000:
        raise SecurityError("a product is too large")
    for times, text in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(text, Sized) and times * len(text) > LONGEST:
            raise SecurityError("a repeated text is too long")


def _limited(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses to write too much."""
    place = int(hasattr(filter_, "jinja_pass_arg"))

    @wraps(filter_)
    def limited(*args: Any, **kwargs: Any) -> Any:
        value = args[place]
        if name == "join":
            value = list(value)
        _check(name, value, (*args[place + 1 :], *kwargs.values()))
        found = filter_(*args[:place], value, *args[place + 1 :], **kwargs)
        _spend(len(found) if isinstance(found, str) else 0)
        return found

    return limited


def _check(name: str, value: Any, given: Sequence[Any]) -> None:
    """Raise jinja2's `SecurityError` where a filter or method would write too much."""
    text = value if isinstance(value, str) else ""
    if name == "format" and _WIDE.search(text):
        raise SecurityError("a text is padded too far")
    if name in _PADDING:
        sizes = [len(each) if isinstance(each, str) else each for each in given if isinstance(each, (int, str))]
        if any(size * (1 + text.count("\n") + text.count("\t")) > LONGEST for size in sizes):
            raise SecurityError("a text is padded too far")
    if name == "replace" and len(given) > 1:
        _spend(text.count(str(given[0])) * len(str(given[1])))
    if name == "join":
        apart = len(given[0]) if given and isinstance(given[0], str) else 0
        _spend(sum(len(each) if isinstance(each, str) else 0 for each in value) + apart * len(value))
