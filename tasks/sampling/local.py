"""The decoding engine: completions of any transformers causal LM, with the log-probability of every token.

Used for candidates, rollouts and evaluation. Prompts are sorted by length and left-padded; a prompt is computed once
however many completions it gets; a completion that is finished leaves the batch, so its place costs nothing. Works
through the model's own forward, so adapters, merged or not, and every architecture with a `Cache` are served alike.

It knows nothing about chats: prompts are token ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.artifact import InputError
from tasks.models.prompts import virtual_tokens
from tasks.sampling.cache import compaction, preallocated_cache
from tasks.sampling.layouts import batches_of, cache_argument, forward_parameters
from tasks.sampling.room import require_room

if TYPE_CHECKING:
    from peft import PeftModel

Progress = Callable[[int, int], None]
CausalLM: TypeAlias = "PreTrainedModel | PeftModel"


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of a prompt."""

    token_ids: list[int]
    """Sampled ids, the closing EOS included when there is one."""
    text: str
    """Decoded, special tokens left out."""
    finished: bool
    """Ended by EOS rather than cut at `max_new_tokens`."""
    logprobs: list[float]
    """Per token: the model's own log-probability, at temperature 1 and without top-p, whatever was sampled with."""


@dataclass
class Decoded:
    """What `decode` returns, as tensors on the model's device: `rows` = prompts x n, those of one prompt together."""

    tokens: torch.Tensor
    """int64 `[rows, steps]`, the pad token after the end."""
    logprobs: torch.Tensor
    """float32 `[rows, steps]`, zero after the end; of the model itself (temperature 1, no top-p)."""
    lengths: torch.Tensor
    """int64 `[rows]`: tokens sampled, EOS included."""
    finished: torch.Tensor
    """bool `[rows]`"""
    features: torch.Tensor | None
    """float32 `[rows, steps, hidden]`: what the output layer saw when it chose each token."""


def generate(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    seed: int,
    batch_size: int = 64,
    progress: Progress | None = None,
    ends: Sequence[int] = (),
) -> list[list[Completion]]:
    """n completions for each prompt, in the order of the prompts; arguments as in `decode`."""
    sampled = decode(
        model, tokenizer, prompt_ids, n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        greedy=greedy, seed=seed, batch_size=batch_size, progress=progress, ends=ends,
    )  # fmt: skip
    return completions_of(sampled, tokenizer, n)


def completions_of(sampled: Decoded, tokenizer: PreTrainedTokenizerBase, n: int) -> list[list[Completion]]:
    """What was decoded, as n completions for each prompt."""
    lengths, finished = sampled.lengths.tolist(), sampled.finished.tolist()
    ids = [row[:length] for row, length in zip(sampled.tokens.tolist(), lengths, strict=True)]
    logprobs = [row[:length] for row, length in zip(sampled.logprobs.tolist(), lengths, strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows = [Completion(*row) for row in zip(ids, texts, finished, logprobs, strict=True)]
    return [rows[start : start + n] for start in range(0, len(rows), n)]


@torch.no_grad()
def decode(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    seed: int,
    batch_size: int = 64,
    features: bool = False,
    progress: Progress | None = None,
    noise: torch.Tensor | None = None,
    before_forward: Callable[[torch.Tensor], None] | None = None,
    ends: Sequence[int] = (),
) -> Decoded:
    """Sample n continuations of each prompt of token ids, until the tokenizer's EOS or `max_new_tokens`.

    A row's random numbers depend on `seed` and its place among the rows only, not on `batch_size` or on which rows
    finish first. Only what the tokenizer knows is drawn, whatever entries a padded vocabulary has beside it; the
    log-probabilities are of the whole. `batch_size` counts rows; a batch holds at least the n rows of one prompt.
    `features` also keeps what the output layer saw (for a value head). Dropout is off while it runs. Raises
    `InputError` for an empty prompt, and where the model has too few positions.
    noise: the random numbers, `[rows, max_new_tokens]` in [0, 1), in place of the seed's. before_forward: told the
    prompt of every row (int64 `[rows]`) before each forward pass. ends: tokens that end a completion beside EOS.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("The tokenizer has no EOS token, so completions cannot end; give it one.")
    for index, ids in enumerate(prompt_ids):
        if not ids:
            raise InputError(f"Prompt {index} has no tokens; remove it or give it text.")
    require_room(model, prompt_ids, max_new_tokens)
    rows = len(prompt_ids) * n
    eos = cast(int, tokenizer.eos_token_id)
    pad = cast(int, eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    noise = (uniform(seed, rows, max_new_tokens) if noise is None else noise).to(model.device)
    width = output_layer(model).weight.shape[1] if features else 0
    result = Decoded(
        tokens=torch.full((rows, max_new_tokens), pad, device=model.device),
        logprobs=torch.zeros(rows, max_new_tokens, device=model.device),
        lengths=torch.full((rows,), max_new_tokens, device=model.device),
        finished=torch.zeros(rows, dtype=torch.bool, device=model.device),
        features=torch.zeros(rows, max_new_tokens, width, device=model.device) if features else None,
    )
    sampler = Sampler(temperature, top_p, greedy, entries_of(tokenizer))
    over = torch.tensor(sorted({eos, *ends}), device=model.device)
    training = model.training
    model.eval()
    try:
        done = 0
        for batch in batches_of(model, prompt_ids, max(1, batch_size // n)):
            some = [prompt_ids[i] for i in batch]
            _decode_batch(model, some, batch, n, over, pad, noise, sampler, result, before_forward)
            done += len(batch)
            if progress is not None:
                progress(done, len(prompt_ids))
    finally:
        model.train(training)
    return result


def uniform(seed: int, rows: int, steps: int) -> torch.Tensor:
    """The random numbers of `decode`, `[rows, steps]`."""
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed))


def entries_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's ids are below this; a model's vocabulary may be padded to more."""
    return max(len(tokenizer), max(tokenizer.added_tokens_decoder, default=-1) + 1)


def output_layer(model: CausalLM) -> torch.nn.Linear:
    """The layer that makes logits of hidden states, adapters seen through. Raises `InputError` if there is none."""
    layer = cast(torch.nn.Module | None, model.get_output_embeddings())
    if layer is None:
        raise InputError(f"{type(model).__name__} has no output layer; a causal language model is needed.")
    return cast(torch.nn.Linear, layer)


@dataclass(frozen=True)
class Sampler:
    """Chooses tokens from float32 logits `[rows, vocabulary]`: inverts their distribution at noise `[rows]`."""

    temperature: float
    top_p: float
    greedy: bool
    entries: int | None = None
    """Of the vocabulary, those that may be chosen; the others stand behind them. None: all."""

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        logits = logits[:, : self.entries]
        if self.greedy:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self.temperature, -1)
        if self.top_p >= 1:
            return _invert(probabilities, noise)
        ranked, order = probabilities.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= self.top_p] = 0  # the first token always stays
        return order.gather(-1, _invert(ranked, noise).unsqueeze(-1)).squeeze(-1)


