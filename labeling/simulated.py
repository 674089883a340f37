"""Annotators made of a hidden utility and noise, who answer over the same HTTP endpoints as Argilla's web UI."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

import httpx

from labeling.comparison import OPTIONS
from labeling.question import QUESTION, unescaped
from labeling.service.connection import connect, request

PENDING = 100
"""Records an annotator fetches at once."""

Utility = Callable[[str, str], float]
"""Record id and completion text -> how good the completion truly is."""


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Somebody who sees each completion's utility through noise of their own.

    The noise is Gumbel, so that ranks follow a Plackett-Luce model (Luce 1959; Yellott 1977) with utilities divided by
    `noise`. It depends on the seed, the name, the record and the text only: never on when a record is answered.
    """

    name: str
    noise: float = 0.1
    """Scale of the Gumbel noise, in units of the utility."""
    tie_margin: float = 0.0
    """Completions whose perceived utilities are at most this far below the best of their group share its rank."""
    careless: bool = False
    """Ranks at random, without reading."""
    contrary: bool = False
    """Takes the worst for the best."""
    discard_rate: float = 0.0
    """Share of records discarded instead of ranked."""
    seed: int = 0

    def rank(self, record: str, utilities: Mapping[str, float]) -> dict[str, int]:
        """Ranks (1 is best, ties share one: 1, 2, 2, 4) of completions with these true utilities."""
        perceived = {name: self._perceived(record, name, utility) for name, utility in utilities.items()}
        ordered = sorted(perceived, key=lambda name: (-perceived[name], name))
        ranks: dict[str, int] = {}
        leader = ordered[0] if ordered else ""
        for place, name in enumerate(ordered, 1):
            if place == 1 or perceived[leader] - perceived[name] > self.tie_margin:
                leader = name
                ranks[name] = place
            else:
                ranks[name] = ranks[leader]
        return ranks

    def discards(self, record: str) -> bool:
        """Whether this annotator discards the record."""
        return self._draw(record, "discard") < self.discard_rate

    def _perceived(self, record: str, name: str, utility: float) -> float:
        gumbel = -math.log(-math.log(self._draw(record, name)))
        if self.careless:
            return gumbel
        return (-utility if self.contrary else utility) + self.noise * gumbel

    def _draw(self, record: str, what: str) -> float:
        """A number in (0, 1) that belongs to this annotator, record and purpose."""
        digest = hashlib.sha256(f"{self.seed}/{self.name}/{record}/{what}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") + 0.5) / 2**64


def answer_round(
    url: str,
    jobs: Sequence[tuple[str, SimulatedAnnotator, str]],
    utility: Utility,
    progress: Callable[[int], None] = lambda answered: None,
) -> int:
    """Let annotators answer all records still pending for them, all at the same time.

    A job is a dataset's id, the annotator, and the annotator's API key.

    What was answered before is left alone, so an interrupted round goes on. `progress` gets the number of answers given
    so far in this call, which is also returned. Raises `LabelingError` when Argilla cannot be reached or refuses.
    """
    stop, lock, answered = Event(), Lock(), 0

    def count() -> None:
        nonlocal answered
        with lock:
            answered += 1
            progress(answered)

    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        futures: list[Future[None]] = [
            pool.submit(_answer_all, url, key, dataset, annotator, utility, count, stop)
            for dataset, annotator, key in jobs
        ]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
    return answered


def _answer_all(
    url: str,
    api_key: str,
    dataset: str,
    annotator: SimulatedAnnotator,
    utility: Utility,
    count: Callable[[], None],
    stop: Event,
) -> None:
    with closing(connect(url, api_key)) as client:
        while not stop.is_set():
            records = _pending(client, dataset)
            if not records:
                return
            for record in records:
                if stop.is_set():
                    return
                answer = _answer(annotator, record, utility)
                # 409: a first try got through although its acknowledgement did not.
                request(client, "POST", f"/api/v1/records/{record['id']}/responses", json=answer, accept=(409,))
                count()


def _pending(client: httpx.Client, dataset: str) -> list[dict[str, Any]]:
    """The next records the signed-in annotator has to answer, asked for as the web UI asks."""
    pending = [
        {"type": "terms", "scope": {"entity": entity, "property": "status"}, "values": ["pending"]}
        for entity in ("response", "record")
    ]
    found = request(
        client,
        "POST",
        f"/api/v1/me/datasets/{dataset}/records/search",
        params={"include": "responses,suggestions", "offset": 0, "limit": PENDING},
        json={"query": {}, "filters": {"and": pending}},
    )
    return [item["record"] for item in found["items"]]


def _answer(annotator: SimulatedAnnotator, record: Mapping[str, Any], utility: Utility) -> dict[str, Any]:
    """The response the web UI would send: equal texts get equal ranks, whoever looks at them."""
    name = record["external_id"]
    if annotator.discards(name):
        return {"status": "discarded"}
    texts = {option: unescaped(record["fields"][option]) for option in OPTIONS if option in record["fields"]}
    by_text = annotator.rank(name, {text: utility(name, text) for text in texts.values()})
    values = [{"value": option, "rank": by_text[text]} for option, text in texts.items()]
    return {"status": "submitted", "values": {QUESTION: {"value": values}}}
