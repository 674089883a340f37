"""What an adapter's recipe names and a model does not have: refused in one sentence, never passed over."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers.pytorch_utils import Conv1D

from tasks.artifact import InputError
from tasks.models.targets import linear_layers


@dataclass(frozen=True)
class Names:
    """Of a model without an adapter."""

    modules: Collection[str]
    layers: Collection[str]
    """The linear ones, which adapters are usually on."""

    @classmethod
    def of(cls, model: Any) -> "Names":
        return cls([name for name, _ in model.named_modules()], [*linear_layers(model)])

    @property
    def there(self) -> str:
        """What targets can name."""
        return f"it has {_leaves(self.layers)}"


def check_found(adapted: Any, recipe: Any, names: Names) -> None:
    """Raise `InputError` for all names of a recipe that match nothing in the model."""
    config = adapted.peft_config["default"]
    layers = _adapted(adapted)
    targets = config.target_modules if isinstance(recipe.targets, tuple) else ()  # as PEFT rewrote them for experts
    lost = {
        "targets": [each for each in targets if not _ends(each, layers)],
        "modules_to_save": [each for each in recipe.modules_to_save if not _ends(each, names.modules)],
        **{
            field: [each for each in getattr(recipe, field, ()) if not _matches(each, layers)]
            for field in ("ranks", "alphas")
        },
    }
    if any(lost.values()):
        told = [f"adapter.{field} names {_quoted(each)}" for field, each in lost.items() if each]
        there = f"the adapter is on {_leaves(layers)}"
        if lost["targets"] or lost["modules_to_save"]:
            there = f"it has {_leaves(names.modules)}" if lost["modules_to_save"] else names.there
        raise InputError(f"{' and '.join(told)}, which this model lacks ({there}); mend or remove the names.")
    if getattr(recipe, "bias", "none") == "lora_only" and not any(_has_bias(each) for each in layers.values()):
        raise InputError(
            "adapter.bias = 'lora_only' trains the biases of layers with an adapter, and no such layer of this model "
            "has one; set it to 'none'."
        )


def check_tied(adapted: Any) -> None:
    """Raise `InputError` for an adapter on one of two layers that are one matrix: merging would change both."""
    model = adapted.get_base_model()
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    if any(_is_changed(layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings())):
        raise InputError(
            "This model's output layer is its embeddings, so neither can have an adapter or be saved apart; take "
            'them out of adapter.targets and adapter.modules_to_save, or set adapter.kind = "full".'
        )


def has_adapted_output(adapted: Any) -> bool:
    """Whether the layer that makes logits has an adapter, or is trained whole beside one."""
    return _is_changed(adapted.get_output_embeddings())


def refusal(error: ValueError, model: Any, recipe: Any, names: Names) -> str:
    """Why PEFT does not take an adapter, as the sentence that a user needs."""
    said = str(error)
    if "ParamWrapper" in said:
        return (
            "The experts of this model are one tensor, which takes LoRA without dropout alone; set adapter.kind = "
            '"lora" and dropout = 0, or targets = "attention".'
        )
    if "incompatible with Mamba" in said:
        return (
            "PEFT puts no low-rank adapter on out_proj and conv1d of Mamba's layers; name other layers in "
            f'adapter.targets ({names.there}), or take adapter.kind = "full".'
        )
    if other := [each for each in _given(recipe.targets) if each in _no_layers(model)]:
        return f"adapter.targets names {_quoted(other)}, which is no layer that an adapter can be on; {names.there}."
    if "not found in the base model" in said or "No `target_modules`" in said:
        return f"adapter.targets {recipe.targets} are not among the layers of this model; {names.there}."
    reason = said.splitlines()[0][:200].rstrip(".") if said else type(error).__name__
    return f"PEFT cannot put adapter.kind '{recipe.kind}' on this model ({reason}); take other targets or another kind."


def _given(targets: Any) -> Iterable[str]:
    return () if isinstance(targets, str) else targets


def _no_layers(model: Any) -> set[str]:
    """Every end of a name of a module that has no weight matrix of its own."""
    kinds = torch.nn.Linear, torch.nn.Embedding, Conv1D, BaseTunerLayer
    names = [name for name, module in model.named_modules() if name and not isinstance(module, kinds)]
    return {".".join(parts[start:]) for name in names if (parts := name.split(".")) for start in range(len(parts))}


def _adapted(adapted: Any) -> dict[str, Any]:
    """Layers with an adapter by name; of the parameters of experts, by the parameter's."""
    found = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            parameter = getattr(module, "parameter_name", None)
            found[f"{name}.{parameter}" if parameter else name] = module
    return found


def _ends(name: str, names: Iterable[str]) -> bool:
    return any(each == name or each.endswith(f".{name}") for each in names)


def _matches(pattern: str, names: Iterable[str]) -> bool:
    """As PEFT matches its patterns."""
    return any(re.match(rf"(.*\.)?({pattern})$", each) for each in names)


def _has_bias(layer: Any) -> bool:
    return getattr(layer.get_base_layer(), "bias", None) is not None


def _is_changed(layer: Any) -> bool:
    return isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _leaves(names: Iterable[str]) -> str:
    found = sorted({leaf for name in names if (leaf := name.rpartition(".")[2]) and not leaf.isdigit()})
    return ", ".join(found)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{each}'" for each in sorted(names))
