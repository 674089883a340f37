"""A search engine for argilla-server that keeps no index: it queries Argilla's own SQLite tables.

Argilla asks its engine for record ids only and reads the rows from its database, so with the tables as the index
there is nothing to write, nothing to reindex and nothing that can disagree.
"""
# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import hashlib
from typing import Any

import numpy as np
from argilla_server.database import AsyncSessionLocal, async_engine
from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.models import Record, Response, Vector
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
from sqlalchemy import String, cast, event, func, literal, select, text, true

from labeling.server import filters, textquery

NAME = "embedded"


@event.listens_for(async_engine.sync_engine, "connect")
def _prepare_connection(connection, _record) -> None:
    connection.create_function("embedded_score", 3, textquery.score, deterministic=True)
    connection.create_function("embedded_shuffle", 2, _shuffle, deterministic=True)
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _shuffle(seed: str, record_id: str) -> int:
    """Where a record stands in the order that belongs to `seed`: stable, and unrelated between seeds."""
    return int.from_bytes(hashlib.blake2b(f"{seed}{record_id}".encode(), digest_size=6).digest(), "big")


def _matching(dataset, query, filter) -> tuple[Any, list[Any]]:
    """The relevance column and the WHERE conditions of a search."""
    where, score = [Record.dataset_id == dataset.id], literal(1.0)
    if query is not None:
        query = TextQuery(q=query) if isinstance(query, str) else query
        score = func.embedded_score(cast(Record.fields, String), query.field, query.q)
        where.append(score > 0)
    if filter:
        where.append(filters.condition(filter))
    return score, where


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
        return {"name": NAME, "backend": "sqlite", "tagline": "Argilla's tables, no index"}

    async def _already_stored(self, *args, **update) -> None:
        """The row is in the tables when the server reports it here, and the tables are the index."""

    create_index = delete_index = configure_metadata_property = configure_index_vectors = _already_stored
    index_records = partial_record_update = delete_records = _already_stored
    update_record_response = delete_record_response = _already_stored
    update_record_suggestion = delete_record_suggestion = _already_stored

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
        score, where = _matching(dataset, query, filter)
        order = [filters.ordering(part) for part in sort or []]
        if not order and query is not None:
            order.append(score.desc())
        elif not order and user_id:
            order.append(func.embedded_shuffle(str(user_id), cast(Record.id, String)))
        order += [Record.inserted_at.asc(), Record.id.asc()]
        page = select(Record.id, score).where(*where).order_by(*order).offset(offset).limit(limit)
        async with AsyncSessionLocal() as db:
            rows = (await db.execute(page)).all()
            total = (await db.execute(select(func.count()).select_from(Record).where(*where))).scalar_one()
        return SearchResponses(items=[SearchResponseItem(record_id=id, score=score) for id, score in rows], total=total)

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
        target = np.asarray(value or record.vector_value_by_vector_settings(vector_settings), dtype=np.float32)  # type: ignore[union-attr]
        _, where = _matching(dataset, query, filter)
        if record is not None:
            where.append(Record.id != record.id)
        vectors = (
            select(Vector.record_id, Vector.value)
            .join(Record, Record.id == Vector.record_id)
            .where(Vector.vector_settings_id == vector_settings.id, *where)
        )
        async with AsyncSessionLocal() as db:
            rows = (await db.execute(vectors)).all()
        if not rows:
            return SearchResponses(items=[], total=0)
        matrix = np.asarray([row[1] for row in rows], dtype=np.float32)
        cosine = (matrix @ target) / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(target) + 1e-12)
        scores = (1 + (-cosine if order == SimilarityOrder.least_similar else cosine)) / 2
        best = [i for i in np.argsort(-scores, kind="stable") if threshold is None or scores[i] >= threshold]
        items = [SearchResponseItem(record_id=rows[i][0], score=float(scores[i])) for i in best[:max_results]]
        return SearchResponses(items=items, total=len(items))

    async def compute_metrics_for(self, metadata_property) -> MetadataMetrics:
        """What the filters of the web UI offer: the terms with their counts, or the least and the greatest number."""
        values = filters.metadata(metadata_property.name)
        base = select().select_from(Record).join(values, true())
        base = base.where(Record.dataset_id == metadata_property.dataset_id)
        async with AsyncSessionLocal() as db:
            if metadata_property.type == MetadataPropertyType.terms:
                count = func.count()
                counts = base.add_columns(values.c.value, count).group_by(values.c.value)
                rows = (await db.execute(counts.order_by(count.desc(), values.c.value))).all()
                terms = [TermsMetrics.TermCount(term=str(term), count=n) for term, n in rows]
                return TermsMetrics(total=sum(term.count for term in terms), values=terms)
            low, high = (await db.execute(base.add_columns(func.min(values.c.value), func.max(values.c.value)))).one()
        integer = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if integer else FloatMetadataMetrics)(min=low, max=high)


async def _counts(statuses) -> dict:
    async with AsyncSessionLocal() as db:
        counts = {status.value: n for status, n in (await db.execute(statuses)).all()}
    return {"total": sum(counts.values()), **counts}
