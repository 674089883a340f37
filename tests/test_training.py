"""The three trainers on tiny models: losses by hand, what moves and what does not, checkpoints and bad input."""

import copy
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.artifact import InputError, read_jsonl, write_jsonl
from tasks.models.adapters import FullRecipe, LoraRecipe, attach
from tasks.models.chat import Encoded, encode_conversation
from tasks.models.loading import fit_embeddings, load_causal_lm, load_reward_model, load_tokenizer
from tasks.training.direct import DpoRecipe, train_direct
from tasks.training.engine import keep_short
from tasks.training.engine_batches import CALL, LengthBatches, completion_logps, logits_at, pad, portions
from tasks.training.engine_checkpoints import last_checkpoint, seal
from tasks.training.engine_pairs import collate_groups, group_preferences
from tasks.training.hyperparameters import Hyperparameters
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.reward_engine import RewardTrainer
from tasks.training.reward_report import by_group, held_out
from tasks.training.reward_scoring import RewardScorer, score_heads
from tasks.training.sft import SftRecipe, train_sft
from tasks.training.sft_engine import LanguageTrainer, encode_rows, fit_language_model
from tests.tiny_models import (
    demonstrations,
    preference,
    preferences,
    tiny_base,
    tiny_model,
    tiny_tokenizer,
    trainer_loss,
    work_in,
)

LORA = LoraRecipe(rank=4)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_every_epoch_has_every_row_once_in_batches_of_like_length() -> None:
    lengths = [n % 37 for n in range(203)]
    batches = list(LengthBatches(lengths, 8, 2, seed=1))
    assert len(batches) == len(LengthBatches(lengths, 8, 2, seed=1)) == 52
    for epoch in (batches[:26], batches[26:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(203))
    assert max(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) <= 4
    assert batches == list(LengthBatches(lengths, 8, 2, seed=1)) != list(LengthBatches(lengths, 8, 2, seed=2))
    assert batches[:26] != batches[26:]


def test_rows_are_cut_where_the_fewest_tokens_are_computed() -> None:
    """Against every way to cut nine rows."""
    assert portions([20] * 12 + [90], 16) == [12, 1] and portions([20] * 12 + [24], 16) == [13]
    assert portions([20] * 12 + [90], 16, "cuda") == [13]  # there a call costs more than the padding
    assert portions([], 4) == [] and portions([3, 3, 3], 1) == [1, 1, 1]
    lengths, most = sorted([3, 70, 9, 40, 8, 150, 31, 90, 12]), 4

    def cost(sizes) -> int:
        ends = list(itertools.accumulate(sizes))
        return sum(CALL["cpu"] + size * lengths[end - 1] for size, end in zip(sizes, ends, strict=True))

    ways = [sizes for n in range(1, 10) for sizes in itertools.product(range(1, most + 1), repeat=n) if sum(sizes) == 9]
    assert cost(portions(lengths, most)) == min(map(cost, ways)) < cost([4, 4, 1])


def _head(model) -> torch.nn.Module:
    return model.get_output_embeddings()


def test_logits_only_where_they_are_needed_are_the_same_logits() -> None:
    for kind in ("llama", "gpt2"):
        model = tiny_model(kind).eval()
        ids, keep = torch.tensor([[1, 5, 9, 0], [1, 7, 8, 6]]), torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
        with torch.no_grad():
            whole = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
            torch.testing.assert_close(logits_at(model, _head(model), ids, keep), whole[keep])


# --- SFT -------------------------------------------------------------------------------------------------------------


def test_sft_loss_is_the_mean_over_assistant_tokens() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model().eval()
    turns = [["Hi", "Yes."], ["Where is it?", "It is in aisle 4."]]
    rows = [
        encode_conversation(tokenizer, [{"role": "user", "content": u}, {"role": "assistant", "content": a}])
        for u, a in turns
    ]
    expected = []
    for row in rows:
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(dim=-1)
        expected += [-float(logps[t - 1, row.input_ids[t]]) for t, mark in enumerate(row.labels_mask) if mark]
    mask = pad([row.labels_mask for row in rows], 0).bool()
    batch = {"input_ids": pad([row.input_ids for row in rows], 0), "mask": mask, "items": int(mask[:, 1:].sum())}
    assert batch["items"] == len(expected)
    assert trainer_loss(LanguageTrainer, model, batch) == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_all_turns_or_the_last_are_learnt() -> None:
    tokenizer = tiny_tokenizer()
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    [every], [last] = encode_rows(rows, tokenizer), encode_rows(rows, tokenizer, "last")
    assert every.labels_mask == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert last.labels_mask == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1] and last.input_ids == every.input_ids


