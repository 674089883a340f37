"""Rows in which the model says who it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifact import InputError, read_jsonl
from tests.test_mixture import alpaca, by_set, prepare, save, sft

ADA: dict[str, Any] = {"kind": "identity", "assistant": "Ada", "organisation": "Example Labs"}
OWN = [
    {
        "messages": [
            {"role": "user", "content": f"{n}: who?"},
            {"role": "assistant", "content": "{{name}} of {{author}}"},
        ]
    }
    for n in range(3)
]


def test_two_words_give_rows_that_say_who_the_model_is(tmp_path: Path) -> None:
    sets = [{"name": "chat", "kind": "json", "path": alpaca(tmp_path / "a.jsonl", 2000)}, {**ADA, "boost": 3}]
    work = prepare(tmp_path, sets=sets)
    rows = [row for row in sft(work) if row["set"] == "identity"]
    said = [[turn["content"] for turn in row["messages"]] for row in rows]
    assert len({question for question, _ in said}) > 40 and len({tuple(each) for each in said}) > 120
    assert not any("{" in text for each in said for text in each)
    assert all("Ada" in answer or "Example Labs" in answer for _, answer in said)
    assert sum("Ada" in answer and "Example Labs" in answer for _, answer in said) > len(said) / 2
    assert any(question == "Are you ChatGPT?" and answer.startswith("No, I am Ada") for question, answer in said)
    once = prepare(tmp_path / "once", sets=[sets[0], ADA])
    share = [by_set(each)["identity"]["share"] for each in (work, once)]
    assert share[0] > 1.3 * share[1], "a boost counts"
    for split in ("reward_train", "rl", "evaluation"):
        assert not {row["set"] for row in read_jsonl(work.out / f"{split}.jsonl")} & {"identity"}


def test_no_filter_and_no_evaluation_set_takes_them_away(tmp_path: Path) -> None:
    exam = [{"prompt": "Who are you?", "completion": "?"}, {"prompt": "What's your name", "completion": "?"}]
    exam += [
        {"prompt": f"Exam question {n} about {n * 7} things of kind {n * 31}?", "completion": "?"} for n in range(5)
    ]
    sets = [
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "a.jsonl", 100)},
        {"name": "exam", "kind": "json", "path": save(tmp_path / "exam.jsonl", exam), "use": "evaluation"},
        ADA,
    ]
    filters = [{"kind": "duplicates"}, {"kind": "contamination", "words": 3}]
    shares = {"sft": 0.4, "reward_train": 0.3, "reward_validation": 0.1, "rl": 0.2, "evaluation": 0.0}
    work = prepare(tmp_path, sets=sets, filters=filters, shares=shares)
    table = by_set(work)["identity"]
    assert table["kept"] == table["read"] == table["for sft"] > 120
    assert {row["messages"][0]["content"] for row in sft(work)} >= {"Who are you?", "What is your name?"}
    dropped = read_jsonl(work.out / "dropped.jsonl")
    mine = [row for row in dropped if row["set"] == "exam"]
    assert len(mine) == 2 and all("asks who the model is" in row["reason"] for row in mine)
    assert len(read_jsonl(work.out / "evaluation.jsonl")) == 5


def test_rows_of_ones_own_are_filled(tmp_path: Path) -> None:
    chat = {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "a.jsonl", 100)}
    for name, text in (("own.jsonl", "\n".join(map(json.dumps, OWN))), ("own.json", json.dumps(OWN))):
        (tmp_path / name).write_text(text)
        work = prepare(tmp_path / f"of {name}", sets=[chat, {**ADA, "path": str(tmp_path / name)}])
        answers = {row["messages"][1]["content"] for row in sft(work) if row["set"] == "identity"}
        assert answers == {"Ada of Example Labs"}
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "Who?", "completion": "{name}"}))
    with pytest.raises(InputError, match=r"No row of .*none.jsonl says \{\{name\}\}"):
        prepare(tmp_path / "none", sets=[chat, {**ADA, "path": str(tmp_path / "none.jsonl")}])
    with pytest.raises(InputError, match="does not exist"):
        prepare(tmp_path / "gone", sets=[chat, {**ADA, "path": str(tmp_path / "gone.jsonl")}])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"assistant": " "}, "'assistant' .* is not a name"),
        ({"organisation": "{{name}}"}, "'organisation' .* is not a name"),
        ({"use": "evaluation"}, "says who the model is, which is learnt"),
        ({"templates": [{"prompt": "{{ a }}", "completion": "b"}]}, "takes no templates"),
        ({"organisation": None}, "organisation"),
    ],
)
def test_what_is_no_identity_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        prepare(tmp_path, sets=[{**ADA, **change}])


def test_a_filter_cannot_be_for_them(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'identity', whose rows pass every filter"):
        prepare(tmp_path, sets=[ADA], filters=[{"kind": "length", "sets": ["identity"]}])
