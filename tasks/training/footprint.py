"""How much memory a training step takes, found out without taking it: its tensors have shapes and no values.

What is counted is every storage that is alive at once, as PyTorch's own allocator would see it; the process itself
(interpreter, libraries) comes on top.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tasks.models.adapters import FullRecipe, PrefixTuningRecipe, PromptRecipe, PTuningRecipe, QloraRecipe, attach
from tasks.models.targets import linear_layers


@dataclass(frozen=True)
class Footprint:
    """Bytes."""

    parameters: int
    """A number, not bytes."""
    trainable: int
    """A number, not bytes."""
    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What a step needs at its highest beside the other three."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def rule(self) -> float:
        """The rule of thumb: parameters x 4 bytes x 1.2."""
        return 1.2 * 4 * self.parameters


def of_step(
    config: PreTrainedConfig,
    adapter: Any,
    rows: int,
    length: int,
    kept: int,
    *,
    bf16: bool = False,
    eight_bit: bool = False,
    checkpointing: bool = False,
) -> Footprint:
    """A training step of `rows` x `length` tokens, `kept` of which have a loss, by AdamW and in fp32 weights."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        base = sum(parameter.numel() for parameter in model.parameters())
        small = sum(layer.weight.numel() for layer in linear_layers(model).values())
        if not isinstance(adapter, PromptRecipe):
            model = attach(model, _unquantised(adapter)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    prompt = _prompt_size(config, adapter)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        virtual = torch.empty(prompt, requires_grad=True) if prompt else None
        trained += [virtual] if virtual is not None else []
        trainable = sum(parameter.numel() for parameter in trained)
        places = length + (adapter.virtual_tokens if isinstance(adapter, PromptRecipe) else 0)
        with _Peak() as seen, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _step(model, rows, places, kept, virtual)
    weights, gradients = 4.0 * base, 4.0 * trainable
    if isinstance(adapter, QloraRecipe):
        weights -= small * (4 - 0.5 - (0.016 if adapter.double_quantisation else 0.0625))
    if not isinstance(adapter, FullRecipe):
        weights += gradients
    moments = (2.0 if eight_bit else 8.0) * trainable
    step = max(seen.most - gradients, 0.0)
    return Footprint(base, trainable, weights, gradients, moments, step)


def _unquantised(adapter: Any) -> Any:
    """Shapes are the same, and nothing can be quantised that has no values."""
    if not isinstance(adapter, QloraRecipe):
        return adapter
    from tasks.models.adapters import LoraRecipe

    own = {"kind", "weights", "double_quantisation", "compute"}
    return LoraRecipe.model_validate({k: v for k, v in adapter.model_dump().items() if k not in own})


def _prompt_size(config: PreTrainedConfig, adapter: Any) -> int:
    """Numbers that a soft prompt trains."""
    if not isinstance(adapter, PromptRecipe):
        return 0
    width = config.hidden_size
    if isinstance(adapter, PrefixTuningRecipe):
        return adapter.virtual_tokens * 2 * config.num_hidden_layers * keys_width(config)
    if isinstance(adapter, PTuningRecipe):
        hidden = adapter.width or width
        return adapter.virtual_tokens * width + (width + hidden + width + 2) * hidden + width
    return adapter.virtual_tokens * width


def parameters_of(config: PreTrainedConfig) -> int:
    """How many a model has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def keys_width(config: PreTrainedConfig) -> int:
    """Numbers of one token's keys in one layer."""
    heads = config.num_attention_heads
    each = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (getattr(config, "num_key_value_heads", None) or heads) * each


def cache_bytes(config: PreTrainedConfig, rows: int, length: int, each: int = 4) -> int:
    """Keys and values of `rows` x `length` tokens, `each` bytes a number."""
    return 2 * config.num_hidden_layers * keys_width(config) * rows * length * each


def _step(model: Any, rows: int, length: int, kept: int, virtual: torch.Tensor | None) -> None:
    """Forward and backward; a soft prompt is added to what goes in, so that gradients go as far."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.zeros(rows, length, dtype=torch.long)
    embeds = inner.get_input_embeddings()(ids)
    if virtual is not None:
        embeds = embeds + virtual.sum()
    hidden = inner.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
    logits = inner.get_output_embeddings()(hidden.flatten(0, 1)[:kept]).float()
    targets = torch.zeros(len(logits), dtype=torch.long)
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()


def _fill(model: Any) -> None:
    """Give every weight of a model without values a shape on the CPU; one that is used twice stays one."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, each in module._parameters.items():
            if each is not None:
                if id(each) not in made:
                    made[id(each)] = torch.nn.Parameter(torch.empty(each.shape), requires_grad=each.requires_grad)
                module._parameters[name] = made[id(each)]
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.empty(each.shape, dtype=each.dtype)


class _Peak(TorchDispatchMode):
    """Bytes of the storages that were made and are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if torch.is_tensor(each):
                self._count(each.untyped_storage(), before)
        return result

    def _count(self, storage: Any, before: set[int]) -> None:
        key = id(storage)
        if key in self.known or key in before:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size
