"""What is trained of a model: a low-rank adapter (LoRA, Hu et al. 2021; on 4-bit weights: QLoRA) or every weight."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.models.quantised import MARK, is_quantised, quantise
from tasks.recipe import Part

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


class LowRank(Part):
    """What adapters on any weights share."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update of each weight matrix."""
    alpha: float = Field(default=32, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which layers get an adapter: all linear ones but the output layer, or names of modules."""


class LoraRecipe(LowRank):
    """Train a low-rank adapter and leave the weights below it as they are."""

    kind: Literal["lora"] = "lora"


class QloraRecipe(LowRank):
    """Train a low-rank adapter on weights that are held in 4 bits (QLoRA, Dettmers et al. 2023): about a quarter of the
    memory of bf16 for them, slower to compute with. The adapter is used on the full weights afterwards."""

    kind: Literal["qlora"] = "qlora"

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "kind 'qlora' needs bitsandbytes; run `pip install -c constraints.txt -e '.[qlora]'` in the project's "
                "folder, or take kind 'lora'"
            )
        return self


class FullRecipe(Part):
    """Train every weight."""

    kind: Literal["full"] = "full"


AdapterRecipe = Annotated[LoraRecipe | QloraRecipe | FullRecipe, Field(discriminator="kind")]


def attach(
    model: "PreTrainedModel",
    recipe: LowRank | FullRecipe,
    task: Task = "CAUSAL_LM",
    *,
    seed: int = 0,
    heads: Sequence[str] = ("score",),
) -> "PeftModel | PreTrainedModel":
    """Make of a loaded model one to train. A fresh adapter changes nothing yet (its B matrices are zero).

    heads: modules of a reward model that are new. They are trained whole and saved with its adapter.
    """
    if isinstance(recipe, FullRecipe):
        return model.requires_grad_(True)
    import torch
    from peft import LoraConfig, get_peft_model

    if isinstance(recipe, QloraRecipe) and not is_quantised(model):
        quantise(model, heads if task == "SEQ_CLS" else ())
    torch.manual_seed(seed)  # the A matrices are random
    config = LoraConfig(
        task_type=task,
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT divides by the rank, a float is fine
        lora_dropout=recipe.dropout,
        target_modules=recipe.targets,
        modules_to_save=list(heads) if task == "SEQ_CLS" else None,
    )
    return get_peft_model(model, config)


def save(model: "PeftModel | PreTrainedModel", out: Path) -> None:
    """Write `out/adapter` for an adapter, `out/model` otherwise: safetensors, and nothing that differs between runs."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        model.save_pretrained(out / "model")
        return
    folder = out / "adapter"
    # Embeddings that grew by a pad token grow the same way when the base is loaded: they are not saved with it.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    if is_quantised(model):
        (folder / MARK).write_text(json.dumps({"weights": "nf4"}) + "\n")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None  # a path of this machine; the artifact's manifest names its parents
    path.write_text(json.dumps(_ordered(config), indent=2, sort_keys=True) + "\n")


def _ordered(config: dict[str, object]) -> dict[str, object]:
    """PEFT writes sets as lists, in an order that changes from process to process."""
    return {
        name: sorted(set(value)) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for name, value in config.items()
    }
