"""Which models of an evaluation are decoded in one batch: LoRA adapters on the same weights, and these weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftConfig

from tasks.artifact import InputError, below
from tasks.evaluation.evaluate import EvaluateRecipe
from tasks.models.targets import is_low_rank_only


@dataclass(frozen=True)
class Group:
    """Models that are sampled at once."""

    chains: dict[str, list[Path]]
    """By model: the artifacts it is made of, to be loaded by itself. In a group of several they hold its tokenizer."""
    weights: list[Path] = field(default_factory=list)
    """Of a group of several: the artifacts below the adapters."""
    adapters: dict[str, Path | None] = field(default_factory=dict)
    """Of a group of several, by model: its adapter on these weights; None: the weights themselves."""


def in_groups(
    recipe: EvaluateRecipe, inputs: Mapping[str, Path], chains: Mapping[str, list[Path]], prompts: int
) -> tuple[list[Group], str]:
    """How the models of `chains` are sampled, and why, in one sentence. inputs: as `evaluate_models` takes them.

    Raises `InputError` when the recipe asks for one batch and no two models can share it.
    """
    alone = [Group({name: chain}) for name, chain in chains.items()]
    if recipe.candidates == "apart" or recipe.engine != "local":
        asked = 'candidates = "apart"' if recipe.engine == "local" else f'engine = "{recipe.engine}"'
        return alone, f"One model after another: the recipe says {asked}."
    adapters = _adapters(inputs, chains)
    if len(adapters) < 2:
        if recipe.candidates == "together":
            raise InputError(
                'No two of the models are LoRA adapters on the same weights; set evaluate.candidates = "auto".'
            )
        return alone, "One model after another: no two are LoRA adapters on the same weights."
    each = prompts * recipe.samples_per_prompt
    told = f"{each} completions of each are {'fewer than' if 2 * each < recipe.batch_size else 'at least'} half a batch"
    if recipe.candidates == "auto" and 2 * each >= recipe.batch_size:
        return alone, f"One model after another: {told} of {recipe.batch_size}."
    weights = [inputs[name] for name in below(inputs)]
    group = Group({name: chains[name] for name in adapters}, weights, adapters)
    why = told + f" of {recipe.batch_size}" if recipe.candidates == "auto" else "the recipe says so"
    others = [each for each in alone if not adapters.keys() & each.chains.keys()]
    return [group, *others], f"In one batch, on weights that are loaded once: {', '.join(adapters)}; {why}."


def _adapters(inputs: Mapping[str, Path], models: Iterable[str]) -> dict[str, Path | None]:
    """The models that are plain LoRA on what this round began with, or that itself; a soft prompt in it takes part in
    every forward pass and is left out."""
    weights = [inputs[name] for name in below(inputs)]
    if any((folder / "model" / "prompt").is_dir() or _is_prompt(folder / "adapter") for folder in weights):
        return {}
    found: dict[str, Path | None] = {} if "start" in inputs else {"sft": None}
    for name in models:
        adapter = inputs.get(f"policy.{name}", Path()) / "adapter"
        if (adapter / "adapter_config.json").is_file() and is_low_rank_only(adapter):
            found[name] = adapter
    return found


def _is_prompt(adapter: Path) -> bool:
    return (adapter / "adapter_config.json").is_file() and PeftConfig.from_pretrained(str(adapter)).is_prompt_learning
