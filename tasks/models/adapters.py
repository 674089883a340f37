"""What is trained of a model: every weight, or an adapter on or in front of weights that stay as they are."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.artifact import InputError
from tasks.models.quantised import MARK, is_quantised, quantise, settings_of
from tasks.recipe import Part

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


def _pattern(targets: Any) -> Any:
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"'{targets}' is no regular expression ({error})") from error
    elif not targets:
        raise ValueError("no module is named")
    return targets


def _patterns(values: dict[str, Any]) -> dict[str, Any]:
    for name in values:
        _pattern(name)
    return values


Targets = Annotated[str | tuple[str, ...], AfterValidator(_pattern)]
"""`all-linear`, `attention`, a list of names (ends of them count), or a regular expression for whole names."""


class FullRecipe(Part):
    """Train every weight."""

    kind: Literal["full"] = "full"


class LowRank(Part):
    """What low-rank adapters share."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update of each weight matrix."""
    alpha: float = Field(default=32, gt=0)
    """The update is scaled by alpha / rank."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead, so that high ranks learn as fast (rsLoRA, Kalajdzievski 2023)."""
    ranks: Annotated[dict[str, Annotated[int, Field(ge=1)]], AfterValidator(_patterns)] = Field(default={})
    """Other ranks for some modules: ends of names, or regular expressions for them."""
    alphas: Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_patterns)] = Field(default={})
    """Other alphas for some modules, named likewise."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: Targets = "all-linear"
    """Which layers get an adapter: "all-linear" (all but the output layer), "attention", a list of names of modules, or
    a regular expression that a whole name must match."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too: none, all, or those of layers with an adapter."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole and saved with the adapter."""


class LoraRecipe(LowRank):
    """Train a low-rank adapter (LoRA, Hu et al. 2021) and leave the weights below it as they are."""

    kind: Literal["lora"] = "lora"


class DoraRecipe(LowRank):
    """A low-rank adapter that learns the direction of each weight vector, and its length by itself (DoRA, Liu et al.
    2024): nearer to full training at small ranks, and slower. On a GPU lengths of weights that lie in the CPU's memory
    are computed on the GPU."""

    kind: Literal["dora"] = "dora"


class QloraRecipe(LowRank):
    """Train a low-rank adapter on weights that are held in 4 bits (QLoRA, Dettmers et al. 2023): about a quarter of the
    memory of bf16 for them, slower to compute with. The adapter is used on the full weights afterwards."""

    kind: Literal["qlora"] = "qlora"
    weights: Literal["nf4", "fp4"] = "nf4"
    """Format of the 4 bits; NF4 is made for weights that are normally distributed."""
    double_quantisation: bool = True
    """Hold the scales of blocks in 8 bits too, which saves 0.4 bits a weight."""
    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What products are computed in: "auto" is bf16 on a GPU and fp32 on a CPU."""

    @property
    def quantisation(self) -> dict[str, Any]:
        """What `quantise` is told."""
        return {"weights": self.weights, "double_quantisation": self.double_quantisation, "compute": self.compute}


class Ia3Recipe(Part):
    """Train one factor for each channel of keys, values and feed-forward layers ((IA)^3, Liu et al. 2022): the fewest
    numbers of all adapters on weights."""

    kind: Literal["ia3"] = "ia3"
    targets: Targets = "auto"
    """Which layers are scaled: "auto" (those that make keys and values, and the last of each feed-forward network),
    "all-linear", "attention", a list of names of modules, or a regular expression that a whole name must match."""
    feed_forward: tuple[str, ...] = ()
    """Which of the targets are scaled at their inputs, as feed-forward layers are: ends of names. With "auto" they are
    known."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole and saved with the adapter."""

    @model_validator(mode="after")
    def _of_its_targets(self) -> Self:
        if self.feed_forward and self.targets == "auto":
            raise ValueError("targets = 'auto' knows the feed-forward layers; leave feed_forward out, or name targets")
        if isinstance(self.targets, tuple) and (lost := sorted({*self.feed_forward} - {*self.targets})):
            raise ValueError(f"feed_forward names '{lost[0]}', which targets lack; add it there")
        return self


class PromptRecipe(Part):
    """What soft prompts share. They are no part of the weights: the merged model keeps them beside it."""

    virtual_tokens: int = Field(default=16, ge=1, le=4096)
    """How many; each takes a place of the context."""


