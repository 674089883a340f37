"""Watching a policy: looking changes nothing, the best policy is kept, training ends, and a kill changes none of it."""

import json

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from tasks.artifact import write_jsonl
from tasks.models.adapters import FullRecipe, LoraRecipe, attach
from tasks.training.direct import DpoRecipe, KtoRecipe, SimpoRecipe, train_direct
from tasks.training.grpo import GrpoRecipe, RlooRecipe
from tasks.training.grpo_trainer import Grpo, fit
from tasks.training.hyperparameters import WatchRecipe
from tasks.training.ppo import PpoRecipe
from tasks.training.ppo_trainer import Ppo
from tasks.training.rejection import RejectionRecipe, train_rejection
from tasks.training.rl_loop import finish, run
from tasks.training.rollouts import encode_prompts
from tasks.training.watch import Limits, Watch, best_update, ended, watched_rows
from tests.tiny_models import work_in
from tests.tiny_policies import ROWS, llama, share_of_apples, word_tokenizer, work

SLICE = [{"prompt": [{"role": "user", "content": text}]} for text in ("kiwi lime", "date", "fig nut kiwi", "plum kiwi")]
SMALL = {"updates": 6, "max_new_tokens": 6, "learning_rate": 3e-3, "likelihood_coefficient": 0.0}
KINDS = {
    PpoRecipe: {"episodes": 24, "missing_eos_penalty": 0.0, "kl_coefficient": 0.02},
    GrpoRecipe: {"prompts": 4, "completions_per_prompt": 6, "micro_batch_size": 12, "minibatches": 2, "beta": 0.02},
    RlooRecipe: {"prompts": 4, "completions_per_prompt": 6, "micro_batch_size": 24, "kl_coefficient": 0.02},
}
METHODS = pytest.mark.parametrize("kind", KINDS)
WEIGHTS = {"lora": "adapter/adapter_model.safetensors", "full": "model/model.safetensors"}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def train(kind, tokenizer, here, **changes):
    """Train to the end with a watch where the recipe has one, and write the artifact; the history."""
    set_seed(0)
    recipe = kind.model_validate(SMALL | KINDS[kind] | changes)
    policy = attach(llama(), recipe.adapter)
    watch = Watch(recipe, policy, tokenizer, SLICE, share_of_apples, here) if recipe.watch.every else None
    if kind is PpoRecipe:
        ppo = Ppo(recipe, policy, tokenizer, encode_prompts(tokenizer, ROWS), share_of_apples, here.seed)
        progress = run(recipe, ppo.step, here, ppo.modules, ppo.optimizers, watch)
    else:
        progress = fit(Grpo(recipe, policy, tokenizer, ROWS, share_of_apples, here, watch), here)
    finish(policy, progress, here, watch)
    return progress.history


def weights(here, adapter="lora"):
    return (here.out / WEIGHTS[adapter]).read_bytes()


def test_the_best_update_is_the_first_of_the_highest_rate():
    rates = [None, 0.6, None, 0.8, 0.8, 0.7]
    assert best_update([{} if rate is None else {"watch/win_rate": rate} for rate in rates]) == 4
    with pytest.raises(ValueError):
        best_update([{}])


@pytest.mark.parametrize(
    ("rates", "over"),
    [([], False), ([0.6], False), ([0.6, 0.5], False), ([0.6, 0.5, 0.6], True), ([0.6, 0.5, 0.7, 0.7], False)],
)
def test_patience_by_hand(rates, over):
    recipe = PpoRecipe(updates=20, watch=WatchRecipe(every=2, patience=2))
    history = [row for rate in rates for row in ({"kl": 0.0}, {"kl": 0.0, "watch/win_rate": rate})]
    assert ended(recipe, history) == over
    assert not ended(PpoRecipe(updates=20, watch=WatchRecipe(every=2)), history)
    assert ended(PpoRecipe(updates=max(1, len(history))), history or [{"kl": 0.0}])


def test_the_slice_is_of_one_split_and_the_same_for_all(tmp_path):
    for split in ("rl", "reward_train", "reward_validation", "evaluation", "sft"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"id": f"{split}-{i}", "prompt": []} for i in range(20)])
    few = watched_rows(WatchRecipe(every=1, prompts=5), tmp_path)
    assert len({row["id"] for row in few}) == 5
    assert all(row["id"].startswith("reward_validation-") for row in few)
    assert few == watched_rows(WatchRecipe(every=3, prompts=5, keep="best"), tmp_path)
    assert len(watched_rows(WatchRecipe(every=1, prompts=64), tmp_path)) == 20
    assert watched_rows(WatchRecipe(), tmp_path) == []


