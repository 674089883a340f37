"""Several LoRA adapters in one batch: token for token what each says alone, and the evaluation that uses it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tasks.artifact import InputError, read_jsonl
from tasks.evaluation.evaluate import EvaluateRecipe
from tasks.models.adapters import AdapterRecipe, DoraRecipe, Ia3Recipe, LoraRecipe, attach, save
from tasks.models.loading import load_causal_lm, twin
from tasks.models.targets import is_low_rank_only
from tasks.sampling.local import generate
from tasks.sampling.together import generate_together
from tasks.sampling.vllm_weights import is_plain_lora
from tests.test_evaluation import build, inputs, save_merged  # noqa: F401
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [20, 21, 22, 23]]
RECIPES = {
    "wide": LoraRecipe(rank=8),
    "attention": LoraRecipe(rank=2, targets="attention", alpha=3),
    "uneven": LoraRecipe(rank=4, ranks={"(up_proj|c_fc|fc1)": 6}, rank_stabilised=True, dropout=0.5),
}


def adapted(model: Any, recipe: AdapterRecipe, seed: int) -> Any:
    """An adapter that changes something, on shared weights."""
    made = attach(twin(model), recipe, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name and not parameter.any():
                parameter.normal_(std=0.3, generator=generator)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("batch_size", [64, 5])
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "opt", "qwen2_moe"])
def test_each_row_is_what_its_adapter_says_alone(kind: str, greedy: bool, batch_size: int) -> None:
    model, tokenizer = tiny_model(kind).requires_grad_(False).eval(), tiny_tokenizer()
    adapters = {name: adapted(model, recipe, seed) for seed, (name, recipe) in enumerate(RECIPES.items())}
    settings: dict[str, Any] = {"n": 3, "max_new_tokens": 12, "greedy": greedy, "batch_size": batch_size}
    seeds = {name: seed for seed, name in enumerate([*adapters, "none"])}
    found = generate_together(model, {**adapters, "none": None}, tokenizer, PROMPTS, seeds=seeds, **settings)
    said = set()
    for name, adapter in {**adapters, "none": model}.items():
        alone = generate(adapter, tokenizer, PROMPTS, seed=seeds[name], **settings)
        ours = [each for group in found[name] for each in group]
        theirs = [each for group in alone for each in group]
        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs], name
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        said.add(str([each.token_ids for each in ours]))
    assert len(said) == 4, "the adapters are to differ"
    before = generate(model, tokenizer, PROMPTS, seed=3, **settings)
    assert [each.token_ids for group in before for each in group] == [
        each.token_ids for group in found["none"] for each in group
    ], "nothing stays on the weights"


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("llama", LoraRecipe(targets=("embed_tokens", "q_proj"))),
        ("llama", LoraRecipe(modules_to_save=("lm_head",))),
        ("llama", DoraRecipe()),
        ("gpt2", LoraRecipe(bias="lora_only")),
        ("mixtral", LoraRecipe()),
        ("llama", Ia3Recipe()),
    ],
    ids=lambda given: given if isinstance(given, str) else given.kind,
)
def test_what_is_more_than_an_update_of_layers_is_decoded_apart(tmp_path: Path, kind: str, recipe: Any) -> None:
    model: Any = attach(tiny_model(kind), recipe)
    save(model, tmp_path)
    assert not is_low_rank_only(tmp_path / "adapter") and not is_plain_lora(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2_moe"])
def test_updates_of_linear_layers_can_be_together(tmp_path: Path, kind: str) -> None:
    model: Any = attach(tiny_model(kind), LoraRecipe(ranks={"q_proj": 2} if kind == "llama" else {}))
    save(model, tmp_path)
    assert is_low_rank_only(tmp_path / "adapter")
    assert is_plain_lora(model) == (kind != "llama"), "vLLM takes one rank for all layers"


@pytest.fixture
def trained(inputs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:  # noqa: F811
    """Two candidates that are LoRA on the SFT model, merged and as adapters, and one that is not."""
    start = load_causal_lm([inputs["base"], inputs["sft"]])
    found = {name: inputs[name] for name in ("base", "sft", "reward", "data", "candidate.sharp")}
    recipes: dict[str, Any] = {"dpo": LoraRecipe(rank=2), "ppo": LoraRecipe(rank=4), "dora": DoraRecipe(rank=2)}
    recipes["embedded"] = LoraRecipe(rank=2, targets=("embed_tokens", "q_proj"))
    for seed, (name, recipe) in enumerate(recipes.items()):
        save(adapted(start, recipe, seed), tmp_path / name)
        chain = [inputs["base"], inputs["sft"], tmp_path / name]
        save_merged(load_causal_lm(chain), tmp_path / f"merged-{name}")
        found |= {f"candidate.{name}": tmp_path / f"merged-{name}", f"policy.{name}": tmp_path / name}
    return found


def test_an_evaluation_says_the_same_together_and_apart(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []

    def counting(chain: Any, **named: Any) -> Any:
        loaded.append([folder.name for folder in chain])
        return load_causal_lm(chain, **named)

    monkeypatch.setattr("tasks.evaluation.bench.load_causal_lm", counting)
    works, reads = {}, {}
    for way in ("together", "apart"):
        works[way] = build(tmp_path / way, trained, candidates=way)
        reads[way], loaded = loaded, []
    together, apart = (read_jsonl(work.out / "samples.jsonl") for work in works.values())
    assert [row["model"] for row in together] == [row["model"] for row in apart]
    assert {row["model"] for row in together} == {"sft", "sharp", "dpo", "ppo", "dora", "embedded"}
    for one, other in zip(together, apart, strict=True):
        for left, right in zip(one["completions"], other["completions"], strict=True):
            assert left["text"] == right["text"] and left["kl"] == pytest.approx(right["kl"], abs=1e-3)
    assert len(reads["apart"]) == 6
    assert sorted(reads["together"]) == [["base", "sft"], ["merged-dora"], ["merged-embedded"], ["sharp"]]
    assert "sft, dpo, ppo" in (works["together"].out / "report" / "decoding.md").read_text()
    auto = build(tmp_path / "auto", trained)
    assert "fewer than half a batch of 128" in (auto.out / "report" / "decoding.md").read_text()
    assert (auto.out / "samples.jsonl").read_bytes() == (works["together"].out / "samples.jsonl").read_bytes()
    many = build(tmp_path / "many", trained, batch_size=30)
    assert "One model after another: 18" in (many.out / "report" / "decoding.md").read_text()


def test_a_later_round_is_on_its_start(trained: dict[str, Path], tmp_path: Path) -> None:
    inputs = {name: path for name, path in trained.items() if not name.endswith((".sharp", ".dora", ".embedded"))}  # noqa: F811
    inputs |= {"start": trained["candidate.sharp"]}
    for name in ("dpo", "ppo"):
        save_merged(load_causal_lm([inputs["start"], inputs[f"policy.{name}"]]), tmp_path / name)
        inputs[f"candidate.{name}"] = tmp_path / name
    one, other = (build(tmp_path / way, inputs, candidates=way) for way in ("together", "apart"))
    rows = [read_jsonl(work.out / "samples.jsonl") for work in (one, other)]
    texts = [[each["text"] for row in every for each in row["completions"]] for every in rows]
    assert texts[0] == texts[1]
    assert "loaded once: dpo, ppo;" in (one.out / "report" / "decoding.md").read_text()


def test_what_cannot_be_together_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"No two of the models are LoRA.*evaluate.candidates"):
        build(tmp_path, inputs, candidates="together")
    with pytest.raises(ValidationError, match='candidates = "together" needs engine'):
        EvaluateRecipe(candidates="together", engine="vllm")
