"""SFT in stages: each learns from a mixture of its own and goes on from what the one before made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from flows.lifecycle import SFT, build_round, build_sft
from flows.recipe import LifecycleRecipe
from tasks.artifact import Artifact, InputError, Row, read_jsonl, write_jsonl
from tasks.data.preview import table
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.store import Order
from tasks.training.ppo import PpoRecipe, _demonstrations
from tasks.training.sft import SftRecipe, train_sft
from tasks.training.sft_engine import encode_rows
from tests.test_mixture import alpaca, prepare
from tests.tiny_models import tiny_base, work_in

STAGES: list[Row] = [{"name": "polish", "sets": ["fine"], "mix": {"rows": 30}}]


def sets(folder: Path) -> list[Row]:
    coarse, fine = alpaca(folder / "coarse.jsonl", 80), alpaca(folder / "fine.jsonl", 40, 1000)
    return [{"name": "coarse", "kind": "json", "path": coarse}, {"name": "fine", "kind": "json", "path": fine}]


def recipe(data: Row, **sft: Any) -> LifecycleRecipe:
    return LifecycleRecipe.model_validate({"name": "s", "data": data, "sft": sft, "policy": [{"method": "dpo"}]})


def test_every_stage_has_a_mixture_and_the_splits_stay_the_same(tmp_path: Path) -> None:
    plain = prepare(tmp_path / "plain", sets=sets(tmp_path))
    staged = prepare(tmp_path / "staged", sets=sets(tmp_path), stages=STAGES)
    for file in ("sft", "evaluation", "ledger"):
        assert (plain.out / f"{file}.jsonl").read_bytes() == (staged.out / f"{file}.jsonl").read_bytes()
    polish = read_jsonl(staged.out / "sft.polish.jsonl")
    assert len(polish) == 30 == staged.metrics["rows/sft.polish"] and {row["set"] for row in polish} == {"fine"}
    assert {row["id"] for row in polish} <= {row["id"] for row in read_jsonl(staged.out / "sft.jsonl")}
    assert [row["rows"] for row in table(staged.out, "mixture polish")] == [0, 30]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_stage_goes_on_from_the_one_before_on_the_same_base(tmp_path: Path, kind: str) -> None:
    data = prepare(tmp_path / "data", sets=sets(tmp_path), stages=STAGES).out
    base = tiny_base(tmp_path / "base")
    settings: Any = {"adapter": {"kind": kind}, "epochs": 2, "stages": [{"mixture": "polish", "learning_rate": 1e-9}]}
    first, second = SftRecipe(**settings).in_turn()
    assert (second.mixture, second.learning_rate, second.epochs, second.stages) == ("polish", 1e-9, 2, ())
    one, two = work_in(tmp_path / "one"), work_in(tmp_path / "two")
    train_sft(first, {"base": base, "data": data}, one)
    train_sft(second, {"base": base, "data": data, "earlier": one.out}, two)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before, after, start = (
            load_causal_lm([base, *more])(input_ids=ids).logits for more in ([one.out], [two.out], [])
        )
    assert torch.allclose(before, after, atol=1e-4), "at a rate of nothing it stays what the first stage made"
    assert not torch.allclose(before, start, atol=1e-2)
    moved = work_in(tmp_path / "moved")
    train_sft(
        second.model_copy(update={"learning_rate": 1e-2}), {"base": base, "data": data, "earlier": one.out}, moved
    )
    with torch.no_grad():
        assert not torch.allclose(load_causal_lm([base, moved.out])(input_ids=ids).logits, before, atol=1e-2)
    with pytest.raises(InputError, match=r"sft\.none\.jsonl does not exist"):
        train_sft(second.model_copy(update={"mixture": "none"}), {"base": base, "data": data}, work_in(tmp_path / "x"))


def test_the_lifecycle_orders_stages_one_after_the_other(tmp_path: Path) -> None:
    data = {"source": "mixture", "sets": sets(tmp_path), "stages": STAGES}
    orders: list[Order] = []

    class Looking:
        def one(self, order: Order) -> Artifact:
            orders.append(order)
            return artifact(str(len(orders)))

    def artifact(name: str) -> Artifact:
        return Artifact(name, "sft", name, tmp_path, "", {})

    base, prepared = artifact("base"), artifact("data")
    built = build_sft(recipe(data, stages=[{"mixture": "polish", "epochs": 1}]), Looking(), base, prepared)  # type: ignore[arg-type]
    assert [order.name for order in orders] == ["sft", "sft polish"] and built.key == "2"
    assert [sorted(order.inputs) for order in orders] == [["base", "data"], ["base", "data", "earlier"]]
    assert orders[1].inputs["earlier"].key == "1"


@pytest.mark.parametrize(
    ("stages", "sft", "message"),
    [
        ([], {"stages": [{"mixture": "polish"}]}, "learns from the mixture 'polish', which 'data.stages' lacks"),
        (STAGES, {}, "'data.stages' has 'polish', which 'sft.stages' does not learn from"),
        ([{"name": "a", "sets": ["none"]}], {}, "the stage 'a' names the set 'none'"),
        (STAGES, {"stages": [{"mixture": "polish"}], "adapter": {"kind": "prompt_tuning"}}, "cannot go on training"),
    ],
)
def test_stages_that_do_not_fit_are_refused(tmp_path: Path, stages: list[Row], sft: Row, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe({"source": "mixture", "sets": sets(tmp_path), "stages": stages}, **sft)


@pytest.mark.parametrize("turns", ["all", "last"])
def test_ppo_keeps_what_all_stages_of_sft_taught(tmp_path: Path, turns: str) -> None:
    """The demonstrations beside PPO's rewards are the rows that SFT saw, with the loss where SFT had it."""
    data = prepare(tmp_path / "data", sets=sets(tmp_path), stages=STAGES).out
    rows = read_jsonl(data / "sft.polish.jsonl")
    talk = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    write_jsonl(data / "sft.polish.jsonl", [*rows, {"messages": talk}])
    taught = recipe(
        {"source": "mixture", "sets": sets(tmp_path), "stages": STAGES}, turns=turns, stages=[{"mixture": "polish"}]
    ).sft
    policy = PpoRecipe(ptx_coefficient=0.5).after_sft(taught.mixtures(), taught.turns)
    base, work = tiny_base(tmp_path / "base"), work_in(tmp_path / "ppo")
    tokenizer = load_tokenizer(base)
    found = _demonstrations(policy, data, tokenizer, load_causal_lm([base]), work)
    learnt = [read_jsonl(data / name) for name in ("sft.jsonl", "sft.polish.jsonl")]
    assert found == [each for rows in learnt for each in encode_rows(rows, tokenizer, taught.turns)]
    said = [tokenizer.decode([i for i, m in zip(found[-1].input_ids, found[-1].labels_mask, strict=True) if m])]
    assert ("assistant 0" in said[0]) == (turns == "all") and "assistant 1" in said[0] and "user" not in said[0]
    assert PpoRecipe().after_sft(taught.mixtures(), taught.turns) == PpoRecipe(), "without it nothing is rebuilt"