@METHODS
def test_looking_changes_nothing_and_sees_the_policy_improve(tokenizer, tmp_path, kind):
    plain, watched = work(tmp_path, "plain"), work(tmp_path, "watched")
    expected = train(kind, tokenizer, plain, updates=10)
    watch = {"every": 4, "checks": ["tests.tiny_policies:ends_in_an_apple"]}
    history = train(kind, tokenizer, watched, updates=10, watch=watch)
    assert weights(plain) == weights(watched)
    seen = {i: metrics for i, metrics in enumerate(history, 1) if "watch/win_rate" in metrics}
    assert list(seen) == [4, 8, 10]
    without = [{name: m[name] for name in m if not name.startswith("watch/")} for m in history]
    assert without == expected
    assert seen[10]["watch/win_rate"] > 0.7 and seen[10]["watch/judge"] > seen[4]["watch/judge"] > 0
    assert all(
        0 <= m["watch/win_rate_low"] <= m["watch/win_rate"] <= m["watch/win_rate_high"] <= 1 for m in seen.values()
    )
    assert seen[10]["watch/ends_in_an_apple"] > 0.2
    table = json.loads((watched.out / "report" / "updates.json").read_text())
    column = [row[table["columns"].index("watch/win_rate")] for row in table["data"]]
    assert [i for i, rate in enumerate(column, 1) if rate is not None] == [4, 8, 10]
    assert watched.metrics["watch/win_rate"] == seen[10]["watch/win_rate"] and watched.metrics["updates"] == 10
    assert watched.metrics["best_update"] == best_update(history)
    assert plain.metrics.items() <= watched.metrics.items()


@METHODS
@pytest.mark.parametrize("adapter", [LoraRecipe(), FullRecipe()])
def test_the_artifact_holds_the_best_policy(tokenizer, tmp_path, kind, adapter):
    """To a judge of the contrary opinion training only makes it worse: what is kept is the policy of the first look."""
    short, long = work(tmp_path, "short"), work(tmp_path, "long")
    changes = {"adapter": adapter, "learning_rate": 5e-3}
    train(kind, tokenizer, short, updates=2, **changes)
    watch = {"every": 2, "judge": "tests.tiny_policies:no_apples", "keep": "best"}
    history = train(kind, tokenizer, long, watch=watch, **changes)
    rates = [metrics["watch/win_rate"] for metrics in history if "watch/win_rate" in metrics]
    assert rates[0] == max(rates) and rates[-1] < 0.4
    assert weights(long, adapter.kind) == weights(short, adapter.kind)
    assert long.metrics["best_update"] == 2 and long.metrics["updates"] == 6
    assert long.metrics["reward"] == short.metrics["reward"], "figures are of the policy that is kept"
    assert long.metrics["watch/win_rate"] == rates[0]


@METHODS
def test_patience_ends_training(tokenizer, tmp_path, kind):
    here = work(tmp_path)
    watch = {"every": 1, "patience": 2, "keep": "best", "judge": "tests.tiny_policies:indifferent"}
    history = train(kind, tokenizer, here, watch=watch)
    assert [metrics["watch/win_rate"] for metrics in history] == [0.5, 0.5, 0.5]
    assert here.metrics["updates"] == 3 and here.metrics["best_update"] == 1


@METHODS
def test_a_kl_over_the_limit_ends_training(tokenizer, tmp_path, kind):
    here = work(tmp_path)
    history = train(kind, tokenizer, here, stop_kl=0.3, updates=12, watch={"every": 5})
    assert 1 < len(history) < 12
    assert history[-1]["kl"] > 0.3 >= max(metrics["kl"] for metrics in history[:-1])
    assert "watch/win_rate" in history[-1], "the policy it ends with is looked at"


class Killed(Exception):
    pass


@METHODS
@pytest.mark.parametrize(("killed", "judge"), [(1, "apples"), (3, "no_apples"), (4, "apples"), (6, "no_apples")])
def test_a_kill_changes_nothing(tokenizer, tmp_path, kind, killed, judge):
    """Killed between what is seen at an update and the checkpoint after it."""
    watch = {"every": 2, "keep": "best", "patience": 2, "judge": f"tests.tiny_policies:{judge}"}
    whole, cut = work(tmp_path, "whole"), work(tmp_path, "cut", checkpoint_seconds=0.0)
    expected = train(kind, tokenizer, whole, watch=watch)

    def kill(metrics, step):
        if step == killed:
            raise Killed

    cut.on_log = kill
    with pytest.raises(Killed):
        train(kind, tokenizer, cut, watch=watch)
    steps = []
    cut.on_log = lambda metrics, step: steps.append(step)
    assert train(kind, tokenizer, cut, watch=watch) == expected
    assert steps[0] == killed
    assert weights(cut) == weights(whole)
    assert cut.metrics == whole.metrics


def test_only_the_best_is_stored(tokenizer, tmp_path):
    here = work(tmp_path, checkpoint_seconds=0.0)
    history = train(PpoRecipe, tokenizer, here, updates=8, watch={"every": 1, "keep": "best"})
    assert best_update(history) > 2
    kept = sorted(path.name for path in here.scratch.glob("best-*"))
    assert len(kept) <= 2 and kept[-1] == f"best-{best_update(history):06d}"


