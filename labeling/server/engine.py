"""A search engine for argilla-server on its own SQLite database.

Argilla asks its engine for record ids only and reads the rows from its database. Filters, sorting and counts are
queries on those very tables, so there is nothing to write, nothing to reindex and nothing that can disagree; for texts
the database keeps an index (`fulltext`), for similarity the vectors of a dataset stay in memory (`nearest`).

Where this is better than the stock engine it is not the same on purpose: an annotator's progress counts their own
answers only, text search gives the best match first to everybody, sorting by label or status works, and a metadata
property that is made later finds the records that were there before.
"""
# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import asyncio
import hashlib
from pathlib import Path
from typing import Any
from uuid import UUID

from argilla_server.database import AsyncSessionLocal, async_engine
from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Record, Response
from argilla_server.search_engine.base import (
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataMetrics,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    TermsMetrics,
    TextQuery,
)
from sqlalchemy import (
    Float,
    Integer,
    String,
    Subquery,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.exc import OperationalError

from labeling.server import filters, fulltext, nearest, textquery

NAME = "embedded"
MOST_TERMS = 2**14
"""Terms of a metadata property that are listed, as in the stock engine."""
_PRIME = 2_147_483_647
_COUNT = "SELECT count(*) AS total FROM embedded_text WHERE embedded_text MATCH :match"
_PAGE = """
    SELECT embedded_rows.record AS record, best.score AS score FROM (
        SELECT rowid AS number, -bm25(embedded_text, 0.0) AS score FROM embedded_text WHERE embedded_text MATCH :match
        ORDER BY score DESC, number LIMIT :limit OFFSET :offset
    ) AS best JOIN embedded_rows USING (number) ORDER BY best.score DESC, number
"""
_MATCH = """
    SELECT embedded_rows.record AS record, -bm25(embedded_text, 0.0) AS score, embedded_rows.number AS number
    FROM embedded_text CROSS JOIN embedded_rows ON embedded_rows.number = embedded_text.rowid
    WHERE embedded_text MATCH :match
    LIMIT -1
"""
"""The limit limits nothing, but it makes SQLite ask the index first, and not once for every record."""


def database_file() -> Path:
    """Where Argilla's database lies."""
    return Path(str(async_engine.url.database))


def _order_of(user_id: UUID | str):
    """Where a record stands in a user's own order: stable, and unrelated between users. Numbers only, so it is fast."""
    seed = int.from_bytes(hashlib.blake2b(str(user_id).encode(), digest_size=6).digest(), "big") % _PRIME
    mixed = (literal_column("records.rowid") * (seed | 1)) % _PRIME
    return ((mixed * mixed) % _PRIME * (seed // 3 | 1)) % _PRIME


def _match(dataset, query) -> str | None:
    """What a text query asks of the index; None where it finds nothing."""
    query = TextQuery(q=query) if isinstance(query, str) else query
    kinds = [(field.name, field.settings["type"]) for field in _in_order(dataset.fields)]
    wanted = [place for place, (name, _) in enumerate(kinds) if query.field in (None, name)]
    columns = tuple(dict.fromkeys(fulltext.column_of(place) for place in wanted))
    chat = any(kinds[place][1] == "chat" for place in wanted)
    return textquery.expression(query.q, textquery.Where(columns, fulltext.everything(dataset.id), chat))


def _hits(match: str) -> Subquery:
    """The records that the index finds, with their relevance (BM25)."""
    columns = (column("record", Record.id.type), column("score", Float), column("number", Integer))
    return text(_MATCH).bindparams(match=match).columns(*columns).subquery()


def _in_order(fields) -> list:
    return sorted(fields, key=lambda field: (field.inserted_at, field.id.hex))


@SearchEngine.register(engine_name=NAME)
class EmbeddedSearchEngine(SearchEngine):
    """What argilla-server asks of Elasticsearch, answered from SQLite."""

    @classmethod
    async def new_instance(cls) -> "EmbeddedSearchEngine":
        return cls()

    async def close(self) -> None:
        """Nothing is held open."""

    async def ping(self) -> bool:
        async with AsyncSessionLocal() as db:
            return (await db.execute(text("SELECT 1"))).scalar_one() == 1

    async def info(self) -> dict:
        return {"name": NAME, "backend": "sqlite", "tagline": "Argilla's tables and an FTS5 index"}

    async def _already_stored(self, *args, **update) -> None:
        """The row is in the tables when the server reports it here, and the tables are the index."""

    create_index = configure_metadata_property = partial_record_update = _already_stored
    update_record_response = delete_record_response = _already_stored
    update_record_suggestion = delete_record_suggestion = _already_stored

    async def _changed(self, dataset, records=()) -> None:
        """Records came, went or changed: their vectors are read anew, new words are indexed while nobody waits."""
        nearest.forget(dataset.id)
        await asyncio.to_thread(fulltext.catch_up, database_file())

    index_records = delete_records = delete_index = _changed

    async def configure_index_vectors(self, vector_settings) -> None:
        """A vector's settings are new."""
        nearest.forget(vector_settings.dataset_id)

    async def get_dataset_progress(self, dataset) -> dict:
        """`{"total": records, status: records, ...}`."""
        statuses = select(Record.status, func.count()).where(Record.dataset_id == dataset.id).group_by(Record.status)
        return {} if dataset.is_draft else await _counts(statuses)

    async def get_dataset_user_progress(self, dataset, user) -> dict:
        """`{"total": responses of this user, status: responses, ...}`."""
        statuses = (
            select(Response.status, func.count())
            .join(Record, Record.id == Response.record_id)
            .where(Record.dataset_id == dataset.id, Response.user_id == user.id)
            .group_by(Response.status)
        )
        return {} if dataset.is_draft else await _counts(statuses)

    async def search(
        self, dataset, query=None, filter=None, sort=None, offset: int = 0, limit: int = 100, user_id=None
    ) -> SearchResponses:
        """One page of the matching records; without a query or a sort each user gets a stable order of their own."""
        where, match = await self._matching(dataset, query, filter)
        if query is not None and match is None:
            return SearchResponses(items=[], total=0)
        if match and not filter and not sort:
            return await _best(match, offset, limit)
        hits = _hits(match) if match else None
        score, order = literal(1.0), [filters.ordering(part, dataset.id) for part in sort or []]
        if hits is not None:
            score, order = hits.c.score, order or [hits.c.score.desc(), hits.c.number]
        elif not order and user_id:
            order = [_order_of(user_id)]
        order += [Record.inserted_at.asc(), Record.id.asc()]
        found = select(Record.id, score if not sort else literal(None)).where(*where)
        count = select(func.count()).select_from(Record).where(*where)
        if hits is not None:
            found = found.join(hits, hits.c.record == Record.id)
            count = count.join(hits, hits.c.record == Record.id)
        async with AsyncSessionLocal() as db:
            rows = await _rows(db, found.order_by(*order).offset(offset).limit(limit))
            total = (await _rows(db, count))[0][0]
        return SearchResponses(items=[SearchResponseItem(record_id=id, score=score) for id, score in rows], total=total)

    async def _matching(self, dataset, query, filter) -> tuple[list[Any], str | None]:
        """The conditions of a search on the records, and what its text query finds."""
        where: list[Any] = [Record.dataset_id == dataset.id]
        if filter:
            where.append(filters.condition(filter, dataset.id))
        if query is None:
            return where, None
        await asyncio.to_thread(fulltext.catch_up, database_file())
        return where, _match(dataset, query)

    async def similarity_search(
        self,
        dataset,
        vector_settings,
        value=None,
        record=None,
        query=None,
        filter=None,
        max_results: int = 100,
        order=SimilarityOrder.most_similar,
        threshold=None,
    ) -> SearchResponses:
        """The records nearest (or farthest) by cosine to a vector or to another record; scores lie in 0..1."""
        if bool(value) == bool(record):
            raise ValueError("Must provide either vector value or record to compute the similarity search")
        target = value if record is None else record.vector_value_by_vector_settings(vector_settings)
        if not target:
            raise ValueError("Cannot find a vector value to apply with provided info")
        if len(target) != vector_settings.dimensions:
            raise UnprocessableEntityError(
                f"vector must have {vector_settings.dimensions} elements, got {len(target)} elements"
            )
        allowed = await self._allowed(dataset, query, filter)
        vectors = await nearest.vectors(dataset.id, vector_settings.id)
        least = order == SimilarityOrder.least_similar
        skip = record.id if record is not None else None
        found = await asyncio.to_thread(
            nearest.search,
            vectors,
            [-part for part in target] if least else target,
            max_results,
            allowed,
            skip,
            threshold,
        )
        items = [SearchResponseItem(record_id=id, score=score) for id, score in found]
        return SearchResponses(items=items, total=len(items))

    async def _allowed(self, dataset, query, filter) -> set[UUID] | None:
        """The records that filter and text query leave to a similarity search; None for all."""
        where, match = await self._matching(dataset, query, filter)
        if query is not None and match is None:
            return set()
        if not filter and match is None:
            return None
        found = select(Record.id).where(*where)
        if match:
            hits = _hits(match)
            found = found.join(hits, hits.c.record == Record.id)
        async with AsyncSessionLocal() as db:
            return {row[0] for row in await _rows(db, found)}

    async def compute_metrics_for(self, metadata_property) -> MetadataMetrics:
        """What the filters of the web UI offer: the terms with their counts, or the least and the greatest number."""
        values = filters.metadata(metadata_property.name)
        base = select().select_from(Record).join(values, true())
        base = base.where(Record.dataset_id == metadata_property.dataset_id, values.c.type != "null")
        async with AsyncSessionLocal() as db:
            if metadata_property.type == MetadataPropertyType.terms:
                count = func.count(Record.id.distinct())
                name = case((values.c.type.in_(("true", "false")), values.c.type), else_=values.c.value)
                counts = base.add_columns(name, count).group_by(name).order_by(count.desc(), cast(name, String))
                terms = [TermsMetrics.TermCount(term=str(term), count=n) for term, n in await _rows(db, counts)]
                return TermsMetrics(total=sum(term.count for term in terms), values=terms[:MOST_TERMS])
            bounds = base.add_columns(func.min(values.c.value), func.max(values.c.value))
            low, high = (await _rows(db, bounds))[0]
        integer = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if integer else FloatMetadataMetrics)(min=low, max=high)


async def _best(match: str, offset: int, limit: int) -> SearchResponses:
    """One page of what the index finds, without looking at any other record."""
    page = text(_PAGE).bindparams(match=match, limit=limit, offset=offset)
    columns = (column("record", Record.id.type), column("score", Float))
    async with AsyncSessionLocal() as db:
        rows = await _rows(db, page.columns(*columns))
        total = (await _rows(db, text(_COUNT).bindparams(match=match)))[0][0]
    return SearchResponses(items=[SearchResponseItem(record_id=id, score=score) for id, score in rows], total=total)


async def _counts(statuses) -> dict:
    async with AsyncSessionLocal() as db:
        counts = {status.value: n for status, n in await _rows(db, statuses)}
    return {"total": sum(counts.values()), **counts}


async def _rows(db, statement) -> list[Any]:
    """All rows of a query. Raises `UnprocessableEntityError` for a text query that FTS5 finds too long."""
    try:
        return list((await db.execute(statement)).all())
    except OperationalError as error:
        if "fts5" not in str(error.orig) and "expression" not in str(error.orig).lower():
            raise
        raise UnprocessableEntityError("The text query is too long; use fewer words and brackets") from error
