"""What a run will cost, before it runs: parameters, memory by stage, tokens by the data's real lengths, hours, money.

Memory is that of a step on the longest rows a batch may hold, made on tensors that have shapes only (`footprint`);
hours are by a probe of a few steps of the model's width, one and three layers deep, on this machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifact import Row, read_jsonl
from tasks.probing import Probe, probe
from tasks.recipe import Part
from tasks.training.direct import DIRECT

FORWARD = 1 / 3
"""What a forward pass costs of a step with gradients."""


class Prices(Part):
    """What is paid for; 0 leaves it out of the sum."""

    machine_hour: float = Field(default=0.0, ge=0)
    """An hour of the machine that trains."""
    label_hour: float = Field(default=0.0, ge=0)
    """An hour of an annotator."""
    seconds_per_judgement: float = Field(default=45.0, gt=0)
    """How long a person takes for one record."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of conversations and prompts."""

    sft: list[int]
    completions: list[int]
    """Of the demonstrations: what is learnt of each."""
    prompts: dict[str, list[int]]
    """By split: those for comparisons, for RL and for evaluation."""


def lengths_of(base: Any, data: Path, seed: int) -> tuple[Lengths, Any]:
    """A data artifact's rows in tokens, and the configuration of the model that a base part stands for.

    A base that is yet to be pre-trained has its tokenizer made of a sixth of its text. Raises what the stages would.
    """
    from tasks.models.chat import encode_prompt
    from tasks.training.sft_engine import encode_rows

    tokenizer, config = _model_of(base, seed)

    def rows(name: str) -> list[Row]:
        file = data / f"{name}.jsonl"
        return read_jsonl(file) if file.exists() else []

    encoded = encode_rows(rows("sft"), tokenizer)
    splits = {
        "compared": rows("reward_train") + rows("reward_validation"),
        "rl": rows("rl"),
        "evaluation": rows("evaluation"),
    }
    prompts = {name: [len(encode_prompt(tokenizer, row["prompt"])) for row in each] for name, each in splits.items()}
    own = [sum(each.labels_mask) for each in encoded]
    return Lengths([len(each.input_ids) for each in encoded], own, prompts), config


