"""How fast Argilla searches, filters and hands out the next records, in datasets of 10,000 and 100,000 records.

python -m benchmarks.argilla_search [--sizes 10000 100000] [--repeats 15]

Records of about 100 words are written straight into the database (over HTTP that would take most of the time);
everything measured goes over HTTP, asked as the web UI asks it: ten records with the annotator's answers.
"""

import argparse
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.measured import fresh_home, keep, show
from flows import services
from labeling.server import fulltext

WORDS = 20_000
"""Different words, of Zipf's frequencies."""
ANSWERED = 2_000
"""Records the annotator has answered already."""
FIELDS = ("prompt", "response_a", "response_b", "response_c", "response_d")


class Sheet:
    """A dataset of `size` records and one annotator of it."""

    def __init__(self, url: str, key: str, size: int) -> None:
        self.url, self.size, self.dice = url, size, np.random.default_rng(size)
        self.owner = self._connect(key)
        workspace = self._post("workspaces", name=f"search-{size}")["id"]
        self.id = self._post("datasets", name=f"search-{size}", workspace_id=workspace)["id"]
        for name in FIELDS:
            self._post(f"datasets/{self.id}/fields", name=name, title=name, required=True, settings={"type": "text"})
        settings = {"type": "rating", "options": [{"value": value} for value in range(1, 6)]}
        self._post(f"datasets/{self.id}/questions", name="score", title="score", required=True, settings=settings)
        for name, kind in (("aisle", "terms"), ("price", "integer")):
            part = f"datasets/{self.id}/metadata-properties"
            self._post(part, name=name, title=name, settings={"type": kind})
        self.owner.put(f"datasets/{self.id}/publish").raise_for_status()
        account = {
            "username": f"searcher-{size}",
            "first_name": "s",
            "password": "a-long-password",
            "role": "annotator",
        }
        user = self._post("users", **account)
        self._post(f"workspaces/{workspace}/users", user_id=user["id"])
        self.user, self.annotator = user["id"], self._connect(user["api_key"])

    def _connect(self, key: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.url}/api/v1", headers={"X-Argilla-Api-Key": key}, trust_env=False, timeout=120
        )

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.owner.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def fill(self, database: Path) -> float:
        """Write the records and some answers; returns the seconds it takes to index them."""
        dataset, user, now = uuid.UUID(self.id).hex, uuid.UUID(self.user).hex, "2026-01-01 00:00:00.000000"
        ids = [uuid.uuid4().hex for _ in range(self.size)]
        record = "INSERT INTO records (id, fields, metadata, status, external_id, dataset_id, inserted_at, updated_at)"
        response = 'INSERT INTO responses (id, "values", status, record_id, user_id, inserted_at, updated_at)'
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            rows = ((id, *self._record(), "pending", str(n), dataset, now, now) for n, id in enumerate(ids))
            connection.executemany(f"{record} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            given = [
                (uuid.uuid4().hex, '{"score": {"value": 3}}', "submitted", id, user, now, now) for id in ids[:ANSWERED]
            ]
            connection.executemany(f"{response} VALUES (?, ?, ?, ?, ?, ?, ?)", given)
        started = time.monotonic()
        fulltext.catch_up(database)
        return time.monotonic() - started

    def _record(self) -> tuple[str, str]:
        words = [f"w{number}" for number in (WORDS ** self.dice.random(100)).astype(int) - 1]
        fields = {name: " ".join(words[place * 20 : place * 20 + 20]) for place, name in enumerate(FIELDS)}
        metadata = {"aisle": f"aisle-{self.dice.integers(20)}", "price": int(self.dice.integers(1000))}
        return json.dumps(fields), json.dumps(metadata)

    def word(self) -> str:
        """A word, the frequent ones more often."""
        return f"w{int(WORDS ** self.dice.random()) - 1}"

    def ask(self, **body: Any) -> int:
        """The records found by a search of the annotator, in all."""
        page = {"include": "responses,suggestions", "limit": 10}
        response = self.annotator.post(f"me/datasets/{self.id}/records/search", params=page, json=body)
        response.raise_for_status()
        return response.json()["total"]

    def questions(self) -> dict[str, Callable[[], int]]:
        """What is measured: a search each, other words every time."""
        dice = self.dice
        status = [
            {"type": "terms", "scope": {"entity": entity, "property": "status"}, "values": ["pending"]}
            for entity in ("response", "record")
        ]

        def text(q: str, *filters: dict[str, Any], field: str | None = None) -> int:
            body: dict[str, Any] = {"query": {"text": {"q": q, "field": field}}}
            return self.ask(**body, **({"filters": {"and": list(filters)}} if filters else {}))

        def aisle() -> dict[str, Any]:
            scope = {"entity": "metadata", "metadata_property": "aisle"}
            return {"type": "terms", "scope": scope, "values": [f"aisle-{dice.integers(20)}"]}

        def price() -> dict[str, Any]:
            low = int(dice.integers(900))
            return {
                "type": "range",
                "scope": {"entity": "metadata", "metadata_property": "price"},
                "ge": low,
                "le": low + 99,
            }

        by_price = {"scope": {"entity": "metadata", "metadata_property": "price"}, "order": "desc"}
        return {
            "next records": lambda: self.ask(query={}, filters={"and": status}),
            "rare word": lambda: text(f"w{dice.integers(5000, WORDS)}"),
            "frequent word": lambda: text(f"w{dice.integers(0, 5)}"),
            "two words": lambda: text(f"{self.word()} {self.word()}"),
            "either, one not": lambda: text(f"{self.word()} | {self.word()} -{self.word()}"),
            "phrase": lambda: text(f'"w{dice.integers(0, 50)} w{dice.integers(0, 50)}"'),
            "prefix": lambda: text(f"w{dice.integers(1, 100)}*"),
            "word in one field": lambda: text(self.word(), field="prompt"),
            "word, pending": lambda: text(self.word(), *status),
            "metadata terms": lambda: self.ask(filters={"and": [aisle()]}),
            "metadata range": lambda: self.ask(filters={"and": [price()]}),
            "three filters": lambda: self.ask(filters={"and": [aisle(), price(), status[0]]}),
            "sorted by metadata": lambda: self.ask(sort=[by_price]),
            "progress": lambda: self.annotator.get(f"datasets/{self.id}/progress").json()["total"],
        }


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    given.add_argument("--repeats", type=int, default=15)
    options = given.parse_args()
    result: dict[str, Any] = {}
    with fresh_home() as environment:
        os.environ.update(environment)
        services.up(only=("argilla",))
        found = services.environment()
        for size in options.sizes:
            sheet = Sheet(found["ARGILLA_API_URL"], found["ARGILLA_API_KEY"], size)
            seconds = sheet.fill(services.home() / "argilla" / "argilla.db")
            figures = {name: _measured(ask, options.repeats) for name, ask in sheet.questions().items()}
            result[str(size)] = {"index_seconds": round(seconds, 1), "milliseconds": figures}
            keep("argilla_search", result)
            rows = [[name, f["p50"], f["p95"], f["found"]] for name, f in figures.items()]
            show(f"{size} records, indexed in {seconds:.1f} s", ["search", "p50 ms", "p95 ms", "found (median)"], rows)


def _measured(ask: Callable[[], int], repeats: int) -> dict[str, float]:
    ask()
    times, found = [], []
    for _ in range(repeats):
        started = time.monotonic()
        found.append(ask())
        times.append((time.monotonic() - started) * 1000)
    p50, p95 = np.quantile(times, [0.5, 0.95])
    return {"p50": round(float(p50)), "p95": round(float(p95)), "found": int(np.median(found))}


if __name__ == "__main__":
    main()
