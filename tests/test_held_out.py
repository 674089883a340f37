"""What an evaluation set keeps out of the training sets, and what it does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import read_jsonl
from tests.test_mixture import prepare, question, save, sft

SHARES = {"sft": 1, "reward_train": 0, "reward_validation": 0, "rl": 0, "evaluation": 0}
HALF = SHARES | {"sft": 0.5, "evaluation": 0.5}
OPTIONS = ["Yes", "It's impossible to say", "No"]
RULE = "Decide whether the claim below follows."
TEMPLATE = {
    "prompt": "{{ rule }}\n{{ q }}\nOptions: {{ options | join(', ') }}",
    "completion": "{{ options[label] }}",
}


def told_set(path: Path, first: int, count: int, **settings: Any) -> dict[str, Any]:
    rows = [
        {"q": question(n, 1) + f" And what of {n * 97} or {n * 89}?", "options": OPTIONS, "rule": RULE, "label": n % 3,
         "answer": OPTIONS[n % 3], "note": OPTIONS[1]}
        for n in range(first, first + count)
    ]  # fmt: skip
    return {"name": path.stem, "kind": "json", "path": save(path, rows), "templates": [TEMPLATE], **settings}


@pytest.mark.parametrize("filters", [[], [{"kind": "contamination"}]])
def test_options_answers_and_instructions_of_an_evaluation_set_drop_no_training_row(
    tmp_path: Path, filters: list[Any]
) -> None:
    exam = told_set(tmp_path / "exam.jsonl", 0, 30, use="evaluation")
    train = told_set(tmp_path / "train.jsonl", 20, 200)
    work = prepare(tmp_path, sets=[train, exam], shares=SHARES, filters=filters, near_duplicates=1)
    dropped = [row["line"] for row in read_jsonl(work.out / "dropped.jsonl")]
    assert dropped == list(range(1, 11)) and len(sft(work)) == 190


def test_an_answer_of_one_evaluation_row_alone_is_not_protected_and_its_question_is(tmp_path: Path) -> None:
    template = {"prompt": "Tell me: {{ q }}", "completion": "{{ q }} {{ a }}"}
    rows = [{"q": question(n), "a": f"It is the number {n} and no other."} for n in range(40)]
    exam = [rows[0], {**rows[1], "a": "I would not know that."}, rows[0]]
    train = [*rows[:2], *({**row, "a": exam[1]["a"]} for row in rows[2:])]
    sets = [
        {"name": "train", "kind": "json", "path": save(tmp_path / "t.jsonl", train), "templates": [template]},
        {
            "name": "exam",
            "kind": "json",
            "path": save(tmp_path / "e.jsonl", exam),
            "templates": [template],
            "use": "evaluation",
        },
    ]
    work = prepare(tmp_path, sets=sets, shares=SHARES, near_duplicates=1)
    assert [row["line"] for row in read_jsonl(work.out / "dropped.jsonl")] == [1, 2] and len(sft(work)) == 38


@pytest.mark.parametrize("separate", [True, False])
def test_plain_text_holds_no_prompt_that_is_held_out(tmp_path: Path, separate: bool) -> None:
    exam = [question(n, 1) for n in range(30)]
    story = "Once upon a time there was number {} and it went on to {} and {} without an end."
    stories = [story.format(n, n * 7, n * 13) for n in range(40)]
    leaks = [*exam[:15], *(f"{stories[n]} Question: {exam[n].upper()} Answer: {n}" for n in range(15, 30))]
    chat = [{"prompt": question(n), "completion": "fine"} for n in range(100, 160)]
    (tmp_path / "text.txt").write_text("\n\n".join([*stories, *leaks, *(row["prompt"] for row in chat)]))
    sets = [
        {"name": "chat", "kind": "json", "path": save(tmp_path / "chat.jsonl", chat)},
        {"name": "text", "kind": "text", "path": str(tmp_path / "text.txt")},
    ]
    if separate:
        rows = [{"prompt": prompt} for prompt in exam]
        sets.append({"name": "exam", "kind": "json", "path": save(tmp_path / "e.jsonl", rows), "use": "evaluation"})
    shares = {"sft": 0.5, "reward_train": 0, "reward_validation": 0, "rl": 0.3, "evaluation": 0.2}
    work = prepare(tmp_path, sets=sets, shares=shares, near_duplicates=0.9)
    texts = {row["text"] for row in sft(work) if "text" in row}
    held = [
        row["prompt"][0]["content"] for name in ("evaluation", "rl") for row in read_jsonl(work.out / f"{name}.jsonl")
    ]
    assert len(held) >= 25 and not texts & set(held) and texts > set(stories)
    assert not separate or not any(prompt.lower() in text.lower() for text in texts for prompt in exam)
    reasons = {row["reason"] for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "text"}
    near, holds = "is a near-duplicate of a prompt that is not for SFT", "holds an evaluation prompt"
    assert reasons == ({near, holds, "is a near-duplicate of an evaluation prompt"} if separate else {near})


def test_few_shot_examples_are_no_evaluation_prompts_and_nothing_like_them_is_evaluated_on(tmp_path: Path) -> None:
    rows = [{"q": question(n % 100), "a": f"It is {n % 100}."} for n in range(200)]
    near = [{"q": f"{question(n)} Say it!", "a": f"It is {n}."} for n in range(60, 100)]
    exam = [{"prompt": question(n)} for n in range(0, 60, 2)]
    shown = {
        "templates": [{"prompt": "Tell me: {{ q }}", "completion": "{{ a }}"}],
        "fewshot": {"share": 0.9, "pool": 30, "shots": [1, 2]},
    }
    sets = [
        {"name": "train", "kind": "json", "path": save(tmp_path / "t.jsonl", rows + near), **shown},
        {"name": "exam", "kind": "json", "path": save(tmp_path / "e.jsonl", exam), "use": "evaluation"},
    ]
    shares = {"sft": 0.5, "reward_train": 0, "reward_validation": 0, "rl": 0, "evaluation": 0.5}
    work = prepare(tmp_path, sets=sets, shares=shares, near_duplicates=0.6)
    dropped = [row for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "train"]
    pool = [(rows + near)[row["line"] - 1]["q"] for row in dropped if "few-shot example" in row["reason"]]
    assert len(pool) > 10 and not {row["prompt"] for row in exam} & set(pool)
    asked = [row["prompt"][-1]["content"].split("Tell me: ")[-1] for row in read_jsonl(work.out / "evaluation.jsonl")]
    assert len(asked) > 30 and not {text.removesuffix(" Say it!") for text in pool} & {
        text.removesuffix(" Say it!") for text in asked
    }
    assert not any(row["prompt"] in json.dumps(example) for row in exam for example in sft(work))


def chats(count: int, first: str, *, whole: bool) -> list[Any]:
    """Two-question conversations that begin alike, and perhaps that beginning as a conversation of its own."""
    rows: list[Any] = [
        [{"role": "user", "content": first}, {"role": "assistant", "content": f"Hi {n}"},
         {"role": "user", "content": question(n)}, {"role": "assistant", "content": f"It is {n}."}]
        for n in range(count)
    ]  # fmt: skip
    rows += [[{"role": "user", "content": first}, {"role": "assistant", "content": "Hi"}]] if whole else []
    return [{"messages": turns} for turns in rows]


@pytest.mark.parametrize(("whole", "groups"), [(False, 70), (True, 31)])
def test_conversations_are_one_group_where_they_go_on_from_a_whole_one(
    tmp_path: Path, whole: bool, groups: int
) -> None:
    others = [{"question": question(n), "answer": f"It is {n}."} for n in range(100, 130)]
    path = save(tmp_path / "chat.jsonl", chats(40, "Hello there, friend", whole=whole) + others)
    work = prepare(tmp_path, sets=[{"name": "chat", "kind": "json", "path": path}], shares=HALF)
    assert len({row["group"] for row in read_jsonl(work.out / "ledger.jsonl")}) == groups


def test_few_shot_turns_do_not_join_conversations(tmp_path: Path) -> None:
    path = save(tmp_path / "qa.jsonl", [{"question": question(n), "answer": f"It is {n}."} for n in range(120)])
    sets = [{"name": "qa", "kind": "json", "path": path, "fewshot": {"share": 1.0, "pool": 8, "form": "turns"}}]
    work = prepare(tmp_path, sets=sets, shares=HALF)
    assert len({row["group"] for row in read_jsonl(work.out / "ledger.jsonl")}) == 112


def test_an_evaluation_prompt_cut_between_two_pieces_of_a_text_drops_both(tmp_path: Path) -> None:
    """And none beside them, nor what only begins where another document ends."""
    exam = [f"Which river of the land number {n} runs past the {n * 7} mills?" for n in range(6)]
    filler = [f"Here lies word {n} of many others that say little more." for n in range(60)]
    begin, end = exam[0].split(" runs ")
    cut = " ".join(filler[:3]) + " " + exam[0] + " " + " ".join(filler[3:20])
    limit = cut.index(" runs ") + 1
    documents = [cut, f"{filler[40]} {begin}", f"runs {end} {filler[41]}", " ".join(filler[20:30])]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    sets = [
        {"name": "text", "kind": "text", "path": str(tmp_path / "text.txt"), "characters": limit},
        {"name": "exam", "kind": "json", "path": save(tmp_path / "exam.jsonl", [{"prompt": text} for text in exam]),
         "use": "evaluation"},
        {"name": "train", "kind": "json",
         "path": save(tmp_path / "t.jsonl", [{"prompt": question(n), "completion": "So."} for n in range(9)])},
    ]  # fmt: skip
    work = prepare(tmp_path, sets=sets, shares=SHARES)
    dropped = [row for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "text"]
    assert [row["line"] for row in dropped] == [1, 2] and {row["reason"] for row in dropped} == {
        "holds an evaluation prompt"
    }
    assert all(part in str(row["row"]) for part, row in zip((begin, end), dropped, strict=True))
    texts = [row["text"] for row in sft(work) if "text" in row]
    assert any(begin in text for text in texts) and any(end in text for text in texts)
