"""Argilla's search filters and sort orders as SQL over its own tables.

What the stock engine makes of its mappings is kept: rating and label answers can be filtered and sorted by, texts,
rankings and spans cannot (they match nothing); numbers compare as numbers and words as words, whichever way the request
spells them; a value that cannot be compared matches nothing instead of failing.
"""
# pyright: reportMissingImports=false

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from argilla_server.enums import QuestionType
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Question, Record, Response, Suggestion
from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    MetadataFilterScope,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
    TermsFilter,
)
from sqlalchemy import ColumnElement, String, and_, case, cast, exists, false, func, literal, not_, or_, select, true

from labeling.server.moments import period

PENDING = "pending"
"""The status of a response that was not given yet."""
SEARCHABLE = [str(kind.value) for kind in (QuestionType.rating, QuestionType.label_selection)] + [
    str(QuestionType.multi_label_selection.value)
]
"""Types of the questions whose answers the stock engine indexes."""
DATES = ("inserted_at", "updated_at")


def elements(column, path: str = "$"):
    """The JSON value at `path` of a column as rows: a list gives its items, a scalar one row, nothing none."""
    return func.json_each(column, path).table_valued("value", "type")


def metadata(name: str):
    """A record's values of one metadata property, as rows. Names are looked up as they are stored: escaped JSON."""
    if '"' not in name and "\\" not in name:
        return elements(Record.metadata_, f'$."{json.dumps(name)[1:-1]}"')
    entry = func.json_each(Record.metadata_).table_valued("key", "value", "type")  # SQLite's paths cannot quote a quote
    found = select(case((entry.c.type == "array", entry.c.value), else_=func.json_array(entry.c.value)))
    return elements(found.select_from(entry).where(entry.c.key == name).correlate(Record).scalar_subquery())


def condition(filter: Filter, dataset_id: UUID) -> ColumnElement[bool]:
    """Whether a record of the dataset passes the filter. Raises `UnprocessableEntityError` where it has no meaning."""
    if isinstance(filter, AndFilter):
        return and_(true(), *[condition(part, dataset_id) for part in filter.filters])
    scope = filter.scope
    if isinstance(scope, RecordFilterScope):
        return _record(str(scope.property), filter)
    if isinstance(scope, MetadataFilterScope):
        values = metadata(scope.metadata_property)
        return exists(select(literal(1)).select_from(values).where(_json(values, filter)))
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion(scope, filter)
    if isinstance(scope, ResponseFilterScope):
        return _response(scope, filter, dataset_id)
    raise UnprocessableEntityError(f"Cannot filter by {scope}")


def ordering(order: Order, dataset_id: UUID) -> ColumnElement:
    """The ORDER BY term of one sort key; records without a value come last, as in the stock engines."""
    ascending = str(order.order) == "asc"
    column = _sort_key(order.scope, dataset_id, func.min if ascending else func.max)
    return (column.asc() if ascending else column.desc()).nulls_last()


def _terms(filter: Filter) -> list[str]:
    assert isinstance(filter, TermsFilter)
    return [str(value.value if hasattr(value, "value") else value) for value in filter.values]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _range(column, filter: RangeFilter, convert: Callable[[Any], Any]) -> ColumnElement[bool]:
    """The filter's bounds as `convert` gives them; a bound it cannot convert (None) lets nothing through."""
    bounds = [
        (convert(bound), bound, low) for bound, low in ((filter.ge, True), (filter.le, False)) if bound is not None
    ]
    if any(converted is None for converted, _, _ in bounds):
        return false()
    return and_(true(), *[column >= value if low else column <= value for value, _, low in bounds])


def _words(column, filter: Filter) -> ColumnElement[bool]:
    """A filter on a column of words: equal, or between in the order of their characters."""
    return column.in_(_terms(filter)) if isinstance(filter, TermsFilter) else _range(column, filter, str)


def _json(values, filter: Filter) -> ColumnElement[bool]:
    """A filter on JSON scalars: numbers compare as numbers, words as words, true and false by their names."""
    numeric, word = values.c.type.in_(("integer", "real")), values.c.type == "text"
    if not isinstance(filter, TermsFilter):
        between = and_(numeric, _range(values.c.value, filter, _number))
        return or_(between, and_(word, _range(values.c.value, filter, str)))
    terms = _terms(filter)
    numbers = [number for number in map(_number, terms) if number is not None]
    truths = values.c.type.in_([term for term in terms if term in ("true", "false")])
    return or_(and_(word, values.c.value.in_(terms)), and_(numeric, values.c.value.in_(numbers)), truths)


def _record(name: str, filter: Filter) -> ColumnElement[bool]:
    if name in DATES:
        return _date(getattr(Record, name), filter)
    if name == "id":  # stored without the dashes
        terms = isinstance(filter, TermsFilter)
        strip: Callable[[Any], str] = lambda value: str(value).replace("-", "")  # noqa: E731
        column = cast(Record.id, String)
        return column.in_([strip(term) for term in _terms(filter)]) if terms else _range(column, filter, strip)
    return _words(cast(getattr(Record, name), String), filter)


