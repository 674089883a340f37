"""How much memory a training step takes, found out without taking it: its tensors have shapes and no values.

What is counted is every storage that is alive at once, as PyTorch's own allocator would see it; the process itself
(interpreter, libraries) comes on top.
"""

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.ia3 import Linear as Ia3Linear
from peft.tuners.lora import Linear as LoraLinear
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from trl.kernels import ChunkedLogProbFunction

from tasks.models.adapters import FullRecipe, PrefixTuningRecipe, PromptRecipe, PTuningRecipe, QloraRecipe, attach
from tasks.models.loading import score_modules
from tasks.models.scored import know
from tasks.models.targets import linear_layers
from tasks.sampling.cache import PreallocatedLayer
from tasks.sampling.local import Sampler, Step

TILE = 32768
"""Entries of the vocabulary that TRL's fused output layer computes at once (1.16, `add_fused_lm_head`)."""


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
    folded: float = 0.0
    """A copy of the layers under an adapter, into which it is folded while the policy samples."""

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
    scored: bool = False,
    grouped: bool = False,
    masked: bool = False,
) -> Footprint:
    """A training step of `rows` x `length` tokens, `kept` of which have a loss, by AdamW and in fp32 weights.

    scored: of a reward model, which has a head in place of the output layer. grouped: of GRPO or RLOO, whose output
    layer gives log-probabilities a tile of logits at a time. masked: tokens see each other by a mask of their own, as
    packed ones do.
    """
    quantised = isinstance(adapter, QloraRecipe)
    with torch.device("meta"):
        model, heads = without_values(config, scored)
        base = sum(parameter.numel() for parameter in model.parameters())
        small = sum(layer.weight.numel() for layer in linear_layers(model).values())
        if not isinstance(adapter, PromptRecipe):
            model = attach(model, unquantised(adapter), "SEQ_CLS" if scored else "CAUSAL_LM", heads=heads).train()
        layers: list[Any] = [layer for layer in model.modules() if type(layer) in (LoraLinear, Ia3Linear)]
        folded = 0 if quantised else sum(layer.get_base_layer().weight.numel() for layer in layers)
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
            if scored:
                ids = torch.zeros(rows, places, dtype=torch.long)
                given = {"input_ids": ids} if virtual is None else {"inputs_embeds": _embedded(model, ids, virtual)}
                model(**given).logits.sum().backward()
            else:
                _loss(model, rows, places, kept, virtual, grouped, masked).backward()
    weights, gradients = 4.0 * base, 4.0 * trainable
    if quantised:
        weights -= small * (4 - 0.5 - (0.016 if adapter.double_quantisation else 0.0625))
    if not isinstance(adapter, FullRecipe):
        weights += gradients
    moments = (2.0 if eight_bit else 8.0) * trainable
    step = max(seen.most - gradients, 0.0)
    return Footprint(base, trainable, weights, gradients, moments, step, 4.0 * folded)


def without_values(config: PreTrainedConfig, scored: bool) -> tuple[Any, list[str]]:
    """A model on the meta device, frozen, and the modules of it that are new."""
    if not scored:
        return AutoModelForCausalLM.from_config(config).requires_grad_(False), []
    config = copy.deepcopy(config)
    config.num_labels, config.get_text_config().pad_token_id = 1, 0  # a run's tokenizer has one, the model need not
    know(config)
    model: Any = AutoModelForSequenceClassification.from_config(config).requires_grad_(False)
    return model, score_modules(model)