def test_a_pad_token_that_is_eos_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(InputError, match="pad token"):
        encode_rows([], tokenizer)


@pytest.mark.parametrize(("adapter", "kind"), [(LORA, "llama"), (LORA, "gpt2"), (FullRecipe(), "llama")])
def test_sft_learns_and_moves_what_it_should(tmp_path: Path, adapter, kind: str) -> None:
    base, data, work = tiny_base(tmp_path / "base", kind), demonstrations(tmp_path / "data"), work_in(tmp_path / "sft")
    curve: list[tuple[int, dict[str, float]]] = []
    work.on_log = lambda metrics, step: curve.append((step, dict(metrics)))
    train_sft(SftRecipe(adapter=adapter, epochs=20, batch_size=8), {"base": base, "data": data}, work)
    assert work.metrics["last_loss"] < (0.6 if adapter.kind == "full" else 0.85) * work.metrics["first_loss"]
    assert work.metrics["rows"] == 24 and work.metrics["rows_dropped"] == 0
    assert [step for step, _ in curve] == list(range(10, 10 * len(curve) + 1, 10)) and len(curve) >= 6
    assert curve[-1][1]["loss"] == work.metrics["last_loss"]
    if adapter.kind == "lora":
        weights = load_file(work.out / "adapter" / "adapter_model.safetensors")
        assert all("lora_" in name for name in weights)
        assert all(float(w.abs().max()) > 0 for name, w in weights.items() if "lora_B" in name)
    before, after = load_causal_lm([base]).state_dict(), load_causal_lm([base, work.out]).state_dict()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    embeddings = {name for name in after if "embed_tokens" in name or "wte" in name}
    assert moved and bool(moved & embeddings) == (adapter.kind == "full")


def test_accumulated_batches_weigh_tokens_not_batches(tmp_path: Path) -> None:
    """One step over two halves of unlike length is the same step as over the whole."""
    rows = [Encoded([1, *range(10, 31)], [0] * (22 - n) + [1] * n) for n in (3, 4, 20, 21)]
    after = []
    for name, batch_size, accumulation in (("whole", 4, 1), ("halves", 2, 2)):
        model = tiny_model()
        recipe = Hyperparameters(
            adapter=FullRecipe(), batch_size=batch_size, accumulation=accumulation, warmup=0, max_grad_norm=1e9,
            learning_rate=1e-3, schedule="constant",
        )  # fmt: skip
        fit_language_model(model, tiny_tokenizer(), rows, recipe, work_in(tmp_path / name))
        after.append(model.state_dict())
    for name, weight in after[0].items():
        torch.testing.assert_close(weight, after[1][name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["ia3", "dora", "full"])
def test_weight_decay_draws_matrices_to_zero_and_no_factor(tmp_path: Path, kind: str) -> None:
    """By a tenth a step, where the gradients move a weight by a ten-thousandth."""
    recipe = Hyperparameters.model_validate(
        {"adapter": {"kind": kind}, "batch_size": 4, "warmup": 0, "learning_rate": 1e-4, "schedule": "constant",
         "weight_decay": 1000.0}
    )  # fmt: skip
    model: Any = tiny_model()
    if kind == "full":  # scales that the library's rule does not know by their names
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", vocab_size=320, **shape))
    model = attach(model, recipe.adapter)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained.items()}
    rows = [Encoded([1, *range(10, 31)], [0] * 10 + [1] * 12)] * 8
    fit_language_model(model, tiny_tokenizer(), rows, recipe, work_in(tmp_path))
    kept = {"ia3": "ia3_l", "dora": "lora_magnitude_vector", "full": "norm|mixer\\.D|A_log|bias"}[kind]
    drawn = []
    for name, each in trained.items():
        if re.search(kept, name):
            torch.testing.assert_close(each, before[name], atol=1e-3, rtol=1e-3, msg=name)
        elif before[name].abs().sum() > 0:
            drawn.append(float(each.detach().norm() / before[name].norm()))
    assert all(ratio < 0.9 for ratio in drawn) and bool(drawn) == (kind != "ia3")


