"""Argilla's search filters and sort orders as SQL over its own tables."""
# pyright: reportMissingImports=false

from datetime import UTC, datetime
from uuid import UUID

from argilla_server.enums import RecordStatus, ResponseStatus, SuggestionType
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
from sqlalchemy import ColumnElement, String, and_, cast, exists, false, func, literal, not_, or_, select, true

PENDING = "pending"
"""The status of a response that was not given yet."""


def elements(column, path: str = "$"):
    """The JSON value at `path` of a column as rows: a list gives its items, a scalar one row, nothing none."""
    return func.json_each(column, path).table_valued("value", "type")


def metadata(name: str):
    """A record's values of one metadata property, as rows."""
    return elements(Record.metadata_, f'$."{name}"')


def condition(filter: Filter) -> ColumnElement[bool]:
    """Whether a record passes the filter. Raises ValueError for a scope that Argilla's API does not offer."""
    if isinstance(filter, AndFilter):
        return and_(true(), *[condition(part) for part in filter.filters])
    scope = filter.scope
    if isinstance(scope, RecordFilterScope):
        return _record(str(scope.property), filter)
    if isinstance(scope, MetadataFilterScope):
        values = metadata(scope.metadata_property)
        return exists(select(literal(1)).select_from(values).where(_json(values.c.value, filter)))
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion(scope, filter)
    if isinstance(scope, ResponseFilterScope):
        return _response(scope, filter)
    raise ValueError(f"Cannot filter by {scope}")


def ordering(order: Order) -> ColumnElement:
    """The ORDER BY term of one sort key; records without a value come last, as in the stock engines."""
    ascending = str(order.order) == "asc"
    column = _sort_key(order.scope, func.min if ascending else func.max)
    return (column.asc() if ascending else column.desc()).nulls_last()


def _terms(filter: TermsFilter) -> list[str]:
    return [str(value.value if hasattr(value, "value") else value) for value in filter.values]


def _range(column, filter: RangeFilter, convert=lambda value: value) -> ColumnElement[bool]:
    low = [] if filter.ge is None else [column >= convert(filter.ge)]
    high = [] if filter.le is None else [column <= convert(filter.le)]
    return and_(true(), *low, *high)


def _json(column, filter: Filter) -> ColumnElement[bool]:
    """A filter on JSON scalars: terms are compared as text, ranges as numbers."""
    if isinstance(filter, TermsFilter):
        return cast(column, String).in_(_terms(filter))
    return _range(column, filter)


def _record(name: str, filter: Filter) -> ColumnElement[bool]:
    """Record columns are typed, so the API's strings become what the column holds."""
    convert = {"id": lambda v: UUID(str(v)), "status": RecordStatus, "inserted_at": _utc, "updated_at": _utc}[name]
    column = getattr(Record, name)
    if isinstance(filter, TermsFilter):
        return column.in_([convert(value) for value in _terms(filter)])
    return _range(column, filter, convert)


def _utc(value) -> datetime:
    """Argilla stores UTC without saying so; the API takes any offset (none means UTC)."""
    moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _suggestions(scope: SuggestionFilterScope):
    return (
        select(literal(1))
        .select_from(Suggestion)
        .join(Question, Question.id == Suggestion.question_id)
        .where(Suggestion.record_id == Record.id, Question.name == scope.question)
    )


def _suggestion(scope: SuggestionFilterScope, filter: Filter) -> ColumnElement[bool]:
    if scope.property == "agent":
        return exists(_suggestions(scope).where(Suggestion.agent.in_(_terms(filter))))
    if scope.property == "type":
        return exists(_suggestions(scope).where(Suggestion.type.in_([SuggestionType(v) for v in _terms(filter)])))
    values = elements(Suggestion.score if scope.property == "score" else Suggestion.value)
    return exists(_suggestions(scope).join(values, true()).where(_json(values.c.value, filter)))


def _responses(scope: ResponseFilterScope):
    responses = select(literal(1)).select_from(Response).where(Response.record_id == Record.id)
    return responses.where(Response.user_id == scope.user.id) if scope.user else responses


def _response(scope: ResponseFilterScope, filter: Filter) -> ColumnElement[bool]:
    if scope.question:
        values = elements(Response.values, f'$."{scope.question}".value')
        return exists(_responses(scope).join(values, true()).where(_json(values.c.value, filter)))
    if scope.property != "status" or not isinstance(filter, TermsFilter):
        raise ValueError(f"Cannot filter by {scope}")
    wanted = set(_terms(filter))
    given = [ResponseStatus(status) for status in wanted - {PENDING}]
    answered = [exists(_responses(scope).where(Response.status.in_(given)))] if given else []
    unanswered = [not_(exists(_responses(scope)))] if PENDING in wanted else []
    return or_(false(), *answered, *unanswered)


def _sort_key(scope, pick) -> ColumnElement:
    if isinstance(scope, RecordFilterScope):
        return getattr(Record, str(scope.property))
    if isinstance(scope, MetadataFilterScope):
        values = metadata(scope.metadata_property)
        return select(pick(values.c.value)).select_from(values).scalar_subquery()
    if isinstance(scope, SuggestionFilterScope):
        if scope.property in ("agent", "type"):
            column = getattr(Suggestion, scope.property)
            return _suggestions(scope).with_only_columns(column).limit(1).scalar_subquery()
        values = elements(Suggestion.score if scope.property == "score" else Suggestion.value)
        return _suggestions(scope).join(values, true()).with_only_columns(pick(values.c.value)).scalar_subquery()
    if isinstance(scope, ResponseFilterScope):
        if not scope.question:
            return _responses(scope).with_only_columns(pick(Response.status)).scalar_subquery()
        values = elements(Response.values, f'$."{scope.question}".value')
        return _responses(scope).join(values, true()).with_only_columns(func.avg(values.c.value)).scalar_subquery()
    raise ValueError(f"Cannot sort by {scope}")