def _model_of(base: Any, seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig

    from tasks.models.loading import load_tokenizer
    from tasks.models.pretrain_engine import new_llama, train_tokenizer
    from tasks.models.source import find_model
    from tasks.models.templates import prepare_tokenizer
    from tasks.recipe import resolve

    if base.model is None:
        tokenizer = train_tokenizer(resolve(base.corpus)(seed, max(1, base.documents // 6)), base.vocabulary)
        with torch.device("meta"):
            model = new_llama(
                tokenizer, seed, hidden=base.hidden, layers=base.layers, heads=base.heads, positions=base.positions
            )
        return tokenizer, model.config
    folder, _ = find_model(base.model, base.revision, "base.model")
    return prepare_tokenizer(load_tokenizer(folder), base.chat_template), AutoConfig.from_pretrained(folder)


def estimate(recipe: Any, prices: Prices, data: Path) -> dict[str, Any]:
    """A row for each stage that computes (tokens, hours, bytes by part), the labels' hours and what all costs.

    recipe: a `LifecycleRecipe`. data: the artifact of its data part. Memory is of one process; stages that run side by
    side need theirs each.
    """
    lengths, config = lengths_of(recipe.base, data, recipe.seed)
    found = probe(config)
    rows = [_pretrained(recipe.base, config, found)] if recipe.base.model is None else []
    rows += [_fitted("sft", recipe.sft, config, lengths.sft, lengths.completions, found)]
    typical = _mean(lengths.completions)
    imported = recipe.preferences.source == "data"
    compared = lengths.prompts["compared"]
    drawn = 2 if imported else recipe.sample.completions_per_prompt
    most = max(lengths.completions, default=0) if imported else recipe.sample.max_new_tokens
    if not imported:
        rows.append(_decoded("sample", config, recipe.sample, compared, drawn, typical, found))
    pairs = [(n + most, n + min(typical, most)) for n in compared]
    rows.append(_grouped("reward", recipe.reward, config, pairs, drawn, most, found))
    for policy in recipe.policy:
        name = policy.name or policy.method
        if policy.method in DIRECT:
            rows.append(_grouped(name, policy, config, pairs, drawn, most, found))
        else:
            rows.append(_on_policy(name, policy, config, lengths, typical, found))
    evaluated = lengths.prompts["evaluation"]
    n = recipe.evaluate.samples_per_prompt
    one = _decoded("evaluate", config, recipe.evaluate, evaluated, n, typical, found)
    models = len(recipe.policy) + 1
    rows.append(one | {"tokens": one["tokens"] * models, "hours": one["hours"] * models})
    judgements = 0 if imported or recipe.label.source == "simulated" else len(compared) * recipe.label.min_submitted
    hours = sum(row["hours"] for row in rows)
    people = judgements * prices.seconds_per_judgement / 3600
    rounds = recipe.rounds
    return {
        "stages": rows,
        "parameters": rows[0]["parameters"],
        "machine_hours": hours * rounds,
        "judgements": judgements * rounds,
        "label_hours": people * rounds,
        "cost": rounds * (hours * prices.machine_hour + people * prices.label_hour),
        "lengths": histogram(lengths.sft),
    }


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """How many rows have up to so many tokens, by powers of two."""
    found: dict[str, int] = {}
    for length in sorted(lengths):
        bound = str(2 ** max(3, math.ceil(math.log2(max(length, 1)))))
        found[bound] = found.get(bound, 0) + 1
    return found


def _step(name: str, part: Any, config: Any, rows: int, length: int, kept: int) -> Row:
    """Memory of a step: what it is made of, in bytes."""
    from tasks.training.footprint import of_step
    from tasks.training.precision import choose

    print_of = of_step(config, part.adapter, rows, length, kept)
    if hasattr(part, "precision"):
        bf16, _ = choose(part.precision, print_of.parameters)
        if bf16 or part.gradient_checkpointing or "8bit" in part.optimizer:
            print_of = of_step(
                config, part.adapter, rows, length, kept, bf16=bf16, eight_bit="8bit" in part.optimizer,
                checkpointing=part.gradient_checkpointing,
            )  # fmt: skip
    return {
        "stage": name, "parameters": print_of.parameters, "trainable": print_of.trainable, "rule": print_of.rule,
        "weights": print_of.weights, "gradients": print_of.gradients, "optimizer": print_of.optimizer,
        "activations": print_of.activations, "cache": 0.0, "total": print_of.total,
    }  # fmt: skip


def _fitted(name: str, part: Any, config: Any, lengths: list[int], own: list[int], found: Probe) -> Row:
    fits = [n for n in lengths if n <= part.max_length] or [part.max_length]
    longest = sorted(fits)[-part.batch_size :]
    share = sum(own) / max(1, sum(lengths))
    kept = max(1, round(share * sum(longest)))
    tokens = sum(fits) * part.epochs
    memory = _step(name, part, config, len(longest), longest[-1], kept)
    return memory | {"tokens": round(tokens), "hours": tokens * found.token / 3600}


def _pretrained(part: Any, config: Any, found: Probe) -> Row:
    """At most: documents shorter than the context cost less."""
    memory = _step("base", part, config, part.batch_size, part.context, part.batch_size * part.context)
    tokens = part.documents * part.context * part.epochs
    return memory | {"tokens": round(tokens), "hours": tokens * found.token / 3600}


def _grouped(
    name: str, part: Any, config: Any, rows: list[tuple[int, float]], drawn: int, most: int, found: Probe
) -> Row:
    longest = max((n for n, _ in rows), default=8)
    batch = min(part.batch_size, max(1, len(rows))) * drawn
    kept = 1 if name == "reward" else batch * most
    tokens = sum(typical for _, typical in rows) * drawn * part.epochs
    reference = sum(typical for _, typical in rows) * drawn * FORWARD
    memory = _step(name, part, config, batch, min(longest, part.max_length), kept)
    return memory | {"tokens": round(tokens), "hours": (tokens + reference) * found.token / 3600}


def _decoded(name: str, config: Any, part: Any, prompts: list[int], n: int, typical: float, found: Probe) -> Row:
    from tasks.training.footprint import cache_bytes, parameters_of

    parameters, rows = parameters_of(config), min(part.batch_size, max(1, len(prompts) * n))
    cache = cache_bytes(config, rows, max(prompts, default=1) + part.max_new_tokens)
    length = min(typical, part.max_new_tokens)
    batches = math.ceil(len(prompts) * n / rows) * max(1.0, rows / 32)
    seconds = batches * length * found.decoded + sum(prompts) * found.token * FORWARD
    weights = 4.0 * parameters
    return {
        "stage": name, "parameters": parameters, "trainable": 0, "rule": 1.2 * weights, "weights": weights,
        "gradients": 0.0, "optimizer": 0.0, "activations": 0.0, "cache": float(cache), "total": weights + cache,
        "tokens": round(len(prompts) * n * length), "hours": seconds / 3600,
    }  # fmt: skip


def _on_policy(name: str, part: Any, config: Any, lengths: Lengths, typical: float, found: Probe) -> Row:
    """Samples and learns in turn: the higher of both, and with every weight trained a reference beside it; a reward
    model of the policy's size is loaded too."""
    from tasks.training.footprint import cache_bytes

    prompts = lengths.prompts["rl"]
    longest, mean = max(prompts, default=8), _mean(prompts)
    if part.method == "rejection":
        sampled, each, updates = len(prompts) * part.samples, part.decode_batch_size, 1
        learnt, passes = len(prompts) * part.keep, part.epochs
        width = min(part.batch_size, max(1, learnt))
    else:
        sampled = part.episodes if part.method == "ppo" else part.prompts * part.completions_per_prompt
        each, updates, learnt = sampled, part.updates, sampled
        passes = part.epochs if part.method == "ppo" else 1
        width = part.micro_batch_size if part.method == "ppo" else part.rows_at_once
    rows, length = min(width, learnt), longest + part.max_new_tokens
    memory = _step(name, part, config, max(1, rows), length, max(1, rows) * part.max_new_tokens)
    copies = 1 + (part.adapter.kind == "full" and part.method != "rejection")
    shared = getattr(part, "share_base", False)
    memory["weights"] += 4.0 * memory["parameters"] * (copies - (1 if shared else 0))
    memory["cache"] = float(cache_bytes(config, min(each, sampled), length))
    held = memory["weights"] + memory["optimizer"]
    memory["total"] = held + max(memory["cache"], memory["activations"] + memory["gradients"])
    row = mean + min(typical, part.max_new_tokens)
    decoding = math.ceil(sampled / each) * min(typical, part.max_new_tokens) * found.decoded * max(1.0, each / 32)
    learning = (learnt * row * passes + sampled * row * 2 * FORWARD) * found.token
    return memory | {
        "tokens": round(updates * learnt * row * passes),
        "hours": updates * (decoding + learning) / 3600,
    }


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
