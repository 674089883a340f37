"""The base model: one that exists (a local folder or the hub's), or a small one pre-trained here from text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tasks.artifact import InputError, Work
from tasks.models.adapters import FullRecipe
from tasks.models.source import find_model, local_folder, model_files, refer
from tasks.recipe import Dotted, resolve
from tasks.training.hyperparameters import Hyperparameters


class BaseRecipe(Hyperparameters):
    """The model everything starts from. Without `model` a small Llama is pre-trained; the other fields are for that."""

    model: str | None = None
    """A local folder (starts with /, . or ~, or exists) or a hub id such as `Qwen/Qwen3-0.6B`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the commit it stands for is kept with the artifact."""
    chat_template: str = "auto"
    """"auto": the tokenizer's own, or plain turns where it has none; "default": plain turns; else a Jinja file."""
    corpus: Dotted = "tasks.data.shop:pretraining_text"
    """`function(seed, documents) -> list[str]`, the text to pre-train on."""
    documents: int = Field(default=12000, ge=1)
    """Documents asked from the corpus."""
    vocabulary: int = Field(default=512, ge=300)
    """Size of the byte-level BPE vocabulary trained on the corpus."""
    hidden: int = Field(default=128, ge=8)
    """Width of the model."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; they divide `hidden`."""
    context: int = Field(default=64, ge=8)
    """Tokens per training row at most; longer documents are cut."""
    positions: int = Field(default=512, ge=16)
    """The longest sequence the model can take."""
    adapter: FullRecipe = FullRecipe()  # type: ignore[assignment]
    """A base is trained whole."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the corpus."""
    batch_size: int = Field(default=16, ge=1)
    """Documents in one forward pass."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Highest learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after warmup."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "BaseRecipe":
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of twice heads ({self.heads})")
        return self

    def folder(self) -> Path | None:
        """A local model's folder; None for a hub id and for pre-training. Raises `InputError` when it is missing."""
        if self.model is None:
            return None
        return local_folder(self.model, "base.model")

    def external_files(self) -> list[Path]:
        """Files outside the recipe that belong to its identity: those of a local model, and a template file."""
        files = model_files(self.folder())
        template = [] if self.chat_template in ("auto", "default") else [Path(self.chat_template)]
        return files + [path for path in template if path.is_file()]


def build_base(recipe: BaseRecipe, inputs: Mapping[str, Path], work: Work) -> None:
    """No inputs. Writes `tokenizer/` and `model/`, or `source.json` and where its weights lie."""
    import torch

    from tasks.models.loading import fit_embeddings, load_tokenizer
    from tasks.models.templates import prepare_tokenizer
    from tasks.models.weights import open_weights

    if recipe.model is None:
        _pretrain(recipe, work)
        return
    folder, commit = find_model(recipe.model, recipe.revision, "base.model")
    tokenizer = prepare_tokenizer(load_tokenizer(folder), recipe.chat_template)
    tokenizer.save_pretrained(work.out / "tokenizer")
    refer(work.out, recipe.model, folder, commit)
    model, unused = open_weights(folder, torch.float32)
    fit_embeddings(model, tokenizer)
    if unused:
        work.notify(
            f"{len(unused)} weights in {folder} have no place in a {type(model).__name__} of its config.json "
            f"({unused[0]}) and are left out; is it the right config.json?"
        )
    work.log({"parameters": sum(parameter.numel() for parameter in model.parameters())})


def _pretrain(recipe: BaseRecipe, work: Work) -> None:
    from tasks.models.pretrain_engine import document_rows, new_llama, train_tokenizer
    from tasks.models.templates import prepare_tokenizer
    from tasks.training.sft_engine import fit_language_model

    texts = resolve(recipe.corpus)(work.seed, recipe.documents)
    if not texts:
        raise InputError(f"{recipe.corpus} gave no text to pre-train on; check the function or set base.model.")
    tokenizer = prepare_tokenizer(train_tokenizer(texts, recipe.vocabulary), recipe.chat_template)
    model = new_llama(
        tokenizer, work.seed, hidden=recipe.hidden, layers=recipe.layers, heads=recipe.heads, positions=recipe.positions
    )
    work.log({"parameters": sum(parameter.numel() for parameter in model.parameters())})
    fit_language_model(model, tokenizer, document_rows(texts, tokenizer, recipe.context), recipe, work)
    model.save_pretrained(work.out / "model")
    tokenizer.save_pretrained(work.out / "tokenizer")