def test_the_input_embedding_of_eos_is_learnt_where_the_model_came_with_it_as_pad(tmp_path: Path) -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    eos: Any = tokenizer.eos_token_id
    config = copy.deepcopy(model.config)
    config.pad_token_id = eos
    other = AutoModelForCausalLM.from_config(config)
    fit_embeddings(other, tokenizer)
    table = other.get_input_embeddings().weight
    before = table.detach().clone()
    two_turns = Encoded([5, 6, eos, 7, 8, eos], [0, 0, 1, 0, 1, 1])
    recipe = Hyperparameters(adapter=FullRecipe(), warmup=0, learning_rate=1e-3)
    fit_language_model(other, tokenizer, [two_turns] * 4, recipe, work_in(tmp_path))
    moved = (table - before).abs().amax(1)
    assert moved[eos] > 5e-4 and moved[5] > 5e-4


def test_a_short_training_has_a_curve_too(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    rows = [Encoded([1, *range(10, 31)], [0] * 10 + [1] * 12)] * 8
    recipe = Hyperparameters(adapter=LORA, batch_size=4, accumulation=2, epochs=4, warmup=0, learning_rate=1e-2)
    fit_language_model(tiny_model(), tiny_tokenizer(), rows, recipe, work)
    assert work.metrics["last_loss"] < work.metrics["first_loss"]


def test_activations_computed_twice_give_the_same_adapter(tmp_path: Path, base: Path) -> None:
    weights, data = [], demonstrations(tmp_path / "data")
    for again in (False, True):
        work = work_in(tmp_path / str(again))
        recipe = SftRecipe(adapter=LORA, epochs=1, gradient_checkpointing=again)
        train_sft(recipe, {"base": base, "data": data}, work)
        weights.append(load_file(work.out / "adapter" / "adapter_model.safetensors"))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-6, rtol=1e-4)


def test_too_long_rows_are_dropped_counted_and_limited(tmp_path: Path, base: Path) -> None:
    rows = read_jsonl(demonstrations(tmp_path / "data", 10) / "sft.jsonl")
    rows[3]["messages"][1]["content"] = "very " * 60
    write_jsonl(tmp_path / "data" / "sft.jsonl", rows)
    inputs, work, told = {"base": base, "data": tmp_path / "data"}, work_in(tmp_path / "sft"), list[str]()
    work.on_notify = told.append
    train_sft(SftRecipe(adapter=LORA, epochs=1, max_length=64), inputs, work)
    assert (work.metrics["rows"], work.metrics["rows_dropped"]) == (9, 1)
    assert "1 of 10 rows are longer than 64 tokens and not used; raise max_length." in told
    with pytest.raises(InputError, match="1 of 10 rows are longer than 64 tokens"):
        recipe = SftRecipe(adapter=LORA, epochs=1, max_length=64, dropped_limit=0.05)
        train_sft(recipe, inputs, work_in(tmp_path / "refused"))


