"""What people and a judge model are said to do, by the recipe that says who judges what."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.costs import show_costs
from flows.recipe import LifecycleRecipe
from tasks.artifact import read_jsonl, write_jsonl
from tasks.data.prepare import prepare_data
from tasks.estimating import Prices, estimate, lengths_of
from tasks.models.pretrain import build_base
from tasks.probing import Probe
from tasks.recipe import load_recipe
from tests.lifecycle_runs import TINY
from tests.tiny_models import demonstrations, work_in

JUDGE = '{ kind = "endpoint", url = "http://127.0.0.1:9/v1", model = "big", prompt_price = 3.0, completion_price = 15.0'


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tasks.estimating.probe", lambda config: Probe(token=1e-4, decoded=1e-3))
    monkeypatch.setattr("tasks.estimating.memory_of", lambda *given: {"parameters": 1, "rule": 4.8, "total": 4.8})
    work = work_in(tmp_path)
    prepare_data(load_recipe(LifecycleRecipe, TINY).data, {}, work)
    return work.out


def _estimate(data: Path, *values: str) -> dict[str, Any]:
    recipe = load_recipe(LifecycleRecipe, TINY, ["label.source=people", *values])
    return estimate(recipe, Prices(label_hour=36.0, seconds_per_judgement=100), data)


def test_people_judge_what_the_recipe_gives_them(data: Path, tmp_path: Path) -> None:
    records = sum(len(read_jsonl(data / f"reward_{split}.jsonl")) for split in ("train", "validation"))
    held_out = len(read_jsonl(data / "evaluation.jsonl"))
    assert _estimate(data)["judgements"] == 2 * records
    assert _estimate(data, "label.repeats=0.5")["judgements"] == 2 * (records + -(-records // 2))
    few = _estimate(data, "select.method=random", "select.budget_judgements=21")
    assert few["judgements"] == 20 and few["label_hours"] == pytest.approx(2000 / 3600)
    rows = {row["stage"]: row["tokens"] for row in few["stages"]}
    assert rows["reward"] < {row["stage"]: row["tokens"] for row in _estimate(data)["stages"]}["reward"]
    gold = tmp_path / "gold.jsonl"
    write_jsonl(gold, [{"prompt": "?", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}] * 5)
    assert _estimate(data, f"label.gold={gold}")["judgements"] == 2 * (records + 5)
    blind = _estimate(data, "gate.people=beside", "blind.pairs.n=7")
    assert held_out > 7 and blind["judgements"] == 2 * (records + 7) and "unless no candidate" in blind["notes"][0]


def test_a_judge_takes_work_from_people_and_has_its_price(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = sum(len(read_jsonl(data / f"reward_{split}.jsonl")) for split in ("train", "validation"))
    given = ('label.ai.use="ai_only"', "label.ai.audit_share=0.1", f"label.ai.judge={JUDGE} }}")
    found = _estimate(data, *given)
    judge = found["judge"]
    assert found["judgements"] == 2 * -(-records // 10)
    assert judge["questions"] == 2 * records and judge["completion_tokens"] == 512 * judge["questions"]
    assert judge["cost"] == pytest.approx((3 * judge["prompt_tokens"] + 15 * judge["completion_tokens"]) / 1e6)
    assert found["cost"] == pytest.approx(found["judgements"] + judge["cost"])
    pairs = _estimate(data, *given, "label.ai.asking=pairs")["judge"]
    assert pairs["questions"] == 6 * records, "three completions of a prompt, each two in both orders"
    capped = _estimate(data, *given[:2], f"label.ai.judge={JUDGE}, budget = 0.01 }}")
    assert capped["judge"]["cost"] == 0.01
    routed = _estimate(data, 'label.ai.use="route"', *given[1:])
    assert routed["judgements"] == 2 * records and "not sure of" in routed["notes"][0]
    local = _estimate(data, *given[:2], 'label.ai.judge={ kind = "local", model = "sft" }')
    assert local["judge"] is None and local["judgements"] == found["judgements"]


def test_what_the_judge_is_paid_is_told(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("trainable", "weights", "gradients", "optimizer", "activations", "cache")
    empty = {"parameters": 1, "rule": 4.8, "total": 4.8, **dict.fromkeys(parts)}
    monkeypatch.setattr("tasks.estimating.memory_of", lambda *given: empty)
    monkeypatch.setattr("flows.costs.prepared", lambda *given: (data, None))
    given = ['label.ai.use="ai_only"', f"label.ai.judge={JUDGE} }}", "label.source=people", "rounds=2"]
    recipe = load_recipe(LifecycleRecipe, TINY, given)
    show_costs(recipe, Prices(), as_json=True)
    found = json.loads(capsys.readouterr().out)
    show_costs(recipe, Prices(), as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{found['judge']['questions']} questions to the judge model in each round" in said
    assert f"{2 * found['judge']['cost']:,.2f} in all" in said


def test_rounds_train_the_base_and_sft_once_and_learn_from_all_judgements(data: Path) -> None:
    one, three = _estimate(data), _estimate(data, "rounds=3")
    hours = {row["stage"]: row["hours"] for row in one["stages"]}
    once = hours.pop("base") + hours.pop("sft")
    grows = hours.pop("reward") + hours.pop("dpo")
    assert three["machine_hours"] == pytest.approx(once + 6 * grows + 3 * sum(hours.values()))
    assert three["judgements"] == 3 * one["judgements"]


def test_a_stage_of_sft_is_counted_by_its_own_mixture(data: Path) -> None:
    demonstrations(data, 6)
    (data / "sft.jsonl").rename(data / "sft.polish.jsonl")
    prepare_data(load_recipe(LifecycleRecipe, TINY).data, {}, work_in(data / "again"))
    (data / "again" / "out" / "sft.jsonl").rename(data / "sft.jsonl")
    recipe = load_recipe(LifecycleRecipe, TINY)
    first = recipe.sft.model_copy(update={"mixture": None})
    polished = first.model_copy(update={"mixture": "polish", "epochs": 2})
    lengths = lengths_of(recipe.base, data, 0)[0]
    assert len(lengths.mixtures["polish"].sft) == 6 < len(lengths.sft)
    stages = type("Stages", (), {"in_turn": lambda self: [first, polished]})()
    rows = estimate(recipe.model_copy(update={"sft": stages}), Prices(), data)["stages"]
    tokens = {row["stage"]: row["tokens"] for row in rows}
    assert tokens["sft polish"] == 2 * sum(lengths.mixtures["polish"].sft) and tokens["sft"] == sum(lengths.sft)


def test_a_base_is_pretrained_on_as_many_tokens_as_its_text_has(data: Path, tmp_path: Path) -> None:
    recipe, work = load_recipe(LifecycleRecipe, TINY), work_in(tmp_path / "base")
    build_base(recipe.base, {}, work)
    said = next(row["tokens"] for row in _estimate(data)["stages"] if row["stage"] == "base")
    assert said == pytest.approx(work.metrics["tokens"] * recipe.base.epochs, rel=0.05)
