"""Tool calls from files to tokens: OpenAI's and ShareGPT's forms, what is kept, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from labeling.question import prompt_text
from tasks.artifact import InputError, Message, Row, read_jsonl
from tasks.data.files import read_examples
from tasks.data.prepare import JsonlData, prepare_data
from tasks.models.templates import prepare_tokenizer
from tasks.models.unsaid import unsaid
from tasks.training.sft_engine import encode_rows
from tests.test_data import NUMBERS, save
from tests.tiny_models import work_in
from tests.tiny_tokenizers import family_tokenizer

GLAIVE = Path(__file__).parents[1].parent / "shared" / "data" / "llama-factory" / "glaive_toolcall_en_demo.json"
SCHEMA = {
    "name": "find",
    "description": "Finds.",
    "parameters": {"type": "object", "properties": {"zone": {}, "at": {}}},
}
ARGUMENTS = {"zone": "b", "at": 1}
OPENAI: Row = {
    "tools": [{"type": "function", "function": SCHEMA}],
    "messages": [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "x1", "type": "function", "function": {"name": "find", "arguments": json.dumps(ARGUMENTS)}}]},
        {"role": "tool", "tool_call_id": "x1", "content": "here"},
        {"role": "assistant", "content": "Here."},
    ],
}  # fmt: skip
SHAREGPT: Row = {
    "tools": json.dumps([SCHEMA]),
    "conversations": [
        {"from": "human", "value": "Where?"},
        {"from": "function_call", "value": json.dumps({"name": "find", "arguments": ARGUMENTS})},
        {"from": "observation", "value": "here"},
        {"from": "gpt", "value": "Here."},
    ],
}
PARSED: Row = json.loads(json.dumps(OPENAI))
PARSED["messages"][1] = {"role": "assistant", "function_call": {"name": "find", "arguments": ARGUMENTS}}
PARSED["messages"][2] = {"role": "function", "name": "find", "content": {"at": "here"}}


def read(folder: Path, row: Row) -> Any:
    [example], _ = read_examples(Path(save(folder / "rows.jsonl", [row])), "refuse")
    return example


def test_both_forms_become_one(tmp_path: Path) -> None:
    ours, theirs = read(tmp_path, OPENAI), read(tmp_path, SHAREGPT)
    assert ours.completions == theirs.completions == ["Here."]
    question, call, result = ours.prompt
    assert json.loads(question["tools"]) == OPENAI["tools"] == json.loads(theirs.prompt[0]["tools"])
    assert call["content"] == "" and call["tool_calls"][0]["function"] == theirs.prompt[1]["tool_calls"][0]["function"]
    assert call["tool_calls"][0]["function"]["arguments"] == '{"zone": "b", "at": 1}', "in the order of the file"
    assert (call["tool_calls"][0]["id"], result["tool_call_id"]) == ("x1", "x1")
    made = theirs.prompt[1]["tool_calls"][0]["id"]
    assert theirs.prompt[2] == {"role": "tool", "content": "here", "tool_call_id": made} and len(made) == 9


def test_older_calls_and_results_that_are_not_text(tmp_path: Path) -> None:
    _, call, result = read(tmp_path, PARSED).prompt
    assert call["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"zone": "b", "at": 1}'}
    assert (result["role"], result["name"], result["content"]) == ("tool", "find", '{"at": "here"}')


def test_a_conversation_may_end_with_a_call(tmp_path: Path) -> None:
    row = {**OPENAI, "messages": OPENAI["messages"][:2]}
    example = read(tmp_path, row)
    assert example.completions == [""] and example.calls[0]["function"]["name"] == "find"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tools": "[{"}, "has tools or tool calls that are not JSON"),
        ({"tools": [{"description": "no name"}]}, "has tools that are not function schemas"),
        ({"tools": "3"}, "has tools that are not function schemas"),
        ({"tools": ["find"]}, "has tools that are not function schemas"),
        ({"messages": [OPENAI["messages"][0], OPENAI["messages"][2], OPENAI["messages"][3]]}, "do not alternate"),
        ({"messages": [*OPENAI["messages"][:2], OPENAI["messages"][3]]}, "do not alternate"),
        ({"messages": [*OPENAI["messages"][:1], {"role": "function_call", "content": "find it"}]}, "are not JSON"),
        ({"messages": [*OPENAI["messages"][:1], {"role": "function_call", "content": '{"arguments": {}}'}]}, "a name"),
        ({"messages": [OPENAI["messages"][0], {"role": "function_call", "content": '{"name": "a", "arguments": "3"}'}]},
         "arguments are not a JSON object"),
    ],
)  # fmt: skip
def test_garbled_tools_are_refused_with_the_reason(tmp_path: Path, change: Row, reason: str) -> None:
    if reason == "do not alternate" and len(change["messages"]) == 3 and change["messages"][1]["role"] == "assistant":
        change = {"messages": [*change["messages"], {"role": "user", "content": "And?"}]}  # a call without its result
    with pytest.raises(InputError, match=reason):
        read(tmp_path, {**OPENAI, **change})


def test_tools_go_through_the_data_stage_into_the_loss(tmp_path: Path) -> None:
    rows = [json.loads(json.dumps(SHAREGPT).replace("Where?", f"Where is {n}?")) for n in NUMBERS]
    path = save(tmp_path / "rows.jsonl", [*rows, {**rows[0], "conversations": rows[0]["conversations"][:2]}])
    work = work_in(tmp_path)
    prepare_data(JsonlData(source="jsonl", path=path, near_duplicates=1), {}, work)
    kept = read_jsonl(work.out / "sft.jsonl")
    tokenizer: Any = prepare_tokenizer(family_tokenizer("qwen"))
    for row, encoded in zip(kept, encode_rows(kept, tokenizer), strict=True):
        learnt = tokenizer.decode([i for i, m in zip(encoded.input_ids, encoded.labels_mask, strict=True) if m])
        assert '{"name": "find", "arguments": {"zone": "b", "at": 1}}' in learnt
        assert ("Here." in learnt) == (len(row["messages"]) == 4) and "here\n" not in learnt
        assert '{"type": "object", "properties": {"zone": {}, "at": {}}}' in tokenizer.decode(encoded.input_ids)
    asked: list[Message] = read_jsonl(work.out / "evaluation.jsonl")[0]["prompt"]
    assert "tools" in asked[0] and asked[-1]["role"] == "tool"


def test_what_arrow_fills_in_is_no_argument(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def row(arguments: Row, properties: Row) -> Row:
        call = {"id": "x", "type": "function", "function": {"name": "find", "arguments": arguments}}
        schema = {"name": "find", "parameters": {"type": "object", "properties": properties}}
        turns = [OPENAI["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": turns, "tools": [{"type": "function", "function": schema}], "note": None}

    rows = [row({"a": 1}, {"a": {"type": "integer"}}), row({"b": "x"}, {"b": {"type": "string", "enum": ["x"]}})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    examples, _ = read_examples(tmp_path / "rows.parquet", "refuse")
    assert [each.calls[0]["function"]["arguments"] for each in examples] == ['{"a": 1}', '{"b": "x"}']
    schemas = [
        json.loads(each.prompt[0].get("tools", ""))[0]["function"]["parameters"]["properties"] for each in examples
    ]
    assert schemas == [{"a": {"type": "integer"}}, {"b": {"type": "string", "enum": ["x"]}}]
    written = read(tmp_path, {**rows[0], "messages": row({"a": None}, {})["messages"]})
    assert written.calls[0]["function"]["arguments"] == '{"a": null}', "in JSON a null was written"


def test_people_and_judges_read_what_was_called(tmp_path: Path) -> None:
    shown = prompt_text(read(tmp_path, OPENAI).prompt)
    tools = "Tools:\n- find(zone, at): Finds."
    assert shown == f'{tools}\n\nUser: Where?\n\nAssistant: find({{"zone": "b", "at": 1}})\n\nTool: here'
    asked = {"role": "user", "content": "Where?"}
    bare = json.dumps([{"name": "look", "parameters": [1]}, 3, {"function": "x"}])
    assert prompt_text([asked | {"tools": bare}]) == "Tools:\n- look()\n\nWhere?"
    for garbled in ("[", "{}", "null", "[" * 100_000, 7):
        assert prompt_text([asked | {"tools": garbled}]) == "Where?"


def test_real_tool_calls_survive() -> None:
    if not GLAIVE.exists():
        pytest.skip("the shared folder with tool calls is not beside the project")
    examples, dropped = read_examples(GLAIVE, "drop")
    rows = json.loads(GLAIVE.read_text())
    turns = [turn for row in rows for turn in row["conversations"]]
    assert len(examples) > 0.95 * len(rows), dropped[:3]
    calls = sum("tool_calls" in turn for each in examples for turn in each.prompt) + sum(
        bool(each.calls) for each in examples
    )
    assert calls > 0.95 * sum(turn["from"] == "function_call" for turn in turns)
    tokenizer = prepare_tokenizer(family_tokenizer("qwen"))
    told = [
        {"messages": [*each.prompt, {"role": "assistant", "content": each.completions[0], "tool_calls": each.calls}]}
        for each in examples if each.calls
    ] + [
        {"messages": [*each.prompt, {"role": "assistant", "content": each.completions[0]}]}
        for each in examples if each.completions and not each.calls
    ]  # fmt: skip
    assert all(sum(encoded.labels_mask) for encoded in encode_rows(told, tokenizer))


def test_what_a_template_or_tokenizer_leaves_out_is_told() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "find", "arguments": '{"zone": "<|im_end|>"}'}}
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "I look.", "tool_calls": [call]}]
    plain = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rows: list[Row] = [{"messages": turns}, {"messages": plain}, {"text": "one<|endoftext|>two"}]
    tokenizer: Any = prepare_tokenizer(family_tokenizer("qwen"))
    [controlled] = unsaid(iter(rows), tokenizer)
    assert controlled.startswith("2 of 3 rows hold control tokens") and "(<|im_end|>, <|endoftext|>)" in controlled
    assert not unsaid(rows[1:2], tokenizer)
    written = str(tokenizer.chat_template)
    tokenizer.chat_template = written.replace("{% if message.content %}", "{% if false %}")
    assert tokenizer.chat_template != written
    assert unsaid(rows[:2], tokenizer)[1].startswith("1 of 2 rows say something beside a tool call")
    encode_rows(rows, tokenizer)
    raising = "{% if message.content %}{{ raise_exception('words beside a call') }}"
    tokenizer.chat_template = written.replace("{% if message.content %}", raising)
    refused: dict[int, str] = {}
    assert len(encode_rows(rows, tokenizer, refused=refused)) == 2 and refused == {1: "words beside a call"}
    assert len(unsaid(rows, tokenizer)) == 1, "a row that is refused is told as that"
