"""Tiny random models of other families than the policy, saved as they would be found: a folder with its tokenizer."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)

from tasks.models.pretrain_engine import train_tokenizer
from tests.tiny_models import TEXTS

DECODERS = ("llama", "gpt2")
ENCODERS = ("bert", "deberta-v2")
FURTHER = ("roberta", "distilbert", "modernbert")
POSITIONS = 96
"""The longest sequence each of them takes."""
END = "<|endoftext|>"
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def reward_base(folder: Path, kind: str) -> Path:
    """A model folder: weights with the head they were pre-trained with, if any, and a tokenizer of their own."""
    torch.manual_seed(5)
    tokenizer = _tokenizer(kind)
    _model(kind, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(kind: str) -> PreTrainedTokenizerBase:
    letters = string.ascii_letters + string.digits + string.punctuation
    if kind in ("bert", "distilbert", "modernbert"):
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "aisle", "thank"]))})
    if kind == "deberta-v2":
        special = [(piece, 0.0) for piece in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")]
        return DebertaV2Tokenizer(vocab=[*special, ("▁", -2.0), *((letter, -3.0) for letter in letters)], unk_id=3)
    if kind == "roberta":
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *letters]
        return RobertaTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=[])
    if kind == "gpt2":  # as the real one: no pad token, and one token for begin, end and unknown
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(TEXTS, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END)
    tokenizer = train_tokenizer([text.lower() for text in TEXTS], 400)
    tokenizer.chat_template = None
    return tokenizer


def _model(kind: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    size: dict[str, Any] = {**_SIZES, "vocab_size": len(tokenizer)}
    match kind:
        case "bert":
            return BertForMaskedLM(BertConfig(**size, max_position_embeddings=POSITIONS))
        case "deberta-v2":
            attention: dict[str, Any] = {
                "relative_attention": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "position_buckets": 16,
            }
            return DebertaV2ForMaskedLM(DebertaV2Config(**size, **attention, max_position_embeddings=POSITIONS))
        case "roberta":
            config = RobertaConfig(**size, max_position_embeddings=POSITIONS + 2, pad_token_id=1)
            return RobertaForMaskedLM(config)
        case "distilbert":
            own: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.2}
            config = DistilBertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **own)
            return DistilBertForMaskedLM(config)
        case "modernbert":
            ends: dict[str, Any] = {
                "bos_token_id": 2,
                "cls_token_id": 2,
                "eos_token_id": 3,
                "sep_token_id": 3,
                "pad_token_id": 0,
            }
            return ModernBertForMaskedLM(ModernBertConfig(**size, **ends, max_position_embeddings=POSITIONS))
        case "llama":
            wide: dict[str, Any] = size | {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 96}
            return LlamaForCausalLM(LlamaConfig(**wide, max_position_embeddings=POSITIONS))
        case _:
            own = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "initializer_range": 0.2}
            return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **own))
