"""Every search of Argilla against brute force over random data: filters, sorting, texts, similarity, counts, users."""

import json
import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeling.server import fulltext, textquery
from labeling.server.moments import period
from labeling.server.words import words
from tests import argilla_data as data
from tests.argilla_data import NAMES
from tests.argilla_sheet import Sheet


@pytest.fixture(scope="module")
def sheet(argilla: dict[str, str]) -> Sheet:
    return Sheet(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"], "random")


def _check_filters(sheet: Sheet, seed: int, times: int) -> Counter[int]:
    dice, sizes = random.Random(seed), Counter()
    for _ in range(times):
        filters = [data.make_filter(dice, sheet.rows) for _ in range(dice.choice([1, 1, 2, 3]))]
        user = dice.choice([None, 0, 1, 2])
        wanted = {row.number for row in sheet.rows if all(data.passes(row, each, user) for each in filters)}
        found, total = sheet.ask(user, filters={"and": filters})
        assert (set(found), len(found), total) == (wanted, len(wanted), len(wanted)), (user, filters)
        sizes[len(wanted)] += 1
    return sizes


def _check_texts(sheet: Sheet, seed: int, times: int) -> Counter[int]:
    dice, sizes = random.Random(seed), Counter()
    for _ in range(times):
        query, means = data.make_query(dice)
        field, user = dice.choice([None, "prompt", "talk", "photo"]), dice.choice([None, 0])
        filters = [data.make_filter(dice, sheet.rows)] if dice.random() < 0.3 else []
        wanted = {
            row.number
            for row in sheet.rows
            if means(sheet.texts(row, field)) and all(data.passes(row, each, user) for each in filters)
        }
        body: dict[str, Any] = {"filters": {"and": filters}} if filters else {}
        found, total = sheet.ask(user, query={"text": {"q": query, "field": field}}, **body)
        assert (set(found), total) == (wanted, len(wanted)), (query, field, filters)
        sizes[len(wanted)] += 1
    return sizes


def test_random_filters_by_random_people(sheet: Sheet) -> None:
    sizes = _check_filters(sheet, seed=1, times=120)
    assert len(sizes) > 30, "most filters let something through, and not everything"


def test_random_text_queries(sheet: Sheet) -> None:
    sizes = _check_texts(sheet, seed=2, times=80)
    assert len(sizes) > 30


def test_random_sorting(sheet: Sheet) -> None:
    dice = random.Random(5)
    scopes = [
        *({"entity": "metadata", "metadata_property": NAMES[name]} for name in ("price", "weight", "size", "quoted")),
        *({"entity": "suggestion", "question": "score", "property": name} for name in ("value", "score", "agent")),
        {"entity": "suggestion", "question": "tags", "property": "score"},
        {"entity": "response", "question": "score"},
        *({"entity": "record", "property": name} for name in ("status", "external_id")),
    ]
    for scope in scopes:
        for descending in (False, True):
            user = dice.choice([None, 0, 1, 2])
            found, _ = sheet.ask(user, sort=[{"scope": scope, "order": "desc" if descending else "asc"}])
            assert found == data.in_order(sheet.rows, scope, descending, user), (scope, descending, user)


def test_pages_of_a_filtered_search_follow_each_other(sheet: Sheet) -> None:
    filters = {"and": [{"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}]}
    whole, total = sheet.ask(0, filters=filters)
    pages = [sheet.ask(0, limit=7, offset=offset, filters=filters) for offset in range(0, total + 7, 7)]
    assert [number for page, _ in pages for number in page] == whole
    assert {count for _, count in pages} == {total} and len(set(whole)) == total


def _unit(vector: Any) -> np.ndarray:
    return np.array(vector) / np.linalg.norm(np.array(vector))


def test_similar_records_within_filters_and_texts(sheet: Sheet) -> None:
    dice = random.Random(6)
    have = [row for row in sheet.rows if row.vector]
    for number in range(40):
        filters = [data.make_filter(dice, sheet.rows)] if dice.random() < 0.5 else []
        query, means = data.make_query(dice) if dice.random() < 0.3 else ("", None)
        asked, least = dice.choice(have), number % 2 == 1
        by_record = dice.random() < 0.5
        target = np.array(asked.vector if by_record else [dice.uniform(-1, 1) for _ in range(3)])
        near = {
            row.number: float(np.dot(_unit(row.vector), _unit(target)))
            for row in have
            if all(data.passes(row, each, 0) for each in filters)
            and (means is None or means(sheet.texts(row, None)))
            and not (by_record and row is asked)
        }
        wanted = sorted(near, key=lambda each: near[each] if least else -near[each])[:10]
        vector = {"name": "meaning", "order": "least_similar" if least else "most_similar"}
        vector |= {"record_id": asked.id} if by_record else {"value": target.tolist()}
        body: dict[str, Any] = {"filters": {"and": filters}} if filters else {}
        asks = {"vector": vector} | ({"text": {"q": query}} if means else {})
        found, total = sheet.ask(0, limit=10, query=asks, **body)
        assert total == len(wanted) and np.allclose([near[each] for each in found], [near[each] for each in wanted])


def test_counts_and_what_the_filters_offer(sheet: Sheet) -> None:
    statuses = Counter(row.status for row in sheet.rows)
    progress = sheet.owner.get(f"datasets/{sheet.id}/progress").json()
    assert (progress["total"], progress["completed"]) == (len(sheet.rows), statuses["completed"])
    for number, annotator in enumerate(sheet.annotators):
        mine = Counter(row.responses[number][0] for row in sheet.rows if number in row.responses)
        told = annotator.get(f"me/datasets/{sheet.id}/metrics").json()["responses"]
        assert {name: told[name] for name in data.STATUSES} == {name: mine[name] for name in data.STATUSES}
        assert told["pending"] == len(sheet.rows) - sum(mine.values())
    for name, key in sheet.properties.items():
        values = [
            data.values_of(row, {"entity": "metadata", "metadata_property": NAMES[name]}, None) for row in sheet.rows
        ]
        told = sheet.owner.get(f"metadata-properties/{key}/metrics").json()
        if told["type"] == "terms":
            spelled = [{str(one).lower() if one is True else str(one) for one in each} for each in values]
            counts = Counter(one for each in spelled for one in each)
            assert {one["term"]: one["count"] for one in told["values"]} == counts and told["total"] == counts.total()
        else:
            flat = [one for each in values for one in each]
            assert (told["min"], told["max"]) == (min(flat), max(flat))


def test_what_cannot_be_searched_for_is_refused_in_words(sheet: Sheet) -> None:
    day = {"entity": "record", "property": "inserted_at"}
    refused = [
        {"filters": {"and": [{"type": "terms", "scope": day, "values": ["yesterday"]}]}},
        {"filters": {"and": [{"type": "range", "scope": {"entity": "response", "property": "status"}, "ge": "a"}]}},
        {"filters": {"and": [{"type": "terms", "scope": {"entity": "response"}, "values": ["a"]}]}},
        {"sort": [{"scope": {"entity": "response"}, "order": "asc"}]},
        {"query": {"vector": {"name": "meaning", "value": [1.0]}}},
    ]
    for body in refused:
        response = sheet.owner.post(f"me/datasets/{sheet.id}/records/search", json=body)
        assert response.status_code == 422, (body, response.text)


@pytest.mark.parametrize(
    "query", ["(" * 3000 + "bread", "-" * 999, '"', "a|b " * 500, "(a b|c " * 200 + ")" * 200, "\\", "\x00*"]
)
def test_no_query_is_too_strange(sheet: Sheet, query: str) -> None:
    response = sheet.owner.post(f"me/datasets/{sheet.id}/records/search", json={"query": {"text": {"q": query}}})
    assert response.status_code in (200, 422), response.text


def test_the_index_follows_every_change(sheet: Sheet) -> None:
    """Last in this file: it changes the rows. Upserts, patches, deletions, later answers, then everything again."""
    dice = random.Random(8)
    changed = dice.sample(sheet.rows, 40)
    for number, row in enumerate(changed[:20]):
        row.texts = data.make_texts(dice) if number < 15 else row.texts
        row.metadata, row.vector = data.make_metadata(dice), [1.0, dice.uniform(-1, 1), 0.0]
    bodies = [row.body(sheet.questions, dice) for row in changed[:20]]
    sheet.owner.put(f"datasets/{sheet.id}/records/bulk", json={"items": bodies[:15]}).raise_for_status()
    for row, body in zip(changed[15:20], bodies[15:], strict=True):
        body = {name: body[name] for name in ("metadata", "vectors")}
        sheet.owner.patch(f"records/{row.id}", json=body).raise_for_status()
    for row in changed[20:30]:
        sheet.owner.delete(f"records/{row.id}").raise_for_status()
    gone = changed[30:35]
    ids = ",".join(row.id for row in gone)
    sheet.owner.delete(f"datasets/{sheet.id}/records", params={"ids": ids}).raise_for_status()
    sheet.rows = [row for row in sheet.rows if row not in changed[20:35]]
    for row in changed[35:]:
        if 2 not in row.responses:
            row.responses[2] = ("submitted", data.make_answer(dice))
            sheet.answer(row, 2, *row.responses[2])
    _check_filters(sheet, seed=9, times=40)
    _check_texts(sheet, seed=10, times=40)
    test_similar_records_within_filters_and_texts(sheet)
    test_counts_and_what_the_filters_offer(sheet)


# The parts by themselves


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop, it's 3.5 kg (1,000 g)!", ["don't", "stop", "it's", "3.5", "kg", "1,000", "g"]),
        ("e-mail me@example.com snake_case ___", ["e", "mail", "me", "example.com", "snake_case"]),
        ("黒猫が走る カタカナ", ["黒", "猫", "が", "走", "る", "カタカナ"]),
        ("Straße naïve हिन्दी 😀", ["straße", "naïve", "हिन्दी", "😀"]),
        ("end. 'quoted' a.1", ["end", "quoted", "a", "1"]),
    ],
)
def test_words_are_cut_as_by_the_standard_analyzer(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("2026", "2026-01-01 00:00:00", "2026-01-01 23:59:59.999999"),
        ("2026-11-20T08:30", "2026-11-20 08:30:00", "2026-11-20 08:30:59.999999"),
        ("2026-11-20T08:30:00.25+02:00", "2026-11-20 06:30:00.250000", "2026-11-20 06:30:00.250000"),
        (1_700_000_000_000.0, "2023-11-14 22:13:20", "2023-11-14 22:13:20"),
    ],
)
def test_dates_are_read_as_elasticsearch_reads_them(value: str | float, first: str, last: str) -> None:
    assert tuple(map(str, period(value))) == (first, last)


@pytest.mark.parametrize("value", ["today", "2026-13-01", "0001-01-01T00:00+14:00", "1e400", float("inf")])
def test_what_is_no_date_is_a_value_error(value: str | float) -> None:
    with pytest.raises(ValueError, match=r"date|month|calendar|day"):
        period(value)


def _database(path: Path) -> sqlite3.Connection:
    """The tables the index rests on, as Argilla makes them."""
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(
        "CREATE TABLE fields (id TEXT, name TEXT, settings TEXT, dataset_id TEXT, inserted_at TEXT);"
        "CREATE TABLE records (id CHAR(32) PRIMARY KEY, fields JSON, dataset_id TEXT, status TEXT, inserted_at TEXT);"
        "INSERT INTO fields VALUES ('1', 'prompt', '{\"type\": \"text\"}', 'd', '1');"
    )
    return database


def _insert(database: sqlite3.Connection, id: str, text: str) -> None:
    database.execute("INSERT INTO records VALUES (?, ?, 'd', 'pending', '1')", (id, json.dumps({"prompt": text})))


def _found(path: Path, query: str) -> list[str]:
    fulltext.catch_up(path)
    match = textquery.expression(query, textquery.Where(("c0",), 'dataset : "d"'))
    joined = "embedded_text JOIN embedded_rows ON number = embedded_text.rowid"
    sql = f"SELECT record FROM {joined} WHERE embedded_text MATCH ?"
    with sqlite3.connect(path) as database:
        return sorted(row[0] for row in database.execute(sql, (match,)))


def test_the_index_is_made_where_missing_and_mended_where_stale(tmp_path: Path) -> None:
    path = tmp_path / "argilla.db"
    database = _database(path)
    _insert(database, "old", "bread")
    assert fulltext.prepare(path) == 1 and _found(path, "bread") == ["old"]
    assert fulltext.prepare(path) == 0, "nothing to do the second time"

    database.execute("DROP TRIGGER embedded_inserted")  # as a migration that makes the table anew would
    _insert(database, "unseen", "bread")
    assert _found(path, "bread") == ["old"]
    assert fulltext.prepare(path) == 2 and _found(path, "bread") == ["old", "unseen"]

    database.execute("DELETE FROM embedded_rows WHERE record = 'old'")
    assert fulltext.prepare(path) == 1 and _found(path, "bread") == ["old", "unseen"]


def test_the_index_takes_part_in_transactions(tmp_path: Path) -> None:
    path = tmp_path / "argilla.db"
    database = _database(path)
    fulltext.prepare(path)
    database.execute("BEGIN")
    _insert(database, "never", "bread")
    database.execute("ROLLBACK")
    _insert(database, "kept", "bread")
    assert _found(path, "bread") == ["kept"]
    database.execute('UPDATE records SET fields = \'{"prompt": "milk"}\'')
    assert _found(path, "bread") == [] and _found(path, "milk") == ["kept"]
    database.execute("DELETE FROM records")
    assert _found(path, "milk") == []
    assert database.execute("SELECT count(*) FROM embedded_text").fetchone() == (0,)
