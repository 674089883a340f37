"""What a run will cost, before it runs: parameters, memory by stage, tokens by the data's real lengths, hours, money.

Memory is told by `stage_memory`; hours are by a probe of a few steps of the model's width, one and three layers deep,
on this machine.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifact import PipelineError, Row, read_jsonl
from tasks.probing import Probe, probe
from tasks.recipe import Part
from tasks.stage_memory import Lengths, by_rule, memory_of
from tasks.training.direct import DIRECT

FORWARD = 1 / 3
"""What a forward pass costs of a step with gradients."""


STAND_IN = 8000
"""Entries of a tokenizer that stands in for a model's own."""


class Prices(Part):
    """What is paid for; 0 leaves it out of the sum."""

    machine_hour: float = Field(default=0.0, ge=0)
    """An hour of the machine that trains."""
    label_hour: float = Field(default=0.0, ge=0)
    """An hour of an annotator."""
    seconds_per_judgement: float = Field(default=45.0, gt=0)
    """How long a person takes for one record."""


def lengths_of(base: Any, data: Path, seed: int) -> tuple[Lengths, Any, list[str]]:
    """A data artifact's rows in tokens, the configuration of the model that a base part stands for, and what of these
    is not what a run would have.

    A base that is yet to be pre-trained has its tokenizer made of a sixth of its text. Raises what the stages would.
    """
    tokenizer, config, notes = _model_of(base, seed, data)
    return lengths_in(tokenizer, data), config, notes


def lengths_in(tokenizer: Any, data: Path) -> Lengths:
    """A data artifact's rows in tokens."""
    from tasks.sampling.room import prompt_lengths
    from tasks.training.sft_engine import encode_rows

    def rows(name: str) -> list[Row]:
        file = data / f"{name}.jsonl"
        return read_jsonl(file) if file.exists() else []

    encoded = encode_rows(rows("sft"), tokenizer, refused={})
    splits = {
        "compared": rows("reward_train") + rows("reward_validation"),
        "rl": rows("rl"),
        "evaluation": rows("evaluation"),
    }
    prompts = {name: [n for n in prompt_lengths(each, tokenizer)[0] if n is not None] for name, each in splits.items()}
    own = [sum(each.labels_mask) for each in encoded]
    return Lengths([len(each.input_ids) for each in encoded], own, prompts)