def test_rows_longer_than_the_model_takes_are_not_for_the_recipe_to_mend(tmp_path: Path) -> None:
    model, work, told = tiny_model(), work_in(tmp_path), list[str]()
    work.on_notify = told.append
    most = model.config.max_position_embeddings
    recipe = Hyperparameters(adapter=LORA, max_length=most + 1)
    assert keep_short(["a"] * 10, [most] * 9 + [most + 1], recipe, model, work) == ["a"] * 9
    assert told == [
        f"1 of 10 rows are longer than {most} tokens and not used; the model takes no more, so shorten them."
    ]
    with pytest.raises(InputError, match=f"longer than {most} tokens; the model takes no more: shorten the rows or"):
        keep_short(["a"], [most + 1], recipe, model, work)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no demonstrations"),
        ([{"id": "1"}], "Row 1 for SFT is not a conversation"),
        ([{"id": "1", "messages": [{"role": "user", "content": "Hi"}]}], "Row 1 for SFT has no assistant turn"),
        ([{"id": "1", "messages": [{"role": "user"}]}], "Row 1 for SFT is not a conversation"),
    ],
)
def test_rows_that_cannot_be_learnt_are_named(tmp_path: Path, base: Path, rows, words: str) -> None:
    write_jsonl(tmp_path / "data" / "sft.jsonl", rows)
    with pytest.raises(InputError, match=words):
        train_sft(SftRecipe(), {"base": base, "data": tmp_path / "data"}, work_in(tmp_path / "sft"))


def test_a_template_without_tools_is_told_with_what_to_do(tmp_path: Path, base: Path) -> None:
    tools = '[{"type": "function", "function": {"name": "add", "parameters": {}}}]'
    turns = [{"role": "user", "content": "Hi", "tools": tools}, {"role": "assistant", "content": "Hello"}]
    write_jsonl(tmp_path / "data" / "sft.jsonl", [{"id": "1", "messages": turns}])
    with pytest.raises(InputError, match=r"^Row 1 for SFT: The chat template leaves out .* leave such rows out\.$"):
        train_sft(SftRecipe(), {"base": base, "data": tmp_path / "data"}, work_in(tmp_path / "sft"))


def refusing(base: Path, word: str, folder: Path) -> Path:
    """A copy of a base whose chat template refuses texts with a word."""
    tokenizer: Any = load_tokenizer(base)
    tokenizer.chat_template += (
        "{% for each in messages %}{% if '" + word + "' in each.content %}{{ raise_exception('One at a time') }}"
        "{% endif %}{% endfor %}"
    )
    shutil.copytree(base, folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("train", [train_reward, train_direct])
def test_preferences_the_template_refuses_are_told_and_left_out(
    tmp_path: Path, chain: dict[str, Path], train: Any
) -> None:
    inputs = chain | {"base": refusing(chain["base"], "item 3?", tmp_path / "strict")}
    recipe: Any = (RewardRecipe if train is train_reward else DpoRecipe)(adapter=LORA, epochs=1)
    work, told = work_in(tmp_path / "left"), []
    work.on_notify = told.append
    train(recipe, inputs, work)
    rows = read_jsonl(chain["preferences"] / "train.jsonl")
    lost = [number for number, row in enumerate(rows, 1) if row["prompt"][0]["content"] == "Where is item 3?"]
    assert work.metrics["rows_refused"] == len(lost) == 3 and work.metrics["pairs"] == len(rows) - 3
    assert any(f"refuses 3 of {len(rows)} rows (the first: One at a time)" in each for each in told)
    table = json.loads((work.out / "report" / "refused.json").read_text())
    assert [line[0] for line in table["data"]] == lost and table["data"][0][-1] == "Where is item 3?"
    strict = recipe.model_copy(update={"dropped_limit": 0.05})
    with pytest.raises(InputError, match=rf"refuses 3 of {len(rows)} rows"):
        train(strict, inputs, work_in(tmp_path / "limited"))


def test_rows_the_template_refuses_are_told_and_left_out(tmp_path: Path, base: Path) -> None:
    refusing(base, "twice", tmp_path / "strict")
    rows = [
        {"messages": [{"role": "user", "content": f"Say it {each}"}, {"role": "assistant", "content": "Fine."}]}
        | {"set": "few"}
        for each in ("once", "now", "twice", "here", "there")
    ]
    write_jsonl(tmp_path / "data" / "sft.jsonl", rows)
    work, told = work_in(tmp_path / "sft"), []
    work.on_notify = told.append
    inputs = {"base": tmp_path / "strict", "data": tmp_path / "data"}
    train_sft(SftRecipe(adapter=LORA, epochs=1), inputs, work)
    assert work.metrics["rows"] == 4 and work.metrics["rows_refused"] == 1
    assert told == [
        "The chat template refuses 1 of 5 rows (the first: One at a time), which are not used; the run's table "
        "'refused' lists them."
    ]
    table = json.loads((work.out / "report" / "refused.json").read_text())
    assert table["data"] == [[3, "few", "One at a time", "Say it twice"]]
    with pytest.raises(InputError, match=r"refuses 1 of 5 rows \(the first: One at a time\)"):
        train_sft(SftRecipe(adapter=LORA, epochs=1, dropped_limit=0.1), inputs, work_in(tmp_path / "limited"))
    rows[0] = {"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "very " * 60}]}
    write_jsonl(tmp_path / "data" / "sft.jsonl", rows)
    with pytest.raises(InputError, match="1 of 4 rows are longer than 64 tokens, beside 1 that the chat template ref"):
        recipe = SftRecipe(adapter=LORA, epochs=1, max_length=64, dropped_limit=0.3)
        train_sft(recipe, inputs, work_in(tmp_path / "together"))
    write_jsonl(tmp_path / "data" / "sft.jsonl", rows[2:3])
    with pytest.raises(InputError, match="refuses 1 of 1 rows"):
        train_sft(SftRecipe(adapter=LORA, epochs=1, dropped_limit=1), inputs, work_in(tmp_path / "none"))


# --- checkpoints -----------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from tasks.training.{module} import {recipe}, {stage}
from tasks.models.adapters import LoraRecipe
from tasks.artifact import Work
here, inputs = Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:])
(here / "out").mkdir(parents=True, exist_ok=True); (here / "scratch").mkdir(exist_ok=True)
def progress(done, total, note):
    print(done, total, flush=True)
