"""The direct methods on tiny models: every loss by hand, what each learns, and that it starts from its reference."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from flows.recipe import PolicyRecipe
from tasks.artifact import PipelineError, read_jsonl
from tasks.models.adapters import FullRecipe, LoraRecipe, attach
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.training.direct import (
    DIRECT,
    AnyDirect,
    DpoRecipe,
    IpoRecipe,
    KtoRecipe,
    OrpoRecipe,
    SimpoRecipe,
    train_direct,
)
from tasks.training.direct_engine import DirectTrainer, check_start, fit_direct, group_logps
from tasks.training.direct_losses import Judged, kto_losses, log_odds, pair_losses, rewards
from tasks.training.engine_pairs import collate_groups, group_preferences, mismatch
from tests.tiny_models import (
    preference,
    tiny_model,
    tiny_tokenizer,
    trainer_loss,
    work_in,
)

ADAPTER = LoraRecipe(rank=4)
ALL: list[AnyDirect] = [DpoRecipe(), IpoRecipe(), KtoRecipe(), OrpoRecipe(), SimpoRecipe()]


# Two pairs of three completions with 2, 4 and 5 tokens; log-ratios to the reference of 0.5, -1 and 0.
LOGPS, COUNTS, REFERENCE = (-1.5, -5.0, -4.0), (2, 4, 5), (-2.0, -4.0, -4.0)
JUDGED = Judged(
    logps=torch.tensor(LOGPS),
    counts=torch.tensor(COUNTS),
    reference=torch.tensor(REFERENCE),
    chosen=torch.tensor([0, 2]),
    rejected=torch.tensor([1, 0]),
    margins=torch.tensor([0.2, 0.4]),
)


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def _odds(logp: float) -> float:
    return math.log(math.exp(logp) / (1 - math.exp(logp)))


H = (0.1 * (0.5 + 1.0), 0.1 * (0.0 - 0.5))
MEAN = (0.1 * (0.25 + 0.25), 0.1 * (0.0 - 0.25))
"""DPO's differences of rewards with beta 0.1: whole, and per token."""


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (DpoRecipe(), [-_log_sigmoid(h) for h in H]),
        (DpoRecipe(margin=0.5), [-_log_sigmoid(H[0] - 0.1), -_log_sigmoid(H[1] - 0.2)]),
        (DpoRecipe(length_normalised=True), [-_log_sigmoid(h) for h in MEAN]),
        (DpoRecipe(label_smoothing=0.2), [-0.8 * _log_sigmoid(h) - 0.2 * _log_sigmoid(-h) for h in H]),
        (
            DpoRecipe(label_smoothing=0.2, smoothing="robust"),
            [(-0.8 * _log_sigmoid(h) + 0.2 * _log_sigmoid(-h)) / 0.6 for h in H],
        ),
        (IpoRecipe(length_normalised=True), [(h / 0.1 - 5) ** 2 for h in MEAN]),
        (IpoRecipe(beta=0.5), [(1.5 - 1) ** 2, (-0.5 - 1) ** 2]),
        (
            OrpoRecipe(beta=0.25),
            [-0.25 * _log_sigmoid(_odds(-0.75) - _odds(-1.25)), -0.25 * _log_sigmoid(_odds(-0.8) - _odds(-0.75))],
        ),
        (SimpoRecipe(beta=2, gamma=0.3), [-_log_sigmoid(2 * 0.5 - 0.3), -_log_sigmoid(2 * -0.05 - 0.3)]),
    ],
)
def test_losses_by_hand(recipe: AnyDirect, expected: list[float]) -> None:
    assert pair_losses(recipe, JUDGED).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_robust_loss_is_the_clean_loss_on_average() -> None:
    """With a share e of flipped pairs its expectation is DPO's on the true order (Chowdhury et al. 2024, lemma 3.1)."""
    e = 0.3
    recipe = DpoRecipe(label_smoothing=e, smoothing="robust")
    flipped = Judged(**{**vars(JUDGED), "chosen": JUDGED.rejected, "rejected": JUDGED.chosen})
    expected = (1 - e) * pair_losses(recipe, JUDGED) + e * pair_losses(recipe, flipped)
    torch.testing.assert_close(expected, pair_losses(DpoRecipe(), JUDGED))


