"""Models and tokenizers out of artifact folders: safetensors only, no code from outside, adapters merged in memory."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tasks.artifact import InputError, PipelineError
from tasks.models.adapters import save

LOCATION = "report/location.txt"
"""Where the weights of a model that is not copied lie (a folder or a hub id); in `report/`: no part of its identity."""

transformers_logging.disable_progress_bar()  # loading bars would write over the pipeline's own


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """bf16 on CUDA, fp32 elsewhere."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, reward or merged artifact, or of a plain model folder."""
    for folder in (base / "tokenizer", base / "model", base):
        if (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    raise PipelineError(f"{base} holds no tokenizer.json; rebuild that artifact with `rlhf run`.")


def load_causal_lm(
    chain: Sequence[Path], *, trainable: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The language model at the end of a chain of artifacts, e.g. [base, sft] or [base, sft, policy] or [merged].

    Adapters are merged into the weights in their order; a full fine-tune replaces what is before it. Returned on
    `device()`, in eval mode; its weights ask for gradients only when `trainable`.
    dtype: fp32 on CPU and for training (master weights), bf16 on CUDA, unless given.
    """
    dtype = dtype or (torch.float32 if trainable else compute_dtype())
    start = max(i for i, folder in enumerate(chain) if i == 0 or (folder / "model").is_dir())
    model: Any = _load_weights(chain[start], torch.float32)
    if (chain[0] / "tokenizer").is_dir():
        fit_embeddings(model, load_tokenizer(chain[0]))
    for folder in chain[start + 1 :]:
        model = merge_adapter(model, folder / "adapter")
    return model.to(device=device(), dtype=dtype).eval().requires_grad_(trainable)


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with a saved adapter merged into its weights."""
    opened: Any = open_adapter(model, adapter)
    return opened.merge_and_unload()


def open_adapter(model: PreTrainedModel, adapter: Path, trainable: bool = False) -> PeftModel:
    """The model with a saved adapter beside its weights. Raises `PipelineError` where there is no safetensors file."""
    if not (adapter / "adapter_model.safetensors").exists():
        raise PipelineError(f"{adapter} holds no adapter_model.safetensors; run again to rebuild that artifact.")
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)


def start_reward_model(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: int = 1) -> PreTrainedModel:
    """A reward model on a language model's weights: the same body (shared, not copied) and fresh scalar heads."""
    config = copy.deepcopy(policy.config)
    config.num_labels, config.pad_token_id = heads, tokenizer.pad_token_id
    try:
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(f"There is no reward head for {config.model_type} models; take another base model.") from error
    setattr(model, model.base_model_prefix, getattr(policy, policy.base_model_prefix))
    weight = next(policy.parameters())
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device=weight.device, recurse=False)
            model._init_weights(module)
            module.to(weight.dtype)
    return model.eval()


def load_reward_model(base: Path, reward: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model in eval mode, without gradients, and its tokenizer.

    A reward artifact holds `model/`, or `adapter/` with, in `start/`, the SFT adapter it was trained on.
    """
    tokenizer = load_tokenizer(reward)
    model: Any
    if (reward / "model").is_dir():
        model = AutoModelForSequenceClassification.from_pretrained(
            reward / "model", use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    else:
        start = [base, *([reward / "start"] if (reward / "start").is_dir() else [])]
        told = json.loads((reward / "reward.json").read_text())
        heads = len(told.get("criteria", [""])) * told.get("members", 1)
        model = start_reward_model(load_causal_lm(start, dtype=torch.float32), tokenizer, heads)
        model = merge_adapter(model, reward / "adapter")
    return model.to(device=device(), dtype=compute_dtype()).eval().requires_grad_(False), tokenizer


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write what training made (`adapter/` or `model/`); whole models get the tokenizer's files beside them."""
    save(model, out)
    if (out / "model").is_dir():
        tokenizer.save_pretrained(out / "model")


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embeddings where the tokenizer has got new tokens; their rows are the mean of the present ones."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
        for weight in [layer.weight.data for layer in layers if layer is not None]:
            weight[rows:] = weight[:rows].mean(dim=0)
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def model_folder(artifact: Path) -> Path:
    """Where the weights of a base, a merged or a plain model lie: in it, where source.json says, or the hub's cache."""
    if (artifact / "model" / "config.json").exists():
        return artifact / "model"
    if (artifact / "config.json").exists():
        return artifact
    if not (artifact / "source.json").exists():
        raise PipelineError(f"{artifact} holds neither model/ nor source.json; run again to rebuild that artifact.")
    location = (artifact / LOCATION).read_text()
    path = Path(location)
    if path.is_dir():
        return path
    if path.is_absolute():
        raise InputError(f"The model folder {path} is gone; put it back or change base.model.")
    return download(location, json.loads((artifact / "source.json").read_text())["revision"])


def resolve_hub_model(model: str, revision: str | None) -> tuple[Path, str]:
    """A hub model's folder in the local cache and the commit that `revision` stands for."""
    folder = download(model, revision)
    return folder, folder.name  # the cache keeps snapshots in folders named by commit


def download(model: str, revision: str | None) -> Path:
    """A hub model's folder in the local cache: configuration, tokenizer and safetensors, never pickles or code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InputError(
            f"The hub model '{model}' cannot be fetched ({reason}); check the name, the revision and the network, "
            "or set base.model to a local folder."
        ) from error


def _load_weights(artifact: Path, dtype: torch.dtype) -> PreTrainedModel:
    folder = model_folder(artifact)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no .safetensors weights (pickles are not opened); convert the model first.")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
