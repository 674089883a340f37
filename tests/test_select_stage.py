"""The selection stage on a tiny random model: which rows and completions come out, under which budget, and why."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.artifact import InputError, Message, Row, Work, read_jsonl, write_jsonl
from tasks.labels.recipe import LabelRecipe
from tasks.labels.round import plan_of
from tasks.labels.selection import SelectRecipe, select_completions
from tasks.recipe import identity
from tests.tiny_models import demonstrations, preferences, tiny_base, work_in

LABEL = LabelRecipe(min_submitted=2, people=("one", "two"))
TEXTS = ("Aisle 4. Thank you!", "In 4.", "Go away.", "Aisle 9, I think.", "In 4.")


def rows(train: int = 30, validation: int = 10, texts: tuple[str, ...] = TEXTS) -> list[Row]:
    return [
        {
            "id": f"{number:016x}",
            "split": "train" if number < train else "validation",
            "prompt": [{"role": "user", "content": f"Where is item {number}?"}],
            "reference": {"known": True},
            "stratum": "even" if number % 3 else "odd",
            "completions": [
                {"id": f"{number:016x}-{k}", "text": text, "tokens": 3, "finished": k != 3}
                for k, text in enumerate(texts)
            ],
        }
        for number in range(train + validation)
    ]


def completions(folder: Path, pool: list[Row]) -> dict[str, Path]:
    write_jsonl(folder / "completions.jsonl", pool)
    return {"completions": folder}


def select(
    tmp_path: Path, pool: list[Row], inputs: dict[str, Path] | None = None, seed: int = 0, **recipe: Any
) -> tuple[list[Row], list[Row], Work]:
    """Chosen rows, the explanations, and the work."""
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    work = work_in(folder, seed)
    given = completions(folder / "in", pool) | (inputs or {})
    select_completions(SelectRecipe(**recipe).in_round(LABEL), given, work)
    return read_jsonl(work.out / "completions.jsonl"), json.loads((work.out / "selection.json").read_text()), work


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base and a short SFT."""
    from tasks.models.adapters import LoraRecipe
    from tasks.training.sft import SftRecipe, train_sft

    folder = tmp_path_factory.mktemp("model")
    base = tiny_base(folder / "base")
    work = work_in(folder / "sft")
    given = {"base": base, "data": demonstrations(folder / "data")}
    train_sft(SftRecipe(adapter=LoraRecipe(rank=4), epochs=1), given, work)
    return {"base": base, "sft": work.out}


