"""Many annotators at once on one shared round: what is lost, what is doubled, what fails, how fast it is.

python -m benchmarks.argilla_load [--annotators 20] [--seconds 300]

Each annotator signs in with a key of their own and asks and answers as the web UI does: ten pending records, an answer
each, ten more. Nobody pauses to read, so this is far more than so many people could do.
"""

import argparse
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.measured import fresh_home, keep, show
from flows import services
from labeling.service.argilla import records

OPTIONS = ("response_a", "response_b", "response_c", "response_d")
TEXT = "You will find the bread in aisle four, next to the milk and across from the fruit. " * 3
PAGE = 10
"""Pending records the web UI fetches at once."""
OVERLAP = 3


@dataclass
class Told:
    """What the server has acknowledged to one annotator, and how it answered."""

    ranks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Record -> ranks as they were sent."""
    unsure: set[str] = field(default_factory=set)
    """Records whose answer broke off: it may be stored or not."""
    codes: Counter[int] = field(default_factory=Counter)
    answer_seconds: list[float] = field(default_factory=list)
    page_seconds: list[float] = field(default_factory=list)


class Load:
    """A round of short records and annotators who answer it; `url` and `key` are of a running Argilla's owner."""

    def __init__(self, url: str, key: str, name: str, annotators: int, size: int) -> None:
        self.url, self.name = url, name
        self.owner = self.connect(key)
        workspace = self._post("workspaces", {"name": name})["id"]
        spread = {"strategy": "overlap", "min_submitted": OVERLAP}
        self.dataset = self._post("datasets", {"name": name, "workspace_id": workspace, "distribution": spread})["id"]
        part = f"datasets/{self.dataset}"
        for field_name in ("prompt", *OPTIONS):
            settings = {"name": field_name, "title": field_name, "required": True, "settings": {"type": "text"}}
            self._post(f"{part}/fields", settings)
        options = [{"value": option, "text": option} for option in OPTIONS]
        question = {"name": "ranking", "title": "Rank", "required": True}
        self._post(f"{part}/questions", {**question, "settings": {"type": "ranking", "options": options}})
        self.owner.put(f"{part}/publish").raise_for_status()
        for start in range(0, size, 500):
            rows = [
                {"external_id": str(number), "fields": {"prompt": f"{number}?", **dict.fromkeys(OPTIONS, TEXT)}}
                for number in range(start, min(size, start + 500))
            ]
            self._post(f"{part}/records/bulk", {"items": rows})
        self.people = {user["id"]: user["api_key"] for user in map(self._annotator(workspace), range(annotators))}
        self.told = {person: Told() for person in self.people}
        self.answered = threading.Semaphore(0)
        """Released once for each acknowledged answer."""

    def connect(self, key: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.url}/api/v1", headers={"X-Argilla-Api-Key": key}, trust_env=False, timeout=60
        )

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.owner.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def _annotator(self, workspace: str):
        def make(number: int) -> dict[str, Any]:
            name = f"{self.name}-{number}"
            account = {"first_name": name, "username": name, "password": "a-long-password", "role": "annotator"}
            user = self._post("users", account)
            self._post(f"workspaces/{workspace}/users", {"user_id": user["id"]})
            return user

        return make

    def run(self, seconds: float) -> float:
        """Everybody answers until the time is over, nothing is pending or the server is gone; the seconds it took."""
        started = time.monotonic()
        with ThreadPoolExecutor(len(self.people)) as pool:
            list(pool.map(lambda person: self._work(person, started + seconds), self.people))
        return time.monotonic() - started

    def _work(self, person: str, until: float) -> None:
        told, dice = self.told[person], np.random.default_rng(int(person.replace("-", ""), 16) % 2**32)
        with self.connect(self.people[person]) as client:
            try:
                while time.monotonic() < until and (page := self._pending(client, told)):
                    for record in page:
                        if time.monotonic() >= until:
                            return
                        ranks = [{"value": option, "rank": int(dice.integers(1, 5))} for option in OPTIONS]
                        self._answer(client, told, record, ranks)
            except httpx.TransportError:
                return  # the server is gone; what it has not acknowledged does not count

    def _pending(self, client: httpx.Client, told: Told) -> list[str]:
        wanted = [
            {"type": "terms", "scope": {"entity": entity, "property": "status"}, "values": ["pending"]}
            for entity in ("response", "record")
        ]
        started = time.monotonic()
        response = client.post(
            f"me/datasets/{self.dataset}/records/search",
            params={"include": "responses,suggestions", "limit": PAGE},
            json={"query": {}, "filters": {"and": wanted}},
        )
        told.page_seconds.append(time.monotonic() - started)
        told.codes[response.status_code] += 1
        return [item["record"]["id"] for item in response.json()["items"]] if response.is_success else []

    def _answer(self, client: httpx.Client, told: Told, record: str, ranks: list[dict[str, Any]]) -> None:
        body = {"status": "submitted", "values": {"ranking": {"value": ranks}}}
        started = time.monotonic()
        told.unsure.add(record)
        response = client.post(f"records/{record}/responses", json=body)
        told.unsure.discard(record)
        told.answer_seconds.append(time.monotonic() - started)
        told.codes[response.status_code] += 1
        if response.status_code == 201:
            told.ranks[record] = ranks
            self.answered.release()

    def check(self) -> dict[str, int]:
        """What the server holds against what it has acknowledged: all of these must be 0."""
        stored: Counter[tuple[str, str]] = Counter()
        wrong_ranks = wrong_status = 0
        for record in records(self.owner_at_root(), self.dataset, include="responses"):
            submitted = 0
            for response in record["responses"]:
                submitted += response["status"] == "submitted"
                stored[response["user_id"], record["id"]] += 1
                sent = self.told[response["user_id"]].ranks.get(record["id"])
                wrong_ranks += sent is not None and response["values"]["ranking"]["value"] != sent
            wrong_status += (record["status"] == "completed") != (submitted >= OVERLAP)
        told = {(person, record) for person, each in self.told.items() for record in each.ranks}
        unsure = {(person, record) for person, each in self.told.items() for record in each.unsure}
        return {
            "lost": len(told - set(stored)),
            "doubled": sum(times > 1 for times in stored.values()),
            "never_sent": len(set(stored) - told - unsure),
            "wrong_ranks": wrong_ranks,
            "wrong_status": wrong_status,
        }

    def owner_at_root(self) -> httpx.Client:
        """The owner's client as `labeling` takes it."""
        key = self.owner.headers["X-Argilla-Api-Key"]
        return httpx.Client(base_url=self.url, headers={"X-Argilla-Api-Key": key}, trust_env=False, timeout=60)

    def figures(self, seconds: float) -> dict[str, Any]:
        """Answers per second, latencies and HTTP statuses."""
        answers = [each for told in self.told.values() for each in told.answer_seconds]
        pages = [each for told in self.told.values() for each in told.page_seconds]
        codes = sum((told.codes for told in self.told.values()), Counter[int]())
        given = sum(len(told.ranks) for told in self.told.values())
        return {
            "annotators": len(self.people),
            "seconds": round(seconds, 1),
            "answers": given,
            "answers_per_second": round(given / seconds, 1),
            "answer_p50_s": round(float(np.quantile(answers, 0.5)), 3),
            "answer_p95_s": round(float(np.quantile(answers, 0.95)), 3),
            "answer_max_s": round(max(answers), 3),
            "page_p50_s": round(float(np.quantile(pages, 0.5)), 3),
            "page_p95_s": round(float(np.quantile(pages, 0.95)), 3),
            "codes": {str(code): times for code, times in sorted(codes.items())},
            **self.check(),
        }


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--annotators", type=int, default=20)
    given.add_argument("--seconds", type=float, default=300)
    options = given.parse_args()
    with fresh_home() as environment:
        os.environ.update(environment)
        services.up(only=("argilla",))
        found = services.environment()
        size = int(options.seconds * 60 / OVERLAP) + 500
        load = Load(found["ARGILLA_API_URL"], found["ARGILLA_API_KEY"], "load", options.annotators, size)
        figures = load.figures(load.run(options.seconds))
    keep("argilla_load", figures)
    show("annotators at once, one server process", ["figure", "value"], list(figures.items()))


if __name__ == "__main__":
    main()
