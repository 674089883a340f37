"""How much memory each stage of a run takes at its highest, in bytes by what it is for, in one process.

A step is made on tensors that have shapes only (`footprint`), with the longest rows a batch may hold; what is beside it
in the stage (a reference, a reward model, the cache while it samples) is added.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.artifact import Row
from tasks.training.direct import DIRECT

PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")


@dataclass(frozen=True)
class Lengths:
    """Tokens of conversations and prompts."""

    sft: list[int]
    completions: list[int]
    """Of the demonstrations: what is learnt of each."""
    prompts: dict[str, list[int]]
    """By split: those for comparisons, for RL and for evaluation."""
    mixtures: Mapping[str, "Lengths"] = field(default_factory=dict)
    """Those of the further stages of SFT, by the mixture that they learn from."""
    pretrained: float = 0.0
    """Of a document that a new base is pre-trained on, on average."""


def memory_of(
    kind: str,
    part: Any,
    config: Any,
    lengths: Lengths,
    drawn: int = 2,
    most: int = 0,
    scorer: Any = None,
) -> Row:
    """Bytes of the stage `kind` ("base", "sft", "sample", "evaluate", "reward" or a policy's method), and its total.

    part: its recipe. config: of the model it trains (of a reward model on another base: that one's). drawn, most: how
    many completions of a prompt are compared, and tokens of the longest. scorer: configuration of the reward model that
    a policy asks, the policy's own where none is given.
    """
    if kind == "base":
        return _step(part, config, part.batch_size, part.context, part.batch_size * part.context)
    if kind == "sft":
        return _fitted(part, config, lengths.sft, lengths.completions)
    if kind in ("sample", "evaluate"):
        n = part.completions_per_prompt if kind == "sample" else part.samples_per_prompt
        prompts = lengths.prompts["compared" if kind == "sample" else "evaluation"]
        return _sampled(part, config, prompts, n)
    if kind == "reward" or kind in DIRECT:
        longest = min(max(lengths.prompts["compared"], default=8) + most, part.max_length)
        rows = min(part.batch_size, max(1, len(lengths.prompts["compared"]))) * drawn
        return _step(part, config, rows, longest, rows * most, scored=kind == "reward")
    if kind == "rejection":
        return _rejection(part, config, lengths, scorer or config)
    return _on_policy(part, config, lengths, scorer or config)


def by_rule(config: Any) -> Row:
    """What is known of a stage whose step cannot be counted."""
    from tasks.training.footprint import parameters_of

    parameters = parameters_of(config)
    parts = ("trainable", "weights", "gradients", "optimizer", "activations", "cache", "folded")
    return {"parameters": parameters, "rule": 4.8 * parameters, **dict.fromkeys(parts), "total": 4.8 * parameters}


def _step(part: Any, config: Any, rows: int, length: int, kept: int, *, scored: bool = False, **grouped: bool) -> Row:
    """A training step; grouped: see `of_step`."""
    from tasks.models.adapters import QloraRecipe
    from tasks.models.loading import device
    from tasks.training.footprint import of_step
    from tasks.training.precision import choose

    found = of_step(config, part.adapter, rows, length, kept, scored=scored, **grouped)
    if hasattr(part, "precision"):
        bf16, _ = choose(part.precision, found.parameters)
        if bf16 or part.gradient_checkpointing or "8bit" in part.optimizer:
            found = of_step(
                config, part.adapter, rows, length, kept, bf16=bf16, eight_bit="8bit" in part.optimizer,
                checkpointing=part.gradient_checkpointing, scored=scored,
            )  # fmt: skip
    waits = isinstance(part.adapter, QloraRecipe) and device().type == "cpu"  # for its weights to be quantised
    whole = 4.0 * found.parameters if waits else 0.0
    return {
        "parameters": found.parameters, "trainable": found.trainable, "rule": found.rule, "weights": found.weights,
        "gradients": found.gradients, "optimizer": found.optimizer, "activations": found.activations, "cache": 0.0,
        "folded": found.folded, "total": max(found.total, whole),
    }  # fmt: skip


def _fitted(part: Any, config: Any, lengths: list[int], own: list[int]) -> Row:
    fits = [n for n in lengths if n <= part.max_length] or [part.max_length]
    longest = sorted(fits)[-part.batch_size :]
    share = sum(own) / max(1, sum(lengths))
    return _step(part, config, len(longest), longest[-1], max(1, round(share * sum(longest))))


def _sampled(part: Any, config: Any, prompts: Sequence[int], n: int) -> Row:
    from tasks.training.footprint import of_sampling, parameters_of

    at_once = min(max(1, part.batch_size // n), max(1, len(prompts)))
    parameters, each = parameters_of(config), _bytes_of_a_number()
    cache = of_sampling(config, at_once, n, max(prompts, default=1), part.max_new_tokens) * each / 4
    weights = float(each * parameters)
    return {
        "parameters": parameters, "trainable": 0, "rule": 4.8 * parameters, "weights": weights, "gradients": 0.0,
        "optimizer": 0.0, "activations": 0.0, "cache": cache, "folded": 0.0, "total": weights + cache,
    }  # fmt: skip


def _rejection(part: Any, config: Any, lengths: Lengths, scorer: Any) -> Row:
    """Samples with a reward model beside it, then is fitted."""
    from tasks.training.footprint import of_sampling

    prompts = lengths.prompts["rl"]
    longest = max(prompts, default=8) + part.max_new_tokens
    rows = min(part.batch_size, max(1, len(prompts) * part.keep))
    memory = _step(part, config, rows, longest, rows * part.max_new_tokens)
    at_once = min(max(1, part.decode_batch_size // part.samples), max(1, len(prompts)))
    cache = of_sampling(config, at_once, part.samples, max(prompts, default=8), part.max_new_tokens)
    held = 4.0 * memory["parameters"] + _scorer(part, scorer)
    return memory | {"cache": cache, "total": max(memory["total"], held + cache)}


def _on_policy(part: Any, config: Any, lengths: Lengths, scorer: Any) -> Row:
    """Samples and learns in turn: the higher of both. While it samples, an adapter is folded into a copy of the layers
    below it; with every weight trained there is a reference beside it, and the reward model where it is asked."""
    from tasks.training.footprint import of_sampling

    prompts = lengths.prompts["rl"]
    longest = max(prompts, default=8)
    ppo = part.method == "ppo"
    asked, n = (part.episodes, 1) if ppo else (part.prompts, part.completions_per_prompt)
    if ppo:
        rows = max(1, min(part.micro_batch_size, asked))
        memory = _step(part, config, rows, longest + part.max_new_tokens, rows * part.max_new_tokens)
    else:
        memory = _group_step(part, config, longest)
    whole = part.adapter.kind == "full"
    weights = memory["weights"] + (4.0 * memory["parameters"] if whole else 0.0) + _scorer(part, scorer)
    optimizer, gradients = memory["optimizer"], memory["gradients"]
    if ppo and part.value_model == "separate":
        weights += memory["weights"] if whole else gradients
        optimizer, gradients = 2 * optimizer, 2 * gradients
    shared = ppo and part.value_model != "separate"
    cache = of_sampling(config, asked, n, longest, part.max_new_tokens, features=shared)
    held = weights + optimizer
    total = held + max(cache + memory["folded"], memory["activations"] + gradients)
    return memory | {
        "weights": weights, "optimizer": optimizer, "gradients": gradients, "cache": cache, "total": total,
    }  # fmt: skip


def _group_step(part: Any, config: Any, prompt: int) -> Row:
    """A step of GRPO or RLOO, the prompt of a group computed once where that is done; logits are made of one part of it
    after another."""
    from tasks.models.loading import batch_tokens
    from tasks.training.footprint import as_loaded
    from tasks.training.packed_groups import LONGEST, ROWS, WORTH, cost, may_pack

    rows, apart = max(1, part.rows_at_once), prompt + part.max_new_tokens
    groups = min(part.prompts, rows)
    packed = prompt - 1 + math.ceil(rows / groups) * part.max_new_tokens
    width = config.get_text_config().hidden_size
    pays = cost(groups, packed, width) <= WORTH * cost(rows, apart, width)
    if may_pack(as_loaded(config)) and packed <= LONGEST and pays and part.adapter.kind not in PROMPTS:
        at_once = min(groups, max(1, 2 * batch_tokens() // packed))
        return _step(part, config, groups, packed, at_once * packed, grouped=True, masked=True)
    return _step(part, config, rows, apart, min(rows, ROWS) * apart, grouped=True)


def _scorer(part: Any, config: Any) -> float:
    """The weights of the reward model, where a policy asks it and does not hold them anyway."""
    from tasks.training.footprint import parameters_of

    terms = part.rewards or ()
    if getattr(part, "share_base", False):
        return 0.0
    return float(_bytes_of_a_number() * parameters_of(config, scored=True)) if _asks(terms) else 0.0


def _asks(terms: Sequence[Any]) -> bool:
    return any(term.kind == "model" for term in terms)


def _bytes_of_a_number() -> int:
    """Of weights that are not trained, on this machine."""
    from tasks.models.loading import compute_dtype

    return compute_dtype().itemsize