@pytest.fixture
def learnt(model: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A model, and the preferences of an earlier round."""
    return model | {"preferences": preferences(tmp_path / "preferences")}


def test_random_rows_in_the_sampled_form_within_the_budget(tmp_path: Path) -> None:
    pool = rows()
    chosen, why, work = select(tmp_path, pool, method="random", budget_judgements=41)
    assert len(chosen) == 20 and Counter(row["split"] for row in chosen) == {"train": 15, "validation": 5}
    assert all(row in pool for row in chosen)  # untouched, and in the pool's order
    assert [row["id"] for row in chosen] == sorted(row["id"] for row in chosen)
    assert [each["id"] for each in why] == [row["id"] for row in pool]
    assert {each["id"] for each in why if each["chosen"]} == {row["id"] for row in chosen}
    assert Counter(each["why"] for each in why) == {
        "drawn at random": 15,
        "drawn at random: validation": 5,
        "over the budget": 20,
    }
    assert work.metrics["judgements_planned"] == 40 and work.metrics["budget_used"] == pytest.approx(40 / 41)
    assert work.metrics["hours_planned"] == pytest.approx(40 / 60)
    assert (work.out / "report" / "selection.json").exists()
    assert len(plan_of(LABEL, chosen, 0).asked) == 20  # the labeling stage takes them


def test_hours_and_repeats_are_paid_for(tmp_path: Path) -> None:
    chosen, _, work = select(tmp_path, rows(), method="random", budget_hours=0.5, seconds_per_judgement=90)
    assert len(chosen) == 10 and work.metrics["hours_planned"] == pytest.approx(0.5)
    part = SelectRecipe(method="random", budget_judgements=24).in_round(LABEL.model_copy(update={"repeats": 0.2}))
    assert part.budget.records(40) == 10  # with two repeats


def test_a_budget_over_the_pool_takes_all_of_it(tmp_path: Path) -> None:
    chosen, _, work = select(tmp_path, rows(), method="random", budget_judgements=10_000)
    assert chosen == rows() and work.metrics["budget_used"] == pytest.approx(80 / 10_000)


def test_strata_keep_their_shares(tmp_path: Path) -> None:
    for strata, share in (("proportional", 4), ("equal", 6)):
        chosen, _, _ = select(tmp_path, rows(), method="stratified", strata=strata, budget_judgements=32)
        train = [row for row in chosen if row["split"] == "train"]
        assert len(train) == 12 and sum(row["stratum"] == "odd" for row in train) == share


def test_strata_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    pool = [{name: value for name, value in row.items() if name != "stratum"} for row in rows()]
    with pytest.raises(InputError, match="no row has one"):
        select(tmp_path, pool, method="stratified", budget_judgements=32)
    with pytest.raises(InputError, match=r"'reference.known.more' and no row"):
        select(tmp_path, pool, method="stratified", stratum="reference.known.more", budget_judgements=32)
    for row in pool[:10]:
        row["reference"] = {"kind": "price"}
    chosen, why, _ = select(tmp_path, pool, method="stratified", stratum="reference.kind", budget_judgements=32)
    priced = [row for row in chosen if row["reference"].get("kind")]
    assert len(priced) == 4 and all(row["stratum"] == "price" for row in priced)  # 12 of 30 training rows, 10 priced
    assert why[0]["stratum"] == "price" and why[-1]["stratum"] == ""


def test_a_diverse_batch_is_not_one_question_ten_times(tmp_path: Path) -> None:
    pool = rows(24, 4)
    for number, row in enumerate(pool[:20]):
        row["prompt"] = [{"role": "user", "content": "Which aisle has the bread?" + " " * number}]
    for row, text in zip(
        pool[20:24], ("Open on Sunday?", "How much is tea?", "May dogs come in?", "Who are you?"), strict=True
    ):
        row["prompt"] = [{"role": "user", "content": text}]
    chosen, _, diverse = select(tmp_path, pool, method="diverse", budget_judgements=12)
    assert {row["id"] for row in pool[20:24]} < {row["id"] for row in chosen}
    assert sum(row["id"] in {each["id"] for each in pool[:20]} for row in chosen) == 1
    _, _, at_random = select(tmp_path, pool, method="random", budget_judgements=12)
    assert diverse.metrics["similarity_to_nearest"] < at_random.metrics["similarity_to_nearest"]


def test_a_diverse_batch_keeps_away_from_what_was_judged(tmp_path: Path) -> None:
    pool = rows(4, 1)
    asked = ("Which aisle has the bread?", "Which aisle has bread?", "How much is the tea?", "May dogs come in?")
    for row, text in zip(pool, asked, strict=False):
        row["prompt"] = [{"role": "user", "content": text}]
    file = tmp_path / "train.jsonl"
    write_jsonl(file, [{"prompt": pool[0]["prompt"]}, {"prompt": pool[2]["prompt"]}, {"prompt": pool[2]["prompt"]}])
    chosen, _, _ = select(tmp_path, pool, method="diverse", budget_judgements=4, earlier=file)
    assert [row["id"] for row in chosen if row["split"] == "train"] == [pool[3]["id"]]


def test_prompts_may_be_told_apart_by_the_model(tmp_path: Path, model: dict[str, Path]) -> None:
    pool = rows(24, 4)
    for row in pool[:20]:
        row["prompt"] = [{"role": "user", "content": "Which aisle has the bread?"}]
    chosen, _, _ = select(tmp_path, pool, model, method="diverse", similarity="model", budget_judgements=12)
    assert {row["id"] for row in pool[20:24]} < {row["id"] for row in chosen}


@pytest.mark.parametrize("method", ["disagreement", "information"])
def test_only_training_rows_are_chosen_by_what_a_reward_does_not_know(
    tmp_path: Path, learnt: dict[str, Path], method: str
) -> None:
    chosen, why, work = select(tmp_path, rows(), learnt, method=method, budget_judgements=20, show=3)
    again, same, _ = select(tmp_path, rows(), learnt, method=method, budget_judgements=20, show=3)
    assert chosen == again and why == same
    by_split = {split: [row for row in chosen if row["split"] == split] for split in ("train", "validation")}
    assert len(by_split["train"]) == 8 and len(by_split["validation"]) == 2
    at_random, _, _ = select(tmp_path, rows(), method="random", budget_judgements=20, show=3)
    assert by_split["validation"] == [row for row in at_random if row["split"] == "validation"]
    for row in chosen:
        assert len(row["completions"]) == len({each["text"] for each in row["completions"]}) == 3
    scores = {each["id"]: each["score"] for each in why if each["chosen"]}
    assert all((scores[row["id"]] or 0) > 0 for row in by_split["train"])
    assert all(scores[row["id"]] is None for row in by_split["validation"])
    assert work.metrics["earlier_prompts"] == 16 and 0 <= work.metrics["heads_accuracy"] <= 1


def test_a_batch_by_information_is_not_one_question_ten_times(tmp_path: Path, learnt: dict[str, Path]) -> None:
    pool = rows(24, 4)
    alike = {row["id"] for row in pool[:20]}
    for row in pool[:20]:
        row["prompt"] = [{"role": "user", "content": "Which aisle has the bread?"}]
    for row, word in zip(pool[20:24], ("Rude", "Rice", "Milk", "2.50"), strict=True):
        for each in row["completions"]:
            each["text"] = f"{word}! {each['text']} {word}."
    chosen, _, _ = select(tmp_path, pool, learnt, method="information", budget_judgements=12)
    assert sum(row["id"] in alike for row in chosen if row["split"] == "train") <= 3


def test_the_first_round_has_nothing_to_learn_from(tmp_path: Path, model: dict[str, Path]) -> None:
    for method in ("disagreement", "information"):
        with pytest.raises(InputError, match='none; label a first round with "random" or "diverse"'):
            select(tmp_path, rows(), model, method=method, budget_judgements=20)


def test_earlier_preferences_may_come_from_a_file(tmp_path: Path, learnt: dict[str, Path]) -> None:
    file = learnt.pop("preferences") / "train.jsonl"
    chosen, _, work = select(tmp_path, rows(), learnt, method="information", budget_judgements=20, earlier=file)
    assert len(chosen) == 10 and work.metrics["earlier_prompts"] == 16
    garbled = tmp_path / "garbled.jsonl"
    write_jsonl(garbled, [{"prompt": [], "chosen": []}])
    with pytest.raises(InputError, match="Earlier preference 1"):
        select(tmp_path, rows(), learnt, method="information", budget_judgements=20, earlier=garbled)


def test_rows_that_say_the_same_cost_nothing(tmp_path: Path) -> None:
    pool = rows(10, 4)
    for row in pool[:6]:
        for each in row["completions"]:
            each["text"] = "In 4. "
    chosen, why, work = select(tmp_path, pool, method="random", budget_judgements=100)
    assert len(chosen) == 8 and work.metrics["identical"] == 6
    assert [each["why"] for each in why[:6]] == ["all completions say the same"] * 6


def test_what_cannot_be_selected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two different completions"):
        select(tmp_path, rows(texts=("same", "same")), method="random", budget_judgements=20)
    with pytest.raises(InputError, match="two different completions"):
        select(tmp_path, [], method="random", budget_judgements=20)
    with pytest.raises(InputError, match="budget of 1 judgements does not pay for one record"):
        select(tmp_path, rows(), method="random", budget_judgements=1)
    with pytest.raises(InputError, match="training and validation need one each"):
        select(tmp_path, rows(), method="random", budget_judgements=2)
    with pytest.raises(InputError, match=r"select.show is 6, but 5 completions were sampled"):
        select(tmp_path, rows(), method="random", show=6)
    chosen, _, _ = select(tmp_path, rows(), method="random", budget_judgements=4)
    assert Counter(row["split"] for row in chosen) == {"train": 1, "validation": 1}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"budget_judgements": 5}, "'budget_judgements' has no effect with method = \"all\""),
        ({"show": 2}, "'show' has no effect"),
        ({"method": "random"}, "without a budget"),
        ({"method": "random", "budget_hours": 0}, "greater than 0"),
        ({"method": "random", "show": 9}, "less than or equal to 8"),
        ({"method": "best", "show": 2}, "'information'"),
        ({"method": "random", "show": 2, "earlier": "a.jsonl"}, "'earlier' has no effect"),
    ],
)
def test_recipes_that_cannot_be(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        SelectRecipe(**values)


def test_the_rounds_overlap_belongs_to_the_identity() -> None:
    recipe = SelectRecipe(method="random", budget_judgements=20)
    twice = recipe.in_round(LABEL)
    assert twice.overlap == 2 and identity(twice) != identity(recipe.in_round(LabelRecipe()))
    assert SelectRecipe(method="information", show=2).looks_at == ("base", "sft", "preferences")
    assert SelectRecipe(method="diverse", show=2, similarity="model").looks_at == ("base", "sft", "preferences")
    assert SelectRecipe(method="diverse", show=2).looks_at == ("preferences",) and recipe.looks_at == ()


def test_features_are_means_over_the_completion_however_they_are_batched(
    model: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from tasks.models import features
    from tasks.models.chat import encode_completion
    from tasks.models.loading import load_causal_lm, load_tokenizer

    chain = [model["base"], model["sft"]]
    ask: Message = {"role": "user", "content": "Where is item 3?"}
    items: list[features.Item] = [
        ([ask], "It is in aisle 3.", True), ([ask], "In 3", False), ([ask], "", False), ([ask], "", True),
        ([ask], None, True),
        ([ask], "It is in aisle 3. " * 40, True),  # longer than the model reads: its end counts
    ]  # fmt: skip
    found = features.text_features(chain, items)
    assert found.shape == (6, 32) and len(np.unique(found.round(4), axis=0)) == 6
    ids, answer = encode_completion(load_tokenizer(model["base"]), [ask], "It is in aisle 3.", True)
    with torch.no_grad():
        hidden = load_causal_lm(chain).model(input_ids=torch.tensor([[*ids, *answer]])).last_hidden_state[0]
    np.testing.assert_allclose(found[0], hidden[len(ids) :].mean(0).numpy(), atol=1e-5)
    monkeypatch.setattr(features, "batch_tokens", lambda: 1)
    np.testing.assert_allclose(features.text_features(chain, items), found, atol=1e-5)
    monkeypatch.setattr(features, "MOST", 8)
    assert features.text_features(chain, items).shape == (6, 8)
