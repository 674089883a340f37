"""Loading chains of artifacts, adapters and reward heads; the real pretrained model; bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.artifact import InputError, PipelineError
from tasks.models.adapters import FullRecipe, LoraRecipe, attach, save
from tasks.models.loading import fit_embeddings, load_causal_lm, load_reward_model, load_tokenizer, start_reward_model
from tasks.models.pretrain import BaseRecipe, build_base
from tasks.models.weights import open_weights
from tasks.store import _content_digest, _describe
from tests.tiny_models import tiny_base, tiny_model, tiny_tokenizer, work_in

STORIES = Path(__file__).parents[1].parent / "shared" / "data" / "stories260K"
IDS = torch.tensor([[1, 20, 30, 40, 50]])


def _moved(model, amount: float = 0.05):
    """The model after a stand-in for training: every trainable weight shifted by noise."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += amount * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def _logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_chain_of_adapters_loads_as_the_sum_of_what_was_trained(tmp_path: Path, kind: str) -> None:
    base = tiny_base(tmp_path / "base", kind)
    sft = _moved(attach(load_causal_lm([base], trainable=True), LoraRecipe(rank=4), seed=1))
    save(sft, tmp_path / "sft")
    policy = _moved(attach(load_causal_lm([base, tmp_path / "sft"], trainable=True), LoraRecipe(rank=2), seed=2))
    save(policy, tmp_path / "policy")
    chain = [base, tmp_path / "sft", tmp_path / "policy"]
    assert not torch.allclose(_logits(load_causal_lm(chain[:1])), _logits(sft), atol=1e-3)
    torch.testing.assert_close(_logits(load_causal_lm(chain[:2])), _logits(sft), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(_logits(load_causal_lm(chain)), _logits(policy), atol=1e-4, rtol=1e-4)


def test_a_full_fine_tune_replaces_what_is_before_it(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    full = _moved(attach(load_causal_lm([base], trainable=True), FullRecipe()))
    save(full, tmp_path / "sft")
    torch.testing.assert_close(_logits(load_causal_lm([base, tmp_path / "sft"])), _logits(full))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_fresh_adapter_changes_nothing_and_freezes_the_rest(kind: str) -> None:
    model = tiny_model(kind).eval()
    before = _logits(model)
    adapted = attach(model, LoraRecipe(rank=4))
    torch.testing.assert_close(_logits(adapted), before)
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in adapted.named_parameters())


def _written(folder: Path, change: Any, **config: Any) -> Path:
    """A plain model folder whose weights or configuration were changed after it was written."""
    tiny_model().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), {}, r"1 weights .*1\.mlp\.up_proj"),
        (lambda weights: None, {"num_hidden_layers": 3}, r"9 weights .*layers\.2.*and others"),
        (lambda weights: None, {"intermediate_size": 40}, "6 weights .* another size than its config.json says"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(tmp_path: Path, change: Any, config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_causal_lm([_written(tmp_path, change, **config)])


def test_a_cut_file_of_weights_is_one_sentence(tmp_path: Path) -> None:
    file = _written(tmp_path, lambda weights: None) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut, damaged or missing: copy or fetch the model again"):
        load_causal_lm([tmp_path])


def test_weights_without_a_place_are_told_where_they_matter(tmp_path: Path) -> None:
    def more(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(88, 32)
        weights["vision_tower.patches.weight"] = torch.zeros(4)

    folder, told = _written(tmp_path / "model", more), []
    tiny_tokenizer().save_pretrained(folder)
    _, unused = open_weights(folder, torch.float32)
    assert unused == ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight"]
    work = work_in(tmp_path / "base")
    work.on_notify = told.append
    build_base(BaseRecipe(model=str(folder)), {}, work)
    assert len(told) == 1 and "2 weights" in told[0] and "is it the right config.json?" in told[0]


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_a_whole_reward_model_comes_back(tmp_path: Path, kind: str) -> None:
    """transformers has no reward model of Granite's layout; ours is read as theirs are."""
    tokenizer: Any = tiny_tokenizer()
    model = _moved(start_reward_model(tiny_model(kind), tokenizer, heads=2).requires_grad_(True)).requires_grad_(False)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded: Any = load_reward_model(tmp_path, tmp_path)[0]
    torch.testing.assert_close(_logits(loaded), _logits(model))
    padded = torch.cat([IDS, torch.full((1, 3), tokenizer.pad_token_id)], 1)
    torch.testing.assert_close(loaded(input_ids=padded).logits, _logits(model))
    hidden = loaded.base_model(input_ids=IDS).last_hidden_state[:, -1]
    torch.testing.assert_close(loaded.score(hidden), _logits(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_reward_adapter_keeps_its_head(tmp_path: Path, kind: str) -> None:
    base, tokenizer = tiny_base(tmp_path / "base", kind), tiny_tokenizer()
    torch.manual_seed(3)
    start = start_reward_model(load_causal_lm([base], trainable=True), tokenizer, heads=2)
    model = _moved(attach(start, LoraRecipe(rank=4), "SEQ_CLS"), 0.1)
    save(model, tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward" / "tokenizer")
    (tmp_path / "reward" / "reward.json").write_text('{"criteria": ["overall", "honest"], "members": 1}')
    torch.manual_seed(99)  # a head drawn anew would be another one
    loaded, _ = load_reward_model(base, tmp_path / "reward")
    torch.testing.assert_close(_logits(loaded), _logits(model), atol=1e-5, rtol=1e-4)


def test_saved_adapters_are_the_same_bytes_and_name_no_path(tmp_path: Path) -> None:
    for name in "ab":
        save(attach(load_causal_lm([tiny_base(tmp_path / "base" / name)]), LoraRecipe(rank=4), seed=5), tmp_path / name)
    files = [{p.name: p.read_bytes() for p in sorted((tmp_path / name / "adapter").iterdir())} for name in "ab"]
    assert files[0] == files[1] and set(files[0]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert str(tmp_path) not in files[0]["adapter_config.json"].decode()


def test_new_tokens_get_the_mean_embedding() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    layer: Any = model.get_input_embeddings()
    rows = layer.weight.shape[0]
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    fit_embeddings(model, tokenizer)
    resized: Any = model.get_input_embeddings()
    weight = resized.weight
    assert weight.shape[0] == rows + 1 == len(tokenizer)
    torch.testing.assert_close(weight[rows], weight[:rows].mean(dim=0))
    biased: Any = tiny_model("phi")
    biased.lm_head.bias.data += 2.0
    fit_embeddings(biased, tokenizer)
    assert biased.lm_head.bias[rows] == 2.0


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    state = tiny_model().state_dict()
    (base / "model" / "model.safetensors").unlink()
    torch.save(state, base / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_causal_lm([base])
    with pytest.raises(InputError, match="safetensors"):
        build_base(BaseRecipe(model=str(base / "model")), {}, work_in(tmp_path / "work"))


def test_a_missing_adapter_file_is_named(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    (tmp_path / "sft" / "adapter").mkdir(parents=True)
    with pytest.raises(PipelineError, match="adapter_model"):
        load_causal_lm([base, tmp_path / "sft"])


@pytest.mark.parametrize(
    ("model", "words"), [("/no/such/model", "does not exist"), ("./no-such", "does not exist"), (".", "config.json")]
)
def test_a_missing_model_is_one_sentence(tmp_path: Path, model: str, words: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        BaseRecipe(model=model).external_files()
    with pytest.raises(InputError, match=words):
        build_base(BaseRecipe(model=model), {}, work_in(tmp_path / "work"))


def test_an_unreachable_hub_model_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert BaseRecipe(model="someone/something").external_files() == []
    with pytest.raises(InputError, match="'someone/something' cannot be fetched"):
        build_base(BaseRecipe(model="someone/something"), {}, work_in(tmp_path / "work"))


def test_a_local_model_is_referred_to_and_not_copied(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "model")
    for file in (base / "tokenizer").iterdir():
        (base / "model" / file.name).write_bytes(file.read_bytes())
    recipe, work = BaseRecipe(model=str(base / "model")), work_in(tmp_path / "work")
    build_base(recipe, {}, work)
    assert not list(work.out.rglob("*.safetensors"))
    source = json.loads((work.out / "source.json").read_text())
    assert set(source["files"]) == {path.name for path in recipe.external_files()}
    torch.testing.assert_close(_logits(load_causal_lm([work.out])), _logits(load_causal_lm([base])))


def test_a_model_that_moved_is_the_same_model(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "model")
    for file in (base / "tokenizer").iterdir():
        (base / "model" / file.name).write_bytes(file.read_bytes())
    made = []
    for folder in (base / "model", tmp_path / "moved"):
        if not folder.exists():
            (base / "model").rename(folder)
        work = work_in(tmp_path / f"work-{folder.name}")
        build_base(BaseRecipe(model=str(folder)), {}, work)
        made.append(work)
    first, second = (_content_digest(_describe(work.out)) for work in made)
    assert first == second, "what is built on it is reused"
    load_causal_lm([made[1].out])
    with pytest.raises(InputError, match="is gone; put it back"):
        load_causal_lm([made[0].out])


def test_the_real_pretrained_model(tmp_path: Path) -> None:
    if not STORIES.is_dir():
        pytest.skip("the shared data folder with stories260K is not there")
    work = work_in(tmp_path)
    build_base(BaseRecipe(model=str(STORIES)), {}, work)
    tokenizer: Any = load_tokenizer(work.out)
    model: Any = load_causal_lm([work.out])
    assert tokenizer.pad_token == "<unk>" and tokenizer.chat_template
    ids = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=200, do_sample=False)
    text = tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text.strip() == (STORIES / "golden_greedy_200.txt").read_text().strip()
