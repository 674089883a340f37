"""Soft prompts: virtual tokens before every sequence, learnt while all weights stay as they are.

Prompt tuning (Lester et al. 2021) learns their embeddings, P-tuning (Liu et al. 2021) a small network that makes them,
prefix tuning (Li and Liang 2021) their keys and values in every layer. The parameters and the files are PEFT's; the
forward pass is not: hooks on the model's body put the virtual tokens first and take their outputs away again. So
losses, decoding, reward heads and value heads see the shapes they know, positions count from behind the prompt, and
whatever is loaded on top (an adapter, a head) needs to know nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from tasks.artifact import InputError, PipelineError
from tasks.models.adapters import PrefixTuningRecipe, PromptRecipe, PTuningRecipe, Task

WEIGHTS = "adapter_model.safetensors"


class SoftPrompt(nn.Module):
    """Virtual tokens in front of what a model's body is given."""

    def __init__(self, config: Any, encoder: nn.Module) -> None:
        """encoder: PEFT's, giving `[tokens, width]` for the places 0, 1, ...; where `config` is for inference, its
        table holds them."""
        super().__init__()
        self.config, self.encoder = config, encoder
        self.length = int(config.num_virtual_tokens)
        self.is_prefix = config.peft_type == "PREFIX_TUNING"
        self.enabled = True
        self.leading = 0
        """Outputs to take away from the pass that is under way."""

    def install(self, body: PreTrainedModel) -> None:
        """Put it in front of a body. Raises `InputError` where there is one already."""
        if installed(body) is not None:
            raise InputError(
                "The model already has a soft prompt, and a second one before it would be another method; "
                'take adapter.kind = "lora" for what is trained on top of it.'
            )
        body.soft_prompt = self
        body.register_forward_pre_hook(self._before, with_kwargs=True)
        body.register_forward_hook(self._after)

    def tokens(self) -> torch.Tensor:
        """`[tokens, width]`: embeddings, or for a prefix the keys and values of all layers."""
        table: torch.Tensor = self.encoder.embedding.weight  # type: ignore[assignment, union-attr]
        if self.config.inference_mode:
            return table
        return self.encoder(torch.arange(self.length, device=table.device))

    def write(self, folder: Path) -> None:
        """As PEFT writes it, ready to be used and not to be trained on."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(str(folder))
        save_file({"prompt_embeddings": self.tokens().detach().float().cpu().contiguous()}, folder / WEIGHTS)

    def _before(self, body: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self.leading = 0
        if not self.enabled:
            return None
        if arguments:
            named = {"input_ids": arguments[0], **named}
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        cache = named.get("past_key_values", named.get("cache_params"))
        rows = len(named["input_ids"] if embeds is None else embeds)
        mask, positions = named.get("attention_mask"), named.get("position_ids")
        if mask is not None:
            if mask.dim() != 2:
                raise PipelineError("A soft prompt takes a mask [rows, tokens]; rows cannot be packed behind it.")
            named["attention_mask"] = torch.cat([mask.new_ones(rows, self.length), mask], 1)
        if positions is not None:
            named["position_ids"] = positions + self.length
        if cache is not None and _is_begun(cache):  # the prompt is in it
            return (), named
        if self.is_prefix:
            named["past_key_values"] = self._filled(DynamicCache(config=body.config) if cache is None else cache, rows)
            return (), named
        embeds = body.get_input_embeddings()(ids) if embeds is None else embeds
        virtual = self.tokens().to(embeds.dtype).expand(rows, -1, -1)
        named |= {"input_ids": None, "inputs_embeds": torch.cat([virtual, embeds], 1)}
        if positions is not None:
            first = torch.arange(self.length, device=positions.device).expand(len(positions), -1)
            named["position_ids"] = torch.cat([first, named["position_ids"]], 1)
        self.leading = self.length
        return (), named

    def _after(self, body: Any, arguments: Any, output: Any) -> Any:
        if self.leading:
            output.last_hidden_state = output.last_hidden_state[:, self.leading :]
        return output

    def _filled(self, cache: Any, rows: int) -> Any:
        heads, layers = self.config.num_attention_heads, self.config.num_layers
        each = self.tokens().view(self.length, layers * 2, heads, -1).permute(1, 2, 0, 3)
        for layer in range(layers):
            keys, values = (each[2 * layer + k].expand(rows, -1, -1, -1) for k in (0, 1))
            cache.update(keys, values, layer)
        return cache


class SoftPrompted(PeftModel):
    """A model with one soft prompt to train."""

    def __init__(self, model: torch.nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **more: Any):
        super().__init__(model, peft_config, adapter_name, **more)
        self.soft = SoftPrompt(peft_config, self.prompt_encoder[adapter_name])
        self.soft.install(body_of(model))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The model without the prompt, for the time of a `with` block."""
        was, self.soft.enabled = self.soft.enabled, False
        try:
            yield
        finally:
            self.soft.enabled = was

    def merge_and_unload(self) -> Any:
        """The model below, the prompt frozen in front of it; what is trained beside the prompt takes its place."""
        model: Any = self.base_model
        for name, module in list(model.named_children()):
            if hasattr(module, "modules_to_save"):
                setattr(model, name, module.modules_to_save[self.active_adapter])
        self.soft.requires_grad_(False)
        return model


def _is_begun(cache: Any) -> bool:
    """Whether a cache holds something: keys and values, or a state that says nothing of their number."""
    return any(
        layer.get_seq_length() > 0 if hasattr(layer, "get_seq_length") else any(layer.has_previous_state.values())
        for layer in cache.layers
    )


