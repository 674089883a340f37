"""Stage: candidate completions of the SFT model, or of the champion, for people (or simulated people) to compare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifact import InputError, Row, Work, below, read_jsonl, write_jsonl
from tasks.recipe import Part
from tasks.sampling.engine import Engine, EngineName

FEW_FINISHED = 0.5
"""Below this share of completions that end by themselves, the person at the terminal is told."""
SPLITS = {"train": "reward_train.jsonl", "validation": "reward_validation.jsonl"}


class SampleRecipe(Part):
    """How candidate completions are drawn."""

    completions_per_prompt: Annotated[int, Field(ge=2, le=8)] = 4
    """Completions that an annotator ranks side by side; a ranking takes at most 8."""
    strategy: Literal["sample", "beam"] = "sample"
    """sample: at random, by temperature and top_p. beam: the likeliest that a search with as many beams as completions
    finds; they differ little."""
    engine: EngineName = "local"
    """Draws the completions. local: in this process. vllm: a vLLM server that runs for the time of the stage."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Divides the logits; above 1 the candidates differ more."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens that holds this much probability."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longer completions are cut and marked unfinished."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Rows decoded at once."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.strategy == "beam" and (self.temperature, self.top_p) != (1.0, 1.0):
            raise ValueError("temperature and top_p are for strategy 'sample'; a beam search draws nothing at random")
        if self.strategy == "beam" and self.engine != "local":
            raise ValueError('beams are searched by engine = "local" alone')
        return self


def sample_completions(recipe: SampleRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Sample from base + sft (or `start`, an earlier champion) for every reward prompt: `completions.jsonl`.

    Completions of a prompt that read the same are kept (annotators see what the model does) and counted in the metrics.
    Prompts that leave no room for completions are left out. Raises `InputError` when there are no reward prompts.
    """
    from tasks.models.chat import encode_prompt
    from tasks.models.loading import load_causal_lm, load_tokenizer, positions
    from tasks.sampling.beams import beam_search
    from tasks.sampling.room import with_room

    prompts: list[Row] = [
        row | {"split": split} for split, name in SPLITS.items() for row in read_jsonl(inputs["data"] / name)
    ]
    if not prompts:
        raise InputError("There are no reward prompts to sample for; raise the data recipe's reward share.")
    tokenizer = load_tokenizer(inputs["base"])
    model = load_causal_lm([inputs[name] for name in below(inputs)])
    prompts = with_room(prompts, tokenizer, recipe.max_new_tokens, positions(model), work, "reward")
    ids = [encode_prompt(tokenizer, row["prompt"]) for row in prompts]
    given: dict[str, Any] = {
        "n": recipe.completions_per_prompt,
        "max_new_tokens": recipe.max_new_tokens,
        "batch_size": recipe.batch_size,
        "progress": lambda done, total: work.progress(done, total, "prompts sampled"),
    }
    if recipe.strategy == "beam":
        groups = beam_search(model, tokenizer, ids, **given)
    else:
        drawn = {"temperature": recipe.temperature, "top_p": recipe.top_p, "seed": work.seed}
        with Engine(recipe.engine, work) as engine:
            groups = engine.generate(model, tokenizer, ids, **drawn, **given)
    rows = [
        {
            "id": row["id"],
            "split": row["split"],
            "prompt": row["prompt"],
            "reference": row.get("reference"),
            "completions": [
                {"id": f"{row['id']}-{k}", "text": c.text, "tokens": len(c.token_ids), "finished": c.finished}
                for k, c in enumerate(group)
            ],
        }
        for row, group in zip(prompts, groups, strict=True)
    ]
    write_jsonl(work.out / "completions.jsonl", rows)
    figures = summary(rows)
    work.log(figures)
    if figures["finished_share"] < FEW_FINISHED:
        work.notify(
            f"Only {figures['finished_share']:.0%} of the completions end by themselves: raise sample.max_new_tokens; "
            'a model that never saw its EOS token must be trained whole (sft.adapter.kind = "full").'
        )


def summary(rows: list[Row]) -> dict[str, float]:
    """Counts, mean tokens, share finished by EOS, and the share that repeats another completion of its prompt."""
    every = [completion for row in rows for completion in row["completions"]]
    distinct = sum(len({completion["text"] for completion in row["completions"]}) for row in rows)
    return {
        "prompts": len(rows),
        "completions": len(every),
        "tokens_mean": sum(c["tokens"] for c in every) / len(every),
        "finished_share": sum(c["finished"] for c in every) / len(every),
        "duplicate_share": 1 - distinct / len(every),
    }
