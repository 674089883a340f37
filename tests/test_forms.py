"""The forms of rows that people publish: what is asked, what is answered, and what is not to be learnt."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError, Row, Work, read_jsonl
from tasks.data.files import read_examples
from tasks.data.forms import read_row
from tasks.data.preference_formats import read_preferences
from tasks.data.preview import table
from tasks.data.rows import BadRow
from tests.test_mixture import NOUNS, prepare, question, save

TALK: list[Row] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
WHOLE = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
PAIR = [("user", "Q"), ("assistant", "A")]


def said(row: Row) -> list[tuple[str, str]]:
    """The conversation of a row, as (role, text)."""
    [example] = read_row(row)
    turns = [(turn["role"], turn["content"]) for turn in example.prompt]
    return [*turns, *(("assistant", text) for text in example.completions)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Q", "context": "C", "response": "A", "category": "qa"}, [("user", "Q\n\nC"), PAIR[1]]),
        ({"question": "Q", "context": "C", "answer": "A"}, [("user", "Q\n\nC"), PAIR[1]]),
        ({"question": "Q of C", "context": "C", "answers": {"text": ["A", "B"]}}, [("user", "Q of C"), PAIR[1]]),
        ({"id": "1", "system_prompt": "S", "question": "Q", "response": "A"}, [("system", "S"), *PAIR]),
        ({"system_prompt": "", "question": "Q", "response": "A"}, PAIR),
        ({"prompt": "Q", "output": "A"}, PAIR),
        ({"instruction": "Q", "response": "A"}, PAIR),
        ({"instruction": "Q", "answer": "A"}, PAIR),
        ({"query": "Q", "response": "A", "type": "x"}, PAIR),
        ({"problem": "Q", "solution": "A", "answer": "4"}, PAIR),
        ({"user": "Q", "assistant": "A"}, PAIR),
        ({"Instruction": "Q", "Input": "C", "Output": "A"}, [("user", "Q\n\nC"), PAIR[1]]),
        ({"QUESTION": "Q", "Answer": "A", "ID": "7"}, PAIR),
        ({"prompt": "Q", "completion": "A", "System": "of the machine"}, PAIR),
        ({"Conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, PAIR),
        ({"instruction": "Q", "input": "", "output": "A", "prompt": "### Q\nA", "text": "Q A"}, PAIR),
        ({"prompt": "\n\nHuman: Q\n\nAssistant:", "completion": " A"}, PAIR),
        ({"prompt": "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "completion": "d"}, WHOLE),
        ({"prompt": "Human: who said it?", "completion": "A"}, [("user", "Human: who said it?"), PAIR[1]]),
        ({"messages": json.dumps(TALK)}, WHOLE),
        ({"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}, WHOLE),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "chatgpt", "value": "A"}]}, PAIR),
        ({"messages": [{"role": "User", "content": "Q"}, {"role": "model", "content": "A"}]}, PAIR),
        ({"text": "### Human: a### Assistant: b### Human: c### Assistant: d"}, WHOLE),
        ({"text": "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>"}, WHOLE),
        ({"text": "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A"}, [("system", "S"), *PAIR]),
        (
            {"text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"},
            PAIR,
        ),
        ({"text": "Do:\n\n### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\nA"}, [("user", "Q\n\nC"), PAIR[1]]),
        ({"text": "<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>"}, PAIR),
        ({"text": "<s><|user|>\nQ</s>\n<|assistant|>\nA</s>"}, PAIR),
        (
            {"text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
                     "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"},
            PAIR,
        ),
        ({"text": "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"}, PAIR),
        ({"contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}]}, PAIR),
        ({"prompt": "a", "chosen": TALK, "rejected": TALK[:2], "messages": TALK}, WHOLE),
        ({"prompt": "a", "chosen": TALK, "rejected": TALK[:2]}, WHOLE),
        ({"prompt": [{"role": "system", "content": "S"}, TALK[0]], "chosen": TALK}, [("system", "S"), *WHOLE]),
        ({"system": "S", "question": "Q", "chosen": "A", "rejected": "B"}, [("system", "S"), *PAIR]),
        ({"instruction": "Q", "input": "C", "chosen": "A", "rejected": "B"}, [("user", "Q\n\nC"), PAIR[1]]),
    ],
)  # fmt: skip
def test_every_usual_form_is_the_conversation_it_says(row: Row, expected: list[tuple[str, str]]) -> None:
    assert said(row) == expected


DOWN = "has an answer that somebody rated down"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q", "completion": "A", "label": False}, DOWN),
        ({"prompt": "Q", "completion": "A", "label": 0}, DOWN),
        ({"prompt": "Q", "completion": "A", "label": "False"}, DOWN),
        ({"prompt": "Q", "response": "A", "label": False}, DOWN),
        ({"question": "Q", "answer": 0}, "holds neither text nor messages"),
        ({"question": "Q", "answer": False}, "holds neither text nor messages"),
        ({"question": "Q", "answer": 5}, "holds neither text nor messages"),
        ({"messages": [TALK[0], {**TALK[1], "weight": 0}]}, "has only answers of weight 0"),
        ({"messages": "[{"}, "has messages that are not JSON"),
        ({"text": "Once upon a time."}, "has no prompt"),
    ],
)
def test_what_cannot_be_learnt_is_dropped_with_its_reason(row: Row, reason: str) -> None:
    with pytest.raises(BadRow) as bad:
        read_row(row)
    assert bad.value.args[0] == reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A", "label": True},
        {"prompt": "Q", "completion": "A", "label": 1},
        {"input": "Q", "output": "A", "label": 0},
    ],
)
def test_a_label_that_is_no_thumb_down_drops_nothing(row: Row) -> None:
    assert said(row) == PAIR


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"training": False}])
def test_answers_of_weight_0_are_kept_and_marked_and_what_follows_the_last_other_is_cut(key: Row) -> None:
    first = [TALK[0], {**TALK[1], **key}, *TALK[2:]]
    [example] = read_row({"messages": first})
    assert ["weight" in turn for turn in example.prompt] == [False, True, False] and example.completions == ["d"]
    [example] = read_row({"messages": [*TALK[:3], {**TALK[3], **key}]})
    assert [turn["content"] for turn in example.prompt] == ["a"] and example.completions == ["b"]
    openhermes = [{"from": "human", "value": "Q", "weight": 0}, {"from": "gpt", "value": "A", "weight": 1}]
    assert said({"conversations": openhermes}) == PAIR


def test_calls_written_in_texts_and_answers_are_calls() -> None:
    call = '<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'
    turns = [("human", "Q"), ("gpt", f"Let me see. {call}"), ("tool", "<tool_response>4</tool_response>"), ("gpt", "A")]
    hermes = {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
    [example] = read_row(hermes)
    called = example.prompt[1]
    assert called["content"] == "Let me see." and called.get("tool_calls", [])[0]["function"]["arguments"] == '{"x": 1}'
    [alone] = read_row({"conversations": hermes["conversations"][:2]})
    assert alone.completions == [f"Let me see. {call}"] and not alone.calls, "without tools it is a text"
    xlam = {"query": "Q", "answers": '[{"name": "f", "arguments": {"x": 1}}]', "tools": '[{"name": "f"}]'}
    [example] = read_row(xlam)
    assert example.calls[0]["function"] == {"name": "f", "arguments": '{"x": 1}'} and example.completions == [""]


def test_all_instances_of_a_task_are_read_and_stay_in_one_split(tmp_path: Path) -> None:
    tasks = [
        {"instruction": f"Sort {noun}.", "instances": [{"input": f"{noun} {i}", "output": i} for i in "xyz"]}
        for noun in (f"{NOUNS[n % 20]} {n}" for n in range(40))
    ]
    work = prepare(tmp_path, sets=[{"name": "seeds", "kind": "json", "path": save(tmp_path / "s.jsonl", tasks)}])
    split_of: dict[str, set[str]] = {}
    ledger = read_jsonl(work.out / "ledger.jsonl")
    for row in ledger:
        split_of.setdefault(row["group"], set()).add(row["split"])
    assert len(ledger) == 120 and len(split_of) == 40 and all(len(splits) == 1 for splits in split_of.values())
    examples, _ = read_examples(tmp_path / "s.jsonl", "refuse")
    assert len(examples) == 120 and len({example.source for example in examples}) == 40


@pytest.mark.parametrize(
    "row",
    [
        {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
        {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
         "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}},
        {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
         "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
         "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]},
    ],
)  # fmt: skip
def test_preferences_are_read_in_the_same_forms(tmp_path: Path, row: Row) -> None:
    [pair], dropped = read_preferences(Path(save(tmp_path / "pairs.jsonl", [row])))
    assert [turn["content"] for turn in pair["prompt"]] == ["S", "Q"] and not dropped
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("A", "B")


def notices(folder: Path, rows: list[Row], **settings: Any) -> list[str]:
    sets = [{"name": "odd", "kind": "json", "path": save(folder / "odd.jsonl", rows), **settings}]
    answered = [{"prompt": question(n, 3), "completion": "Yes."} for n in range(100, 130)]
    sets.append({"name": "good", "kind": "json", "path": save(folder / "good.jsonl", answered)})
    work = prepare(folder, sets=sets)
    told = [row["notice"] for row in table(work.out, "notices")]
    return [notice for notice in told if "'odd'" in notice]


def test_an_answer_in_a_column_of_no_form_is_told_and_found_by_rename(tmp_path: Path) -> None:
    rows = [{"prompt": question(n), "feedback": f"It is {n}.", "category": "x"} for n in range(30)]
    (tmp_path / "a").mkdir()
    [notice] = notices(tmp_path / "a", rows)
    assert notice.startswith("The set 'odd': 30 of 30 rows are prompts alone, and their columns feedback are not used")
    (tmp_path / "b").mkdir()
    assert not notices(tmp_path / "b", rows, rename={"feedback": "completion"})
    (tmp_path / "c").mkdir()
    assert not notices(tmp_path / "c", rows, use="evaluation"), "prompts are what evaluation wants"


def test_data_in_which_nothing_answers_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": question(n), "feedback": f"It is {n}."} for n in range(30)]
    with pytest.raises(InputError, match=r"^No row of the data has a completion.*'rename'"):
        prepare(tmp_path, sets=[{"name": "odd", "kind": "json", "path": save(tmp_path / "odd.jsonl", rows)}])
    work = Work(tmp_path / "out", tmp_path / "scratch")
    assert "feedback" in table(work.out, "notices")[0]["notice"]
