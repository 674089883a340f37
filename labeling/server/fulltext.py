"""The full-text index: an FTS5 table inside Argilla's own database, kept in step by triggers.

A trigger notes in the very transaction which record is new or changed, and takes deleted ones out; `catch_up` cuts the
noted ones into words before the next search. So nothing can be found that is not there, or missed, whoever wrote it and
whenever the server died. Tables of another form (an older version's) and tables that a migration has lost their
triggers are made anew by `prepare`.
"""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

from labeling.server.words import indexed

COLUMNS = 40
"""Fields of a dataset that are told apart in a search; the ones beyond share the last column."""
BATCH = 500
"""Records per transaction: others who write wait that long."""
_FIELDS = [f"c{number}" for number in range(COLUMNS)]

_SCHEMA = {
    "embedded_rows": "CREATE TABLE embedded_rows (number INTEGER PRIMARY KEY, record CHAR(32) NOT NULL UNIQUE)",
    "embedded_pending": "CREATE TABLE embedded_pending (record CHAR(32) NOT NULL)",
    "embedded_text": f"CREATE VIRTUAL TABLE embedded_text USING fts5(dataset, {', '.join(_FIELDS)}, "
    "tokenize=\"ascii tokenchars '_.,:;'''\")",
    "embedded_order": "CREATE INDEX embedded_order ON records (dataset_id, status, inserted_at, id)",
    "embedded_inserted": "CREATE TRIGGER embedded_inserted AFTER INSERT ON records BEGIN "
    "INSERT INTO embedded_pending VALUES (new.id); END",
    "embedded_updated": "CREATE TRIGGER embedded_updated AFTER UPDATE OF fields ON records "
    "WHEN new.fields IS NOT old.fields BEGIN INSERT INTO embedded_pending VALUES (new.id); END",
    "embedded_deleted": "CREATE TRIGGER embedded_deleted AFTER DELETE ON records BEGIN "
    "DELETE FROM embedded_text WHERE rowid = (SELECT number FROM embedded_rows WHERE record = old.id); "
    "DELETE FROM embedded_rows WHERE record = old.id; DELETE FROM embedded_pending WHERE record = old.id; END",
    "embedded_words_1": "CREATE TABLE embedded_words_1 (version)",  # the version of `words`: count up when it changes
}


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that begins and ends its transactions when told to."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def prepare(path: Path, progress: Callable[[int], None] = lambda left: None) -> int:
    """Make the index where it is missing or of another form, and bring it up to date.

    Returns the number of records that were cut into words. May be called at any time.
    """
    with closing(open_database(path)) as database:
        database.execute("BEGIN IMMEDIATE")
        found = dict(
            database.execute("SELECT name, sql FROM sqlite_master WHERE name GLOB 'embedded_*' AND sql NOTNULL")
        )
        own = {name: sql for name, sql in found.items() if not name.startswith("embedded_text_")}  # FTS5's own tables
        if own != _SCHEMA:
            _make(database, own)
        else:
            _mend(database)
        database.execute("COMMIT")
    return catch_up(path, progress)


def _make(database: sqlite3.Connection, present: dict[str, str]) -> None:
    for name, sql in sorted(present.items(), key=lambda item: "TRIGGER" not in item[1]):  # triggers name tables
        database.execute(f"DROP {sql.split()[1].replace('VIRTUAL', 'TABLE')} IF EXISTS {name}")
    for sql in _SCHEMA.values():
        database.execute(sql)
    database.execute("INSERT INTO embedded_pending SELECT id FROM records ORDER BY inserted_at, id")


def _mend(database: sqlite3.Connection) -> None:
    """Should somebody have written while the triggers were gone: note what is missing, drop what is too much."""
    database.execute(
        "INSERT INTO embedded_pending SELECT id FROM records WHERE id NOT IN (SELECT record FROM embedded_rows) "
        "AND id NOT IN (SELECT record FROM embedded_pending)"
    )
    gone = "SELECT number FROM embedded_rows WHERE record NOT IN (SELECT id FROM records)"
    database.execute(f"DELETE FROM embedded_text WHERE rowid IN ({gone})")
    database.execute(f"DELETE FROM embedded_rows WHERE number IN ({gone})")


def catch_up(path: Path, progress: Callable[[int], None] = lambda left: None) -> int:
    """Cut the records noted as new or changed into words; returns how many there were."""
    done = 0
    with closing(open_database(path)) as database:
        while database.execute("SELECT 1 FROM embedded_pending LIMIT 1").fetchone():
            done += _batch(database)
            progress(database.execute("SELECT count(*) FROM embedded_pending").fetchone()[0])
    return done


def _batch(database: sqlite3.Connection) -> int:
    """One transaction that locks others out from the start, so that no change can come between reading and writing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        noted = database.execute(
            "SELECT rowid, record FROM embedded_pending ORDER BY rowid LIMIT ?", (BATCH,)
        ).fetchall()
        ids = list(dict.fromkeys(record for _, record in noted))
        datasets: dict[str, list[tuple[str, str]]] = {}
        for record in ids:
            row = database.execute("SELECT dataset_id, fields FROM records WHERE id = ?", (record,)).fetchone()
            if row is not None:
                if row[0] not in datasets:
                    datasets[row[0]] = fields_of(database, row[0])
                _write(database, record, row[0], json.loads(row[1] or "{}"), datasets[row[0]])
        database.executemany("DELETE FROM embedded_pending WHERE rowid = ?", [(rowid,) for rowid, _ in noted])
        database.execute("COMMIT")
        return len(ids)
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _write(database: sqlite3.Connection, record: str, dataset: str, fields: dict, kinds: list[tuple[str, str]]) -> None:
    database.execute("INSERT INTO embedded_rows (record) VALUES (?) ON CONFLICT DO NOTHING", (record,))
    number = database.execute("SELECT number FROM embedded_rows WHERE record = ?", (record,)).fetchone()[0]
    texts = [indexed(fields.get(name), kind) for name, kind in kinds]
    texts = [*texts[: COLUMNS - 1], " \ue000 ".join(texts[COLUMNS - 1 :])] if len(texts) > COLUMNS else texts
    columns = ["rowid", "dataset", *_FIELDS[: len(texts)]]
    marks = ", ".join("?" * len(columns))
    sql = f"INSERT OR REPLACE INTO embedded_text ({', '.join(columns)}) VALUES ({marks})"
    database.execute(sql, (number, dataset, *texts))


def fields_of(database: sqlite3.Connection, dataset: str) -> list[tuple[str, str]]:
    """Name and type of a dataset's fields, in the order of the index's columns."""
    sql = "SELECT name, json_extract(settings, '$.type') FROM fields WHERE dataset_id = ? ORDER BY inserted_at, id"
    return database.execute(sql, (dataset,)).fetchall()


def column_of(place: int) -> str:
    """The index's column of a dataset's field, by its place among them."""
    return _FIELDS[min(place, COLUMNS - 1)]


def everything(dataset_id: UUID) -> str:
    """The FTS5 expression that all records of the dataset match."""
    return f'dataset : "{dataset_id.hex}"'
