"""Llamas with random weights whose completions end as trained ones do: what speed is measured on."""

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tasks.data.shop import pretraining_text
from tasks.models.pretrain_engine import new_llama, train_tokenizer

SHAPES = {"1M": {"hidden": 128, "layers": 4, "heads": 4}, "15M": {"hidden": 384, "layers": 8, "heads": 6}}
CONSTANT = 0
"""The coordinate of the residual stream that `ending` keeps constant."""


def shop_tokenizer() -> PreTrainedTokenizerBase:
    """The demo's: 512 entries."""
    return train_tokenizer(pretraining_text(0, 12000), 512)


def random_llama(size: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of one of `SHAPES`, in eval mode."""
    return new_llama(tokenizer, seed, positions=512, **SHAPES[size]).eval()


@torch.no_grad()
def ending(model: LlamaForCausalLM, mean: float, longest: int) -> LlamaForCausalLM:
    """Make EOS as likely as it must be for completions of `mean` tokens, when none has more than `longest`; in place.

    One coordinate of the residual stream is made constant, and EOS's row of the output layer reads it: still a plain
    Llama that can be saved, and EOS stays a token among others, whose probability differs from context to context.
    """
    model.model.embed_tokens.weight[:, CONSTANT] = 0.1
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[CONSTANT] = 0  # type: ignore[union-attr]
        layer.mlp.down_proj.weight[CONSTANT] = 0  # type: ignore[union-attr]
    eos = int(model.config.eos_token_id)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, model.config.vocab_size, (64, 32), generator=generator)
    features = model.model(tokens).last_hidden_state.flatten(0, 1)
    weight = model.lm_head.weight
    weight[eos, CONSTANT] = 0
    logits = features @ weight.T
    others = logits.index_fill(1, torch.tensor([eos]), -torch.inf).logsumexp(-1)
    low, high = -1e3, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        share = torch.sigmoid(logits[:, eos] + middle * features[:, CONSTANT] - others).mean().item()
        low, high = (middle, high) if share < _share(mean, longest) else (low, middle)
    weight[eos, CONSTANT] = low
    return model


def _share(mean: float, longest: int) -> float:
    """The probability p per token with which completions have `mean` tokens on average, (1 - (1 - p)^longest) / p."""
    low, high = 1e-6, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** longest) / middle > mean else (low, middle)
    return low
