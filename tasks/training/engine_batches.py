"""Batches of similar length, and the little tensor work all losses share."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from math import ceil
from typing import Any

import torch
from torch.utils.data import Sampler

CALL = {"cpu": 64, "cuda": 2048}
"""What calling a small model costs beside its products, as so many tokens."""


class LengthBatches(Sampler[list[int]]):
    """Batches of row numbers for all epochs, rows of similar length together, in an order fixed by the seed.

    With `whole`, an epoch's short batch is filled up with other rows (several devices need equal batches).
    """

    drop_last = False
    pool = 50
    """Rows are sorted by length among those of so many batches, as transformers does it."""

    def __init__(self, lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> None:
        self.lengths, self.batch_size, self.epochs, self.seed = lengths, batch_size, epochs, seed
        self.whole = False
        self._counted: dict[bool, int] = {}

    def __len__(self) -> int:
        if self.whole not in self._counted:
            whole, rest = divmod(self.epochs, 1)
            counted = [len(self._epoch(epoch)) for epoch in range(ceil(self.epochs))]
            self._counted[self.whole] = max(1, round(sum(counted[: int(whole)]) + rest * counted[-1]))
        return self._counted[self.whole]

    def __iter__(self) -> Iterator[list[int]]:
        return islice((batch for epoch in count() for batch in self._epoch(epoch)), len(self))

    def _epoch(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self.lengths)))
        shuffle = random.Random(f"{self.seed}-{epoch}")
        shuffle.shuffle(order)
        batches: list[list[int]] = []
        for begin in range(0, len(order), self.pool * self.batch_size):
            batches += self.cut(order[begin : begin + self.pool * self.batch_size])
        if self.whole:
            filler = random.Random(f"{self.seed}-{epoch}-filler")  # the order stays that of one process
            batches = [(batch + filler.choices(order, k=self.batch_size))[: self.batch_size] for batch in batches]
        shuffle.shuffle(batches)
        return batches

    def cut(self, pool: list[int]) -> list[list[int]]:
        """A pool of rows as batches."""
        ordered = sorted(pool, key=lambda i: self.lengths[i])
        return [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]

    def padding_share(self) -> float:
        """The share of all batches' tokens that is padding."""
        batches = [[self.lengths[i] for i in batch] for batch in self]
        return 1 - sum(map(sum, batches)) / max(1, sum(len(batch) * max(batch) for batch in batches))


class TokenBatches(LengthBatches):
    """Batches of similar length with as many tokens each, padding included, as `batch_size` rows have on average.

    Where every batch has as many rows, those of short rows weigh their few tokens as much as those of long rows their
    many, and the loss reached is worse; so it is where all rows of a batch have one length (hence the smaller pools).
    """

    pool = 8

    def cut(self, pool: list[int]) -> list[list[int]]:
        if self.whole:
            return super().cut(pool)
        budget = self.batch_size * sum(self.lengths) / len(self.lengths)
        batches: list[list[int]] = [[]]
        for row in sorted(pool, key=lambda i: self.lengths[i]):
            if batches[-1] and (len(batches[-1]) + 1) * self.lengths[row] > budget:
                batches.append([])
            batches[-1].append(row)
        return batches


def portions(lengths: Sequence[int], most: int, device: str = "cpu") -> list[int]:
    """Into parts of how many rows, `most` at most, to cut rows of these ascending lengths: as few tokens as may be are
    computed, padding counted and every part counted as a call's worth of tokens."""
    call = CALL.get(device, CALL["cuda"])
    best, begins = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        costs = ((best[b] + call + (end - b) * lengths[end - 1], b) for b in range(max(0, end - most), end))
        cost, begin = min(costs)
        best.append(cost)
        begins.append(begin)
    sizes: list[int] = []
    end = len(lengths)
    while end:
        sizes.insert(0, end - begins[end])
        end = begins[end]
    return sizes


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of ids as one tensor [rows, longest], filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


@contextmanager
def _only(head: torch.nn.Module, keep: torch.Tensor) -> Iterator[None]:
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][keep], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def logits_at(
    model: Any,
    head: torch.nn.Module,
    input_ids: torch.Tensor,
    keep: torch.Tensor,
    **packed: torch.Tensor,
) -> torch.Tensor:
    """Next-token logits [kept, vocabulary] in fp32 at the positions where `keep` [rows, length] is true.

    The output layer runs on those positions only; prompts and padding cost nothing there. Rows are padded on the right
    and attention is causal, so padding is never attended to and no mask is needed.
    """
    with _only(head, keep):
        return model(input_ids=input_ids, use_cache=False, **packed).logits.float()


def completion_logps(
    model: Any, head: torch.nn.Module, input_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability [rows] of the tokens where `mask` [rows, length] is true, and their numbers [rows]."""
    keep = mask[:, 1:]
    logits = logits_at(model, head, input_ids[:, :-1], keep)
    targets = input_ids[:, 1:][keep]
    logps = torch.nn.functional.cross_entropy(logits, targets, reduction="none").neg()
    row = keep.nonzero()[:, 0]
    summed = torch.zeros(len(input_ids), device=logps.device).index_add(0, row, logps)
    return summed, keep.sum(dim=1)