work = Work(out=here / "out", scratch=here / "scratch", seed=3, on_progress=progress, checkpoint_seconds=0.0)
{stage}({recipe}(adapter=LoraRecipe(rank=4, dropout=0.1), epochs={epochs}, batch_size=4),
        {{name: Path(path) for name, path in inputs.items()}}, work)
"""


@pytest.mark.parametrize(
    ("module", "recipe", "stage", "epochs"),
    [
        ("sft", "SftRecipe", "train_sft", 10),
        pytest.param("reward", "RewardRecipe", "train_reward", 15, marks=pytest.mark.slow),
        pytest.param("direct", "DpoRecipe", "train_direct", 15, marks=pytest.mark.slow),
    ],
)
def test_kill_and_resume_gives_the_uninterrupted_weights(
    tmp_path: Path, chain: dict[str, Path], module: str, recipe: str, stage: str, epochs: int
) -> None:
    code = KILLED.format(module=module, recipe=recipe, stage=stage, epochs=epochs)
    inputs = [f"{name}={path}" for name, path in {**chain, "data": tmp_path / "data"}.items()]

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(tmp_path / folder), *inputs]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], env=environment
        )

    killed, scratch = start("killed"), tmp_path / "killed" / "scratch"
    while len(list(scratch.glob("checkpoint-*/whole.json"))) < 1 or not list(scratch.glob("checkpoint-?[0-9]*")):
        assert killed.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (scratch / "checkpoint-9999").mkdir()  # and one that was only begun
    resumed, whole = start("killed"), start("whole")
    steps = [int(line.split()[0]) for line in (resumed.communicate(timeout=240)[0] or "").splitlines()]
    whole.communicate(timeout=240)
    assert resumed.returncode == 0 == whole.returncode
    assert min(step for step in steps if step) > 5, "it began again"
    ours, theirs = (
        load_file(tmp_path / name / "out/adapter/adapter_model.safetensors") for name in ("killed", "whole")
    )
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-5)


SIDE_BY_SIDE = """
import os
import sys
from pathlib import Path
from tasks.training.direct import DpoRecipe, train_direct
from tasks.training.reward import RewardRecipe, train_reward
from tasks.training.sft import SftRecipe, train_sft
from tests.tiny_models import work_in
here, accumulation, rank = Path(sys.argv[1]), int(sys.argv[2]), os.environ.get("RANK", "alone")
inputs = {name: here / name for name in ("base", "sft", "preferences", "data")}
small = {"batch_size": 4, "accumulation": accumulation, "epochs": 2}
train_sft(SftRecipe(batches="rows", **small), inputs, work_in(here / rank / "sft"))
train_reward(RewardRecipe(**small), inputs, work_in(here / rank / "reward"))
train_direct(DpoRecipe(**small), inputs, work_in(here / rank / "direct"))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_two_batches(tmp_path: Path) -> None:
    """Same batches, and gradients that are summed over both: to the last bit here, where rounding is the same."""
    base, data = tiny_base(tmp_path / "base"), demonstrations(tmp_path / "data")
    first = work_in(tmp_path / "first")
    train_sft(SftRecipe(epochs=1), {"base": base, "data": data}, first)
    first.out.rename(tmp_path / "sft")
    preferences(tmp_path / "preferences")
    (tmp_path / "trains.py").write_text(SIDE_BY_SIDE)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for launcher, accumulation in (([], "2"), (two, "1")):
        command = [sys.executable, *launcher, str(tmp_path / "trains.py"), str(tmp_path), accumulation]
        done = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("sft", "reward", "direct"):
        alone, *both = (
            load_file(tmp_path / rank / stage / "out/adapter/adapter_model.safetensors") for rank in ("alone", "0", "1")
        )
        for theirs in both:
            for name, weight in alone.items():
                torch.testing.assert_close(theirs[name], weight, atol=1e-6, rtol=1e-5)


