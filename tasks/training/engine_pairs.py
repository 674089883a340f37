"""Preferences as groups: the completions of one prompt, each encoded and computed once, and the pairs among them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.artifact import InputError, Message, Row, Work
from tasks.models.chat import encode_completion
from tasks.models.rendering import RowRefused
from tasks.training.engine import Batch, keep_short, tell_refused
from tasks.training.engine_batches import pad
from tasks.training.hyperparameters import Hyperparameters


@dataclass
class Group:
    """The judged completions of one prompt."""

    prompt: list[Message]
    stratum: str = ""
    """The part of the data it belongs to."""
    sequences: list[list[int]] = field(default_factory=list)
    """Ids of prompt and completion, one per completion."""
    prompt_length: int = 0
    """How many of the ids are the prompt's."""
    pairs: list[tuple[int, int, float, float]] = field(default_factory=list)
    """(chosen, rejected, weight, margin); the first two are places in `sequences`."""
    heads: list[int] = field(default_factory=list)
    """What each pair is about: the place of its criterion among a reward model's; 0 is the ranking."""
    agreement: list[float] = field(default_factory=list)
    """How far people agree on each pair: its weight, before older rounds came to count for less."""
    draws: list[float] = field(default_factory=lambda: [1.0])
    """How often each member of an ensemble sees the prompt."""
    reference: list[float] = field(default_factory=list)
    """Log-probability of each completion under the reference model."""
    mismatched: int | None = None
    """Place in `sequences` of a completion that belongs to another prompt (KTO's KL is measured there)."""

    @property
    def length(self) -> int:
        return max(map(len, self.sequences))


def group_preferences(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    criteria: Sequence[str | None] = (None,),
    refused: dict[int, str] | None = None,
) -> list[Group]:
    """Preference rows by prompt, in their order; a row's `criterion` must be among the criteria.

    `chosen_finished` / `rejected_finished` (default true) say whether EOS ended a completion. refused: gets the number
    and the reason of each row that the chat template refuses, which is left out then. Raises `InputError` naming a row
    that is no preference, or whose two completions are the same.
    """
    groups: dict[str, Group] = {}
    places: dict[str, dict[tuple[str, bool], int]] = {}
    for number, row in enumerate(rows, 1):
        try:
            key = json.dumps(row["prompt"], sort_keys=True)
            texts = [(_text(row[side]), bool(row.get(f"{side}_finished", True))) for side in ("chosen", "rejected")]
            weight, margin = float(row.get("weight", 1.0)), float(row.get("margin") or 0.0)
            agreement = float(row.get("agreement", weight))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"Preference {number} lacks or garbles {error}; mend or remove that row.") from error
        if texts[0] == texts[1] or not weight > 0:
            raise InputError(f"Preference {number} prefers nothing (same texts, or weight {weight}); remove that row.")
        known = places.get(key, {})
        try:
            encoded = {text: encode_completion(tokenizer, row["prompt"], *text) for text in texts if text not in known}
        except RowRefused as error:
            if refused is None:
                raise
            refused[number] = str(error.__cause__)
            continue
        group = groups.setdefault(key, Group(row["prompt"], str(row.get("stratum") or "")))
        seen = places.setdefault(key, {})
        for text, (prompt, completion) in encoded.items():
            group.prompt_length = len(prompt)
            group.sequences.append([*prompt, *completion])
            seen[text] = len(seen)
        group.pairs.append((seen[texts[0]], seen[texts[1]], weight, margin))
        group.heads.append(criteria.index(row.get("criterion")))
        group.agreement.append(agreement)
    return list(groups.values())


def usable_groups(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Hyperparameters,
    model: Any,
    work: Work,
    criteria: Sequence[str | None] = (None,),
    taken: int = 0,
) -> list[Group]:
    """The groups to train on, without what the chat template refuses and what is too long (see `keep_short`)."""
    refused: dict[int, str] = {}
    groups = group_preferences(rows, tokenizer, criteria, refused)
    tell_refused(refused, rows, recipe, work)
    lost = {json.dumps(rows[number - 1]["prompt"], sort_keys=True) for number in refused}
    lost -= {json.dumps(group.prompt, sort_keys=True) for group in groups} if lost else set()
    return keep_short(groups, [group.length for group in groups], recipe, model, work, taken, len(lost))


def mismatch(groups: Sequence[Group]) -> None:
    """Give each group a completion of the group before it, cut to the group's own length."""
    completions = [group.sequences[0][group.prompt_length :] for group in groups]
    for group, other in zip(groups, [completions[-1], *completions], strict=False):
        group.mismatched = len(group.sequences)
        group.sequences.append([*group.sequences[0][: group.prompt_length], *other][: group.length])


def collate_groups(groups: Sequence[Group], pad_id: int) -> Batch:
    """Tensors of some groups: sequences [n, length] with a mask on completions, and pairs as places in them."""
    sequences: list[list[int]] = []
    masks: list[list[int]] = []
    chosen, rejected, weights, margins, reference, mismatched = [], [], [], [], [], []
    heads: list[int] = []
    draws: list[list[float]] = []
    for group in groups:
        first = len(sequences)
        sequences += group.sequences
        masks += [[0] * group.prompt_length + [1] * (len(ids) - group.prompt_length) for ids in group.sequences]
        reference += group.reference
        if group.mismatched is not None:
            mismatched.append(first + group.mismatched)
        heads += group.heads
        draws += [group.draws] * len(group.pairs)
        for winner, loser, weight, margin in group.pairs:
            chosen.append(first + winner)
            rejected.append(first + loser)
            weights.append(weight)
            margins.append(margin)
    return {
        "input_ids": pad(sequences, pad_id),
        "mask": pad(masks, 0).bool(),
        "chosen": torch.tensor(chosen),
        "rejected": torch.tensor(rejected),
        "weights": torch.tensor(weights),
        "margins": torch.tensor(margins),
        "heads": torch.tensor(heads, dtype=torch.long),
        "draws": torch.tensor(draws),
        "reference": torch.tensor(reference),
        "mismatched": torch.tensor(mismatched, dtype=torch.long),
        "items": sum(weights),
    }


def _text(side: Any) -> str:
    """The completion's text: the content of the one assistant message, or a plain string."""
    text = side if isinstance(side, str) else side[-1]["content"]
    if not isinstance(text, str):
        raise TypeError("the completion's text")
    return text
