"""The data stage: sources in, splits and a ledger out; bad input is refused in one sentence or dropped and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.artifact import InputError, Row, Work, read_jsonl
from tasks.data.prepare import DataRecipe, prepare_data
from tasks.data.splits import SPLITS, prompt_id
from tasks.data.templates import ChatTemplate, converse, render

HH = Path(__file__).parents[1].parent / "shared" / "data" / "hh-rlhf" / "harmless-base-first312.jsonl"


def prepare(folder: Path, settings: dict[str, Any], seed: int = 0) -> Work:
    work = Work(folder / "out", folder / "scratch", seed)
    work.out.mkdir(parents=True)
    prepare_data(TypeAdapter(DataRecipe).validate_python(settings), {}, work)
    return work


def save(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(out: Path, split: str) -> set[str]:
    rows = read_jsonl(out / f"{split}.jsonl")
    return {prompt_id(row["messages"][:-1] if split == "sft" else row["prompt"]) for row in rows}


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
QUESTIONS: list[Row] = [{"prompt": f"What comes after {n}?", "completion": f"After {n}?"} for n in NUMBERS]


def test_the_shop_fills_every_split_without_overlap(tmp_path: Path) -> None:
    work = prepare(tmp_path / "a", {"source": "shop", "demonstrations": 3})
    sizes = {split: len(prompts(work.out, split)) for split in SPLITS}
    assert sizes == {"sft": 120, "reward_train": 159, "reward_validation": 38, "rl": 91, "evaluation": 72}
    assert len(set().union(*(prompts(work.out, split) for split in SPLITS))) == 480
    ledger = read_jsonl(work.out / "ledger.jsonl")
    assert {row["id"]: row["split"] for row in ledger} == {i: s for s in SPLITS for i in prompts(work.out, s)}
    assert len(read_jsonl(work.out / "sft.jsonl")) == 360 == work.metrics["rows/sft"]
    row = read_jsonl(work.out / "evaluation.jsonl")[0]
    assert set(row["reference"]) == {"item", "kind", "value"} and row["id"] == prompt_id(row["prompt"])
    again = prepare(tmp_path / "b", {"source": "shop", "demonstrations": 3})
    other = prepare(tmp_path / "c", {"source": "shop", "demonstrations": 3}, seed=1)
    files = [{f.name: f.read_bytes() for f in w.out.iterdir() if f.is_file()} for w in (work, again, other)]
    assert files[0] == files[1] != files[2]
    assert prompts(other.out, "evaluation") == prompts(work.out, "evaluation"), (
        "no seed learns what another is tested on"
    )
    moved = prepare(tmp_path / "d", {"source": "shop", "demonstrations": 3, "split_seed": 1})
    assert prompts(moved.out, "evaluation") != prompts(work.out, "evaluation")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Q {n}"}, {"role": "assistant", "content": "A"}]},
        {"conversations": [{"from": "human", "value": "Q {n}"}, {"from": "gpt", "value": "A"}]},
        {"conversations": ["Q {n}", "A"], "source": "lima"},
        {"prompt": "Q {n}", "completion": "A"},
        {"prompt": [{"role": "user", "content": "Q {n}"}], "completion": [{"role": "assistant", "content": "A"}]},
        {"instruction": "Q", "input": "{n}", "output": "A"},
    ],
)
def test_the_usual_forms_are_read(tmp_path: Path, row: Row) -> None:
    path = save(tmp_path / "rows.jsonl", [json.loads(json.dumps(row).replace("{n}", n)) for n in NUMBERS])
    out = prepare(tmp_path, {"source": "jsonl", "path": path}).out
    sft = read_jsonl(out / "sft.jsonl")
    assert sum(len(prompts(out, split)) for split in SPLITS) == len(NUMBERS)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in sft)
    assert {row["messages"][1]["content"] for row in sft} == {"A"}
    assert sft[0]["messages"][0]["content"].split()[0] == "Q"


def test_json_arrays_templates_and_references(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": place, "b": 1, "sum": place + 1} for place in range(20)]))
    templates = [
        {"prompt": "What is {{ a }} + {{ b }}?", "completion": "{{ sum }}"},
        {"prompt": "Add {{ a }} and {{ b }}.", "completion": "It is {{ sum }}.", "system": "You add."},
    ]
    settings = {"source": "jsonl", "path": str(path), "templates": templates, "templates_per_row": 2}
    out = prepare(tmp_path, settings).out
    split_of = {row["id"]: row["split"] for row in read_jsonl(out / "ledger.jsonl")}
    assert len(split_of) == 40
    for place in range(20):
        ways = [
            converse(ChatTemplate.model_validate(template), {"a": place, "b": 1, "sum": 0})[0] for template in templates
        ]
        assert len({split_of[prompt_id(way)] for way in ways}) == 1
    assert read_jsonl(out / "evaluation.jsonl")[0]["reference"].keys() == {"a", "b", "sum"}


def test_a_prompt_without_a_completion_never_goes_to_sft(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in (["prompt"] if place % 2 else ["prompt", "completion"])}
            for place, row in enumerate(QUESTIONS)]  # fmt: skip
    out = prepare(tmp_path, {"source": "jsonl", "path": save(tmp_path / "rows.jsonl", rows)}).out
    sft = {row["messages"][0]["content"] for row in read_jsonl(out / "sft.jsonl")}
    assert sft and sft <= {row["prompt"] for row in rows if "completion" in row}


BAD = [
    ({"completion": "x"}, "has no prompt"),
    ({"prompt": "  "}, "has no prompt"),
    ({"prompt": "x", "completion": " "}, "has an empty completion"),
    ({"prompt": 3}, "holds neither text nor messages"),
    ({"messages": [{"role": "critic", "content": "x"}]}, "has a message that is not text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "has no prompt"),
    ({"messages": [{"role": "user", "content": "x"}] * 2}, "has turns that do not alternate"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "has no prompt"),
    ({"prompt": "half \ud800"}, "has characters that cannot be written"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, row: Row, reason: str) -> None:
    path = save(tmp_path / "rows.jsonl", [*QUESTIONS, row])
    with pytest.raises(InputError, match=f"rows.jsonl row 13 {reason}.*; mend or remove it, or set data.on_bad_row"):
        prepare(tmp_path, {"source": "jsonl", "path": path})


def test_bad_rows_are_dropped_and_counted_on_demand(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [row for row, _ in BAD] + QUESTIONS)
    work = prepare(tmp_path, {"source": "jsonl", "path": path, "on_bad_row": "drop"})
    assert work.metrics["dropped/all"] == len(BAD) and work.metrics["dropped/has no prompt"] == 4
    table = json.loads((work.out / "report" / "dropped.json").read_text())
    assert table["columns"] == ["line", "reason", "excerpt"]
    assert [line for line, _, _ in table["data"]] == list(range(1, len(BAD) + 1))
    assert work.metrics["prompts/all"] == len(QUESTIONS)


def test_files_that_give_nothing_are_refused_in_one_sentence(tmp_path: Path) -> None:
    cases = {
        "missing.jsonl": (None, "does not exist"),
        "empty.jsonl": ([], "is empty; one JSON object per line"),
        "few.jsonl": (QUESTIONS[:2], "stays empty: the data has 2 groups"),
        "bare.jsonl": ([{"prompt": row["prompt"]} for row in QUESTIONS], "No row of the data has a completion"),
        "other.jsonl": ([{"text": "x"}], "has no usable row: 1 of 1 has no prompt"),
    }
    for name, (rows, message) in cases.items():
        path = tmp_path / name if rows is None else Path(save(tmp_path / name, rows))
        with pytest.raises(InputError, match=message) as error:
            prepare(
                tmp_path / name.removesuffix(".jsonl"), {"source": "jsonl", "path": str(path), "on_bad_row": "drop"}
            )
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_max_rows_takes_a_sample_made_by_the_seed(tmp_path: Path) -> None:
    settings = {"source": "shop", "max_rows": 60, "demonstrations": 1}
    works = [prepare(tmp_path / str(place), settings, seed) for place, seed in enumerate((0, 0, 1))]
    drawn = [{row["id"] for row in read_jsonl(work.out / "ledger.jsonl")} for work in works]
    assert [len(ids) for ids in drawn] == [60, 60, 60] and drawn[0] == drawn[1] != drawn[2]


def test_preferences_become_pairs_demonstrations_and_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}
        for row in QUESTIONS
        for other in ("No.", "Why?")
    ]
    path = save(tmp_path / "pairs.jsonl", [*rows, {"chosen": "a"}])
    work = prepare(tmp_path, {"source": "preferences", "path": path})
    train = read_jsonl(work.out / "preferences_train.jsonl")
    assert {prompt_id(row["prompt"]) for row in train} == prompts(work.out, "reward_train")
    assert len(train) == 2 * len(prompts(work.out, "reward_train"))
    assert len({row["chosen_id"] for row in train}) == len(train) / 2 and len({row["id"] for row in train}) == len(
        train
    )
    assert all(row["weight"] == 1 and row["margin"] is None and row["judgements"] == [] for row in train)
    validation = read_jsonl(work.out / "preferences_validation.jsonl")
    assert {prompt_id(row["prompt"]) for row in validation} == prompts(work.out, "reward_validation")
    assert work.metrics["dropped/all"] == 1


def test_real_preferences_are_split_with_their_broken_pairs_counted(tmp_path: Path) -> None:
    if not HH.exists():
        pytest.skip("the shared folder with hh-rlhf is not beside the project")
    work = prepare(tmp_path, {"source": "preferences", "path": str(HH)})
    lines = len(HH.read_text().splitlines())
    assert 0 < work.metrics["dropped/all"] < 0.1 * lines
    assert work.metrics["prompts/all"] > 0.9 * (lines - work.metrics["dropped/all"])
    assert all(work.metrics[f"prompts/{split}"] > 0 for split in SPLITS)


def test_templates_are_sandboxed_and_name_what_is_missing() -> None:
    assert render("{{ item | upper }}!", {"item": "tea"}) == "TEA!"
    with pytest.raises(InputError, match="there is no column 'price'"):
        render("{{ price }}", {"item": "tea"})
    with pytest.raises(InputError, match="is not valid Jinja"):
        render("{{ price", {})
    with pytest.raises(InputError, match="cannot be filled"):
        render("{{ item.__class__.__mro__[1].__subclasses__() }}", {"item": "tea"})


def test_a_recipe_names_the_sources_there_are() -> None:
    with pytest.raises(ValidationError, match="'shop', 'jsonl', 'preferences'"):
        TypeAdapter(DataRecipe).validate_python({"source": "csv"})
    with pytest.raises(ValidationError, match="path"):
        TypeAdapter(DataRecipe).validate_python({"source": "shop", "path": "x.jsonl"})
