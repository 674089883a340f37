"""Rollouts drawn by vLLM, in the form of our own engine's: log-probabilities and features are the policy's.

vLLM's log-probabilities are of the same weights by other kernels; ratios and penalties made of them would take rounding
for learning. So the policy goes over what was drawn once more.
"""

from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from tasks.sampling.engine import Engine
from tasks.sampling.local import CausalLM, Decoded, output_layer
from tasks.training.engine_batches import logits_at, pad


@torch.no_grad()
def draw(
    engine: Engine,
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
    rows: int,
    features: bool = False,
) -> tuple[Decoded, float]:
    """What `tasks.sampling.local.decode` returns, and the mean distance of vLLM's log-probabilities from the model's.

    `rows` of like length are computed at once. Raises `PipelineError` when the two are too far apart.
    """
    groups = engine.draw(
        model, tokenizer, prompt_ids, n=n, max_new_tokens=max_new_tokens, seed=seed, batch_size=len(prompt_ids) * n
    )
    every = [each for group in groups for each in group]
    prompts = [ids for ids in prompt_ids for _ in range(n)]
    head, device = output_layer(model), model.device
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    lengths = [len(each.token_ids) for each in every]
    shape = len(every), max_new_tokens
    found = Decoded(
        tokens=torch.full(shape, cast(int, filler), device=device),
        logprobs=torch.zeros(shape, device=device),
        lengths=torch.tensor(lengths, device=device),
        finished=torch.tensor([each.finished for each in every], device=device),
        features=torch.zeros(*shape, head.weight.shape[1], device=device) if features else None,
    )
    for row, each in enumerate(every):
        found.tokens[row, : lengths[row]] = torch.tensor(each.token_ids, device=device)
    apart = 0.0
    order = sorted(range(len(every)), key=lambda i: len(prompts[i]) + lengths[i])
    for part in (order[begin : begin + rows] for begin in range(0, len(order), rows)):
        ids = [prompts[i] + every[i].token_ids[:-1] for i in part]
        keep = [[0] * (len(prompts[i]) - 1) + [1] * lengths[i] for i in part]
        kept = pad(keep, 0).bool().to(device)
        distribution, seen = _over(model, head, pad(ids, 0).to(device), kept)
        places = torch.tensor(part, device=device)
        mask = torch.arange(max_new_tokens, device=device) < found.lengths[places].unsqueeze(1)
        chosen = distribution.gather(-1, found.tokens[places][mask].unsqueeze(-1)).squeeze(-1)
        theirs = torch.tensor([value for i in part for value in every[i].logprobs], device=device)
        apart += float((chosen - theirs).abs().sum())
        found.logprobs[places] = torch.zeros(mask.shape, device=device).masked_scatter(mask, chosen)
        if found.features is not None:
            own = torch.zeros(*mask.shape, head.weight.shape[1], device=device)
            own[mask] = seen
            found.features[places] = own
    gap = apart / sum(lengths)
    engine.accept(gap)
    return found, gap


def _over(
    model: CausalLM, head: torch.nn.Module, ids: torch.Tensor, keep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `[kept, vocabulary]` and features `[kept, hidden]` where `keep` is true."""
    seen: list[torch.Tensor] = []

    def catch(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0][keep].float())

    hook = head.register_forward_pre_hook(catch)
    try:
        return logits_at(model, head, ids, keep).log_softmax(-1), seen[0]
    finally:
        hook.remove()