def test_the_lifecycle_says_to_ppo_what_sft_learnt(tmp_path: Path) -> None:
    class Asked(Exception):
        pass

    class Looking:
        def one(self, order: Order) -> Artifact:
            return Artifact(order.name, "x", order.name, tmp_path, "", {"accuracy": 1.0})

        by_people = one

        def side_by_side(self, orders: list[Order]) -> list[Artifact]:
            if any(isinstance(order.part, PpoRecipe) for order in orders):
                raise Asked(orders[0].part)
            return [self.one(order) for order in orders]

        def require(self, check: Any) -> None:
            pass

    values = {"source": "mixture", "sets": sets(tmp_path), "stages": STAGES}
    whole = LifecycleRecipe.model_validate(
        {"name": "s", "data": values, "sft": {"turns": "last", "stages": [{"mixture": "polish"}]},
         "policy": [{"method": "ppo", "ptx_coefficient": 0.1}]}
    )  # fmt: skip
    anything = Looking().one(Order(SFT, whole.sft, {}, 0))
    with pytest.raises(Asked) as asked:
        build_round(whole, Looking(), None, 1, anything, anything, anything, None, [])  # type: ignore[arg-type]
    assert (asked.value.args[0].ptx_mixtures, asked.value.args[0].ptx_turns) == (("", "polish"), "last")
    with pytest.raises(ValidationError, match="'ptx_mixtures' names the mixture 'none'"):
        LifecycleRecipe.model_validate({**whole.model_dump(), "policy": [{"method": "ppo", "ptx_mixtures": ["none"]}]})
