"""What tells of an erased person beside artifacts: half-done builds, summaries, reports in Prefect, the password, and
deleted rows that still lie in the free pages of local databases."""

import json
import mmap
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from flows import faults
from flows.shaped import holds
from tasks.erasure import delete_files, text_files, texts
from tasks.lineage import KEY, Record
from tasks.store import Store
from tasks.tombstones import TOMBSTONE, Tombstone
from tasks.tracking import answering

PAGE = 200
"""Prefect gives so many artifacts at once."""
MOST_VARIABLES = 500
"""SQLite takes about a thousand alternatives in one condition."""


def erase_traces(name: str, stone: Tombstone, store: Store) -> None:
    """What tells of the person beside artifacts: half-done builds, summaries, Prefect's texts, the password."""
    needles = [stone.annotator, *stone.judgements]
    building = store.home / "building"
    for file in _files_telling(building, needles):
        shutil.rmtree(building / file.relative_to(building).parts[0], ignore_errors=True)
    for run_id, path in _runs_telling(store.record, needles):
        with answering():
            store.record.client.log_text(run_id, "Erased: it told of somebody who was erased since.\n", path)
    for run in store.record.runs(deleted=True):  # MLflow keeps the files of runs that somebody deleted there
        if any(holds(content, [needle.encode() for needle in needles]) for _, content in texts(store.record, run)):
            delete_files(run)
    _erase_from_prefect(needles)
    _erase_events(store.home / "prefect" / "prefect.db", needles)
    _forget_password(name, store.home)
    _compact(store.home, [*needles, *(each.replace("-", "") for each in stone.judgements)])


def _erase_from_prefect(needles: Sequence[str]) -> None:
    """Delete the reports in Prefect's pages that tell of the person.

    They are emptied first: the event of a deletion repeats what was deleted.
    """
    from prefect import get_client
    from prefect.client.schemas.actions import ArtifactUpdate

    with faults.prefect_answers(), get_client(sync_client=True) as client:
        found, offset = [], 0
        while page := client.read_artifacts(limit=PAGE, offset=offset):
            found += [each.id for each in page if any(needle in json.dumps(each.data) for needle in needles)]
            offset += len(page)
        for each in found:
            client.update_artifact(each, ArtifactUpdate(data="Erased."))
            client.delete_artifact(each)


def _erase_events(path: Path, needles: Sequence[str]) -> None:
    """Delete what the local Prefect said of the reports in its events, which its API does not let anybody delete.

    A Prefect elsewhere forgets its events after a week (`PREFECT_EVENTS_RETENTION_PERIOD`).
    """
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        for start in range(0, len(needles), MOST_VARIABLES):
            some = needles[start : start + MOST_VARIABLES]
            telling = " OR ".join(["instr(payload, ?)"] * len(some))
            found = database.execute(f"SELECT id FROM events WHERE {telling}", some).fetchall()
            for table, column in (("event_resources", "event_id"), ("events", "id")):
                database.executemany(f"DELETE FROM {table} WHERE {column} = ?", found)


def _forget_password(name: str, home: Path) -> None:
    """Take the person out of the files of passwords."""
    url = os.environ["ARGILLA_API_URL"].rstrip("/")
    for path in (home / "credentials").glob("*.json"):
        kept = json.loads(path.read_text())
        if kept.get(url, {}).pop(name, None) is None:
            continue
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(kept, file, indent=1)
        partial.replace(path)


def _compact(home: Path, needles: Iterable[str]) -> None:
    """Rewrite the databases of local services where deleted rows still lie in free pages."""
    wanted = [needle.encode() for needle in needles]
    for service in ("argilla", "prefect"):
        for path in (home / service).glob("*.db"):
            if any(_file_holds(file, wanted) for file in (path, path.with_name(f"{path.name}-wal"))):
                with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
                    database.execute("VACUUM")
                    _empty_journal(database)


def _empty_journal(database: sqlite3.Connection) -> None:
    """Bring the write-ahead log into the file and cut it; a reader may hold that up for a moment."""
    for _ in range(100):
        if not database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            return
        time.sleep(0.1)


def _file_holds(path: Path, needles: Sequence[bytes]) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(needle) >= 0 for needle in needles)


def _runs_telling(record: Record, needles: Iterable[str]) -> list[tuple[str, str]]:
    """(run id, path) of the texts of runs that are no artifact's, such as a lifecycle's summary, that hold a needle."""
    wanted = [needle.encode() for needle in needles]
    return [
        (run.info.run_id, path)
        for run in record.runs()
        if KEY not in run.data.tags and TOMBSTONE not in run.data.tags
        for path, content in texts(record, run)
        if holds(content, wanted)
    ]


def _files_telling(folder: Path, needles: Iterable[str]) -> list[Path]:
    """Text files under a folder that hold a needle: what a killed build left, for one."""
    wanted = [needle.encode() for needle in needles]
    return [folder / path for path, content in text_files(folder) if holds(content, wanted)]
