"""Similarity search: a dataset's vectors, read once and kept in memory as long as no record changes."""
# pyright: reportMissingImports=false

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from argilla_server.database import AsyncSessionLocal
from argilla_server.models import Vector
from sqlalchemy import select

LIMIT = 1 << 29
"""Bytes of vectors kept; the ones not asked for longest make room."""


@dataclass(frozen=True)
class Vectors:
    """Vectors of unit length, one row per record."""

    records: list[UUID]
    matrix: np.ndarray


_kept: OrderedDict[UUID, tuple[UUID, Vectors]] = OrderedDict()
"""Vector settings -> (dataset, vectors), the ones just used last."""
_changes: dict[UUID, int] = {}
"""Dataset -> how often it has changed: what was read meanwhile is not kept."""


def forget(dataset_id: UUID) -> None:
    """The dataset's vectors have changed."""
    _changes[dataset_id] = _changes.get(dataset_id, 0) + 1
    for settings in [settings for settings, (dataset, _) in _kept.items() if dataset == dataset_id]:
        del _kept[settings]


async def vectors(dataset_id: UUID, settings_id: UUID) -> Vectors:
    """All vectors under these settings."""
    if settings_id in _kept:
        _kept.move_to_end(settings_id)
        return _kept[settings_id][1]
    before = _changes.get(dataset_id, 0)
    ids, parts = [], []
    async with AsyncSessionLocal() as db:
        rows = await db.stream(select(Vector.record_id, Vector.value).where(Vector.vector_settings_id == settings_id))
        async for some in rows.partitions(2000):
            ids += [row[0] for row in some]
            parts.append(np.asarray([row[1] for row in some], dtype=np.float32))
    matrix = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-12
    found = Vectors(ids, matrix)
    if _changes.get(dataset_id, 0) == before and matrix.nbytes <= LIMIT:
        _kept[settings_id] = (dataset_id, found)
        while sum(each.matrix.nbytes for _, each in _kept.values()) > LIMIT:
            _kept.popitem(last=False)
    return found


def search(
    vectors: Vectors,
    target: Sequence[float],
    most: int,
    allowed: set[UUID] | None,
    skip: UUID | None,
    threshold: float | None,
) -> list[tuple[UUID, float]]:
    """The `most` records nearest to `target` with their scores `(1 + cosine) / 2`, of the allowed ones (None: all)."""
    if not vectors.records:
        return []
    point = np.asarray(target, dtype=np.float32)
    scores = (1 + vectors.matrix @ (point / (np.linalg.norm(point) + 1e-12))) / 2
    found = []
    for place in np.argsort(-scores, kind="stable"):
        record, score = vectors.records[place], float(scores[place])
        if len(found) == most or (threshold is not None and score < threshold):
            break
        if record != skip and (allowed is None or record in allowed):
            found.append((record, score))
    return found
