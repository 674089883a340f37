"""The recipes of well-known models and sets, on tiny models of their architecture and small files of their form."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from flows.recipe import LifecycleRecipe
from tasks.artifact import Row, read_jsonl
from tasks.data.prepare import prepare_data
from tasks.merging import merge_policy
from tasks.models.pretrain import build_base
from tasks.recipe import load_recipe, resolve
from tasks.training.direct import train_direct
from tasks.training.sft import train_sft
from tests.lifecycle_runs import ROOT
from tests.test_data import NUMBERS, save
from tests.test_packing import KINDS
from tests.tiny_models import work_in
from tests.tiny_tokenizers import family_tokenizer

GPT2 = {"vocab_size": 321, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
LLAMA = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SHORT = ["sft.epochs=1", "sft.batch_size=4", "sft.dropped_limit=0.5"]


def model(folder: Path, kind: str, family: str) -> str:
    """A random model of an architecture with a family's tokenizer, as a plain model folder."""
    settings = {"gpt2": GPT2, "llama": LLAMA}.get(kind) or KINDS[kind]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(folder)
    family_tokenizer(family).save_pretrained(folder)
    return str(folder)


def build(folder: Path, name: str, base: str, rows: Sequence[Row], *changes: str) -> tuple[Any, dict[str, Path], Any]:
    """The recipe, its first artifacts (base, data, sft) and the SFT stage's figures."""
    path = save(folder / "rows.jsonl", list(rows))
    told = [
        f"base.model={json.dumps(base)}",
        f"data.path={json.dumps(path)}",
        "data.near_duplicates=1",
        *SHORT,
        *changes,
    ]
    recipe = load_recipe(LifecycleRecipe, ROOT / "deployments" / "recipes" / f"{name}.toml", told)
    works = {stage: work_in(folder / stage) for stage in ("base", "data", "sft")}
    build_base(recipe.base, {}, works["base"])
    prepare_data(recipe.data, {}, works["data"])
    inputs = {"base": works["base"].out, "data": works["data"].out}
    train_sft(recipe.sft, inputs, works["sft"])
    return recipe, {**inputs, "sft": works["sft"].out}, works["sft"].metrics


def test_opt_on_lima_is_packed_and_merged(tmp_path: Path) -> None:
    rows = [{"conversations": [f"Q {n}", f"A {n}"] * (1 + n.startswith("t")), "source": "wiki"} for n in NUMBERS]
    base = model(tmp_path / "model", "opt", "opt")
    # as on a GPU with FlashAttention, where "auto" packs
    recipe, inputs, figures = build(tmp_path, "lima", base, rows, 'sft.packing="always"')
    assert figures["packed"] == 1 and figures["padding_share"] == 0
    told = read_jsonl(inputs["data"] / "sft.jsonl")
    assert {len(row["messages"]) for row in told} == {2, 4}
    assert recipe.sft.max_length == 2048 and (inputs["sft"] / "model").is_dir()
    work = work_in(tmp_path / "merged")
    merge_policy(recipe.merge, {**inputs, "policy": inputs["sft"]}, work)
    merged: Any = AutoModelForCausalLM.from_pretrained(work.out / "model", dtype="auto")
    assert merged.dtype == torch.bfloat16 and merged.config.model_type == "opt"
    tokenizer = AutoTokenizer.from_pretrained(work.out / "model")
    assert tokenizer.eos_token_id in merged.generation_config.eos_token_id


@pytest.mark.parametrize(("kind", "family"), [("gpt2", "gpt2"), ("llama", "llama")])
def test_trivia_is_answered_by_gpt2_and_llama3(tmp_path: Path, kind: str, family: str) -> None:
    rows = [
        {"question": f"Who wrote {n}?", "question_id": n, "answer": {"value": n.title(), "aliases": [n, f"Mr {n}"]}}
        for n in NUMBERS
    ]
    recipe, inputs, figures = build(tmp_path, "triviaqa", model(tmp_path / "model", kind, family), rows)
    assert figures["rows"] == len(read_jsonl(inputs["data"] / "sft.jsonl")) > 0
    [question, answer] = read_jsonl(inputs["data"] / "sft.jsonl")[0]["messages"]
    assert question["content"].startswith("Who wrote") and answer["content"].lower() in NUMBERS
    asked = read_jsonl(inputs["data"] / "evaluation.jsonl")[0]
    name = asked["reference"]["question_id"]
    for check in (recipe.label.utility, recipe.evaluate.judge, *recipe.evaluate.checks):
        assert resolve(check)(asked, f"Mr {name}") and not resolve(check)(asked, "nobody")


def test_qwen_learns_from_ultrafeedback(tmp_path: Path) -> None:
    def turns(n: str, answer: str) -> list[Row]:
        return [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": answer}]

    rows = [
        {"prompt": f"Say {n}", "prompt_id": n, "chosen": turns(n, f"{n}."), "rejected": turns(n, "No."),
         "messages": turns(n, f"{n}."), "score_chosen": 8.0, "score_rejected": 5.0}
        for n in NUMBERS
    ]  # fmt: skip
    base = model(tmp_path / "model", "qwen2", "qwen")
    recipe, inputs, figures = build(tmp_path, "ultrafeedback", base, rows)
    assert figures["rows"] == len(read_jsonl(inputs["data"] / "sft.jsonl")) > 0
    pairs = read_jsonl(inputs["data"] / "preferences_train.jsonl")
    assert pairs and all(
        pair["prompt"] == [{"role": "user", "content": pair["prompt"][0]["content"]}] for pair in pairs
    )
    preferences = tmp_path / "preferences"
    preferences.mkdir()
    (preferences / "train.jsonl").write_bytes((inputs["data"] / "preferences_train.jsonl").read_bytes())
    (preferences / "validation.jsonl").write_bytes((inputs["data"] / "preferences_validation.jsonl").read_bytes())
    work = work_in(tmp_path / "dpo")
    train_direct(recipe.policy[0], {**inputs, "preferences": preferences}, work)
    merged = work_in(tmp_path / "merged")
    merge_policy(recipe.merge, {**inputs, "policy": work.out}, merged)
    tokenizer = AutoTokenizer.from_pretrained(merged.out / "model")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template == family_tokenizer("qwen").chat_template