def test_the_kto_loss_by_hand() -> None:
    recipe = KtoRecipe(desirable_weight=2, undesirable_weight=0.5)
    ratios, kl = torch.tensor([0.5, -1.0]), torch.tensor(0.25)
    losses = kto_losses(recipe, ratios, torch.tensor([True, False]), kl)
    good, bad = 1 / (1 + math.exp(-0.1 * 0.25)), 1 / (1 + math.exp(0.1 * -1.25))
    assert losses.tolist() == pytest.approx([2 * (1 - good), 0.5 * (1 - bad)], abs=1e-6)


def test_log_odds_stay_finite_for_a_certain_completion() -> None:
    assert log_odds(torch.tensor([math.log(0.25)])).item() == pytest.approx(math.log(1 / 3), abs=1e-6)
    sure = torch.zeros(1, requires_grad=True)
    log_odds(sure).sum().backward()
    assert torch.isfinite(log_odds(sure)).all() and sure.grad is not None and torch.isfinite(sure.grad).all()


def test_a_mismatched_completion_is_another_prompts_and_no_longer_than_the_group() -> None:
    tokenizer = tiny_tokenizer()
    groups = group_preferences([preference("a", "x", "yy"), preference("bb", "uuu", "v")], tokenizer)
    before, lengths = [list(group.sequences) for group in groups], [group.length for group in groups]
    mismatch(groups)
    for group, other, old, length in zip(groups, reversed(before), before, lengths, strict=True):
        assert group.mismatched == len(old) and group.sequences[: len(old)] == old and group.length == length
        extra, cut = group.sequences[-1], group.prompt_length
        whole = other[0][groups[0].prompt_length if other is before[0] else groups[1].prompt_length :]
        assert extra[:cut] == old[0][:cut] and extra[cut:] == whole[: len(extra) - cut] != []
    for group in groups:
        group.reference = [0.0] * len(group.sequences)
    batch = collate_groups(groups, 0)
    assert batch["mismatched"].tolist() == [2, 5] and set(batch["chosen"].tolist()) == {0, 3}