class PromptTuningRecipe(PromptRecipe):
    """Train the embeddings of virtual tokens before every prompt (Lester et al. 2021), from words of the vocabulary."""

    kind: Literal["prompt_tuning"] = "prompt_tuning"


class PTuningRecipe(PromptRecipe):
    """Train a small network that makes the embeddings of virtual tokens (P-tuning, Liu et al. 2021)."""

    kind: Literal["p_tuning"] = "p_tuning"
    width: int | None = Field(default=None, ge=1)
    """Of the network; none: the model's."""


class PrefixTuningRecipe(PromptRecipe):
    """Train keys and values of virtual tokens in every layer (Li and Liang 2021), from those of words."""

    kind: Literal["prefix_tuning"] = "prefix_tuning"


AdapterRecipe = Annotated[
    FullRecipe
    | LoraRecipe
    | QloraRecipe
    | DoraRecipe
    | Ia3Recipe
    | PromptTuningRecipe
    | PTuningRecipe
    | PrefixTuningRecipe,
    Field(discriminator="kind"),
]


def changes_what_is_below(recipe: Part) -> str | None:
    """Why the model without the adapter is not the one that training started from, where it is not."""
    if isinstance(recipe, LowRank) and recipe.bias != "none":
        return f"adapter.bias = '{recipe.bias}' trains weights of the model below the adapter"
    return None


def attach(
    model: "PreTrainedModel",
    recipe: Any,
    task: Task = "CAUSAL_LM",
    *,
    seed: int = 0,
    heads: Sequence[str] = ("score",),
) -> "PeftModel | PreTrainedModel":
    """Make of a loaded model one to train, as an `AdapterRecipe` says. A fresh adapter on weights changes nothing yet;
    a soft prompt does.

    heads: modules of a reward model that are new. They are trained whole and saved with its adapter.
    Raises `InputError` for names that the model does not have, and for what it cannot take.
    """
    if isinstance(recipe, FullRecipe):
        return model.requires_grad_(True)
    import torch
    from peft import get_peft_model

    from tasks.models.adapter_names import Names, check_found, check_tied, refusal
    from tasks.models.prompts import prompted
    from tasks.models.targets import adapter_config

    whole = list(heads) if task == "SEQ_CLS" else []
    if isinstance(recipe, PromptRecipe):
        return prompted(model, recipe, task, whole, seed)
    if isinstance(recipe, QloraRecipe) and not is_quantised(model):
        quantise(model, whole, **recipe.quantisation)
    torch.manual_seed(seed)  # the A matrices are random
    names = Names.of(model)
    config = adapter_config(model, recipe, task, [*recipe.modules_to_save, *whole])
    try:
        with warnings.catch_warnings():  # it tells what it mends, and of names what is refused below
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern", category=RuntimeWarning)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(refusal(error, model, recipe, names)) from error
    check_found(adapted, recipe, names)
    check_tied(adapted)
    return adapted


def save(model: "PeftModel | PreTrainedModel", out: Path) -> None:
    """Write `out/adapter` for an adapter, `out/model` otherwise (and `out/model/prompt`, where a soft prompt is in
    front of it): safetensors, and nothing that differs between runs."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        save_whole(model, out)
        return
    folder = out / "adapter"
    # Embeddings that grew by a pad token grow the same way when the base is loaded: they are not saved with it.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    if is_quantised(model):
        (folder / MARK).write_text(json.dumps(settings_of(model)) + "\n")
    _settle(folder / "adapter_config.json")


def save_whole(model: "PreTrainedModel", out: Path) -> None:
    """Write `out/model`, and in it `prompt`, where a soft prompt is in front of it: the folder alone is the model."""
    from tasks.models.prompts import installed

    prompt = installed(model)
    if prompt is None:
        model.save_pretrained(out / "model")
        return
    weights = {name: value for name, value in model.state_dict().items() if ".soft_prompt." not in name}
    model.save_pretrained(out / "model", state_dict=weights)
    prompt.write(out / "model" / "prompt")
    _settle(out / "model" / "prompt" / "adapter_config.json")


def _settle(path: Path) -> None:
    """Leave out of an adapter's configuration what differs between machines and runs."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None  # a path of this machine; the artifact's manifest names its parents
    path.write_text(json.dumps(_ordered(config), indent=2, sort_keys=True) + "\n")


def _ordered(config: dict[str, object]) -> dict[str, object]:
    """PEFT writes sets as lists, in an order that changes from process to process."""
    return {
        name: sorted(set(value)) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for name, value in config.items()
    }
