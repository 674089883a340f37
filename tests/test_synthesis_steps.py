"""The steps of a synthesis: what each makes, and what it drops."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import read_jsonl
from tasks.data.preview import table
from tests.synthesis_author import (
    Author,
    between,
    chain,
    conversations,
    dropped,
    endpoint,
    made,
    numbers,
    rows_of,
    steps_of,
)
from tests.test_ai_endpoint import completion, serving
from tests.test_mixture import NOUNS, save

REAL = Path(__file__).parents[2] / "shared" / "data" / "self-instruct" / "seed_tasks.jsonl"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("spoilt", "step", "reason"),
    [
        (lambda text: completion(""), "3 answer", "got no text from the writer|got an empty text"),
        (lambda text: completion("half an ans", finish="length"), "3 answer", "was cut at 1024 tokens"),
        (lambda text: completion("...!?"), "3 answer", "is all punctuation and stop words"),
        (lambda text: completion("I am sorry, I cannot."), "3 answer", "is an apology"),
        (completion, "3 answer", "repeats the instruction"),
        (lambda text: completion(None), "3 answer", "got no text from the writer"),
    ],
)
def test_answers_that_are_none_drop_their_rows(tmp_path: Path, spoilt: Any, step: str, reason: str) -> None:
    author = Author()

    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        if body["messages"][0]["role"] == "system" and len(text) % 2:
            return 200, spoilt(text)
        return author(body, number)

    with serving(brain) as server:
        work = made(tmp_path / "w", endpoint(server.url), chain(tmp_path)[:3])
    lost = {what: count for what, count in dropped(work).items() if what[0] == step}
    assert len(lost) == 1 and re.match(reason, next(iter(lost))[1]) and sum(lost.values()) > 3
    account = {row["step"]: row for row in table(work.out, "steps")}
    assert len(rows_of(work)) == account["2 evolve"]["kept"] - sum(lost.values())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda old: old, "is the instruction it was made from"),
        (lambda old: f"Do the rewritten prompt {old} twice", "says 'rewritten prompt', which is from its prompt"),
        (lambda old: "Sorry, I cannot rewrite this.", "is an apology"),
        (lambda old: "--- of the ---", "is all punctuation and stop words"),
        (lambda old: old + " more" * 401, "has more than 400 words"),
    ],
)
def test_the_elimination_of_evolved_instructions(tmp_path: Path, reply: Any, reason: str) -> None:
    author = Author()
    author.evolved = lambda text: reply(between(text, 1))  # type: ignore[method-assign]
    step = {"kind": "evolve", "operations": ["deepen"], "compare": False}
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), [*chain(tmp_path)[:1], step])
    assert dropped(work)["2 evolve", reason] == 12 and len(rows_of(work)) == 12


def test_an_evolved_instruction_that_asks_for_no_more_is_dropped_and_its_parent_tried_again(tmp_path: Path) -> None:
    author = Author()
    kinds = author.kinds()
    verdict = lambda text: "Yes, the same." if int(numbers(between(text, 2))[-1]) % 2 else "No."  # noqa: E731
    author.kinds = lambda: {**kinds, "compare": ("Do they ask for the same", verdict)}  # type: ignore[method-assign]
    step = {"kind": "evolve", "operations": ["constraints"], "generations": 2, "keep_originals": False}
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), [*chain(tmp_path)[:1], step])
        asked = [between(body["messages"][0]["content"], 1) for body in server.requests if "rewrite instr" in str(body)]
    lost = [
        row for row in read_jsonl(work.out / "dropped.jsonl") if row["reason"] == "asks for no more than its parent"
    ]
    rows = rows_of(work)
    assert lost and rows and all("evolve" in steps_of(row) for row in rows)
    assert len(asked) == 24 and len(lost) + len(rows) == 24
    again = [text for text, count in Counter(asked).items() if count == 2]
    assert len(again) == sum(row["made"][-1]["generation"] == 1 for row in lost), "failed ones go on from their parents"


def test_broadened_instructions_must_be_new(tmp_path: Path) -> None:
    author = Author()
    author.evolved = lambda text: f"Wholly other thing about {NOUNS[len(text) % 3]} and its friends."  # type: ignore[method-assign]
    with serving(author) as server:
        step = {"kind": "evolve", "operations": ["broaden"]}
        work = made(tmp_path / "w", endpoint(server.url), [*chain(tmp_path)[:1], step])
        assert author.asked["compare"] == 0, "nothing to compare it with"
    reasons = {reason: count for (step, reason), count in dropped(work).items() if step == "2 evolve"}
    assert len(rows_of(work)) == 13 and sum(reasons.values()) == 11
    assert reasons.keys() <= {"is too like another instruction", "says what another instruction says"}


def test_rows_of_a_file_are_evolved_answered_and_keep_what_they_are(tmp_path: Path) -> None:
    author = Author()
    steps = [{"kind": "evolve", "operations": ["reasoning"]}, {"kind": "answer", "system": "Speak plainly."}]
    rows = {"kind": "json", "name": "mine", "path": conversations(tmp_path / "mine.jsonl")}
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), steps, rows=rows)
        told = [body["messages"] for body in server.requests if body["messages"][0]["role"] == "system"]
    reasons = dropped(work)
    assert reasons["rows", "has no prompt"] == 1 and reasons["rows", "is there twice"] == 1
    assert reasons["2 answer", "has tools, which a writer cannot call"] == 1
    done = rows_of(work)
    assert len(done) == 5 and author.asked["evolve"] == 2, "several turns and tools are not evolved"
    kept = next(row for row in done if steps_of(row) == ["rows"])
    assert kept["messages"][1]["content"] == "Pine, birch, fir." and kept["made"]["steps"][0]["line"] == 1
    brief = next(row for row in done if row["messages"][0]["role"] == "system")
    assert brief["messages"][0]["content"] == "Be brief.", "the writer's own system text is not in the row"
    assert {messages[0]["content"] for messages in told} == {"Speak plainly.", "Speak plainly.\n\nBe brief."}
    assert max(len(messages) for messages in told) == 4
    assert all(row["messages"][-1]["role"] == "assistant" for row in done)


def test_several_answers_make_several_rows_and_again_replaces_what_was_there(tmp_path: Path) -> None:
    def varied(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return 200, completion(f"Answer {NOUNS[number % 2]}.")

    rows = {"kind": "json", "name": "mine", "path": conversations(tmp_path / "mine.jsonl")}
    with serving(varied) as server:
        writer = endpoint(server.url, concurrency=1)
        work = made(tmp_path / "a", writer, [{"kind": "answer", "candidates": 4}], rows=rows)
        assert len(server.requests) == 8
        assert dropped(work)["1 answer", "is an answer given before"] == 4
        done = rows_of(work)
        assert len(done) == 5 and Counter(row["prompt_id"] for row in done).most_common()[0][1] == 2
        again = made(tmp_path / "b", writer, [{"kind": "answer", "again": True}], rows=rows)
    assert all(row["messages"][-1]["content"].startswith("Answer ") for row in rows_of(again))


def test_plain_instruction_rows_are_seeds_too(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sort the given words now.", "input": "b a", "output": "a b"},
        {"prompt": "Name seven rivers of Asia.", "completion": "Ob ..."},
        {"question": "How deep is the sea?", "answer": "Deep."},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                      {"role": "user", "content": "c"}]},
    ]  # fmt: skip
    with serving(Author()) as server:
        step = {"kind": "self_instruct", "seeds": save(tmp_path / "rows.jsonl", rows), "instructions": 3}
        work = made(tmp_path / "w", endpoint(server.url), [step])
        text = server.requests[0]["messages"][0]["content"]
        asked = [body["messages"][0]["content"] for body in server.requests]
    assert (
        all(part in text for part in ("Sort the given words now.", "Name seven rivers", "How deep"))
        and "b a" not in text
    )
    assert any("Input: b a\nOutput: a b" in each for each in asked), "shown where instances are asked for"
    assert dropped(work)["1 self_instruct", "as a seed is a conversation of several turns"] == 1


def test_zero_instances_are_instructions_for_the_answer_step(tmp_path: Path) -> None:
    author = Author()
    with serving(author) as server:
        steps = [*chain(tmp_path, instances=0)[:1], {"kind": "answer"}]
        work = made(tmp_path / "w", endpoint(server.url), steps)
    assert author.asked["answer"] == 12 and not author.asked["classification"] + author.asked["instances"]
    assert all(steps_of(row) == ["self_instruct", "answer"] for row in rows_of(work))


@pytest.mark.skipif(not REAL.is_file(), reason="shared/data/self-instruct is not beside the project")
def test_the_published_seed_tasks_are_read_and_pass_their_own_rules(tmp_path: Path) -> None:
    step = {"kind": "self_instruct", "seeds": str(REAL), "instructions": 3}
    with serving(Author()) as server:
        work = made(tmp_path / "w", endpoint(server.url), [step])
        texts = [request["messages"][0]["content"] for request in server.requests]
    assert not [row for row in read_jsonl(work.out / "dropped.jsonl") if "line" in row], "every line is a seed"
    seeds = {" ".join(row["instruction"].split()): row["id"] for row in read_jsonl(REAL)}
    lists = [re.findall(r"^\d+\. (.*)$", text, re.MULTILINE) for text in texts]  # several are under way at once
    asked = [{seeds[each] for each in shown} for shown in lists if len(shown) == 8 and {*shown} <= seeds.keys()]
    assert {*rows_of(work)[0]["made"]["steps"][0]["shown"]} in asked


def test_a_conversation_with_calls_of_tools_is_not_answered_by_a_writer_without_them(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Find some slate nearby."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Slate is in the quarry.", "tool_call_id": "c1"},
    ]
    rows = [{"messages": turns}, {"prompt": "Name three tall trees."}]
    mine = {"kind": "json", "name": "mine", "path": save(tmp_path / "mine.jsonl", rows)}
    with serving(Author()) as server:
        work = made(tmp_path / "w", endpoint(server.url), [{"kind": "answer"}], rows=mine)
        assert len(server.requests) == 1
    assert dropped(work) == {("1 answer", "has tools, which a writer cannot call"): 1}


def test_verdicts_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    author = Author()
    kinds = author.kinds()
    unsure = {kind: (kinds[kind][0], lambda text: "Hard to say.") for kind in ("classification", "compare")}
    author.kinds = lambda: {**kinds, **unsure}  # type: ignore[method-assign]
    steps = [*chain(tmp_path)[:1], {"kind": "evolve", "operations": ["deepen"], "generations": 2}]
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), steps)
    assert work.metrics["unreadable/classification"] == 12
    assert work.metrics["unreadable/compare"] == author.asked["compare"] == 24
