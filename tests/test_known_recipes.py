"""The recipes of well-known models and sets, on tiny models of their architecture and small files of their form."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from flows.recipe import LifecycleRecipe
from flows.services import home
from tasks.artifact import Row, read_jsonl
from tasks.data.prepare import prepare_data
from tasks.merging import merge_policy
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.models.pretrain import build_base
from tasks.recipe import load_recipe, resolve
from tasks.sampling.local import generate
from tasks.training.direct import train_direct
from tasks.training.sft import train_sft
from tests.lifecycle_runs import ROOT, rlhf
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
RECIPES = ROOT / "deployments" / "recipes"
SHORT = ["sft.batch_size=4", "sft.dropped_limit=0.5"]


def model(folder: Path, kind: str, family: str) -> str:
    """A random model of an architecture with a family's tokenizer, as a plain model folder."""
    settings = {"gpt2": GPT2, "llama": LLAMA}.get(kind) or KINDS[kind]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(folder)
    family_tokenizer(family).save_pretrained(folder)
    return str(folder)


def build(
    folder: Path, name: str, base: str, rows: Sequence[Row] | None, *changes: str, epochs: int = 1
) -> tuple[Any, dict[str, Path], Any]:
    """The recipe, its first artifacts (base, data, sft) and the SFT stage's figures. rows: of a file, if it has one."""
    told = [f"base.model={json.dumps(base)}", "data.near_duplicates=1", *SHORT, f"sft.epochs={epochs}", *changes]
    if rows is not None:
        told.append(f"data.path={json.dumps(save(folder / 'rows.jsonl', list(rows)))}")
    recipe = load_recipe(LifecycleRecipe, RECIPES / f"{name}.toml", told)
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


def utility(row: Row, completion: str) -> float:
    """What simulated annotators like."""
    return float(len(completion))


@pytest.mark.slow
@pytest.mark.usefixtures("services")
def test_the_whole_lifecycle_on_lima(tmp_path: Path) -> None:
    rows = [{"conversations": [f"Q {n}", f"A {n}"] * (1 + n.startswith("t")), "source": "wiki"} for n in NUMBERS]
    told = [
        f"base.model={json.dumps(model(tmp_path / 'model', 'opt', 'opt'))}",
        f"data.path={json.dumps(save(tmp_path / 'rows.jsonl', rows))}",
        "data.near_duplicates=1", *SHORT, "sft.epochs=1", "sample.max_new_tokens=16", "sample.completions_per_prompt=4",
        "label.round=lima-opt", "label.source=simulated", 'label.utility="tests.test_known_recipes:utility"',
        "reward.epochs=1", "reward.bar.accuracy=0", "evaluate.max_new_tokens=16", "evaluate.best_of=0",
    ]  # fmt: skip
    document = rlhf("run", RECIPES / "lima.toml", *(f"--set={each}" for each in told)).document
    assert [each["name"] for each in document["candidates"]] == ["dpo"]
    merged = next(each["artifact"] for each in document["stages"] if each["name"] == "merge dpo")
    config = home() / "store" / merged / "model" / "config.json"
    assert json.loads(config.read_text())["dtype"] == "bfloat16"


TRIVIA = [
    {"question": f"Who wrote {n}?", "question_id": n, "question_source": "", "entity_pages": {"title": []},
     "answer": {"value": n.title(), "aliases": [n, f"Mr {n}"], "normalized_value": n, "type": "WikipediaEntity"}}
    for n in NUMBERS
]  # fmt: skip
"""Rows as the hub has them, but for passages."""
ADAPTERS = {"lora": "lora", "qlora": "qlora", "dora": "dora", "prefix": "prefix_tuning", "p-tuning": "p_tuning"}
SMALL = ["sft.learning_rate=1e-2", "sft.accumulation=1"]


def trivia(folder: Path, form: str) -> str:
    """The rows as `save_to_disk` writes them, with or without splits, or as a folder with JSON lines."""
    whole = datasets.Dataset.from_list(TRIVIA)
    place = folder / form
    if form == "splits":
        datasets.DatasetDict({"train": whole}).save_to_disk(place)
    elif form == "rows":
        whole.save_to_disk(place)
    else:
        place.mkdir()
        save(place / "train.jsonl", TRIVIA)
    return f"data.sets.triviaqa.path={json.dumps(str(place))}"


