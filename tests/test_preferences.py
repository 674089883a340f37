"""The preferences stage: judged rounds and imported pairs become the same rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError, Work, read_jsonl, write_jsonl
from tasks.labels.preferences import BarRecipe, PreferencesRecipe, build_preferences
from tasks.training.engine_pairs import group_preferences
from tasks.training.reward_report import held_out
from tests.tiny_models import tiny_tokenizer

HI = [{"role": "user", "content": "Hi"}]


def work_in(folder: Path) -> Work:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    return Work(out=folder / "out", scratch=folder / "scratch", seed=1)


def round_of(folder: Path, ranks: dict[str, list[tuple[int, int, int] | None]]) -> dict[str, Path]:
    """Artifacts of a round: record -> ranks of its completions by each annotator; records ending in v validate."""
    comparisons, judgements, completions = [], [], []
    for record, answers in ranks.items():
        ids = [f"{record}-{k}" for k in range(3)]
        texts = [{"id": name, "text": f"Answer {name[-1]}"} for name in ids]
        comparisons.append({"id": record, "prompt": HI, "completions": texts, "shown": ids[::-1]})
        split = "validation" if record.endswith("v") else "train"
        drawn = [{"id": name, "finished": not name.endswith("2")} for name in ids]
        completions.append({"id": record, "split": split, "completions": drawn})
        for number, answer in enumerate(answers):
            judgements.append(
                {
                    "id": f"{record}/{number}",
                    "record": record,
                    "annotator": f"annotator-{number}",
                    "status": "submitted" if answer else "discarded",
                    "ranks": dict(zip(ids, answer, strict=True)) if answer else None,
                    "guidelines": "v1",
                    "inserted_at": "t",
                    "updated_at": "t",
                }
            )
    write_jsonl(folder / "judgements" / "comparisons.jsonl", comparisons)
    write_jsonl(folder / "judgements" / "judgements.jsonl", judgements)
    write_jsonl(folder / "completions" / "completions.jsonl", completions)
    return {"judgements": folder / "judgements", "completions": folder / "completions"}


def test_judged_round_becomes_weighted_rows(tmp_path: Path) -> None:
    inputs = round_of(
        tmp_path,
        {"one": [(1, 2, 3), (1, 2, 2), None], "two-v": [(2, 1, 3), (2, 1, 3)], "three": [(1, 1, 1), (1, 1, 1)]},
    )
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(aggregation="majority"), inputs, work)

    train, validation = (read_jsonl(work.out / f"{split}.jsonl") for split in ("train", "validation"))
    assert [(row["chosen_id"], row["rejected_id"], row["weight"]) for row in train] == [
        ("one-0", "one-1", 1.0),
        ("one-0", "one-2", 1.0),
        ("one-1", "one-2", 0.5),
    ]
    assert train[0]["prompt"] == HI
    assert train[0]["chosen"] == [{"role": "assistant", "content": "Answer 0"}]
    assert train[0]["judgements"] == ["one/0", "one/1"]
    # "one" ranks 1 2 3 and 1 2 2 over 3 completions: mean rank differences 1, 1.5 and .5, of at most 2
    assert [row["margin"] for row in train] == pytest.approx([0.5, 0.75, 0.25])
    assert [(row["chosen_finished"], row["rejected_finished"]) for row in train] == [
        (True, True),
        (True, False),
        (True, False),
    ]
    assert train[0]["prompt_id"] == "one"
    assert {row["prompt_id"] for row in validation} == {"two-v"}
    assert len({row["id"] for row in train + validation}) == 6
    expected: dict[str, Any] = {"pairs": 6, "pairs_train": 3, "undecided": 3, "discarded": 1, "weight_mean": 5.5 / 6}
    assert {name: work.metrics[name] for name in expected} == pytest.approx(expected)
    # "one": x = 1 2 3, y = 1 2.5 2.5, so W = 78/84; "two-v": 1; "three" is all ties and undefined.
    assert work.metrics["kendalls_w"] == pytest.approx((78 / 84 + 1) / 2)
    assert work.metrics["alpha_low"] <= work.metrics["alpha"] <= work.metrics["alpha_high"]
    assert (work.out / "report" / "hardest.json").exists()


def test_pairs_below_the_least_weight_are_left_out(tmp_path: Path) -> None:
    inputs = round_of(tmp_path, {"one": [(1, 2, 3), (1, 2, 2)], "two-v": [(2, 1, 3), (2, 1, 3)]})
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(aggregation="majority", min_weight=0.6), inputs, work)
    assert work.metrics["pairs_train"] == 2


def test_an_older_round_counts_for_less_and_no_less_agreed_on(tmp_path: Path) -> None:
    inputs = round_of(tmp_path / "new", {"new": [(1, 2, 3)], "new-v": [(1, 2, 3)]})
    for number in (1, 2):
        older = round_of(tmp_path / str(number), {f"old{number}": [(1, 2, 3)]})
        inputs |= {f"{name}.{number}": folder for name, folder in older.items()}
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(aggregation="majority", decay=0.5), inputs, work)
    rows = read_jsonl(work.out / "train.jsonl")
    found = {(row["prompt_id"], row["weight"], row["agreement"]) for row in rows}
    assert found == {("new", 1.0, 1.0), ("2/old2", 0.5, 1.0), ("1/old1", 0.25, 1.0)}
    [pair, *_] = held_out(group_preferences([rows[-1]], tiny_tokenizer()), [[1.0, 0.0]])
    assert pair.agreement == rows[-1]["agreement"]


@pytest.mark.parametrize("aggregation", ["majority", "reliability"])
def test_ratings_become_pairs_of_their_criterion(tmp_path: Path, aggregation: Any) -> None:
    inputs = round_of(tmp_path, {"one": [(1, 2, 3), (1, 2, 3)], "two-v": [(1, 2, 3)]})
    file = inputs["judgements"] / "judgements.jsonl"
    judgements = read_jsonl(file)
    judgements[0]["ratings"] = {"kind": {"one-0": 1, "one-1": 5, "one-2": 5}, "short": {"one-1": 3}}
    judgements[1]["ratings"] = {"kind": {"one-0": 2, "one-1": 3}}
    judgements[2]["ratings"] = {"kind": {"two-v-0": 4, "two-v-1": 5, "two-v-2": 1}}
    write_jsonl(file, judgements)
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(aggregation=aggregation), inputs, work)
    rated = {split: read_jsonl(work.out / f"rated_{split}.jsonl") for split in ("train", "validation")}
    found = {(row["chosen_id"], row["rejected_id"]): row for row in rated["train"]}
    assert set(found) == {("one-1", "one-0"), ("one-2", "one-0")}, "5 and 5 are a tie, one rating alone says nothing"
    assert {row["criterion"] for rows in rated.values() for row in rows} == {"kind"}
    assert found["one-1", "one-0"]["judgements"] == ["one/0", "one/1"]
    assert found["one-2", "one-0"]["judgements"] == ["one/0"] or aggregation == "reliability"
    assert [row["chosen_id"] for row in read_jsonl(work.out / "train.jsonl")] == ["one-0", "one-0", "one-1"]
    ids = [row["id"] for name in ("train", "rated_train") for row in read_jsonl(work.out / f"{name}.jsonl")]
    assert len(set(ids)) == len(ids) == 5


def test_the_same_judgements_give_the_same_bytes(tmp_path: Path) -> None:
    inputs = round_of(tmp_path, {"one": [(1, 2, 3), (3, 1, 2)], "two-v": [(2, 1, 3)]})
    outcomes = []
    for name in ("a", "b"):
        work = work_in(tmp_path / name)
        build_preferences(PreferencesRecipe(), inputs, work)
        outcomes.append({file.name: file.read_bytes() for file in work.out.rglob("*") if file.is_file()})
    assert outcomes[0] == outcomes[1]


def test_a_split_without_pairs_is_refused(tmp_path: Path) -> None:
    inputs = round_of(tmp_path, {"one": [(1, 2, 3)], "two-v": [(1, 1, 1)]})
    with pytest.raises(InputError, match="There is no validation preference; label or import more"):
        build_preferences(PreferencesRecipe(), inputs, work_in(tmp_path / "work"))


def test_imported_pairs_are_taken_as_the_data_stage_wrote_them(tmp_path: Path) -> None:
    answers = [{"role": "assistant", "content": text} for text in ("Hello.", "Go.")]
    row = {"id": "p1", "prompt_id": "p", "prompt": HI, "chosen": answers[:1], "rejected": answers[1:], "weight": 1.0}
    weak = row | {"id": "p2", "weight": 0.2}
    write_jsonl(tmp_path / "data" / "preferences_train.jsonl", [row, weak])
    write_jsonl(tmp_path / "data" / "preferences_validation.jsonl", [row])
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(source="data", min_weight=0.5), {"data": tmp_path / "data"}, work)
    assert read_jsonl(work.out / "train.jsonl") == [row]
    assert work.metrics["pairs"] == 2


def checked_round(folder: Path, right: int) -> dict[str, Path]:
    """A round whose third annotator ranks the wrong way round, and orders `right` of 20 gold comparisons right."""
    inputs = round_of(folder, {name: [(1, 2, 3), (1, 2, 3), (3, 2, 1)] for name in ("one", "two-v")})
    comparisons = read_jsonl(inputs["judgements"] / "comparisons.jsonl")
    judgements = read_jsonl(inputs["judgements"] / "judgements.jsonl")
    for n in range(20):
        ids = [f"gold{n}-0", f"gold{n}-1"]
        expected = dict(zip(ids, (1, 2), strict=True))
        texts = [{"id": name, "text": name} for name in ids]
        gold = {"id": f"gold{n}", "prompt": HI, "completions": texts, "shown": ids[::-1]}
        comparisons.append({**gold, "kind": "gold", "expected": expected})
        for number in range(3):
            turned = number == 2 and n >= right
            ranks = {name: 3 - rank for name, rank in expected.items()} if turned else expected
            told = judgements[0] | {"id": f"gold{n}/{number}", "record": f"gold{n}", "ranks": ranks}
            judgements.append(told | {"annotator": f"annotator-{number}"})
    write_jsonl(inputs["judgements"] / "comparisons.jsonl", comparisons)
    write_jsonl(inputs["judgements"] / "judgements.jsonl", judgements)
    return inputs


def table(work: Work, name: str) -> list[dict[str, Any]]:
    found = json.loads((work.out / "report" / f"{name}.json").read_text())
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


@pytest.mark.parametrize("aggregation", ["majority", "reliability"])
def test_annotators_below_the_bar_are_held_out_and_the_report_says_why(tmp_path: Path, aggregation: Any) -> None:
    inputs = checked_round(tmp_path, right=5)
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(aggregation=aggregation), inputs, work)

    rows = read_jsonl(work.out / "train.jsonl")
    assert {row["prompt_id"] for row in rows} == {"one"}, "gold comparisons are not learnt from"
    assert all(row["judgements"] == ["one/0", "one/1"] for row in rows)
    assert (work.metrics["held_out"], work.metrics["held_out_judgements"]) == (1, 22)
    annotators = table(work, "annotators")
    assert [row["gold"] for row in annotators] == [1, 1, 0.25]
    assert [bool(row["held_out"]) for row in annotators] == [False, False, True]
    assert "orders as expected 25% of 20 gold pairs" in annotators[2]["held_out"]
    assert (annotators[0]["sensitivity"] is not None) == (aggregation == "reliability")
    assert annotators[2]["sensitivity"] is None
    told = (work.out / "report" / "quality.md").read_text()
    assert "1 of 3 held out" in told and "\n- annotator-2 orders as expected 25% of 20 gold pairs" in told
    lines = [line for line in told.splitlines() if line.startswith("| annotator-")]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["", "22", "1.00 (20)"],
        ["", "22", "1.00 (20)"],
        ["held out", "22", "0.25 (20)"],
    ]
    assert (work.out / "report" / "hardest.json").exists()


def test_somebody_is_held_out_by_hand_and_a_stranger_is_told(tmp_path: Path) -> None:
    inputs = checked_round(tmp_path, right=20)
    work = work_in(tmp_path / "work")
    build_preferences(PreferencesRecipe(held_out=("annotator-1",)), inputs, work)
    rows = [row for split in ("train", "validation") for row in read_jsonl(work.out / f"{split}.jsonl")]
    used = {name for row in rows for name in row["judgements"]}
    assert used == {"one/0", "one/2", "two-v/0", "two-v/2"}
    assert work.metrics["held_out"] == 1
    told = (work.out / "report" / "quality.md").read_text()
    assert "- annotator-1 is held out by preferences.held&#95;out." in told
    with pytest.raises(InputError, match=r"names 'cleo', who judged nothing here \(annotator-0, annotator-1, .* list"):
        build_preferences(PreferencesRecipe(held_out=("cleo",)), inputs, work_in(tmp_path / "other"))
    later = work_in(tmp_path / "later")
    build_preferences(PreferencesRecipe(held_out=("annotator-0123abcd",)), inputs, later)  # joins in a later round
    assert later.metrics["held_out"] == 0
    everybody = ("annotator-0", "annotator-1", "annotator-2")
    with pytest.raises(InputError, match=r"Every annotator is held out .* shorten preferences.held_out"):
        build_preferences(PreferencesRecipe(held_out=everybody), inputs, work_in(tmp_path / "all"))


def test_reliability_learns_without_a_bar_what_majority_cannot(tmp_path: Path) -> None:
    inputs = checked_round(tmp_path, right=0)
    weights = {}
    for aggregation in ("majority", "reliability"):
        work = work_in(tmp_path / aggregation)
        recipe = PreferencesRecipe(aggregation=aggregation, bar=BarRecipe(gold_accuracy=0))
        build_preferences(recipe, inputs, work)
        assert work.metrics["held_out"] == 0
        weights[aggregation] = {row["weight"] for row in read_jsonl(work.out / "train.jsonl")}
    assert weights["majority"] == {1 / 3}
    assert min(weights["reliability"]) > 0.7


def test_nobody_above_the_bar_is_an_error(tmp_path: Path) -> None:
    inputs = round_of(tmp_path, {f"{n}{end}": [(3, 2, 1)] for n in range(40) for end in ("", "v")})
    with pytest.raises(InputError, match=r"Every annotator is held out .* lower preferences.bar"):
        build_preferences(PreferencesRecipe(), inputs, work_in(tmp_path / "work"))


def test_ranks_of_unknown_completions_are_refused(tmp_path: Path) -> None:
    inputs = round_of(tmp_path, {"one": [(1, 2, 3)], "two-v": [(1, 2, 3)]})
    rows = read_jsonl(inputs["judgements"] / "judgements.jsonl")
    rows[0]["ranks"]["strange"] = 4
    write_jsonl(inputs["judgements"] / "judgements.jsonl", rows)
    with pytest.raises(InputError, match="ranks 'strange', which is no completion of one"):
        build_preferences(PreferencesRecipe(), inputs, work_in(tmp_path / "work"))