def test_a_checkpoint_cut_short_is_never_used(tmp_path: Path) -> None:
    for step in (5, 12, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"x" * step)
        seal(folder)
    (tmp_path / "checkpoint-20" / "whole.json").unlink()
    (tmp_path / "checkpoint-12" / "adapter_model.safetensors").write_bytes(b"x")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


# --- preferences -----------------------------------------------------------------------------------------------------


def test_a_completion_is_computed_once_however_many_pairs_it_is_in() -> None:
    rows = [preference("a", "x", "y"), preference("b", "u", "v"), preference("a", "x", "z"), preference("a", "y", "z")]
    groups = group_preferences(rows, tiny_tokenizer())
    assert [(len(g.sequences), [p[:2] for p in g.pairs]) for g in groups] == [
        (3, [(0, 1), (0, 2), (1, 2)]),
        (2, [(0, 1)]),
    ]
    batch = collate_groups(groups, 0)
    assert batch["chosen"].tolist() == [0, 0, 1, 3] and batch["rejected"].tolist() == [1, 2, 2, 4]
    assert batch["items"] == 4 and batch["input_ids"].shape[0] == 5


def test_an_unfinished_completion_has_no_eos() -> None:
    tokenizer = tiny_tokenizer()
    (group,) = group_preferences([preference("a", "x", "y", rejected_finished=False)], tokenizer)
    assert [ids[-1] == tokenizer.eos_token_id for ids in group.sequences] == [True, False]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "1", "prompt": [], "chosen": "x"}, "Preference 2 lacks"),
        (preference("a", "x", "x"), "prefers nothing"),
        (preference("a", "x", "y", weight=0), "prefers nothing"),
        (preference("a", "x", "y", weight="much"), "Preference 2"),
    ],
)
def test_rows_that_are_no_preferences_are_named(row, words: str) -> None:
    with pytest.raises(InputError, match=words):
        group_preferences([preference("a", "b", "c"), row], tiny_tokenizer())


# --- reward ----------------------------------------------------------------------------------------------------------