def as_loaded(config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration with what is decided when a model is loaded: how attention is computed."""
    with torch.device("meta"):
        return without_values(config, scored=False)[0].config


def of_sampling(config: PreTrainedConfig, prompts: int, n: int, length: int, new: int, features: bool = False) -> float:
    """Bytes beside the weights of drawing n completions of `new` tokens for each of so many prompts of `length` tokens
    at once, in fp32: the cache, one step's results, and what is kept of each token."""
    rows, capacity = prompts * n, length + new
    with torch.device("meta"):
        model, _ = without_values(config, scored=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        _fill(model.eval())
        with _Peak() as seen:
            width = config.get_text_config().hidden_size if features else 0
            _kept = [torch.empty(rows, new, 1 + width), torch.empty(rows, new, dtype=torch.long)]
            _kept += [torch.empty(rows, new)]
            step = Step(model, rows, capacity, keep_features=False)
            step(torch.zeros(prompts, length, dtype=torch.long), None, torch.arange(length).expand(prompts, -1))
            copies: Any = torch.arange(rows) // n
            for layer in step.cache.layers:
                if isinstance(layer, PreallocatedLayer):
                    layer.live, layer.length = rows, capacity - 1
                else:  # of a window
                    layer.reorder_cache(copies)
            logits, _ = step(torch.zeros(rows, 1, dtype=torch.long), None, torch.full((rows, 1), capacity - 1))
            torch.log_softmax(logits, -1)
            Sampler(1.0, 1.0, False)(logits, torch.zeros(rows))
    return float(seen.most)


def unquantised(adapter: Any) -> Any:
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
    text = config.get_text_config()
    width = text.hidden_size
    if isinstance(adapter, PrefixTuningRecipe):
        return adapter.virtual_tokens * 2 * text.num_hidden_layers * keys_width(text)
    if isinstance(adapter, PTuningRecipe):
        hidden = adapter.width or width
        return adapter.virtual_tokens * width + (width + hidden + width + 2) * hidden + width
    return adapter.virtual_tokens * width


def parameters_of(config: PreTrainedConfig, scored: bool = False) -> int:
    """How many a language model has, or a reward model on it."""
    with torch.device("meta"):
        model, _ = without_values(config, scored)
    return sum(parameter.numel() for parameter in model.parameters())


def keys_width(config: PreTrainedConfig) -> int:
    """Numbers of one token's keys in one layer."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    each = getattr(config, "head_dim", None) or config.hidden_size // heads
    return key_heads(config) * each


def key_heads(config: PreTrainedConfig) -> int:
    """How many heads the keys that are kept have, by the names that layouts have for it."""
    heads = config.num_attention_heads
    if getattr(config, "new_decoder_architecture", False):  # Falcon's, which keeps them for every head
        return heads
    if getattr(config, "multi_query", False):  # Falcon's older, GPT-BigCode's
        return 1
    return getattr(config, "num_key_value_heads", None) or heads


def cache_bytes(config: PreTrainedConfig, rows: int, length: int, each: int = 4) -> int:
    """Keys and values of `rows` x `length` tokens, `each` bytes a number."""
    return 2 * config.get_text_config().num_hidden_layers * keys_width(config) * rows * length * each


def _embedded(model: Any, ids: torch.Tensor, virtual: torch.Tensor | None) -> torch.Tensor:
    embeds = model.get_input_embeddings()(ids)
    return embeds if virtual is None else embeds + virtual.sum()


def _loss(
    model: Any, rows: int, length: int, kept: int, virtual: torch.Tensor | None, grouped: bool, masked: bool
) -> torch.Tensor:
    """As `LanguageTrainer.losses` makes it: logits are gone before the backward pass. A soft prompt is added to what
    goes in, so that gradients go as far."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    embeds = _embedded(inner, torch.zeros(rows, length, dtype=torch.long), virtual)
    seen = {"attention_mask": torch.ones(rows, 1, length, length, dtype=torch.bool)} if masked else {}
    hidden = inner.get_decoder()(inputs_embeds=embeds, use_cache=False, **seen).last_hidden_state.flatten(0, 1)[:kept]
    head, targets = inner.get_output_embeddings(), torch.zeros(len(hidden), dtype=torch.long)
    if grouped:
        on_cpu = not torch.cuda.is_available()  # where what is not written to of the tile takes no memory
        width = min(TILE, head.weight.shape[0]) if on_cpu else TILE
        outputs = 1.0, width, None, 1.0, ("entropy",)
        return ChunkedLogProbFunction.apply(hidden, head.weight, head.bias, targets, *outputs)[0].sum()
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


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
        grouped = function is torch.ops.aten._grouped_mm.default
        result = _grouped(*args, **(kwargs or {})) if grouped else function(*args, **(kwargs or {}))
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


def _grouped(one: torch.Tensor, other: torch.Tensor, offsets: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
    """What experts' products have the shape of: of tensors without values torch knows it in bf16 alone."""
    if one.dim() == other.dim() == 2:
        assert offsets is not None
        return one.new_empty(len(offsets), one.shape[0], other.shape[1])
    if one.dim() == other.dim():
        return one.new_empty(*one.shape[:2], other.shape[2])
    return one.new_empty(one.shape[-2], other.shape[-1])