def _invert(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The first index at which the cumulated weights exceed `noise` (in [0, 1)) of their sum."""
    cumulated = weights.double().cumsum(-1)
    return torch.searchsorted(cumulated, noise.double().unsqueeze(-1) * cumulated[:, -1:], right=True).squeeze(-1)


@torch.inference_mode()  # a fifth faster than without gradients alone, on small models
def _decode_batch(
    model: CausalLM,
    prompts: list[Sequence[int]],
    places: list[int],
    n: int,
    ends: torch.Tensor,
    pad: int,
    noise: torch.Tensor,
    sampler: Sampler,
    result: Decoded,
    before_forward: Callable[[torch.Tensor], None] | None,
) -> None:
    """Decode one batch of prompts and write its rows (`places[i] * n + k`) into `result`."""
    device, steps = model.device, noise.shape[1]
    width = max(len(ids) for ids in prompts)
    capacity = width + steps
    step = Step(model, len(prompts) * n, capacity, keep_features=result.features is not None)
    tokens = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
    sizes = torch.tensor([len(ids) for ids in prompts], device=device)
    padded = bool((sizes != width).any())
    mask = (torch.arange(capacity, device=device) >= (width - sizes).unsqueeze(1)).long()
    positions = (torch.arange(width, device=device) - (width - sizes).unsqueeze(1)).clamp(min=0)
    if before_forward is not None:
        before_forward(torch.tensor(places, device=device))
    logits, features = step(tokens, mask[:, :width] if padded else None, positions)
    copies = torch.arange(len(prompts), device=device).repeat_interleave(n)
    if n > 1:
        step.cache.reorder_cache(cast(torch.LongTensor, copies))
    logits, mask, sizes = logits[copies], mask[copies], sizes[copies]
    features = features[copies] if features is not None else None
    rows = (torch.tensor(places, device=device).unsqueeze(1) * n + torch.arange(n, device=device)).flatten()

    for t in range(steps):
        chosen = sampler(logits, noise[rows, t])
        result.tokens[rows, t] = chosen
        result.logprobs[rows, t] = torch.log_softmax(logits, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        if features is not None and result.features is not None:
            result.features[rows, t] = features
        over = chosen == ends if len(ends) == 1 else torch.isin(chosen, ends)
        if over.any():
            result.finished[rows[over]] = True
            result.lengths[rows[over]] = t + 1
            keep = compaction(over)
            step.cache.reorder_cache(cast(torch.LongTensor, keep))
            chosen, rows, mask, sizes = chosen[keep], rows[keep], mask[keep], sizes[keep]
        if len(rows) == 0 or t + 1 == steps:
            return
        if before_forward is not None:
            before_forward(rows // n)
        seen = mask[:, : width + t + 1] if padded else None
        logits, features = step(chosen.unsqueeze(1), seen, (sizes + t).unsqueeze(1))


class Step:
    """One forward of the model over new columns: float32 logits of the last one, and the features behind them."""

    def __init__(self, model: CausalLM, rows: int, capacity: int, keep_features: bool) -> None:
        self.model, self.keep_features = model, keep_features
        self.cache = preallocated_cache(model.config, rows, capacity + virtual_tokens(model))
        self.cache_name = cache_argument(model)
        accepted = forward_parameters(model)
        self.positions = "position_ids" in accepted
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def __call__(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        arguments: dict[str, Any] = {**self.last_only, self.cache_name: self.cache}
        if self.positions:
            arguments["position_ids"] = positions
        if self.cache_name == "cache_params" and tokens.shape[1] == 1:
            mask = None  # the state has left the padding out
        caught: list[torch.Tensor] = []
        hook = None
        if self.keep_features:
            hook = output_layer(self.model).register_forward_pre_hook(
                lambda module, inputs: caught.append(inputs[0][:, -1].float())
            )
        try:
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=True, **arguments).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits[:, -1].float(), caught[0] if caught else None
