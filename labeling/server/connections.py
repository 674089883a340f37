"""Connections to Argilla's database: as many as there are requests, and how SQLite is to work on each."""
# pyright: reportMissingImports=false

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy.ext.asyncio
from sqlalchemy import event

KEPT = 32
"""Connections that stay open between requests."""


@contextmanager
def without_limit() -> Iterator[None]:
    """While argilla_server is imported: let it open a connection for whoever asks.

    An answer needs two of them at once. With SQLAlchemy's 15, as many people who answer at the same moment hold one
    each and wait for the second until they get an error 30 seconds later.
    """
    original = sqlalchemy.ext.asyncio.create_async_engine

    def create(*args, **options):
        return original(*args, **options, pool_size=KEPT, max_overflow=-1)

    sqlalchemy.ext.asyncio.create_async_engine = create
    try:
        yield
    finally:
        sqlalchemy.ext.asyncio.create_async_engine = original


def prepare() -> Path:
    """Write-ahead logging, so that readers and writers do not wait for each other; returns where the database lies."""
    from argilla_server.database import async_engine

    @event.listens_for(async_engine.sync_engine, "connect")
    def prepare_connection(connection, _record) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA mmap_size=1073741824")  # one copy of the file in memory for all connections
        cursor.close()

    return Path(str(async_engine.url.database))
