"""What a recipe asks of its models that their configurations say they cannot do: told before anything is built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.artifact import InputError
from tasks.models.adapters import FullRecipe, PromptRecipe
from tasks.models.source import local_folder
from tasks.recipe import Part, RecipeError
from tasks.training.grpo import OUTPUT_FIXED, GroupRecipe

NAMING = ("ranks", "alphas", "modules_to_save", "feed_forward")


def check_models(recipe: Any) -> bool:
    """Raise `RecipeError` for adapters that a model cannot have and for completions longer than its positions.

    recipe: a `LifecycleRecipe`. False where the base's configuration is not here yet: a model of the hub that was never
    fetched.
    """
    if recipe.base.model is None:
        _check_lengths(recipe, recipe.base.positions)
        if any(_names_something(part.adapter) for _, part in _trained(recipe)):
            _check_adapters(recipe, _small_llama(recipe))
        return True
    config = _configuration(recipe.base.model, recipe.base.revision, "base.model")
    if config is None:
        return False
    from tasks.models.loading import positions_of

    _check_lengths(recipe, positions_of(config))
    _check_adapters(recipe, config)
    return True


def _trained(recipe: Any) -> Iterator[tuple[str, Any]]:
    """What is trained of the base or of what comes of it, by its place in the recipe."""
    yield from (("sft", part) for part in recipe.sft.in_turn())
    if recipe.reward.base is None:
        yield "reward", recipe.reward
    yield from ((f"policy.{policy.name or policy.method}", policy) for policy in recipe.policy)


def _check_lengths(recipe: Any, limit: int | None) -> None:
    if limit is None:
        return
    below = _virtual(recipe.sft.in_turn()[-1])
    drawn: list[tuple[str, Any]] = [] if recipe.preferences.source == "data" else [("sample", recipe.sample)]
    drawn += [("evaluate", recipe.evaluate)]
    drawn += [(f"policy.{policy.name or policy.method}", policy) for policy in recipe.policy]
    for name, part in drawn:
        most, taken = getattr(part, "max_new_tokens", 0), below + _virtual(part)
        if most + taken >= limit:
            soft = f" ({taken} of them for the soft prompt)" if taken else ""
            raise RecipeError(
                f"{name}.max_new_tokens is {most}, and the base has {limit} positions{soft} for a prompt and its "
                "completion; lower it."
            )


def _check_adapters(recipe: Any, config: Any) -> None:
    """Attach every adapter to the model without its values, each kind once."""
    known: set[tuple[bool, bool, str]] = set()
    parts = [(name, part, config) for name, part in _trained(recipe)]
    if recipe.reward.base is not None:
        own = _configuration(recipe.reward.base, recipe.reward.revision, "reward.base")
        parts += [("reward", recipe.reward, own)] if own is not None else []
    for name, part, of in parts:
        case = (name == "reward", isinstance(part, GroupRecipe), part.adapter.model_dump_json())
        if case not in known:
            _try(name, part, of)
        known.add(case)


def _try(name: str, part: Any, config: Any) -> None:
    import torch

    from tasks.models.adapter_names import has_adapted_output
    from tasks.models.adapters import attach
    from tasks.models.prompts import check_prompt
    from tasks.sampling.layouts import cache_argument, check_causal
    from tasks.training.footprint import unquantised, without_values

    scored = name == "reward"
    if not scored and config.is_encoder_decoder:  # the library would make a language model of the decoder alone
        raise RecipeError(
            f"{name}: {config.model_type} models read with an encoder and write with a decoder; take a decoder alone."
        )
    try:
        with torch.device("meta"):
            model, heads = without_values(config, scored)
            if not scored:
                check_causal(model)
                cache_argument(model)
            if isinstance(part.adapter, PromptRecipe):
                check_prompt(type(model).__name__, model.config, part.adapter)
            if isinstance(part.adapter, FullRecipe | PromptRecipe):
                return
            model = attach(model, unquantised(part.adapter), "SEQ_CLS" if scored else "CAUSAL_LM", heads=heads)
    except InputError as error:
        raise RecipeError(f"{name}: {error}") from error
    except (ValueError, ImportError, AssertionError) as error:
        what = "reward" if scored else "language"
        said = (
            "" if "Unrecognized configuration class" in str(error) else " ".join(str(error).split())[:120].rstrip(".")
        )
        raise RecipeError(
            f"{name}: transformers makes no {what} model of this {config.model_type} configuration"
            f"{f' ({said})' if said else ''}; set {'reward.base' if scored else 'base.model'} to another one."
        ) from error
    if isinstance(part, GroupRecipe) and has_adapted_output(model):
        method = type(part).model_fields["method"].default.upper()
        raise RecipeError(f"{name}: the adapter is on {OUTPUT_FIXED.format(method=method)}.")


def _configuration(model: str, revision: str | None, field: str) -> Any:
    """A model's configuration, None for one of the hub that is not in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig

    folder = local_folder(model, field)
    if folder is None:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    try:
        return AutoConfig.from_pretrained(folder)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200].rstrip(".")
        raise RecipeError(f"{field}: transformers cannot read {folder}/config.json ({reason}).") from error


def _small_llama(recipe: Any) -> Any:
    """What is pre-trained where no base is named, by the names of its layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=recipe.base.vocabulary, hidden_size=recipe.base.hidden, intermediate_size=recipe.base.hidden,
        num_hidden_layers=recipe.base.layers, num_attention_heads=recipe.base.heads,
    )  # fmt: skip


def _names_something(adapter: Part) -> bool:
    targets = getattr(adapter, "targets", "auto")
    named = any(getattr(adapter, field, ()) for field in NAMING) or getattr(adapter, "bias", "none") == "lora_only"
    return named or targets not in ("auto", "all-linear", "attention")


def _virtual(part: Any) -> int:
    adapter = getattr(part, "adapter", None)
    return adapter.virtual_tokens if isinstance(adapter, PromptRecipe) else 0
