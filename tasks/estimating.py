"""What a run will cost, before it runs: parameters, memory by stage, tokens by the data's real lengths, hours, money.

Memory is told by `stage_memory`; hours are by a probe of a few steps of the model's width, one and three layers deep,
on this machine.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifact import PipelineError, Row, read_jsonl
from tasks.estimating_labels import judge_of, judgements_of, records_of
from tasks.probing import Probe, probe
from tasks.recipe import Part, resolve
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
    from tasks.models.pretrain_engine import document_rows

    texts = resolve(base.corpus)(seed, max(1, base.documents // 6)) if base.model is None else []
    tokenizer, config, notes = _model_of(base, seed, data, texts)
    lengths = lengths_in(tokenizer, data)
    if texts:
        rows = document_rows(texts, tokenizer, base.context)
        lengths = replace(lengths, pretrained=sum(len(row.input_ids) for row in rows) / len(texts))
    return lengths, config, notes


def lengths_in(tokenizer: Any, data: Path) -> Lengths:
    """A data artifact's rows in tokens."""
    from tasks.sampling.room import prompt_lengths

    def rows(name: str) -> list[Row]:
        file = data / f"{name}.jsonl"
        return read_jsonl(file) if file.exists() else []

    splits = {
        "compared": rows("reward_train") + rows("reward_validation"),
        "rl": rows("rl"),
        "evaluation": rows("evaluation"),
    }
    prompts = {name: [n for n in prompt_lengths(each, tokenizer)[0] if n is not None] for name, each in splits.items()}
    mixtures = [file.stem.removeprefix("sft.") for file in sorted(data.glob("sft.*.jsonl"))]
    further = {name: Lengths(*_learnt(tokenizer, rows(f"sft.{name}")), prompts) for name in mixtures}
    return Lengths(*_learnt(tokenizer, rows("sft")), prompts, further)


def _learnt(tokenizer: Any, rows: list[Row]) -> tuple[list[int], list[int]]:
    """Tokens of each row, and what is learnt of them."""
    from tasks.training.sft_engine import encode_rows

    encoded = encode_rows(rows, tokenizer, refused={})
    return [len(each.input_ids) for each in encoded], [sum(each.labels_mask) for each in encoded]


def _model_of(base: Any, seed: int, data: Path, texts: Sequence[str]) -> tuple[Any, Any, list[str]]:
    import torch
    from transformers import AutoConfig

    from tasks.models.loading import load_tokenizer
    from tasks.models.pretrain_engine import new_llama, train_tokenizer
    from tasks.models.source import find_configuration
    from tasks.models.templates import prepare_tokenizer

    if base.model is None:
        tokenizer = train_tokenizer(texts, base.vocabulary)
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
        said = [line for name in ("sft", "rl", "evaluation") for line in _texts(data / f"{name}.jsonl")]
        tokenizer = train_tokenizer(said, min(STAND_IN, config.get_text_config().vocab_size))
    return prepare_tokenizer(tokenizer, base.chat_template), config, notes


def _texts(file: Path) -> list[str]:
    rows = read_jsonl(file) if file.exists() else []
    return [turn["content"] for row in rows for turn in row.get("messages") or row.get("prompt") or [row]]


def estimate(recipe: Any, prices: Prices, data: Path) -> dict[str, Any]:
    """A row for each stage that computes (tokens, hours, bytes by part) in the first round, the labels' hours and what
    all rounds cost.

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
    shown = drawn if imported else recipe.select.show or drawn
    records = records_of(recipe, len(compared))
    pairs = [compared[place * len(compared) // records] + min(typical, most) for place in range(records)]

    def memory(kind: str, part: Any, of: Any = config, rows: Lengths = lengths) -> Row:
        try:
            return memory_of(kind, part, of, rows, shown, most, scorer)
        except PipelineError:
            raise
        except Exception as error:  # layouts that compute by their numbers cannot be computed without
            note = f"Where ? stands memory is by the rule: {of.model_type} models cannot be computed without values"
            told = f"{note} ({type(error).__name__})."
            notes.extend([told] if told not in notes else [])
            return by_rule(of)

    rows: list[Row] = []
    if recipe.base.model is None:
        work = _pretrained_work(recipe.base, lengths.pretrained, found)
        rows.append({"stage": "base", **memory("base", recipe.base), **work})
    for part in recipe.sft.in_turn():
        name, learnt = (
            f"sft {part.mixture}" if part.mixture else "sft",
            lengths.mixtures.get(part.mixture or "", lengths),
        )
        rows.append({"stage": name, **memory("sft", part, rows=learnt), **_fitted_work(part, learnt.sft, found)})
    once = len(rows)
    if not imported:
        work = _decoded_work(recipe.sample, compared, drawn, typical, found)
        rows.append({"stage": "sample", **memory("sample", recipe.sample), **work})
    work = _grouped_work(recipe.reward, pairs, shown, found)
    rows.append({"stage": "reward", **memory("reward", recipe.reward, scorer), **work})
    for policy in recipe.policy:
        grouped = policy.method in DIRECT
        work = _grouped_work(policy, pairs, shown, found) if grouped else None
        work = work or _on_policy_work(policy, lengths.prompts["rl"], typical, found)
        rows.append({"stage": policy.name or policy.method, **memory(policy.method, policy), **work})
    n = recipe.evaluate.samples_per_prompt
    one = _decoded_work(recipe.evaluate, lengths.prompts["evaluation"], n, typical, found)
    work = {name: value * (len(recipe.policy) + 1) for name, value in one.items()}
    rows.append({"stage": "evaluate", **memory("evaluate", recipe.evaluate), **work})
    rounds = recipe.rounds
    grows = {"reward", *(policy.name or policy.method for policy in recipe.policy if policy.method in DIRECT)}
    hours = sum(row["hours"] for row in rows[:once])
    for row in rows[once:]:  # a round learns from the judgements of all before it
        hours += row["hours"] * (rounds * (rounds + 1) / 2 if row["stage"] in grows else rounds)
    judgements = rounds * judgements_of(recipe, records, len(lengths.prompts["evaluation"]), notes)
    people = judgements * prices.seconds_per_judgement / 3600
    judge = _judge(recipe, data, records, shown)
    paid = rounds * judge["cost"] if judge else 0.0
    return {
        "stages": rows,
        "notes": notes,
        "parameters": rows[0]["parameters"],
        "machine_hours": hours,
        "judgements": judgements,
        "label_hours": people,
        "judge": judge,
        "cost": hours * prices.machine_hour + people * prices.label_hour + paid,
        "lengths": histogram(lengths.sft),
    }


def _judge(recipe: Any, data: Path, records: int, shown: int) -> Row | None:
    """What a round's judge model is asked and paid, with a demonstration of middle length as every answer."""
    rows = [row for name in ("reward_train", "reward_validation") for row in read_jsonl(data / f"{name}.jsonl")]
    said = sorted(
        (row["messages"][-1]["content"] for row in read_jsonl(data / "sft.jsonl") if "messages" in row), key=len
    )
    return judge_of(recipe, rows[:records], said[len(said) // 2] if said else "", shown)


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


def _pretrained_work(part: Any, length: float, found: Probe) -> Row:
    tokens = part.documents * length * part.epochs
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
