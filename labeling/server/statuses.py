"""Record statuses after a crash: Argilla stores an answer and the record's status one after the other."""

import sqlite3
from contextlib import closing
from pathlib import Path

_RULE = """
    SELECT records.id, CASE WHEN given.submitted >= json_extract(datasets.distribution, '$.min_submitted')
        THEN 'completed' ELSE 'pending' END AS status
    FROM records JOIN datasets ON datasets.id = records.dataset_id
    LEFT JOIN (SELECT record_id, count(*) AS submitted FROM responses WHERE status = 'submitted' GROUP BY record_id)
        AS given ON given.record_id = records.id
"""


def mend(path: Path) -> int:
    """Make every record's status what its submitted answers say; returns how many were wrong."""
    with closing(sqlite3.connect(path, timeout=30)) as database, database:
        sql = f"SELECT rule.status, rule.id FROM ({_RULE}) AS rule JOIN records USING (id)"
        wrong = database.execute(f"{sql} WHERE records.status IS NOT rule.status").fetchall()
        database.executemany("UPDATE records SET status = ? WHERE id = ?", wrong)
    return len(wrong)