def body_of(model: Any) -> Any:
    """What makes hidden states of ids, the same module for a language model, a reward model and the body itself."""
    body = model.get_decoder()
    if not isinstance(body, PreTrainedModel):  # ModernBERT calls its output layer so
        body = model.base_model
    return getattr(model, "model", model) if body is model else body  # the library does not find Llama 4's


def installed(model: Any) -> SoftPrompt | None:
    """The soft prompt in front of a model, if there is one."""
    return next((module for module in model.modules() if isinstance(module, SoftPrompt)), None)


def virtual_tokens(model: Any) -> int:
    """How many places of a cache stand before a model's prompts."""
    prompt = installed(model)
    return prompt.length if prompt is not None else 0


@torch.no_grad()
def start_from_text(prompt: SoftPrompt, model: Any, generator: torch.Generator) -> None:
    """Begin with words drawn from the vocabulary: their embeddings, or for a prefix their keys and values. Random
    numbers would put a trained model far from what it can do."""
    table: torch.Tensor = prompt.encoder.embedding.weight  # type: ignore[assignment, union-attr]
    embeddings = model.get_input_embeddings()
    ids = torch.randint(embeddings.weight.shape[0], (1, prompt.length), generator=generator).to(model.device)
    if prompt.is_prefix:
        layers = _keys_and_values(model, ids)
        table.copy_(torch.stack([each[0].transpose(0, 1).flatten(1) for pair in layers for each in pair], 1).flatten(1))
    else:
        table.copy_(embeddings(ids)[0])


def check_prompt(name: str, config: Any, recipe: PromptRecipe) -> None:
    """Raise `InputError` where a model of this configuration cannot have the soft prompt: where tokens are looked up in
    every layer, and for a prefix where some layers keep no keys and values, or too few."""
    if not isinstance(recipe, PrefixTuningRecipe):
        if getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
            raise InputError(
                f"{name} looks its tokens up in every layer, which virtual tokens are not known to; take another "
                'adapter.kind, such as "lora".'
            )
        return
    layers = DynamicCache(config=config).layers
    if not all(hasattr(layer, "keys") for layer in layers):
        raise InputError(f"{name} keeps no keys and values in some layers; take another adapter.kind.")
    windows = [getattr(layer, "sliding_window", None) for layer in layers]
    window, taken = min((each for each in windows if each is not None), default=None), recipe.virtual_tokens
    if window is not None and window <= taken:
        raise InputError(
            f"{name} has layers that see {window} tokens, in which a prefix of {taken} has no room; lower "
            'adapter.virtual_tokens, or take adapter.kind = "prompt_tuning".'
        )


def prefix_shape(model: Any) -> dict[str, int]:
    """Layers, heads and width of the keys and values that a model keeps, in PEFT's words, found out by trying.

    Raises `InputError` where layers differ: one table cannot hold them.
    """
    found = _keys_and_values(model, torch.zeros(1, 1, dtype=torch.long, device=model.device))
    shapes = {(each.shape[1], each.shape[3]) for pair in found for each in pair}
    if len(shapes) != 1:
        raise InputError(
            f"{type(model).__name__} keeps keys and values of several shapes, which prefix_tuning cannot hold; "
            'take adapter.kind = "prompt_tuning".'
        )
    [(heads, width)] = shapes
    return {"num_layers": len(found), "num_attention_heads": heads, "token_dim": heads * width}


@torch.no_grad()
def _keys_and_values(model: Any, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    training = model.training
    body: Any = body_of(model.eval())
    output = body(input_ids=ids, past_key_values=DynamicCache(config=body.config), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    model.train(training)
    if cache is None or not all(hasattr(layer, "keys") for layer in cache.layers):
        raise InputError(f"{type(model).__name__} keeps no keys and values in some layers; take another adapter.kind.")
    return [(layer.keys, layer.values) for layer in cache.layers]


def save_trained(model: PeftModel, file: Path) -> None:
    """What is trained, as it is trained: PEFT's own files hold what comes out of a prompt's network."""
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}, file)


def load_trained(model: PeftModel, file: Path) -> None:
    """Go on from `save_trained`."""
    saved = load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])


def prompted(model: Any, recipe: PromptRecipe, task: Task, whole: list[str], seed: int) -> SoftPrompted:
    """The model with a fresh soft prompt to train, and the modules of a reward model (`whole`) that are new."""
    width, shape = model.get_input_embeddings().weight.shape[1], model.config.get_text_config()
    check_prompt(type(model).__name__, model.config, recipe)
    shared: dict[str, Any] = {
        "task_type": task, "num_virtual_tokens": recipe.virtual_tokens, "modules_to_save": whole or None,
        "token_dim": width, "num_transformer_submodules": 1,
        "num_layers": shape.num_hidden_layers, "num_attention_heads": getattr(shape, "num_attention_heads", 1),
    }  # fmt: skip
    if isinstance(recipe, PTuningRecipe):
        config: Any = PromptEncoderConfig(**shared, encoder_hidden_size=recipe.width or width)
    elif isinstance(recipe, PrefixTuningRecipe):
        shared |= prefix_shape(model)
        config = PrefixTuningConfig(**shared)
    else:
        config = PromptTuningConfig(**shared)
    torch.manual_seed(seed)
    policy = SoftPrompted(model, config)
    with policy.disable_adapter():
        start_from_text(policy.soft, model, torch.Generator().manual_seed(seed))
    return policy
