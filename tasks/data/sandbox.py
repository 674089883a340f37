"""Jinja for templates that are not trusted: they reach no Python, make no huge values, and write no nulls."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.data.template_limits import (
    FILTERS,
    LONGEST,
    METHODS,
    WRITTEN,
    check,
    check_product,
    limits,
    size,
    spend,
    step,
)

TEMPLATE_FAULTS = (
    TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError,
)  # fmt: skip
"""What a template that does not fit its row may raise."""
_CALL = 10
"""Steps of a call, which takes about as long as ten turns of a loop."""
_COMPARING = (
    "in", "eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">=",
)  # fmt: skip
"""Tests that compare as the operators do."""
_UNDEFINED = re.compile(r"'(\w+)' is undefined")


class Null(StrictUndefined):
    """A null of a row: a template may ask for it (`{% if input %}`, `is none`), and not write it."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = object.__hash__


def is_null(value: Any) -> bool:
    """Whether a value is none: null, or no number."""
    return value is None or (isinstance(value, float) and value != value)


def _null(name: object) -> Null:
    return Null(hint=f"'{name}' is null")


class _Generator(CodeGenerator):
    """Jinja's compiler, with `~` as a call of the sandbox, the turns of loops counted and what is compared measured."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._measured(node.expr, frame)
        for each in node.ops:
            self.write(f" {operators[each.op]} ")
            self._measured(each.expr, frame)
        self.write(")")

    def _measured(self, node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.measured(")
        self.visit(node, frame)
        self.write(")")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter = nodes.Call(nodes.EnvironmentAttribute("turns"), [node.iter], [], None, None, lineno=node.lineno)
        node.iter.set_environment(self.environment)
        super().visit_For(node, frame)


class _Turns:
    """What a loop goes through, each turn counted."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for each in self._items:
            step()
            yield each


@pass_context
def _written(context: Context, value: Any) -> str:
    if is_null(value):
        raise UndefinedError("a null would be written")
    spend(size(value))
    return str(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja that reaches no Python, makes no huge values and writes no nulls."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_written)
        self.globals.pop("lipsum")
        self.filters = {name: _limited(name, self.filters[name]) for name in FILTERS}
        self.tests |= {name: _asked(self.tests[name]) for name in _COMPARING}
        self.tests["none"] = lambda value: value is None or isinstance(value, Null)
        self.tests["defined"] = lambda value: isinstance(value, Null) or not isinstance(value, StrictUndefined)
        self.tests["undefined"] = lambda value: isinstance(value, StrictUndefined) and not isinstance(value, Null)

    def turns(self, items: Iterable[Any]) -> Iterable[Any]:
        """What a loop goes through."""
        return _Turns(items) if isinstance(items, Sized) else iter(_Turns(items))

    def measured(self, value: Any) -> Any:
        """A value that is compared. Raises jinja2's `SecurityError` for one so nested that this would not end."""
        size(value, WRITTEN)
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """What `[...]` finds."""
        found = super().getitem(obj, argument)
        return _null(argument) if is_null(found) else found

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What `.` finds."""
        found = super().getattr(obj, attribute)
        return _null(attribute) if is_null(found) else found

    def joined(self, parts: Sequence[Any]) -> str:
        """What `~` makes. Raises jinja2's `SecurityError`."""
        if any(map(is_null, parts)):
            raise UndefinedError("a null would be written")
        spend(sum(map(size, parts)))
        return "".join(map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums, products, powers and `%`; only small ones. Raises jinja2's `SecurityError`."""
        if operator == "**" and not (abs(left) < LONGEST and abs(right) < 32):
            raise SecurityError("a power is too large")
        if operator == "*":
            check_product(left, right)
        if operator == "%" and isinstance(left, str):
            _refuse_nulls(right if isinstance(right, tuple) else (right,))
            check("format", left, right if isinstance(right, tuple) else (right,))
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            spend(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a method or macro. Raises jinja2's `SecurityError` for what is not allowed or would be too much."""
        method = getattr(obj, "__wrapped__", obj)  # jinja2's own sandbox wraps a text's `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        step(_CALL)
        allowed = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), None)
        if isinstance(owner, type) or (allowed is not None and name not in allowed):
            raise SecurityError(f"it calls '{name}', which templates may not")
        if isinstance(owner, str):
            _refuse_nulls((*args, *kwargs.values()))
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
                _refuse_nulls(args[0])
                check(name, args[0], (owner,))
            else:
                check(name, owner, (*args, *kwargs.values()))
        found = super().call(context, obj, *args, **kwargs)
        spend(len(found) if isinstance(found, str) else 0)
        return _null(f"{name}()") if is_null(found) and isinstance(owner, dict) else found


def filled(template: Template, row: Mapping[str, Any]) -> str:
    """A template filled from a row's columns; a null is not written. Raises `TEMPLATE_FAULTS`."""
    with limits():
        parts: list[str] = []
        length = 0
        for part in template.generate({name: _null(name) if is_null(each) else each for name, each in row.items()}):
            length += len(part)
            if length > WRITTEN:
                raise SecurityError("it writes too much")
            parts.append(part)
        return "".join(parts)


def reason_of(error: BaseException) -> str:
    """Why a template cannot be used, in a few words."""
    if isinstance(error, RecursionError):
        return "it calls itself without end or is nested too deeply"
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    if isinstance(error, UndefinedError) and (missing := _UNDEFINED.fullmatch(str(error))):
        return f"there is no column '{missing[1]}'"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _refuse_nulls(values: Iterable[Any]) -> None:
    if any(map(is_null, values)):
        raise UndefinedError("a null would be written")


def _asked(test: Callable[..., bool]) -> Callable[..., bool]:
    """A test that compares, what it compares measured and each time counted: filters ask it of every item."""

    def asked(*values: Any) -> bool:
        step()
        for value in values:
            size(value, WRITTEN)
        return test(*values)

    return asked


def _limited(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses to write or do too much, and to write a null."""
    place = int(hasattr(filter_, "jinja_pass_arg"))

    @wraps(filter_)
    def limited(*args: Any, **kwargs: Any) -> Any:
        value, given = args[place], (*args[place + 1 :], *kwargs.values())
        if name in ("d", "default"):
            return filter_(*args, **kwargs)
        if name == "join":
            value = list(value)
        _refuse_nulls(value if name == "join" else (value,))
        check(name, value, given)
        found = filter_(*args[:place], value, *args[place + 1 :], **kwargs)
        spend(len(found) if isinstance(found, str) else 0)
        return found

    return limited
