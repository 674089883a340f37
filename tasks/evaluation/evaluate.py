"""Stage: all candidates side by side on the evaluation prompts, which nothing was trained on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.artifact import InputError, Row, Work, read_jsonl, write_jsonl
from tasks.recipe import Dotted, Part
from tasks.sampling.engine import Engine, EngineName


class EvaluateRecipe(Part):
    """How the candidates are compared."""

    samples_per_prompt: int = Field(default=4, ge=1)
    """Completions of each model for each evaluation prompt."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longer completions are cut and count as unfinished."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Divides the logits; the KL to SFT is an unbiased estimate only at 1."""
    engine: EngineName = "local"
    """Draws the completions. local: in this process. vllm: a vLLM server that runs for the time of the stage."""
    judge: Dotted | None = None
    """Function (row, completion) -> float that says what people would prefer; none: the reward model judges."""
    checks: tuple[Dotted, ...] = ()
    """Functions (row, completion) -> bool that verify what can be verified; their names must differ."""
    best_of: int = Field(default=16, ge=0)
    """Completions of the SFT model per prompt for the best-of-n curve of reward against judge; 0, or no judge: none."""
    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamplings of the prompts behind each 95 % interval."""
    batch_size: int = Field(default=128, ge=1)
    """Rows decoded at once."""
    candidates: Literal["auto", "together", "apart"] = "auto"
    """How the local engine decodes candidates that are LoRA adapters on the same weights: all in one batch, on weights
    that are loaded once, or each merged and by itself. auto: together where one alone would not fill half a batch."""

    @field_validator("checks")
    @classmethod
    def _different_names(cls, checks: tuple[str, ...]) -> tuple[str, ...]:
        names = [check_name(check) for check in checks]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two checks have the same name ({', '.join(names)}); give their functions different names"
            )
        return checks

    @model_validator(mode="after")
    def _batches_are_ours(self) -> Self:
        if self.candidates == "together" and self.engine != "local":
            raise ValueError('candidates = "together" needs engine = "local"; leave one of them out')
        return self


def check_name(dotted: str) -> str:
    """What a check is called in figures: the name of its function."""
    return dotted.partition(":")[2]


def evaluate_models(recipe: EvaluateRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """Sample every model on the evaluation prompts, judge, check and compare: `evaluation.json`, `samples.jsonl`.

    `inputs`: base, sft, data, reward, any number of `candidate.NAME` and perhaps champion, all merged models; beside a
    candidate perhaps `policy.NAME`, the adapter it was made of, on `start` or else on base and sft; and
    `champion_data` where the champion was made with other data: prompts it learnt from do not count against it. What
    was sampled before a build was killed is kept in scratch. Prompts for which one of the models has too few positions
    are asked of none. Raises `InputError` without evaluation prompts.
    """
    from tasks.evaluation.bench import Bench
    from tasks.evaluation.grouping import in_groups
    from tasks.evaluation.measure import compare
    from tasks.evaluation.report import report
    from tasks.models.loading import load_tokenizer, positions_of_chain
    from tasks.sampling.room import with_room

    prompts = read_jsonl(inputs["data"] / "evaluation.jsonl")
    if not prompts:
        raise InputError("There are no evaluation prompts; raise data.shares.evaluation.")
    chains = _chains(inputs)
    for chain in chains.values():
        limit, tokenizer = positions_of_chain(chain), load_tokenizer(chain[0])
        prompts = with_room(prompts, tokenizer, recipe.max_new_tokens, limit, work, "evaluation")
    samples: dict[str, list[Row]] = {}
    with Engine(recipe.engine, work) as engine:
        bench = Bench(recipe, inputs, prompts, engine, work, len(chains))
        groups, why = in_groups(recipe, inputs, chains, len(prompts))
        for group in groups:
            samples |= bench.sample(group)
        samples = {name: samples[name] for name in chains}
        best_of = bench.best_of() if recipe.judge and recipe.best_of else []
    judge = "reward_model" if recipe.judge is None else "utility"
    names = [check_name(check) for check in recipe.checks]
    fair = _unseen(inputs, prompts) if "champion_data" in inputs else None
    evaluation = compare(samples, judge, names, recipe.bootstrap_samples, work.seed, fair, best_of)
    work.text("decoding", f"{why}\n")
    write_jsonl(work.out / "samples.jsonl", [row for rows in samples.values() for row in rows])
    text = json.dumps(evaluation, indent=1, sort_keys=True, allow_nan=False)
    (work.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    report(work, evaluation, samples)


def _unseen(inputs: Mapping[str, Path], prompts: Sequence[Row]) -> set[str]:
    """Ids of the evaluation prompts that the champion's own data kept for evaluation too, or did not have."""
    ledger = read_jsonl(inputs["champion_data"] / "ledger.jsonl")
    learnt = {row["id"] for row in ledger if row["split"] != "evaluation"}
    fair = {row["id"] for row in prompts} - learnt
    if not fair:
        raise InputError(
            "The champion learnt from every evaluation prompt; add prompts to the data, or give the run another name."
        )
    return fair


def _chains(inputs: Mapping[str, Path]) -> dict[str, list[Path]]:
    """The artifacts each model is made of, by its name, SFT first."""
    chains = {"sft": [inputs["base"], inputs["sft"]]}
    for name, path in inputs.items():
        kind, _, candidate = name.partition(".")
        if kind == "candidate":
            if candidate in ("sft", "champion"):
                raise InputError(f"A policy cannot be named '{candidate}'; give it another name in the recipe.")
            chains[candidate] = [path]
    if "champion" in inputs:
        chains["champion"] = [inputs["champion"]]
    return chains