@pytest.fixture
def direct(tmp_path, chain):
    """The inputs of a direct method, and prompts to watch it on."""
    rows = [{"prompt": [{"role": "user", "content": f"Where is item {n}?"}]} for n in range(6)]
    write_jsonl(tmp_path / "prompts" / "reward_validation.jsonl", rows)
    write_jsonl(tmp_path / "prompts" / "rl.jsonl", rows)
    return chain | {"data": tmp_path / "prompts"}


def shortness(row, completion):
    """A judge of no taste: fewer characters are better."""
    return -float(len(completion))


DIRECT = {"epochs": 3, "batch_size": 4, "max_new_tokens": 8, "adapter": {"kind": "lora", "rank": 4}}


@pytest.mark.parametrize("kind", [DpoRecipe, KtoRecipe, SimpoRecipe])
def test_direct_methods_are_watched_by_optimiser_steps(direct, tmp_path, kind):
    plain, watched = work_in(tmp_path / "plain"), work_in(tmp_path / "watched")
    train_direct(kind.model_validate(DIRECT), direct, plain)
    curve = []
    watched.on_log = lambda metrics, step: curve.append((step, metrics)) if "watch/judge" in metrics else None
    watch = {"every": 5, "judge": "tests.test_watch:shortness", "checks": ["tests.tiny_policies:ends_in_an_apple"]}
    train_direct(kind.model_validate(DIRECT | {"watch": watch}), direct, watched)
    assert weights(plain) == weights(watched), "looking changes nothing"
    assert [step for step, _ in curve] == [0, 5, 10, 12] and watched.metrics["updates"] == 12
    first, last = curve[0][1], curve[-1][1]
    assert first["watch/win_rate"] == 0.5 and first["watch/kl"] == pytest.approx(0, abs=1e-4) != last["watch/kl"]
    assert {"win_rate_low", "win_rate_high", "length", "finished_share", "entropy"} <= {n.split("/")[1] for n in last}
    assert first["watch/entropy"] > 0 and 0 < last["watch/length"] <= 8
    assert watched.metrics["watch/win_rate"] == last["watch/win_rate"]


def test_looking_consumes_no_dropout(tmp_path):
    """GPT-2 drops out in training; the KL of a look is that of the model as it is used."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    policy = attach(GPT2LMHeadModel(config), LoraRecipe(rank=4)).train()
    here = work(tmp_path)
    limits = Limits(WatchRecipe(every=1, judge="tests.tiny_policies:apples"), 6, updates=2)
    watch = Watch(limits, policy, word_tokenizer(), SLICE, None, here)
    before = torch.random.get_rng_state()
    watch.begin()
    assert watch.look([{}])["watch/kl"] == pytest.approx(0, abs=1e-4)
    assert torch.equal(before, torch.random.get_rng_state()) and policy.training


@pytest.mark.parametrize("train", [train_direct, train_rejection])
def test_the_best_policy_by_steps_survives_a_kill(direct, tmp_path, train):
    """The judge likes the start best, so the first look is the best one; and a killed run ends with the same bytes."""
    watch = {"every": 3, "keep": "best", "patience": 2, "judge": "tests.test_watch:shortness"}
    recipe = DpoRecipe.model_validate(DIRECT | {"watch": watch, "learning_rate": 5e-3})
    if train is train_rejection:
        sampled = {"samples": 4, "keep": 2, "rewards": [{"kind": "length", "least": 5, "per": 1}], "batch_size": 2}
        recipe = RejectionRecipe.model_validate(DIRECT | sampled | {"watch": watch, "max_new_tokens": 24})
    whole, cut = work_in(tmp_path / "whole"), work_in(tmp_path / "cut")
    train(recipe, direct, whole)
    rates = []

    def kill(metrics, step):
        if "watch/win_rate" in metrics:
            rates.append(step)
        if len(rates) == 2:  # the start, and one look
            raise Killed

    cut.on_log, cut.checkpoint_seconds = kill, 0.0
    with pytest.raises(Killed):
        train(recipe, direct, cut)
    cut.on_log = lambda metrics, step: None
    train(recipe, direct, cut)
    assert weights(cut) == weights(whole)
    assert cut.metrics["best_update"] == whole.metrics["best_update"]
    best = whole.scratch / f"best-{int(whole.metrics['best_update']):06d}"
    assert (best / WEIGHTS["lora"]).read_bytes() == weights(whole)


def test_a_direct_method_is_watched_by_a_judge_only():
    with pytest.raises(ValidationError, match="watch needs a judge here"):
        DpoRecipe.model_validate({"watch": {"every": 3}})


def test_what_goes_by_looks_needs_looks():
    for given in ({"keep": "best"}, {"patience": 3}):
        with pytest.raises(ValidationError, match="set every"):
            WatchRecipe.model_validate(given)
