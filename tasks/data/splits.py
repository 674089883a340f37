"""One ledger of prompts: a prompt and its near-duplicates belong to one split, once.

Near-duplicates are prompts that say the same up to case, punctuation and spacing (`words.py`), prompts that continue
one another (the same conversation, later), and prompts that share most of their words and word pairs. A short question
with one word exchanged ("Which aisle has the tea?") is another question: at the default threshold texts of up to nine
words must agree in all of them, while in longer ones about one word in fifteen may differ.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from tasks.artifact import Message
from tasks.data.similar import flattened, join, join_similar
from tasks.data.words import normalise, shingles
from tasks.recipe import Part, stable_hash

Split = Literal["sft", "reward_train", "reward_validation", "rl", "evaluation"]
SPLITS: tuple[Split, ...] = ("sft", "reward_train", "reward_validation", "rl", "evaluation")


class Shares(Part):
    """The share of the prompts that each split gets; together 1."""

    sft: float = Field(default=0.25, ge=0, le=1)
    """Prompts with demonstrations, for supervised fine-tuning."""
    reward_train: float = Field(default=0.33, ge=0, le=1)
    """Prompts whose completions are judged, for the reward model and the preference losses."""
    reward_validation: float = Field(default=0.08, ge=0, le=1)
    """Prompts whose judgements are held out."""
    rl: float = Field(default=0.19, ge=0, le=1)
    """Prompts for PPO and GRPO."""
    evaluation: float = Field(default=0.15, ge=0, le=1)
    """Prompts that only the evaluation sees."""

    @model_validator(mode="after")
    def _together_one(self) -> "Shares":
        total = sum(self.model_dump().values())
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the splits add up to {total:g} instead of 1")
        return self


class Splitting(Part):
    """How the prompts of a source are shared out, whatever the source."""

    shares: Shares = Shares()
    """The share of the prompts that each split gets."""
    split_seed: int = Field(default=0, ge=0)
    """Draws the splits. Apart from the run's seed, so that runs with other seeds keep the same evaluation prompts: a
    champion must not have learnt from what it is measured on."""
    near_duplicates: float = Field(default=0.8, gt=0, le=1)
    """Prompts of at least this similarity (Jaccard, of words and word pairs) never end up in different splits."""

    @model_validator(mode="after")
    def _something_held_out(self) -> "Splitting":
        if self.shares.evaluation == 0 and not self.brings_evaluation():
            raise ValueError("'shares.evaluation' must be greater than 0, or nothing could be compared on")
        return self

    def brings_evaluation(self) -> bool:
        """Whether there are evaluation prompts without a share of the others."""
        return False


def prompt_id(prompt: Sequence[Message]) -> str:
    """The name of a prompt everywhere: the first 16 hex digits of the SHA-256 of its messages' canonical JSON."""
    return stable_hash(list(prompt))[:16]


def group_prompts(
    prompts: Sequence[Sequence[Message]], threshold: float, together: Iterable[Sequence[int]] = ()
) -> list[int]:
    """For each prompt the index of the first prompt of its group of near-duplicates.

    `threshold` is the Jaccard similarity of the shingles from which two prompts are near-duplicates (1: only those
    that are equal when normalised); each of `together` lists prompts that belong together anyway. Exact: candidates
    come from a prefix filter (`similar.py`).
    """
    turns = [tuple(normalise(m["content"]) for m in prompt if m["role"] != "system") for prompt in prompts]
    parent = np.arange(len(prompts), dtype=np.int32)
    _join_conversations(turns, parent)
    for indices in together:
        for index in indices:
            join(parent, indices[0], index)
    if threshold < 1:
        sets = [shingles(" ".join(texts)) for texts in turns]
        join_similar(np.arange(len(sets)), sets.__getitem__, threshold, parent)
    return flattened(parent).tolist()


def _join_conversations(turns: list[tuple[str, ...]], parent: np.ndarray) -> None:
    """Join equal prompts, and prompts that are the beginning of others."""
    seen: dict[tuple[str, ...], int] = {}
    for index, texts in enumerate(turns):
        join(parent, seen.setdefault(texts, index), index)
    for index, texts in enumerate(turns):
        for length in range(1, len(texts)):
            if texts[:length] in seen:
                join(parent, seen[texts[:length]], index)


def assign(
    ids: Sequence[str],
    groups: Sequence[int],
    shares: Shares,
    seed: int,
    *,
    no_sft: Sequence[bool] | None = None,
) -> list[Split]:
    """The split of each prompt, see `assign_places`; `ids` are those of `prompt_id`."""
    names = np.fromiter((int(name, 16) for name in ids), np.uint64, len(ids))
    barred = None if no_sft is None else np.asarray(no_sft, bool)
    return [SPLITS[place] for place in assign_places(names, np.asarray(groups), shares, seed, no_sft=barred)]


def assign_places(
    names: np.ndarray, groups: np.ndarray, shares: Shares, seed: int, *, no_sft: np.ndarray | None = None
) -> np.ndarray:
    """The place in `SPLITS` of each prompt: whole groups, in an order made of the seed and their ids, each to the split
    that is furthest below its share. `names` are the ids as numbers (uint64). A group with a prompt marked in `no_sft`
    never goes to SFT. Arrays of a few bytes a prompt, since there may be millions."""
    if not len(names):
        return np.zeros(0, np.int8)
    sizes = np.bincount(groups).astype(np.int32)
    barred = np.zeros(len(sizes), bool)
    if no_sft is not None:
        barred[groups[no_sft]] = True
    first = np.full(len(sizes), np.iinfo(np.uint64).max)
    np.minimum.at(first, groups, names)
    there = np.flatnonzero(sizes).astype(np.int32)
    drawn = np.fromiter((_lot(seed, int(name)) for name in first[there]), np.uint64, len(there))
    del first
    weights = {place: getattr(shares, split) for place, split in enumerate(SPLITS)}
    missing = {place: weight * len(names) for place, weight in weights.items()}
    open_to = [place for place, weight in weights.items() if weight > 0]
    not_sft = [place for place in open_to if SPLITS[place] != "sft"]
    chosen = np.zeros(len(sizes), np.int8)
    for group in there[np.lexsort((drawn, ~barred[there]))]:
        place = max(not_sft if barred[group] else open_to, key=missing.__getitem__)
        chosen[group] = place
        missing[place] -= int(sizes[group])
    return chosen[groups]


def _lot(seed: int, name: int) -> int:
    """Where a group stands in the order that splits are drawn in: the first 64 bits of a hash."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name:016x}".encode()).digest()[:8], "big")