def test_the_reward_loss_by_hand() -> None:
    batch = {
        "input_ids": torch.zeros(3, 1, dtype=torch.long),
        "chosen": torch.tensor([0, 0]),
        "rejected": torch.tensor([1, 2]),
        "weights": torch.tensor([1.0, 0.5]),
        "margins": torch.tensor([0.0, 2.0]),
        "heads": torch.tensor([0, 0]),
        "draws": torch.tensor([[1.0], [1.0]]),
        "items": 1.5,
    }
    rewards = [2.0, 1.0, -1.0]
    model = lambda **_: type("Output", (), {"logits": torch.tensor(rewards)[:, None]})  # noqa: E731
    loss = trainer_loss(RewardTrainer, model, batch, RewardRecipe(centering=0.1, margin=0.5))
    first = math.log1p(math.exp(-1.0)) + 0.1 * 3.0**2
    second = math.log1p(math.exp(-(3.0 - 0.5 * 2.0))) + 0.1 * 1.0**2
    assert loss == pytest.approx((first + 0.5 * second) / 1.5, abs=1e-5)
    # Two criteria with two members each: the first pair is about the second criterion and seen by its second member,
    # twice; the second pair about the first criterion, seen by its first member.
    heads = torch.tensor([[0.0, 9.0, 9.0, 2.0], [9.0, 9.0, 9.0, 1.0], [-3.0, 9.0, 9.0, 9.0]])
    batch |= {"heads": torch.tensor([1, 0]), "draws": torch.tensor([[0.0, 2.0], [1.0, 0.0]])}
    several = lambda **_: type("Output", (), {"logits": heads})  # noqa: E731
    loss = trainer_loss(RewardTrainer, several, batch, RewardRecipe(criteria=("kind",), members=2, centering=0))
    told = (2 * math.log1p(math.exp(-1.0)) + 0.5 * math.log1p(math.exp(-3.0))) / 2
    assert loss == pytest.approx(told / 1.5, abs=1e-5)


def test_reward_model_learns_and_scores_the_same_everywhere(tmp_path: Path, chain: dict[str, Path]) -> None:
    work = work_in(tmp_path / "reward", seed=1)
    train_reward(RewardRecipe(adapter=LORA, epochs=12, batch_size=4, learning_rate=3e-3), chain, work)
    assert work.metrics["validation/accuracy"] > 0.9
    assert work.metrics["validation/accuracy_low"] <= work.metrics["validation/accuracy"]
    assert (work.out / "report" / "calibration.png").stat().st_size > 5000

    rows = read_jsonl(chain["preferences"] / "validation.jsonl")
    scorer = RewardScorer(chain["base"], work.out)
    sides = {
        side: scorer.score([r["prompt"] for r in rows], [r[side][0]["content"] for r in rows], [True] * len(rows))
        for side in ("chosen", "rejected")
    }
    wins = [c > r for c, r in zip(sides["chosen"], sides["rejected"], strict=True)]
    assert sum(wins) / len(wins) == pytest.approx(work.metrics["validation/accuracy"])
    groups = group_preferences(rows, scorer.tokenizer)
    scores = score_heads(scorer.model, [ids for group in groups for ids in group.sequences], 0)[:, 0]
    margins = [pair.apart for pair in held_out(groups, by_group(groups, scores))]
    by_pair = sorted(c - r for c, r in zip(sides["chosen"], sides["rejected"], strict=True))
    assert sorted(margins) == pytest.approx(by_pair, abs=1e-5)

    train = read_jsonl(chain["preferences"] / "train.jsonl")
    texts = {(r["prompt"][0]["content"], r[side][0]["content"]) for r in train for side in ("chosen", "rejected")}
    prompts = [[{"role": "user", "content": prompt}] for prompt, _ in texts]
    normal = scorer.normalised(prompts, [text for _, text in texts], [True] * len(texts))  # type: ignore[arg-type]
    assert np.mean(normal) == pytest.approx(0, abs=1e-3) and np.std(normal) == pytest.approx(1, abs=1e-3)


