"""What on-policy training needs of a batch of prompts: samples, their scores and the reference's log-probabilities."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.artifact import InputError, Row
from tasks.models.chat import encode_prompt
from tasks.sampling.engine import Engine
from tasks.sampling.folded import folded
from tasks.sampling.local import CausalLM, decode, output_layer
from tasks.training.engine_batches import logits_at, pad, portions
from tasks.training.engine_rollouts import draw
from tasks.training.rewards import Score


@dataclass(frozen=True)
class Prompts:
    """The RL prompts, encoded once."""

    rows: list[Row]
    ids: list[list[int]]

    def batch(self, update: int, size: int, seed: int) -> list[int]:
        """Indices of the prompts of one update: passes over all prompts, each pass shuffled by its own seed.

        A function of its arguments alone, so a resumed run continues with the same prompts.
        """
        return drawn(len(self.rows), update, size, seed)


def drawn(count: int, update: int, size: int, seed: int) -> list[int]:
    """What `Prompts.batch` says, for `count` prompts."""
    begin, end = update * size, (update + 1) * size
    first = begin // count
    stream: list[int] = []
    for epoch in range(first, (end - 1) // count + 1):
        stream += torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch)).tolist()
    return stream[begin - first * count : end - first * count]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> Prompts:
    """Encode every row's prompt. Raises `InputError` when there are none."""
    if not rows:
        raise InputError("There are no RL prompts; raise the data recipe's share for RL.")
    return Prompts(rows, [encode_prompt(tokenizer, row["prompt"]) for row in rows])


@dataclass
class Rollouts:
    """One batch of completions; tensors `[rows, tokens]` unless it says otherwise, zero outside `mask`."""

    prompt_ids: list[list[int]]
    tokens: torch.Tensor
    mask: torch.Tensor
    """bool: the token was sampled (the closing EOS counts, padding does not)."""
    logprobs: torch.Tensor
    """Of the policy that sampled, kept from decoding."""
    features: torch.Tensor | None
    """`[rows, tokens, hidden]`, kept from decoding."""
    lengths: torch.Tensor
    """`[rows]`"""
    finished: torch.Tensor
    """bool `[rows]`"""
    texts: list[str]
    scores: torch.Tensor
    """`[rows]`, from the reward model, no penalty in it."""
    reference: torch.Tensor
    """The reference's log-probabilities of the same tokens."""
    gap: float | None = None
    """Mean distance of an engine's log-probabilities from the policy's, where another one sampled."""


@torch.no_grad()
def collect(
    model: CausalLM,
    reference: "Reference",
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    chosen: Sequence[int],
    score: Score,
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
    micro_batch_size: int,
    features: bool = False,
    engine: Engine | None = None,
) -> Rollouts:
    """Sample n completions (temperature 1) for each chosen prompt, score their text and ask the reference.

    engine: vLLM, where it is to sample.
    """
    ids = [prompts.ids[i] for i in chosen]
    given: dict[str, Any] = {"n": n, "max_new_tokens": max_new_tokens, "seed": seed, "features": features}
    gap = None
    if engine is not None:
        sampled, gap = draw(engine, model, tokenizer, ids, rows=micro_batch_size, **given)
    else:
        with folded(model):
            sampled = decode(model, tokenizer, ids, batch_size=len(ids) * n, **given)
    lengths = sampled.lengths.tolist()
    width = max(lengths)
    tokens = sampled.tokens[:, :width]
    texts = tokenizer.batch_decode(
        [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)], skip_special_tokens=True
    )
    messages = [prompts.rows[i]["prompt"] for i in chosen for _ in range(n)]
    scores = score(messages, texts, sampled.finished.tolist())
    rollouts = Rollouts(
        prompt_ids=[row for row in ids for _ in range(n)],
        tokens=tokens,
        mask=torch.arange(width, device=tokens.device) < sampled.lengths.unsqueeze(1),
        logprobs=sampled.logprobs[:, :width],
        features=sampled.features[:, :width] if sampled.features is not None else None,
        lengths=sampled.lengths,
        finished=sampled.finished,
        texts=texts,
        scores=torch.tensor(scores, dtype=torch.float32, device=tokens.device),
        reference=torch.zeros_like(sampled.logprobs[:, :width]),
        gap=gap,
    )
    with reference.of(model) as frozen:
        for part in by_length(rollouts, micro_batch_size):
            logprobs, _ = token_logprobs(frozen, rollouts, part, entropies=False)
            rollouts.reference[part, : logprobs.shape[1]] = logprobs
    return rollouts


def by_length(rollouts: Rollouts, size: int, rows: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Row indices (all, or these) in parts of at most `size`, rows of like length together."""
    total = rollouts.lengths + torch.tensor([len(ids) for ids in rollouts.prompt_ids], device=rollouts.lengths.device)
    rows = torch.arange(len(total), device=total.device) if rows is None else rows
    rows = rows[total[rows].argsort(stable=True)]
    return iter(rows.split(portions(total[rows].tolist(), size, rows.device.type)))


def token_logprobs(
    model: CausalLM, rollouts: Rollouts, rows: torch.Tensor, entropies: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the sampled tokens and the entropies of the distributions they came from (or zeros).

    Both float32 `[len(rows), longest completion among them]`, zero outside the mask; only the former has gradients.
    """
    ids, keep = sequences(rollouts, rows)
    head = output_layer(getattr(model, "module", model))  # seen through what several processes wrap around it
    distribution = logits_at(model, head, ids, keep).log_softmax(-1)
    mask = rollouts.mask[rows, : int(rollouts.lengths[rows].max())]
    chosen = distribution.gather(-1, rollouts.tokens[rows, : mask.shape[1]][mask].unsqueeze(-1)).squeeze(-1)
    logprobs = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, chosen)
    entropy = torch.zeros(mask.shape, device=mask.device)
    if entropies:
        with torch.no_grad():
            entropy[mask] = -(distribution.exp() * distribution).sum(-1)
    return logprobs, entropy


def sequences(rollouts: Rollouts, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[len(rows), tokens]` of prompts and completions, each completion's last token left out, padded on the right;
    and where the next token is a sampled one: as many places as the rows' mask has, in its order."""
    places, lengths = rows.tolist(), rollouts.lengths[rows].tolist()
    sampled = rollouts.tokens[rows, : max(lengths)].tolist()
    ids = [rollouts.prompt_ids[i] + own[: n - 1] for i, own, n in zip(places, sampled, lengths, strict=True)]
    keep = [[0] * (len(row) - n) + [1] * n for row, n in zip(ids, lengths, strict=True)]
    device = rollouts.tokens.device
    return pad(ids, 0).to(device), pad(keep, 0).bool().to(device)


class Reference:
    """The model as it was before training: the adapter switched off, or a frozen copy where every weight is trained."""

    def __init__(self, model: CausalLM) -> None:
        self.copy: PreTrainedModel | None = None
        if not isinstance(model, PeftModel):
            self.copy = copy.deepcopy(model).eval().requires_grad_(False)

    @contextmanager
    def of(self, model: CausalLM) -> Iterator[CausalLM]:
        """The reference, for the time of a `with` block in which `model` itself must not be used."""
        if self.copy is not None:
            yield self.copy
            return
        assert isinstance(model, PeftModel)
        with model.disable_adapter():
            yield model
