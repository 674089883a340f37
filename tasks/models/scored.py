"""Reward models of layouts that transformers has no class for: the layout's body, a linear head on its last token."""

from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


class Scored:
    """What such a model is beside its layout's base class: named and computed as transformers' own are."""

    def __init__(self: Any, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        shape: Any = config
        self.score = torch.nn.Linear(shape.get_text_config().hidden_size, shape.num_labels, bias=False)
        self.post_init()

    def forward(
        self: Any, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **more: Any
    ) -> SequenceClassifierOutputWithPast:
        """The head's outputs at the last token that is no padding."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        hidden = getattr(self, self.base_model_prefix)(**given, use_cache=False).last_hidden_state
        last = torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        if input_ids is not None:
            places = torch.arange(input_ids.shape[1], device=hidden.device)
            last = (places * (input_ids != self.config.get_text_config().pad_token_id)).argmax(-1)
        rows = torch.arange(len(hidden), device=hidden.device)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden[rows, last]))  # type: ignore[arg-type]


def know(config: PreTrainedConfig) -> None:
    """Let `AutoModelForSequenceClassification` make, save and load reward models of a causal model's layout."""
    kind: Any = type(config)
    causal: Any = AutoModelForCausalLM._model_mapping
    if kind in AutoModelForSequenceClassification._model_mapping or kind not in causal:
        return
    family: Any = next(each for each in reversed(causal[kind].__mro__) if _is_family(each))
    name = family.__name__.replace("PreTrainedModel", "ForSequenceClassification")
    # of the layout's own module, whose source tells the library what it can do with experts
    made: Any = type(name, (Scored, family), {"config_class": kind, "__module__": family.__module__})
    AutoModelForSequenceClassification.register(kind, made, exist_ok=True)  # else the library's layouts are passed over


def _is_family(kind: type) -> bool:
    """What all models of a layout are made from."""
    return issubclass(kind, PreTrainedModel) and kind is not PreTrainedModel
