"""Reward models of another size and family than the policy: one score for one completion wherever it is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from tasks.artifact import InputError, Message, read_jsonl, write_jsonl
from tasks.evaluation.evaluate import EvaluateRecipe, evaluate_models
from tasks.models.adapters import FullRecipe, LoraRecipe
from tasks.models.chat import encode_completion
from tasks.models.loading import load_reward_model, positions
from tasks.models.templates import prepare_tokenizer
from tasks.store import _content_digest, _describe
from tasks.training.engine_pairs import collate_groups, group_preferences
from tasks.training.grpo import GrpoRecipe, train_groups
from tasks.training.ppo import PpoRecipe, train_ppo
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_engine import RewardTrainer, fit_reward_model, save_reward_model, start
from tasks.training.reward_report import by_group, head_values, held_out
from tasks.training.reward_scoring import RewardScorer, outputs, shortened
from tasks.training.rewards import Rewards
from tests.tiny_models import preference, preferences, tiny_base, tiny_tokenizer, work_in
from tests.tiny_rewards import DECODERS, ENCODERS, FURTHER, POSITIONS, reward_base

ADAPTERS = {"lora": LoraRecipe(rank=4), "full": FullRecipe()}
NOWHERE = Path("no-such-artifact")
CUT = [
    preference("Where is the tea?", "Aisle 3. Thank you!", "Aisle 3. Thank", rejected_finished=False),
    preference("Where is the tea?", "Aisle 3. Thank you!", "Aisle 3. Thank you!", rejected_finished=False),
    preference("And the rice? " * 3, "In 4.", "I will not say it, go and look for it by yourself."),
]


def _recipe(base: Path, adapter: str = "lora", **changes: Any) -> RewardRecipe:
    small = {"epochs": 8, "batch_size": 4, "learning_rate": 5e-3} | changes
    return RewardRecipe.model_validate({"base": str(base), "adapter": ADAPTERS[adapter]} | small)


def _asked(rows: list[Any]) -> tuple[list[list[Message]], list[str], list[bool]]:
    """Prompts, completions and whether they are finished, of both sides of the rows."""
    each = [(row, side) for row in rows for side in ("chosen", "rejected")]
    return (
        [row["prompt"] for row, _ in each],
        [row[side][0]["content"] for row, side in each],
        [row.get(f"{side}_finished", True) for row, side in each],
    )


def _ids(tokenizer: Any, prompt: list[Message], text: str, finished: bool = True) -> list[int]:
    before, answer = encode_completion(tokenizer, prompt, text, finished)
    return [*before, *answer]


def _trained(tmp_path: Path, base: Path, **changes: Any) -> Path:
    work = work_in(tmp_path / "reward", seed=1)
    train_reward(_recipe(base, **changes), {"preferences": preferences(tmp_path / "preferences")}, work)
    return work.out


# --- one completion, one score ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [*((kind, "lora") for kind in (*DECODERS, *ENCODERS, *FURTHER)), ("llama", "full"), ("bert", "full")],
)
def test_training_evaluation_and_scoring_agree_and_the_artifact_reloads(
    tmp_path: Path, kind: str, adapter: str
) -> None:
    """The loss in training mode and in training's batches, training's evaluation, and the reloaded scorer."""
    base, work = reward_base(tmp_path / kind, kind), work_in(tmp_path / "reward", seed=1)
    rows = [*read_jsonl(preferences(tmp_path / "preferences") / "train.jsonl"), *CUT]
    recipe = _recipe(base, adapter)
    model, tokenizer = start(recipe, {}, work)
    groups = fit_reward_model(model, tokenizer, rows, recipe, work)
    save_reward_model(model, tokenizer, groups, {}, recipe, work)

    pad_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    values = head_values(model, groups, recipe.heads, pad_id)[:, 0, 0]
    evaluated = values.tolist()
    learnt = [pair.apart > 0 for pair in held_out(groups, by_group(groups, values))]
    assert sum(learnt) > 0.8 * len(learnt)
    if adapter == "lora":
        weights = load_file(work.out / "adapter" / "adapter_model.safetensors")
        whole = {name for name in weights if "lora_" not in name}
        assert whole and not any("embed" in name or "wte" in name for name in whole)
    batch = collate_groups(groups, pad_id)
    with torch.no_grad():
        masked = pad_id if kind not in DECODERS else None
        in_training = outputs(model.train(), batch["input_ids"], masked)[:, 0].tolist()
    assert in_training == pytest.approx(evaluated, abs=1e-4)

    torch.manual_seed(99)  # what was drawn at random and not saved would be another one
    scorer = RewardScorer(NOWHERE, work.out)
    prompts, texts, finished = _asked(rows)
    together = scorer.score(prompts, texts, finished)
    alone = [scorer.score([p], [t], [f])[0] for p, t, f in zip(prompts, texts, finished, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    places = {
        tuple(ids): score
        for ids, score in zip([ids for group in groups for ids in group.sequences], evaluated, strict=True)
    }
    encoded = [_ids(scorer.tokenizer, *asked) for asked in zip(prompts, texts, finished, strict=True)]
    assert together == pytest.approx([places[tuple(ids)] for ids in encoded], abs=1e-4)
    # the same text, finished and cut
    whole, cut = scorer.score([prompts[-4]] * 2, ["Aisle 3. Thank you!"] * 2, [True, False])
    assert abs(whole - cut) > 1e-3


def test_the_trainers_loss_masks_padding_for_encoders_only(tmp_path: Path) -> None:
    seen = {}
    for kind in ("llama", "bert"):
        recipe, work = _recipe(reward_base(tmp_path / kind, kind), epochs=1), work_in(tmp_path / f"{kind}-work")
        model, tokenizer = start(recipe, {}, work)
        trainer = object.__new__(RewardTrainer)
        trainer.recipe = recipe
        (group, *_) = group_preferences(CUT, tokenizer)
        batch = collate_groups([group], int(tokenizer.pad_token_id))  # type: ignore[arg-type]
        trainer.pad_id = None
        with torch.no_grad():
            plain = float(trainer.losses(model, batch)[0])
            trainer.pad_id = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
            seen[kind] = abs(float(trainer.losses(model, batch)[0]) - plain) > 1e-4
    assert seen == {"llama": False, "bert": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, sft (a full copy), data: a policy whose tokenizer is none of the reward models'."""
    root = tmp_path_factory.mktemp("policy")
    base = tiny_base(root / "base")
    tiny_base(root / "sft")
    rows = [
        {"id": f"{n:016x}", "prompt": [{"role": "user", "content": f"Where is item {n}?{' Say.' * n}"}]}
        for n in range(8)
    ]
    for split in ("rl", "evaluation"):
        write_jsonl(root / "data" / f"{split}.jsonl", rows)
    return {"base": base, "sft": root / "sft", "data": root / "data"}