def _model_of(base: Any, seed: int, data: Path) -> tuple[Any, Any, list[str]]:
    import torch
    from transformers import AutoConfig

    from tasks.models.loading import load_tokenizer
    from tasks.models.pretrain_engine import new_llama, train_tokenizer
    from tasks.models.source import find_configuration
    from tasks.models.templates import prepare_tokenizer
    from tasks.recipe import resolve

    if base.model is None:
        tokenizer = train_tokenizer(resolve(base.corpus)(seed, max(1, base.documents // 6)), base.vocabulary)
        with torch.device("meta"):
            model = new_llama(
                tokenizer, seed, hidden=base.hidden, layers=base.layers, heads=base.heads, positions=base.positions
            )
        return prepare_tokenizer(tokenizer, base.chat_template), model.config, []
    folder = find_configuration(base.model, base.revision, "base.model")
    notes, config = [], AutoConfig.from_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        notes.append("The model's weights are not here: what is told of it is told by its configuration.")
    if (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder)
    else:
        notes.append(f"There is no tokenizer.json: tokens are counted by one of {STAND_IN} made of the data.")
        texts = [line for name in ("sft", "rl", "evaluation") for line in _texts(data / f"{name}.jsonl")]
        tokenizer = train_tokenizer(texts, min(STAND_IN, config.get_text_config().vocab_size))
    return prepare_tokenizer(tokenizer, base.chat_template), config, notes


def _texts(file: Path) -> list[str]:
    rows = read_jsonl(file) if file.exists() else []
    return [turn["content"] for row in rows for turn in row.get("messages") or row.get("prompt") or [row]]


def estimate(recipe: Any, prices: Prices, data: Path) -> dict[str, Any]:
    """A row for each stage that computes (tokens, hours, bytes by part), the labels' hours and what all costs.

    recipe: a `LifecycleRecipe`. data: the artifact of its data part. Memory is of one process; stages that run side by
    side need theirs each.
    """
    lengths, config, notes = lengths_of(recipe.base, data, recipe.seed)
    found = probe(config)
    scorer = _reward_config(recipe.reward) or config
    typical, compared = _mean(lengths.completions), lengths.prompts["compared"]
    imported = recipe.preferences.source == "data"
    drawn = 2 if imported else recipe.sample.completions_per_prompt
    most = max(lengths.completions, default=0) if imported else recipe.sample.max_new_tokens
    pairs = [n + min(typical, most) for n in compared]

    def memory(kind: str, part: Any, of: Any = config) -> Row:
        try:
            return memory_of(kind, part, of, lengths, drawn, most, scorer)
        except PipelineError:
            raise
        except Exception as error:  # layouts that compute by their numbers cannot be computed without
            note = f"Where ? stands memory is by the rule: {of.model_type} models cannot be computed without values"
            told = f"{note} ({type(error).__name__})."
            notes.extend([told] if told not in notes else [])
            return by_rule(of)

    rows: list[Row] = []
    if recipe.base.model is None:
        rows.append({"stage": "base", **memory("base", recipe.base), **_pretrained_work(recipe.base, found)})
    for part in recipe.sft.in_turn():
        name = f"sft {part.mixture}" if part.mixture else "sft"
        rows.append({"stage": name, **memory("sft", part), **_fitted_work(part, lengths.sft, found)})
    if not imported:
        work = _decoded_work(recipe.sample, compared, drawn, typical, found)
        rows.append({"stage": "sample", **memory("sample", recipe.sample), **work})
    work = _grouped_work(recipe.reward, pairs, drawn, found)
    rows.append({"stage": "reward", **memory("reward", recipe.reward, scorer), **work})
    for policy in recipe.policy:
        grouped = policy.method in DIRECT
        work = _grouped_work(policy, pairs, drawn, found) if grouped else None
        work = work or _on_policy_work(policy, lengths.prompts["rl"], typical, found)
        rows.append({"stage": policy.name or policy.method, **memory(policy.method, policy), **work})
    n = recipe.evaluate.samples_per_prompt
    one = _decoded_work(recipe.evaluate, lengths.prompts["evaluation"], n, typical, found)
    work = {name: value * (len(recipe.policy) + 1) for name, value in one.items()}
    rows.append({"stage": "evaluate", **memory("evaluate", recipe.evaluate), **work})
    judgements = 0 if imported or recipe.label.source == "simulated" else len(compared) * recipe.label.min_submitted
    hours = sum(row["hours"] for row in rows)
    people = judgements * prices.seconds_per_judgement / 3600
    rounds = recipe.rounds
    return {
        "stages": rows,
        "notes": notes,
        "parameters": rows[0]["parameters"],
        "machine_hours": hours * rounds,
        "judgements": judgements * rounds,
        "label_hours": people * rounds,
        "cost": rounds * (hours * prices.machine_hour + people * prices.label_hour),
        "lengths": histogram(lengths.sft),
    }


def _reward_config(part: Any) -> Any:
    """The configuration of a reward model on another base than the policy's."""
    if part.base is None:
        return None
    from transformers import AutoConfig

    from tasks.models.source import find_configuration

    return AutoConfig.from_pretrained(find_configuration(part.base, part.revision, "reward.base"))


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """How many rows have up to so many tokens, by powers of two."""
    found: dict[str, int] = {}
    for length in sorted(lengths):
        bound = str(2 ** max(3, math.ceil(math.log2(max(length, 1)))))
        found[bound] = found.get(bound, 0) + 1
    return found


def _fitted_work(part: Any, lengths: Sequence[int], found: Probe) -> Row:
    tokens = sum(n for n in lengths if n <= part.max_length) * part.epochs
    return {"tokens": round(tokens), "hours": tokens * found.token / 3600}


def _pretrained_work(part: Any, found: Probe) -> Row:
    """At most: documents shorter than the context cost less."""
    tokens = part.documents * part.context * part.epochs
    return {"tokens": round(tokens), "hours": tokens * found.token / 3600}


def _grouped_work(part: Any, rows: Sequence[float], drawn: int, found: Probe) -> Row:
    tokens = sum(rows) * drawn * part.epochs
    reference = sum(rows) * drawn * FORWARD
    return {"tokens": round(tokens), "hours": (tokens + reference) * found.token / 3600}


def _decoded_work(part: Any, prompts: Sequence[int], n: int, typical: float, found: Probe) -> Row:
    rows, length = min(part.batch_size, max(1, len(prompts) * n)), min(typical, part.max_new_tokens)
    batches = math.ceil(len(prompts) * n / rows) * max(1.0, rows / 32)
    seconds = batches * length * found.decoded + sum(prompts) * found.token * FORWARD
    return {"tokens": round(len(prompts) * n * length), "hours": seconds / 3600}


def _on_policy_work(part: Any, prompts: Sequence[int], typical: float, found: Probe) -> Row:
    if part.method == "rejection":
        sampled, each, updates = len(prompts) * part.samples, part.decode_batch_size, 1
        learnt, passes = len(prompts) * part.keep, part.epochs
    else:
        sampled = part.episodes if part.method == "ppo" else part.prompts * part.completions_per_prompt
        each, updates, learnt = sampled, part.updates, sampled
        passes = part.epochs if part.method == "ppo" else 1
    row = _mean(prompts) + min(typical, part.max_new_tokens)
    decoding = math.ceil(sampled / each) * min(typical, part.max_new_tokens) * found.decoded * max(1.0, each / 32)
    learning = (learnt * row * passes + sampled * row * 2 * FORWARD) * found.token
    return {"tokens": round(updates * learnt * row * passes), "hours": updates * (decoding + learning) / 3600}


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