def test_dpo_starts_at_ln_2_and_weighs_pairs() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model().eval()
    groups = group_preferences([preference("a", "x", "yy", weight=0.5), preference("b", "u", "v")], tokenizer)
    for group, logps in zip(groups, group_logps(model, groups, 0, 8), strict=True):
        group.reference = logps
    recipe = DpoRecipe(beta=0.1, sft_weight=0)
    assert trainer_loss(DirectTrainer, model, collate_groups(groups, 0), recipe) == pytest.approx(math.log(2), abs=1e-5)
    check_start(attach(model, ADAPTER), groups, 0, 8)
    own = [list(group.reference) for group in groups]
    groups[0].reference[0] -= 3.0  # as if the policy had come to like the first chosen one by 3 nats
    loss = trainer_loss(DirectTrainer, model, collate_groups(groups, 0), recipe)
    assert loss == pytest.approx((0.5 * math.log1p(math.exp(-0.3)) + math.log(2)) / 1.5, abs=1e-5)
    with pytest.raises(PipelineError, match="would not start from its reference"):
        check_start(model, groups, 0, 8)
    groups[0].reference[0] += 3.0
    tilted = trainer_loss(DirectTrainer, model, collate_groups(groups, 0), DpoRecipe(beta=0.1, sft_weight=1.0))
    chosen = [(own[0][0], len("x") + 1, 0.5), (own[1][0], len("u") + 1, 1.0)]
    assert tilted == pytest.approx(math.log(2) + sum(w * -logp / n for logp, n, w in chosen) / 1.5, abs=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_training_starts_at_the_reference_whatever_dropout_the_base_has(tmp_path: Path, kind: str) -> None:
    rows = [preference(f"Where is item {n}?", "Aisle 3. Thank you!", "Go away.") for n in range(8)]
    work, seen = work_in(tmp_path), []
    work.on_log = lambda metrics, step: seen.append(metrics)
    recipe = DpoRecipe(adapter=ADAPTER, epochs=1, sft_weight=0, batch_size=8)
    fit_direct(tiny_model(kind).eval(), lambda model: attach(model, ADAPTER), tiny_tokenizer(), rows, recipe, work)
    assert seen[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "one step, all pairs in it"


@pytest.mark.parametrize("recipe", ALL, ids=DIRECT)
@pytest.mark.parametrize("adapter", [ADAPTER, FullRecipe()], ids=["lora", "full"])
def test_every_method_learns_the_preference(
    tmp_path: Path, chain: dict[str, Path], recipe: AnyDirect, adapter: LoraRecipe | FullRecipe
) -> None:
    work = work_in(tmp_path / "work", seed=1)
    curve: list[dict[str, float]] = []
    work.on_log = lambda metrics, step: curve.append(dict(metrics))
    recipe = recipe.model_copy(update={"adapter": adapter, "epochs": 20, "learning_rate": 2e-3})
    train_direct(recipe, chain, work)
    assert curve[0]["rewards/accuracies"] < curve[-1]["rewards/accuracies"] > 0.95
    assert {"loss", "rewards/margins", "logps/chosen", "length/chosen"} <= set(curve[0])
    assert ("log_ratio/chosen" in curve[0]) == (recipe.method not in ("orpo", "simpo"))
    tokenizer = load_tokenizer(chain["base"])
    groups = group_preferences(read_jsonl(chain["preferences"] / "validation.jsonl"), tokenizer)
    reference = group_logps(load_causal_lm([chain["base"], chain["sft"]]), groups, 0, 8)
    policy = group_logps(load_causal_lm([chain["base"], chain["sft"], work.out]), groups, 0, 8)
    for own, old, group in zip(policy, reference, groups, strict=True):
        assert all((own[w] - old[w]) > (own[l_] - old[l_]) for w, l_, _, _ in group.pairs)
    if adapter.kind == "lora":
        assert all("lora_" in name for name in load_file(work.out / "adapter" / "adapter_model.safetensors"))


def test_kto_takes_what_won_more_as_good_and_leaves_out_the_rest() -> None:
    """Of a > b, a > c, b > c: a is good, c is bad, b says nothing."""
    tokenizer, model = tiny_tokenizer(), tiny_model().eval()
    rows = [preference("q", "a", "b"), preference("q", "a", "c"), preference("q", "b", "c")]
    groups = group_preferences(rows, tokenizer)
    mismatch(groups)
    groups[0].reference = group_logps(model, groups, 0, 8)[0]
    batch = collate_groups(groups, 0)
    trainer = object.__new__(DirectTrainer)
    trainer.recipe = KtoRecipe(sft_weight=0)
    assert trainer.items(batch) == 2
    batch["items"] = 2
    assert trainer_loss(DirectTrainer, model, batch, trainer.recipe) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "dpo", "smoothing": "robust"}, "needs label_smoothing"),
        ({"method": "dpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"method": "kto", "margin": 0.5}, "margin"),
        ({"method": "orpo", "sft_weight": 0}, "greater than 0"),
        ({"method": "xpo"}, "'dpo', 'ipo', 'kto', 'orpo', 'simpo'"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], words: str) -> None:
    from pydantic import TypeAdapter

    with pytest.raises(ValidationError, match=words):
        TypeAdapter(PolicyRecipe).validate_python(given)


def test_rewards_are_what_the_loss_widens() -> None:
    assert rewards(SimpoRecipe(beta=2), JUDGED).tolist() == pytest.approx([-1.5, -2.5, -1.6])
    assert rewards(KtoRecipe(), JUDGED).tolist() == pytest.approx([0.05, -0.1, 0.0])
