"""A stored model beside the chain of adapters it was made of: the same logits, or by how much not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.models.loading import device, load_causal_lm, open_adapter
from tasks.models.quantised import quantise, trained_quantised

PROBE = (8, 64)
"""Rows and tokens of the probe."""


def compare(chain: Sequence[Path], merged: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[float, float]:
    """Largest difference of a logit, and mean KL(chain || merged) in nats per token, on random ids, in fp32."""
    return _apart(with_adapter(chain), load_causal_lm([merged], dtype=torch.float32), tokenizer, seed)


def kl_from_quantised(chain: Sequence[Path], tokenizer: PreTrainedTokenizerBase, seed: int) -> float:
    """Mean KL in nats per token from the chain's last adapter on the 4-bit weights that it was trained on to the same
    adapter on the full weights, on random ids, in fp32."""
    trained = load_causal_lm(chain[:-1], dtype=torch.float32)
    quantise(trained, **(trained_quantised(chain[-1] / "adapter") or {}))
    opened = open_adapter(trained, chain[-1] / "adapter").eval()
    return _apart(opened, load_causal_lm(chain, dtype=torch.float32), tokenizer, seed)[1]


@torch.no_grad()
def _apart(left: Any, right: Any, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[float, float]:
    ids = torch.randint(len(tokenizer), PROBE, generator=torch.Generator().manual_seed(seed)).to(device())
    theirs, ours = left(input_ids=ids).logits, right(input_ids=ids).logits
    log_theirs, log_ours = theirs.log_softmax(dim=-1), ours.log_softmax(dim=-1)
    divergence = (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=-1).mean()
    return float((theirs - ours).abs().max()), max(0.0, float(divergence))


def with_adapter(chain: Sequence[Path]) -> Any:
    """The model at the end of a chain with its last adapter beside the weights it was trained on, not merged."""
    if not (chain[-1] / "adapter").is_dir():
        return load_causal_lm(chain, dtype=torch.float32)
    return open_adapter(load_causal_lm(chain[:-1], dtype=torch.float32), chain[-1] / "adapter").eval()
