"""Merged models are the adapters' models, or there is an error."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.artifact import PipelineError
from tasks.merging import MergeRecipe, merge_policy
from tasks.merging_check import compare, with_adapter
from tasks.models.adapters import FullRecipe, LoraRecipe, attach, save
from tasks.models.loading import load_causal_lm, load_tokenizer
from tests.test_loading import _moved
from tests.tiny_models import tiny_base, work_in

KINDS = {"lora": LoraRecipe(rank=4), "full": FullRecipe()}


def _chain(folder: Path, kind: str, sft: str, policy: str) -> dict[str, Path]:
    chain = {"base": tiny_base(folder / "base", kind), "sft": folder / "sft", "policy": folder / "policy"}
    save(_moved(attach(load_causal_lm([chain["base"]], trainable=True), KINDS[sft], seed=1)), chain["sft"])
    start = load_causal_lm([chain["base"], chain["sft"]], trainable=True)
    save(_moved(attach(start, KINDS[policy], seed=2)), chain["policy"])
    return chain


@pytest.mark.parametrize(
    ("kind", "sft", "policy"),
    [
        ("llama", "lora", "lora"),
        ("gpt2", "lora", "lora"),
        ("llama", "full", "lora"),
        ("llama", "lora", "full"),
        ("llama", "full", "full"),
    ],
)
def test_the_merged_model_is_the_chain(tmp_path: Path, kind: str, sft: str, policy: str) -> None:
    chain, work = _chain(tmp_path, kind, sft, policy), work_in(tmp_path / "merged")
    merge_policy(MergeRecipe(), chain, work)
    assert work.metrics["max_logit_difference"] < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(work.out / "model").eval()
    ids = torch.tensor([[1, 9, 33, 40]])
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids).logits,
            with_adapter(list(chain.values()))(input_ids=ids).logits,
            atol=1e-4,
            rtol=1e-4,
        )
    theirs = load_tokenizer(chain["base"])
    assert AutoTokenizer.from_pretrained(work.out / "model").get_vocab() == theirs.get_vocab()
    torch.testing.assert_close(load_causal_lm([work.out])(input_ids=ids).logits, merged(input_ids=ids).logits)


def test_bf16_is_stored_as_bf16_and_stays_close(tmp_path: Path) -> None:
    work = work_in(tmp_path / "merged")
    merge_policy(MergeRecipe(dtype="bf16"), _chain(tmp_path, "llama", "lora", "lora"), work)
    merged = AutoModelForCausalLM.from_pretrained(work.out / "model", dtype="auto")
    assert next(merged.parameters()).dtype == torch.bfloat16
    assert 0 < work.metrics["kl_per_token"] < 0.005


def test_another_policy_is_noticed(tmp_path: Path) -> None:
    chain, work = _chain(tmp_path, "llama", "lora", "lora"), work_in(tmp_path / "merged")
    merge_policy(MergeRecipe(), chain, work)
    difference, divergence = compare([chain["base"], chain["sft"]], work.out, load_tokenizer(chain["base"]), 0)
    assert difference > 0.1 and divergence > 1e-3
    with pytest.raises(PipelineError, match="differ from the adapters"):
        merge_policy(MergeRecipe(fp32_tolerance=1e-12), chain, work_in(tmp_path / "again"))
