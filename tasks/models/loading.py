"""Models and tokenizers out of artifact folders: safetensors only, no code from outside, adapters merged in memory."""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tasks.artifact import InputError, PipelineError
from tasks.models.adapters import save
from tasks.models.prompts import SoftPrompted, virtual_tokens
from tasks.models.scored import know
from tasks.models.source import model_folder, require_safetensors
from tasks.models.weights import open_weights

transformers_logging.disable_progress_bar()  # loading bars would write over the pipeline's own


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def batch_tokens() -> int:
    """Padded tokens in one forward pass without gradients. A GPU wants many; on a CPU results that do not fit its cache
    cost more than the calls they save."""
    return 8192 if torch.cuda.is_available() else 768


def compute_dtype() -> torch.dtype:
    """bf16 on CUDA, fp32 elsewhere."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, reward or merged artifact, or of a plain model folder."""
    for folder in (base / "tokenizer", base / "model", base):
        if (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    raise PipelineError(
        f"{base} holds no tokenizer.json; rebuild that artifact with `rlhf run`, or save a fast tokenizer there."
    )


def load_causal_lm(
    chain: Sequence[Path],
    *,
    trainable: bool = False,
    dtype: torch.dtype | None = None,
    to_quantise: bool = False,
) -> PreTrainedModel:
    """The language model at the end of a chain of artifacts, e.g. [base, sft] or [base, sft, policy] or [merged].

    Adapters are merged into the weights in their order, a soft prompt is put in front of them; a full fine-tune
    replaces what is before it. Returned on `device()`, in eval mode; its weights ask for gradients only when
    `trainable`.
    dtype: fp32 on CPU and for training (master weights), bf16 on CUDA, unless given.
    to_quantise: it is about to be held in 4 bits (`quantise`), and waits for that in the CPU's memory.
    """
    dtype = dtype or (torch.float32 if trainable else compute_dtype())
    start = _start(chain)
    model: Any = open_weights(model_folder(chain[start]), torch.float32)[0]
    if (chain[0] / "tokenizer").is_dir():
        fit_embeddings(model, load_tokenizer(chain[0]))
    if (prompt := model_folder(chain[start]) / "prompt").is_dir():
        model = merge_adapter(model, prompt)
    for folder in chain[start + 1 :]:
        model = merge_adapter(model, folder / "adapter")
    place = torch.device("cpu") if to_quantise else device()
    return model.to(device=place, dtype=dtype).eval().requires_grad_(trainable)


def _start(chain: Sequence[Path]) -> int:
    """The place of the last whole model."""
    return max(i for i, folder in enumerate(chain) if i == 0 or (folder / "model").is_dir())


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with a saved adapter merged into its weights, or a saved soft prompt in front of them."""
    opened: Any = open_adapter(model, adapter)
    return opened.merge_and_unload()


def open_adapter(model: PreTrainedModel, adapter: Path, trainable: bool = False) -> PeftModel:
    """The model with a saved adapter beside its weights. Raises `PipelineError` where there is no safetensors file."""
    if not (adapter / "adapter_model.safetensors").exists():
        raise PipelineError(f"{adapter} holds no adapter_model.safetensors; run again to rebuild that artifact.")
    config = PeftConfig.from_pretrained(str(adapter))
    if not config.is_prompt_learning:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    config.inference_mode = True
    opened = SoftPrompted(model, config)
    opened.load_adapter(str(adapter), "default")
    return opened.eval().requires_grad_(False)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules again, an adapter on which leaves `model` alone. Weights that ask for no gradients are shared,
    not copied."""
    frozen = [each for each in (*model.parameters(), *model.buffers()) if not each.requires_grad]
    return copy.deepcopy(model, {id(each): each for each in frozen})


def start_reward_model(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: int = 1) -> PreTrainedModel:
    """A reward model on a language model's weights: the same body (shared, not copied) and fresh scalar heads."""
    config = copy.deepcopy(policy.config)
    config.num_labels = heads
    config.pad_token_id = config.get_text_config().pad_token_id = tokenizer.pad_token_id
    know(config)
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


def open_reward_base(
    folder: Path, tokenizer: PreTrainedTokenizerBase, heads: int = 1
) -> tuple[PreTrainedModel, list[str]]:
    """A model of any family with `heads` scores per sequence (fp32, eval mode), and its modules that are in no file.

    A decoder is scored at its last token, an encoder by its own pooling. What is in no file (the head, some encoders'
    pooling) is drawn at random: it must be trained and saved. Raises `InputError` for what cannot be such a model.
    """
    require_safetensors(folder)
    library = logging.getLogger("transformers.modeling_utils")
    level = library.level
    know(AutoConfig.from_pretrained(folder))
    library.setLevel(logging.ERROR)  # it warns that the head is new
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=heads,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # the head of a classifier, which has several labels
            output_loading_info=True,
        )
    except ValueError as error:
        reason = str(error).splitlines()[0][:200].rstrip(".")
        raise InputError(f"{folder} cannot become a reward model ({reason}); take another reward.base.") from error
    finally:
        library.setLevel(level)
    if model.config.is_encoder_decoder:
        raise InputError(f"{folder} is an encoder-decoder; take a decoder or an encoder as reward.base.")
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    drawn = sorted({key.rpartition(".")[0] for key in absent})
    body = f"{model.base_model_prefix}."
    if lost := [name for name in drawn if name.startswith(body) and "pooler" not in name]:
        raise InputError(f"{folder} lacks the weights of {lost[0]}, so it is not whole; fetch it again.")
    fit_embeddings(model, tokenizer)
    return model.to(device()).eval(), [*score_modules(model), *(name for name in drawn if name.startswith(body))]


