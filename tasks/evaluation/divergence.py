"""How far a policy has moved from the model it started from, seen on its own completions."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from tasks.sampling.local import Completion


def kl_per_completion(
    reference: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Completion]],
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """For each completion the sum over its tokens of log policy - log reference, in nats.

    Its mean over completions sampled at temperature 1 estimates KL(policy || reference) without bias (k1 of Schulman,
    2020, "Approximating KL divergence"); single values may be negative. The policy's side is what it was sampled with
    (`Completion.logprobs`), the reference's is computed here. prompts: ids with the generation prompt.
    """
    flat = [(place, k) for place, group in enumerate(completions) for k in range(len(group))]
    sums = torch.zeros(len(flat))
    rows = [[*prompts[place], *completions[place][k].token_ids] for place, k in flat]
    sizes = [len(completions[place][k].token_ids) for place, k in flat]
    done = 0
    for batch in _batches([len(row) for row in rows], batch_tokens):
        logprobs = completion_logprobs(reference, [rows[i] for i in batch], [sizes[i] for i in batch])
        for i, theirs in zip(batch, logprobs, strict=True):
            place, k = flat[i]
            sums[i] = sum(completions[place][k].logprobs) - theirs
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    values = iter(sums.tolist())
    return [[next(values) for _ in group] for group in completions]


@torch.no_grad()
def completion_logprobs(model: PreTrainedModel, rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[float]:
    """The summed log-probability of the last `sizes[i]` tokens of each row of ids, given what is before them."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    chosen = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    ends = torch.tensor([len(row) for row in rows], device=model.device).unsqueeze(1)
    begins = ends - torch.tensor(list(sizes), device=model.device).unsqueeze(1)
    places = torch.arange(1, width, device=model.device).unsqueeze(0)  # logits at place p - 1 foretell token p
    return torch.where((places >= begins) & (places < ends), chosen, 0.0).sum(-1).tolist()


def _batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices in batches of at most so many padded tokens, neighbours in length together."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
