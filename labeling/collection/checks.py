"""Comparisons that check annotators, slipped in unseen: with a known answer (gold), and a second time (repeats)."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from labeling.comparison import Comparison, Completion, LabelingError, compare


def gold_comparisons(rows: Sequence[Mapping[str, Any]], options: int, seed: int) -> list[Comparison]:
    """Comparisons with a known answer.

    A row has `prompt` (a text or messages), `completions` (texts) and `ranks` (one each, 1 is best, ties allowed).
    Raises `LabelingError` for a row of another form, or with another number of completions than the round shows.
    """
    return [_gold(row, number, options, seed) for number, row in enumerate(rows, 1)]


def _gold(row: Mapping[str, Any], number: int, options: int, seed: int) -> Comparison:
    prompt, texts, ranks = _parts(row, number)
    if len(texts) != options:
        raise LabelingError(
            f"Gold comparison {number} has {len(texts)} completions but the round shows {options}; give as many."
        )
    if len(set(ranks)) == 1:
        raise LabelingError(f"Gold comparison {number} ties everything, which checks nobody; rank it or remove it.")
    id = _digest("gold", [prompt, texts])
    completions = [Completion(f"{id}-{k}", text) for k, text in enumerate(texts)]
    expected = {completion.id: rank for completion, rank in zip(completions, ranks, strict=True)}
    return compare(id, prompt, completions, seed, kind="gold", source=f"row {number}", expected=expected)


def _parts(row: Mapping[str, Any], number: int) -> tuple[list[dict[str, str]], list[str], list[int]]:
    prompt = row.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    texts, ranks = row.get("completions"), row.get("ranks")
    right = _are(messages, dict) and _are(texts, str) and _are(ranks, int) and len(texts or ()) == len(ranks or ())
    if not right or not all({"role", "content"} <= message.keys() for message in messages or ()):
        raise LabelingError(
            f"Gold comparison {number} needs a prompt, completions (texts) and as many ranks (numbers); mend the row."
        )
    return list(messages or ()), list(texts or ()), list(ranks or ())


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and all(isinstance(value, kind) for value in values)


def repeats(comparisons: Sequence[Comparison], share: float, seed: int) -> list[Comparison]:
    """A second look at a share of the comparisons, with the completions in another order than the first time."""
    ordered = sorted(comparisons, key=lambda comparison: _digest(seed, comparison.id))
    return [_repeat(comparison, seed) for comparison in ordered[: math.ceil(share * len(ordered))]]


def _repeat(comparison: Comparison, seed: int) -> Comparison:
    id = _digest("again", comparison.id)
    again = compare(
        id,
        comparison.prompt,
        comparison.completions,
        seed,
        stratum=comparison.stratum,
        kind="repeat",
        source=comparison.id,
    )
    if again.shown != comparison.shown:
        return again
    return Comparison(**{**vars(again), "shown": tuple(reversed(again.shown))})


def _digest(*parts: Any) -> str:
    """16 hex digits that look like any other record's id."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