@pytest.mark.parametrize("form", ["splits", "rows", "json"])
def test_trivia_is_read_as_the_hub_has_it(tmp_path: Path, form: str) -> None:
    recipe: Any = load_recipe(
        LifecycleRecipe, RECIPES / "triviaqa.toml", [trivia(tmp_path, form), "data.near_duplicates=1"]
    )
    work = work_in(tmp_path / "data")
    prepare_data(recipe.data, {}, work)
    [question, answer] = read_jsonl(work.out / "sft.jsonl")[0]["messages"]
    assert question["content"].startswith("Who wrote") and answer["content"].lower() in NUMBERS
    asked = read_jsonl(work.out / "evaluation.jsonl")[0]
    name = asked["reference"]["question_id"]
    for check in (recipe.label.utility, recipe.evaluate.judge, *recipe.evaluate.checks):
        assert resolve(check)(asked, f"Mr {name}") and not resolve(check)(asked, "nobody")


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(("kind", "recipe_of"), [("gpt2", "gpt2"), ("llama", "llama3")])
def test_trivia_is_learnt_by_gpt2_and_llama3_with_every_adapter(
    tmp_path: Path, kind: str, recipe_of: str, adapter: str
) -> None:
    if adapter == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (make qlora runs this)")
    base = model(tmp_path / "model", kind, kind)
    recipe, inputs, figures = build(
        tmp_path, f"triviaqa/{recipe_of}-{adapter}", base, None, trivia(tmp_path, "splits"), *SMALL, epochs=30
    )
    assert recipe.sft.adapter.kind == ADAPTERS[adapter]
    assert figures["rows"] == len(read_jsonl(inputs["data"] / "sft.jsonl")) > 0
    soft = adapter in ("prefix", "p-tuning")  # a prompt alone hardly moves random weights
    assert figures["last_loss"] < (1 if soft else 0.97) * figures["first_loss"]
    merged = work_in(tmp_path / "merged")
    merge_policy(recipe.merge, {"base": inputs["base"], "policy": inputs["sft"]}, merged)
    assert (merged.out / "model" / "prompt").is_dir() == soft
    loaded = load_causal_lm([merged.out])
    [[said]] = generate(loaded, load_tokenizer(merged.out), [[5, 6, 7]], max_new_tokens=4, greedy=True, seed=0)
    assert said.token_ids


@pytest.mark.slow
@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(("kind", "recipe_of"), [("gpt2", "gpt2"), ("llama", "llama3")])
def test_the_whole_lifecycle_on_trivia(tmp_path: Path, kind: str, recipe_of: str, adapter: str) -> None:
    if adapter == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (make qlora runs this)")
    told = [
        f"base.model={json.dumps(model(tmp_path / 'model', kind, kind))}", trivia(tmp_path, "splits"),
        "data.near_duplicates=1", *SHORT, *SMALL, "sft.epochs=2", "reward.epochs=1", "reward.bar.accuracy=0",
        "policy.grpo.updates=2", "policy.grpo.prompts=4", "policy.grpo.completions_per_prompt=2",
        f"label.round=trivia-{recipe_of}-{adapter}", "sample.completions_per_prompt=4", "evaluate.best_of=0",
    ]  # fmt: skip
    path = RECIPES / "triviaqa" / f"{recipe_of}-{adapter}.toml"
    sets = [f"--set={each}" for each in told]
    planned = rlhf("plan", path, *sets).document
    assert "grpo" in json.dumps(planned)
    document = rlhf("run", path, *sets).document
    assert [each["name"] for each in document["candidates"]] == ["grpo"]
    assert document["sft"]["checks"].keys() == {"exact", "contains"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("triviaqa/*.toml")), ids=lambda path: path.stem)
def test_the_recipes_of_trivia_are_for_the_hub(path: Path) -> None:
    recipe = load_recipe(LifecycleRecipe, path)
    model, _, adapter = path.stem.partition("-")
    assert recipe.base.model == {"gpt2": "openai-community/gpt2", "llama3": "meta-llama/Meta-Llama-3-8B"}[model]
    assert recipe.data.sets[0].path == "mandarjoshi/trivia_qa"  # type: ignore[union-attr]
    assert recipe.sft.adapter.kind == ADAPTERS.get(adapter, "lora")


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