def _date(column, filter: Filter) -> ColumnElement[bool]:
    """As Elasticsearch reads dates: `2026-11` and `2026-11-20` are periods, numbers are milliseconds since 1970."""
    if isinstance(filter, TermsFilter):
        return or_(false(), *[and_(column >= low, column <= high) for low, high in map(_period, _terms(filter))])
    low = [] if filter.ge is None else [column >= _period(filter.ge)[0]]
    high = [] if filter.le is None else [column <= _period(filter.le)[1]]
    return and_(true(), *low, *high)


def _period(value: Any):
    try:
        return period(value)
    except ValueError as error:
        raise UnprocessableEntityError(f"'{value}' is not a date such as 2026-11-20T08:00:00") from error


def _suggestions(scope: SuggestionFilterScope, *, searchable: bool = False):
    found = (
        select(literal(1))
        .select_from(Suggestion)
        .join(Question, Question.id == Suggestion.question_id)
        .where(Suggestion.record_id == Record.id, Question.name == scope.question)
    )
    return found.where(Question.settings["type"].as_string().in_(SEARCHABLE)) if searchable else found


def _suggestion_values(scope: SuggestionFilterScope):
    """The values (or scores) of the record's suggestion, and the select they come with."""
    values = elements(Suggestion.score if scope.property == "score" else Suggestion.value)
    return values, _suggestions(scope, searchable=scope.property != "score").join(values, true())


def _suggestion(scope: SuggestionFilterScope, filter: Filter) -> ColumnElement[bool]:
    if scope.property in ("agent", "type"):
        return exists(_suggestions(scope).where(_words(cast(getattr(Suggestion, scope.property), String), filter)))
    if scope.property not in ("score", "value"):
        return false()
    values, found = _suggestion_values(scope)
    return exists(found.where(_json(values, filter)))


def _searchable(question: str, dataset_id: UUID) -> ColumnElement[bool]:
    kind = Question.settings["type"].as_string().in_(SEARCHABLE)
    return exists(select(Question.id).where(Question.name == question, Question.dataset_id == dataset_id, kind))


def _answered(scope: ResponseFilterScope, *where: ColumnElement[bool], join=None) -> ColumnElement[bool]:
    """Whether the record has a response (of the user, where the scope names one) for which all of `where` holds."""
    if scope.user:  # a list of what one person answered is short, and looked through once
        found = select(Response.record_id).where(Response.user_id == scope.user.id, *where)
        return Record.id.in_(found if join is None else found.join(join, true()))
    found = select(literal(1)).select_from(Response).where(Response.record_id == Record.id, *where)
    return exists(found if join is None else found.join(join, true()))


def _response(scope: ResponseFilterScope, filter: Filter, dataset_id: UUID) -> ColumnElement[bool]:
    if scope.question:
        values = elements(Response.values, f'$."{scope.question}".value')
        given = _answered(scope, _json(values, filter), join=values)
        return and_(_searchable(scope.question, dataset_id), given)
    if scope.property != "status" or not isinstance(filter, TermsFilter):
        raise UnprocessableEntityError("Responses are filtered by a question or by terms of their status")
    wanted = set(_terms(filter))
    given = _answered(scope, cast(Response.status, String).in_(sorted(wanted - {PENDING})))
    return or_(given, not_(_answered(scope))) if PENDING in wanted else given


def _sort_key(scope, dataset_id: UUID, pick) -> ColumnElement:
    if isinstance(scope, RecordFilterScope):
        column = getattr(Record, str(scope.property))
        return cast(column, String) if str(scope.property) == "status" else column
    if isinstance(scope, MetadataFilterScope):
        values = metadata(scope.metadata_property)
        return select(pick(values.c.value)).select_from(values).scalar_subquery()
    if isinstance(scope, SuggestionFilterScope) and scope.property in ("agent", "type"):
        column = cast(getattr(Suggestion, scope.property), String)
        return _suggestions(scope).with_only_columns(column).limit(1).scalar_subquery()
    if isinstance(scope, SuggestionFilterScope) and scope.property in ("score", "value"):
        values, found = _suggestion_values(scope)
        return found.with_only_columns(pick(values.c.value)).scalar_subquery()
    if isinstance(scope, ResponseFilterScope) and (scope.question or scope.property):
        return _response_key(scope, dataset_id, pick)
    raise UnprocessableEntityError(f"Cannot sort by {scope}")


def _response_key(scope: ResponseFilterScope, dataset_id: UUID, pick) -> ColumnElement:
    """The mean of ratings; of labels and statuses (the stock engine refuses to sort by them) the first or last word."""
    responses = select().select_from(Response).where(Response.record_id == Record.id)
    if scope.user:
        responses = responses.where(Response.user_id == scope.user.id)
    if not scope.question:
        return responses.add_columns(pick(cast(Response.status, String))).scalar_subquery()
    values = elements(Response.values, f'$."{scope.question}".value')
    mean = case((func.max(values.c.type) == "text", pick(values.c.value)), else_=func.avg(values.c.value))
    responses = responses.join(values, true()).where(_searchable(scope.question, dataset_id))
    return responses.add_columns(mean).scalar_subquery()
