"""What people are asked and what they answer: completions of one prompt side by side, and one annotator's ranks."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Ranks = Mapping[str, int]
"""Completion id -> rank, 1 is best; equal ranks are ties. Only the order counts: 1, 1, 3 says the same as 1, 1, 2."""

OPTIONS = tuple(f"response_{letter}" for letter in "abcdefgh")
"""What annotators see a completion called; the names tell nothing about the model."""


Kind = Literal["asked", "gold", "repeat"]
"""Why a comparison is in a round: to learn from it, or, unseen by annotators, to check them."""


CANNOT_JUDGE = "cannot_judge"
"""The flag that takes a judgement's vote away."""


class LabelingError(Exception):
    """Labeling cannot go on; the message is one sentence that says what is wrong and the next step."""


@dataclass(frozen=True)
class Completion:
    """One answer of a model to the prompt."""

    id: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """One prompt and its completions, unlabeled. `shown` is the order in which annotators see them."""

    id: str
    prompt: tuple[Mapping[str, str], ...]
    """The conversation so far: messages with `role` and `content`."""
    completions: tuple[Completion, ...]
    shown: tuple[str, ...]
    """Completion ids in the order of `OPTIONS`."""
    stratum: str = ""
    """The part of the data it belongs to (a task, a topic): quotas and figures are told apart by it."""
    kind: Kind = "asked"
    source: str | None = None
    """What a repeat repeats, and the row a gold comparison was made of."""
    expected: Ranks | None = None
    """The ranks a gold comparison should get; annotators never see them."""

    @property
    def options(self) -> dict[str, Completion]:
        """Option name -> the completion shown under it."""
        by_id = {completion.id: completion for completion in self.completions}
        return {option: by_id[shown] for option, shown in zip(OPTIONS, self.shown, strict=False)}

    def row(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "id": self.id,
            "prompt": [dict(message) for message in self.prompt],
            "completions": [{"id": completion.id, "text": completion.text} for completion in self.completions],
            "shown": list(self.shown),
            "stratum": self.stratum,
            "kind": self.kind,
            "source": self.source,
            "expected": dict(self.expected) if self.expected is not None else None,
        }


@dataclass(frozen=True)
class Judgement:
    """One annotator's answer to one comparison."""

    id: str
    record: str
    """Id of the comparison."""
    annotator: str
    """A pseudonym."""
    status: Literal["submitted", "discarded"]
    ranks: Ranks | None
    """None when discarded."""
    guidelines: str
    """Version of the guidelines it was made under."""
    inserted_at: str
    updated_at: str
    ratings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Criterion -> completion id -> rating, where the round asked for them and they were given."""
    flags: tuple[str, ...] = ()
    """What is wrong with the record, in the round's own words (`unsafe`, `broken`, `cannot_judge`)."""
    rationale: str = ""
    """Why, in the annotator's words. Untrusted text."""
    by: Literal["person", "ai"] = "person"

    def row(self) -> dict[str, Any]:
        """The judgement as JSON."""
        return {
            **vars(self),
            "ranks": dict(self.ranks) if self.ranks is not None else None,
            "ratings": {criterion: dict(given) for criterion, given in self.ratings.items()},
            "flags": list(self.flags),
        }


def compare(
    id: str,
    prompt: Sequence[Mapping[str, str]],
    completions: Sequence[Completion],
    seed: int,
    *,
    stratum: str = "",
    kind: Kind = "asked",
    source: str | None = None,
    expected: Ranks | None = None,
) -> Comparison:
    """A comparison whose completions are shown in an order drawn from the seed and its id.

    The draw depends on nothing else, so that publishing again shows the same order. Raises `LabelingError` when there
    are not 2 to 8 completions or their ids are not distinct.
    """
    ids = [completion.id for completion in completions]
    if not 2 <= len(ids) <= len(OPTIONS):
        raise LabelingError(
            f"Comparison {id} has {len(ids)} completions, 2 to {len(OPTIONS)} can be ranked; change the number sampled."
        )
    if len(set(ids)) < len(ids):
        raise LabelingError(f"Comparison {id} has two completions with one id; give every completion its own.")
    shown = random.Random(f"{seed}/{id}").sample(ids, len(ids))
    return Comparison(id, tuple(prompt), tuple(completions), tuple(shown), stratum, kind, source, expected)


def comparison_from(row: Mapping[str, Any]) -> Comparison:
    """The comparison behind a row of `comparisons.jsonl`."""
    completions = tuple(Completion(completion["id"], completion["text"]) for completion in row["completions"])
    told = {name: row[name] for name in ("stratum", "kind", "source", "expected") if name in row}
    return Comparison(row["id"], tuple(row["prompt"]), completions, tuple(row["shown"]), **told)


def judgement_from(row: Mapping[str, Any]) -> Judgement:
    """The judgement behind a row of `judgements.jsonl`."""
    return Judgement(**{**row, "flags": tuple(row.get("flags", ()))})
