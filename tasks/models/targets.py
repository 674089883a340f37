"""Which layers of a model an adapter is put on, whatever its layout calls them, and the adapter in PEFT's words."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, LoraRuntimeConfig, PeftConfig
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from tasks.artifact import InputError
from tasks.models.adapters import DoraRecipe, Ia3Recipe, Task

KEYS_OR_VALUES = re.compile(r"(k|v|key|value|qkv|query_key_value|c_attn|Wqkv|in_proj)(_proj)?", re.IGNORECASE)
"""Layers that make keys or values, alone or together with queries."""

EXPERTS = re.compile(r"(?<!shared_)experts\.")
"""Modules of which each gets some of the tokens."""


def linear_layers(model: Any) -> dict[str, Any]:
    """Linear layers by name, but for the output layer: torch's, GPT-2's `Conv1D`, and those in 4 bits."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    kinds = torch.nn.Linear, Conv1D  # bitsandbytes' are torch's
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds) and each is not output}


def attention_layers(model: Any) -> list[str]:
    """Names of the linear layers inside modules that are called attention. Raises `InputError` without any."""
    inside = [name for name, module in model.named_modules() if "Attention" in type(module).__name__]
    found = [name for name in linear_layers(model) if any(name.startswith(f"{each}.") for each in inside)]
    if not found:
        raise InputError(f'{type(model).__name__} has no attention layers; set adapter.targets = "all-linear".')
    return found


def scaled_layers(model: Any) -> tuple[list[str], list[str]]:
    """What (IA)^3 scales: the layers that make keys and values, and those that a feed-forward network ends with."""
    attention = attention_layers(model)
    made = [name for name in attention if KEYS_OR_VALUES.fullmatch(name.rpartition(".")[2])]
    width = model.config.get_text_config().hidden_size
    ends = [
        name
        for name, layer in linear_layers(model).items()
        if name not in attention and _sizes(layer)[1] == width < _sizes(layer)[0]
    ]
    if not made or not ends:
        raise InputError(
            f"Keys, values and feed-forward layers of {type(model).__name__} have names that are not known; "
            "name them in adapter.targets."
        )
    return made, ends


def _sizes(layer: Any) -> tuple[int, int]:
    """Features in and out."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    return layer.in_features, layer.out_features


def is_low_rank_only(adapter: Path) -> bool:
    """Whether a saved adapter is plain LoRA, as `updates_layers_only` says."""
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no mapping
    return updates_layers_only(PeftConfig.from_pretrained(str(adapter)), shapes)


def updates_layers_only(config: Any, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether an adapter is plain LoRA: nothing but an update of linear layers that see every token in its place.

    shapes: of its tensors, by the names that PEFT saves them under. What else PEFT can keep with LoRA (embeddings,
    lengths, biases, whole modules, parameters of experts) has other names or is named in the configuration. An expert
    by itself sees the tokens that are sent to it, of any row.
    """
    return (
        config.peft_type == "LORA"
        and not config.target_parameters
        and all(
            name.endswith((".lora_A.weight", ".lora_B.weight")) and len(shape) == 2 and not EXPERTS.search(name)
            for name, shape in shapes.items()
        )
    )


def _those_named(ends: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The targets that end with these names. Raises `InputError` for a name that none does."""
    for name in ends:
        if not any(each == name or each.endswith(f".{name}") for each in targets):
            known = ", ".join(sorted({each.rpartition(".")[2] for each in targets}))
            raise InputError(f"adapter.feed_forward names '{name}', which is none of the targets ({known}); mend it.")
    return [each for each in targets if any(each == name or each.endswith(f".{name}") for name in ends)]


def adapter_config(model: Any, recipe: Any, task: Task, whole: list[str]) -> Any:
    """PEFT's configuration for an `AdapterRecipe` on weights; `whole`: modules that are trained whole."""
    targets: Any = list(recipe.targets) if isinstance(recipe.targets, tuple) else recipe.targets
    ends: list[str] = []
    if targets == "attention":
        targets = attention_layers(model)
    elif isinstance(recipe, Ia3Recipe) and targets == "auto":
        made, ends = scaled_layers(model)
        targets = [*made, *ends]
    elif isinstance(recipe, Ia3Recipe) and targets == "all-linear":
        targets = [name for name in linear_layers(model) if name.rpartition(".")[2] not in whole]
    elif isinstance(targets, str) and targets != "all-linear":
        targets = [name for name in linear_layers(model) if re.fullmatch(targets, name)]
    if isinstance(recipe, Ia3Recipe):
        ends = ends or _those_named(recipe.feed_forward, targets)
        return IA3Config(
            task_type=task, target_modules=targets, feedforward_modules=ends, modules_to_save=whole or None
        )
    return LoraConfig(
        task_type=task,
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT divides by the rank, a float is fine
        lora_dropout=recipe.dropout,
        target_modules=targets,
        rank_pattern=dict(recipe.ranks),
        alpha_pattern=dict(recipe.alphas),
        use_rslora=recipe.rank_stabilised,
        use_dora=isinstance(recipe, DoraRecipe),
        bias=recipe.bias,
        modules_to_save=whole or None,
        runtime_config=LoraRuntimeConfig(
            ephemeral_gpu_offload=torch.cuda.is_available() and isinstance(recipe, DoraRecipe)
        ),
    )