def score_modules(model: PreTrainedModel) -> list[str]:
    """Names of a reward model's parts outside its body that have weights: its head."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def reads_last_token(model: Any) -> bool:
    """Whether a reward model is causal, read at its last token; else it is an encoder that pools its own way.

    transformers calls the head of the former `score`.
    """
    return hasattr(model, "score")


def positions_of(config: Any) -> int | None:
    """The longest sequence that a configuration says, None where it says none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


def positions(model: Any) -> int | None:
    """The longest sequence a model takes, None where nothing limits it.

    RoBERTa and its kin count positions from the pad token's id, so that many of their embeddings are never used; a soft
    prompt takes its own.
    """
    limit = positions_of(model.config)
    if limit is None:
        return None
    limit -= virtual_tokens(model)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit


def positions_of_chain(chain: Sequence[Path]) -> int | None:
    """`positions` of the language model at the end of a chain of artifacts, by its files alone."""
    start = _start(chain)
    folder = model_folder(chain[start])
    limit = positions_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if limit is None:
        return None
    for adapter in (folder / "prompt", *(each / "adapter" for each in chain[start + 1 :])):
        if (adapter / "adapter_config.json").is_file():
            limit -= getattr(PeftConfig.from_pretrained(str(adapter)), "num_virtual_tokens", None) or 0
    return limit


def load_reward_model(
    base: Path, reward: Path, start: PreTrainedModel | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model in eval mode, without gradients, and its tokenizer.

    A reward artifact holds `model/`; or `adapter/` on what `source.json` refers to (another base than the policy's); or
    `adapter/` on `base` with, in `start/`, the SFT adapter it was trained on. start: that last model, if it is loaded
    already; its weights are shared, and the adapter is not merged into them.
    """
    tokenizer = load_tokenizer(reward)
    model: Any
    if start is not None:
        model = start_reward_model(twin(start), tokenizer, _heads(reward))
        model = open_adapter(model, reward / "adapter")
    elif (reward / "model").is_dir():
        know(AutoConfig.from_pretrained(reward / "model"))
        model = AutoModelForSequenceClassification.from_pretrained(
            reward / "model", use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
        if (prompt := reward / "model" / "prompt").is_dir():
            model = merge_adapter(model, prompt)
    elif (reward / "source.json").is_file():
        model, _ = open_reward_base(model_folder(reward), tokenizer, _heads(reward))
        model = merge_adapter(model, reward / "adapter")
    else:
        chain = [base, *([reward / "start"] if (reward / "start").is_dir() else [])]
        model = start_reward_model(load_causal_lm(chain, dtype=torch.float32), tokenizer, _heads(reward))
        model = merge_adapter(model, reward / "adapter")
    return model.to(device=device(), dtype=compute_dtype()).eval().requires_grad_(False), tokenizer


def _heads(reward: Path) -> int:
    """How many outputs a reward artifact has."""
    told = json.loads((reward / "reward.json").read_text())
    return len(told.get("criteria", [""])) * told.get("members", 1)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write what training made (`adapter/` or `model/`); whole models get the tokenizer's files beside them."""
    save(model, out)
    if (out / "model").is_dir():
        tokenizer.save_pretrained(out / "model")


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embeddings where the tokenizer has got new tokens; their rows are the mean of the present ones.

    The row that learns nothing is the tokenizer's pad: the model's may be the EOS that it is to learn. What others
    generate with the saved model ends with the tokenizer's EOS too.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
        values = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
        for value in [each.data for each in values if each is not None]:
            value[rows:] = value[:rows].mean(dim=0)
    if getattr(model.get_input_embeddings(), "padding_idx", None) is not None:
        model.get_input_embeddings().padding_idx = tokenizer.pad_token_id  # type: ignore[union-attr]
    model.config.pad_token_id = tokenizer.pad_token_id
    if (generation := getattr(model, "generation_config", None)) is not None:
        generation.pad_token_id, known = tokenizer.pad_token_id, generation.eos_token_id
        if tokenizer.eos_token_id not in (ends := known if isinstance(known, list) else [known]):
            generation.eos_token_id = [tokenizer.eos_token_id, *(each for each in ends if each is not None)]