def test_scores_do_not_depend_on_padding_and_differ_without_eos(tmp_path: Path, chain: dict[str, Path]) -> None:
    work = work_in(tmp_path / "reward")
    train_reward(RewardRecipe(adapter=LORA, epochs=1), chain, work)
    scorer, prompt = RewardScorer(chain["base"], work.out), [{"role": "user", "content": "Where is item 3?"}]
    texts = ["No.", "Aisle 3. Thank you! " * 3, "In 3."]
    together = scorer.score([prompt] * 3, texts, [True] * 3)  # type: ignore[list-item]
    alone = [scorer.score([prompt], [text], [True])[0] for text in texts]  # type: ignore[list-item]
    assert together == pytest.approx(alone, abs=1e-5)
    assert scorer.score([prompt], ["No."], [False]) != pytest.approx(alone[:1], abs=1e-4)  # type: ignore[list-item]
    left = torch.tensor([[0, 0, 1, 20, 21, 2], [1, 20, 21, 22, 23, 2]])
    with torch.no_grad():
        padded = scorer.model(input_ids=left, attention_mask=(left != 0).long()).logits[:, 0].tolist()
    rows = [[1, 20, 21, 2], [1, 20, 21, 22, 23, 2]]
    assert score_heads(scorer.model, rows, 0)[:, 0] == pytest.approx(padded, abs=1e-4)


@pytest.mark.parametrize("sft_kind", ["lora", "full"])
@pytest.mark.parametrize("reward_kind", ["lora", "full"])
def test_every_mixture_of_adapters_reloads(tmp_path: Path, base: Path, sft_kind: str, reward_kind: str) -> None:
    adapters = {"lora": LORA, "full": FullRecipe()}
    sft, reward = work_in(tmp_path / "sft"), work_in(tmp_path / "reward")
    inputs = {"base": base, "data": demonstrations(tmp_path / "data"), "sft": sft.out}
    train_sft(SftRecipe(adapter=adapters[sft_kind], epochs=2), inputs, sft)
    inputs["preferences"] = preferences(tmp_path / "preferences")
    train_reward(RewardRecipe(adapter=adapters[reward_kind], epochs=3), inputs, reward)
    model, tokenizer = load_reward_model(base, reward.out)
    groups = group_preferences(read_jsonl(inputs["preferences"] / "train.jsonl"), tokenizer)
    scores = score_heads(model, [ids for group in groups for ids in group.sequences], 0)[:, 0]
    kept = json.loads((reward.out / "reward.json").read_text())
    assert np.mean(scores) == pytest.approx(kept["mean"][0][0], abs=1e-4)
    assert np.std(scores) == pytest.approx(kept["std"][0][0], abs=1e-4)


# --- direct methods (see test_direct.py) -----------------------------------------------------------------------------


def test_completion_logps_by_hand() -> None:
    model, ids = tiny_model().eval(), torch.tensor([[1, 20, 30, 2, 0], [1, 20, 40, 50, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    with torch.no_grad():
        logps, counts = completion_logps(model, _head(model), ids, mask)
        full = model(input_ids=ids).logits.log_softmax(dim=-1)
    assert counts.tolist() == [2, 2]
    assert float(logps[0]) == pytest.approx(float(full[0, 1, 30] + full[0, 2, 2]), abs=1e-4)
    assert float(logps[1]) == pytest.approx(float(full[1, 2, 50] + full[1, 3, 2]), abs=1e-4)


@pytest.mark.parametrize(("stage", "recipe"), [(train_reward, RewardRecipe()), (train_direct, DpoRecipe())])
def test_no_preferences_is_one_sentence(tmp_path: Path, chain: dict[str, Path], stage, recipe) -> None:
    write_jsonl(tmp_path / "none" / "train.jsonl", [])
    with pytest.raises(InputError, match="no preferences"):
        stage(recipe, {**chain, "preferences": tmp_path / "none"}, work_in(tmp_path / "work"))