SLOW = {"gpt2", "deberta-v2"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in (*DECODERS, *ENCODERS)]
)
def test_ppo_grpo_and_evaluation_see_the_scores_of_the_scorer(
    tmp_path: Path, policy: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of stages: a reward model on its own base, PPO and GRPO against it, an evaluation by it."""
    reward = _trained(tmp_path, reward_base(tmp_path / kind, kind))
    scorer = RewardScorer(policy["base"], reward)
    asked: list[tuple[Any, str, bool, float]] = []
    ask = Rewards.__call__

    def recorded(self: Rewards, prompts: Any, completions: Any, finished: Any) -> list[float]:
        scores = ask(self, prompts, completions, finished)
        asked.extend(zip(prompts, completions, finished, scores, strict=True))
        return scores

    monkeypatch.setattr(Rewards, "__call__", recorded)
    inputs = {**policy, "reward": reward}
    small: dict[str, Any] = {"updates": 3, "max_new_tokens": 6, "learning_rate": 5e-3}
    ppo, grpo = work_in(tmp_path / "ppo"), work_in(tmp_path / "grpo")
    train_ppo(PpoRecipe(**small, episodes=16), inputs, ppo)
    assert len(asked) == 48
    train_groups(GrpoRecipe(**small, prompts=4, completions_per_prompt=4, micro_batch_size=16), inputs, grpo)
    assert len(asked) == 96 and {finished for _, _, finished, _ in asked} == {True, False}
    for prompt, text, finished, score in asked[::7]:
        assert scorer.normalised([prompt], [text], [finished]) == pytest.approx([score], abs=1e-4)
    assert (ppo.out / "adapter" / "adapter_model.safetensors").is_file()

    evaluation = work_in(tmp_path / "evaluation")
    recipe = EvaluateRecipe(samples_per_prompt=2, max_new_tokens=6, bootstrap_samples=100)
    evaluate_models(recipe, {**inputs, "candidate.same": policy["sft"]}, evaluation)
    for row in read_jsonl(evaluation.out / "samples.jsonl")[:4]:
        for one in row["completions"]:
            alone = scorer.score([row["prompt"]], [one["text"]], [one["finished"]])
            assert alone == pytest.approx([one["reward"]], abs=1e-4)


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_the_prompt_gives_way_from_the_left_and_the_completion_stays() -> None:
    prompt, completion = [1, *range(10, 20)], [30, 31, 2]
    assert shortened(prompt, completion, None, 1) == shortened(prompt, completion, 14, 1) == [*prompt, *completion]
    assert shortened(prompt, completion, 8, 1) == [1, 16, 17, 18, 19, 30, 31, 2]
    assert shortened(prompt[1:], completion, 5, 1) == [18, 19, 30, 31, 2]
    assert shortened(prompt, completion, 4, 1) == [1, 30, 31, 2]
    assert shortened(prompt, completion, 3, 1) == [1, 30, 31], "what is too long by itself is cut where sampling would"


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "roberta", "gpt2"])
def test_a_completion_too_long_for_the_model_is_scored(tmp_path: Path, kind: str) -> None:
    base = reward_base(tmp_path / kind, kind)
    scorer = RewardScorer(NOWHERE, _trained(tmp_path, base, epochs=1))
    limit = positions(scorer.model)
    assert limit == POSITIONS
    prompts: list[list[Message]] = [[{"role": "user", "content": "x " * length}] for length in (300, 301, 5)]
    tail, other, short = scorer.score(prompts, ["In 4.", "In 4.", "y " * 400], [True] * 3)
    assert tail == pytest.approx(other, abs=1e-4), "what is cut off does not count"
    assert tail != pytest.approx(scorer.score(prompts[:1], ["In 5."], [True])[0], abs=1e-6)
    assert short == short
    ids, answer = encode_completion(scorer.tokenizer, prompts[0], "In 4.")
    kept = shortened(ids, answer, limit, scorer.tokenizer.bos_token_id)
    assert len(kept) == limit and kept[0] == ids[0] and kept[-len(answer) :] == answer


def test_rows_longer_than_an_encoders_positions_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [*read_jsonl(preferences(tmp_path / "preferences") / "train.jsonl")]
    rows.append(preference("z" * POSITIONS, "In 1.", "Go."))
    write_jsonl(tmp_path / "preferences" / "train.jsonl", rows)
    work = work_in(tmp_path / "work")
    base = reward_base(tmp_path / "bert", "bert")
    train_reward(_recipe(base, epochs=1), {"preferences": tmp_path / "preferences"}, work)
    assert (work.metrics["rows"], work.metrics["rows_dropped"]) == (16, 1)


# --- templates -------------------------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_models_own_template_is_used_though_it_marks_nothing(tmp_path: Path) -> None:
    base = reward_base(tmp_path / "llama", "llama")
    (base / "chat_template.jinja").write_text(CHATML)
    reward = _trained(tmp_path, base, epochs=1)
    tokenizer: Any = load_reward_model(NOWHERE, reward)[1]
    prompt: list[Message] = [{"role": "user", "content": "Hi"}]
    assert tokenizer.decode(_ids(tokenizer, prompt, " im_end ")) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nim_end<|im_end|>"
    )
    cut = encode_completion(tokenizer, prompt, "Well", finished=False)
    assert tokenizer.decode(cut[1]) == "Well"
    assert cut[0] == encode_completion(tokenizer, prompt, "Well")[0]


def test_an_encoder_without_a_template_reads_texts_between_its_separators(tmp_path: Path) -> None:
    scorer = RewardScorer(NOWHERE, _trained(tmp_path, reward_base(tmp_path / "bert", "bert"), epochs=1))
    prompt: list[Message] = [{"role": "system", "content": "b"}, {"role": "user", "content": "a[SEP]c"}]
    names = [
        scorer.tokenizer.convert_ids_to_tokens(_ids(scorer.tokenizer, prompt, "d e", whole)) for whole in (True, False)
    ]
    assert names[0][0] == "[CLS]" and names[0] == [*names[1], "[SEP]"]
    assert names[1][-5:] == ["a", "##c", "[SEP]", "d", "e"]


def test_a_template_that_closes_no_turn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    with pytest.raises(InputError, match="a cut answer would look like a finished one"):
        prepare_tokenizer(tiny_tokenizer(), str(path), scoring=True)


# --- where it lies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_base_is_referred_to_and_names_no_path(tmp_path: Path, adapter: str) -> None:
    base = reward_base(tmp_path / "here", "bert")
    reward = _trained(tmp_path, base, adapter=adapter, epochs=1)
    first = _content_digest(_describe(reward))
    for file in reward.rglob("*"):
        if file.is_file() and "report" not in file.parts:
            assert str(tmp_path).encode() not in file.read_bytes(), file
    assert (reward / "model").exists() == (adapter == "full") != (reward / "source.json").exists()
    base.rename(tmp_path / "moved")
    if adapter == "full":
        load_reward_model(NOWHERE, reward)
        return
    with pytest.raises(InputError, match="is gone; put it back"):
        load_reward_model(NOWHERE, reward)
    moved = _trained(tmp_path / "again", tmp_path / "moved", epochs=1)
    assert _content_digest(_describe(moved)) == first, "what is built on it is reused"


def test_the_files_of_a_base_are_its_identity(tmp_path: Path) -> None:
    base = reward_base(tmp_path / "bert", "bert")
    names = {path.name for path in _recipe(base).external_files()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert RewardRecipe().external_files() == RewardRecipe(base="someone/something").external_files() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "/no/such/model"}, r"does not exist; check reward\.base"),
        ({"base": "."}, "no config.json.*reward.base"),
        ({"base": "someone/something", "chat_template": "nowhere.jinja"}, "nowhere.jinja does not exist"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch, changes: dict[str, str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        RewardRecipe.model_validate(changes).external_files()


def test_a_template_without_a_base_has_no_effect() -> None:
    with pytest.raises(ValidationError, match="'chat_template' says something of 'base', which is not set"):
        RewardRecipe(chat_template="default")


def test_models_that_cannot_score_are_refused(tmp_path: Path) -> None:
    base = reward_base(tmp_path / "bert", "bert")
    torch.save({}, base / "pytorch_model.bin")
    weights = base / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    with pytest.raises(InputError, match="pickles are not opened"):
        start(_recipe(base), {}, work_in(tmp_path / "pickled"))
    weights.write_bytes(kept)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks the weights of bert\.encoder\.layer\.2"):
        start(_recipe(base), {}, work_in(tmp_path / "lacking"))
    small: dict[str, Any] = {"vocab_size": 400, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="encoder-decoder"):
        start(_recipe(tmp_path / "t5"), {}, work_in(tmp_path / "seq2seq"))


def test_a_classifiers_head_of_another_size_is_drawn_anew(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    base = reward_base(tmp_path / "bert", "bert")
    config = BertConfig.from_pretrained(base)
    config.num_labels = 3
    BertForSequenceClassification(config).save_pretrained(base)
    model, _ = start(_recipe(base), {}, work_in(tmp_path / "work"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name}
    assert all("classifier" in name for name in trained) and trained
