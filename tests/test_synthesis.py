"""Synthesis through the real stage, against a real HTTP endpoint that answers by the prompt, and with a local model."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl
from tasks.data.preference_formats import read_preferences
from tasks.data.preview import table
from tasks.models.pretrain_engine import new_llama
from tasks.recipe import explain
from tasks.synthesis.recipe import SynthesisRecipe
from tasks.synthesis.synthesise import synthesise
from tests.test_ai_endpoint import completion, serving
from tests.test_mixture import NOUNS, save
from tests.tiny_models import tiny_tokenizer, work_in

SEEDS = [
    {
        "id": f"seed_task_{n}",
        "instruction": f"Tell which {NOUNS[n]} grows beside {NOUNS[n + 1]} number {n}.",
        "instances": [{"input": f"{NOUNS[n]} {n}", "output": f"It is {NOUNS[n + 1]}."}],
        "is_classification": n % 4 == 0,
    }
    for n in range(12)
]
REAL = Path(__file__).parents[2] / "shared" / "data" / "self-instruct" / "seed_tasks.jsonl"
PRINCIPLES = ["Be kind to whoever asks.", "Say nothing that may hurt somebody."]


def seeds(folder: Path) -> str:
    return save(folder / "seeds.jsonl", SEEDS)


class Author:
    """Answers by what it is asked, the same each time; `asked` counts the kinds of questions."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any], number: int) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        for kind, (mark, reply) in self.kinds().items():
            if mark in text:
                self.asked[kind] += 1
                return 200, completion(reply(text))
        self.asked["answer"] += 1
        return 200, completion(self.answer(text))

    def kinds(self) -> dict[str, tuple[str, Callable[[str], str]]]:
        return {
            "instructions": ("numbered list of tasks", self.instructions),
            "classification": ("Is this a classification task? Answer yes or no.", self.classification),
            "instances": ("Use exactly this form", self.instance),
            "evolve": ("You rewrite instructions", self.evolved),
            "compare": ("Do they ask for the same", lambda text: "No, the second asks for more."),
            "critique": ("Hold the answer against this principle", lambda text: "It could be kinder."),
            "revision": (
                "Write the answer anew",
                lambda text: f"Here is the revised answer: {between(text, 2)} Be well.",
            ),
        }

    def instructions(self, text: str) -> str:
        shown = sorted(int(n) for n in re.findall(r"number (\d+)", text))
        start = 100 + sum(shown)
        lines = [f"{9 + n}. {new_instruction(start + n)}" for n in range(3)]
        return "Sure, here are more:\n\n" + "\n".join([*lines, "12. Draw a picture of a birch.", "13. Sing."])

    def classification(self, text: str) -> str:
        return "Yes." if int(numbers(text)[-1]) % 3 == 0 else "No, it is not."

    def instance(self, text: str) -> str:
        name = text.rsplit("Task: ", 1)[1]
        given = f"the {NOUNS[len(name) % 20]} of {numbers(name)[-1]}"
        if "Label: ..." in text:
            return f"Label: green\nInput: {given}"
        return f"Input: {given}\nOutput: It grows by {given}."

    def evolved(self, text: str) -> str:
        return f"{between(text, 1)} Also name {len(text)} reasons and say which counts most."

    def answer(self, text: str) -> str:
        return f"The answer to {' '.join(numbers(text))} is {NOUNS[len(text) % 20]}."


def between(text: str, place: int) -> str:
    return text.split("----------\n")[2 * place - 1].strip()


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def new_instruction(n: int) -> str:
    a, b, c = NOUNS[n % 20], NOUNS[(n // 20) % 20], NOUNS[(n * 7) % 20]
    return f"{('Explain how', 'Compare why', 'List where')[n % 3]} {a}{n} meets {b} near {c}{n * 3} at {n}."


def endpoint(url: str, **more: Any) -> Row:
    return {"kind": "endpoint", "url": url, "model": "author-1", "concurrency": 4, **more}


def made(folder: Path, writer: Row, steps: list[Row], seed: int = 0, **more: Any) -> Work:
    work = work_in(folder, seed)
    recipe = SynthesisRecipe.model_validate({"name": "made", "writer": writer, "steps": steps, **more})
    synthesise(recipe, {}, work)
    return work


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


def chain(folder: Path, **more: Any) -> list[Row]:
    return [
        {"kind": "self_instruct", "seeds": seeds(folder), "instructions": 12, "prompts_at_once": 2, **more},
        {"kind": "evolve", "generations": 2},
        {"kind": "answer", "system": "Be short."},
        {"kind": "revise", "principles": PRINCIPLES},
    ]


def rows_of(work: Work) -> list[Row]:
    return read_jsonl(work.out / "rows.jsonl")


def dropped(work: Work) -> Counter[tuple[str, str]]:
    return Counter((row["step"], row["reason"]) for row in read_jsonl(work.out / "dropped.jsonl"))


def steps_of(row: Row) -> list[str]:
    return [step["step"] for step in row["made"]["steps"]]


def test_from_seed_tasks_to_revised_answers_and_every_row_says_how(tmp_path: Path) -> None:
    author = Author()
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), chain(tmp_path))
        shown = [body["messages"][0]["content"] for body in server.requests if "numbered list" in str(body)]
        assert {body["temperature"] for body in server.requests} == {0, 0.7}
        assert {body["max_tokens"] for body in server.requests} == {1024}
    assert all(len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == 8 for text in shown), "eight tasks in each prompt"
    rows = rows_of(work)
    account = {row["step"]: row for row in table(work.out, "steps")}
    assert account["1 self_instruct"]["kept"] == 12 and account["2 evolve"]["kept"] == len(rows)
    assert len({row["id"] for row in rows}) == len(rows) and 24 < len(rows) <= 36
    names = {seed["id"] for seed in SEEDS}
    ids = {row["prompt_id"] for row in rows}
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        how = row["made"]
        assert (how["synthesis"], how["model"], how["temperature"], how["seed"]) == ("made", "author-1", 0.7, 0)
        first, *evolved = how["steps"]
        assert first["step"] == "self_instruct" and len(first["shown"]) == 8
        assert len({*first["shown"]} & names) >= 6, "six seeds, and two new tasks as soon as there are some"
        assert all(step["parent"] in ids for step in evolved if step["step"] == "evolve")
        assert how["steps"][-1]["step"] == "revise" and set(how["steps"][-1]["principles"]) <= set(PRINCIPLES)
        assert row["messages"][1]["content"] == how["steps"][-1]["original"] + " Be well.", "without its announcement"
    assert any(len({*row["made"]["steps"][0]["shown"]} - names) == 2 for row in rows)
    evolved = [row for row in rows if "evolve" in steps_of(row)]
    assert {row["made"]["steps"].index(step) for row in evolved for step in row["made"]["steps"]} >= {0, 1, 2, 3, 4}
    assert all(steps_of(row)[-2:] == ["answer", "revise"] for row in evolved)
    assert "nearest" not in str(rows) and {row["made"]["steps"][-1]["principles"][0] for row in rows} == {*PRINCIPLES}
    reasons = dropped(work)
    assert reasons["1 self_instruct", "says 'picture', which is not for text"] == author.asked["instructions"]
    assert reasons["1 self_instruct", "has fewer than 4 words"] == author.asked["instructions"]
    pairs, broken = read_preferences(work.out / "preferences.jsonl")
    assert len(pairs) == len(rows) and not broken
    assert all(pair["chosen"][0]["content"].endswith("Be well.") for pair in pairs)
    spread = {row["of"]: row for row in table(work.out, "spread")}
    assert 0 < spread["nearest ROUGE-L to one another"]["median"] < 1
    lengths = [len(row["messages"][0]["content"].split()) for row in rows]
    assert spread["words of instructions"]["least"] == min(lengths)
    first_words = {row["first words"] for row in table(work.out, "first words")}
    assert first_words & {"explain how", "compare why", "list where"} and work.metrics["unique_share"] == 1
    assert (work.out / "report" / "novelty.png").stat().st_size > 1000
    assert work.metrics["prompt_tokens"] == 100 * sum(author.asked.values())


def test_the_same_recipe_gives_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    with serving(Author()) as server:
        steps = chain(tmp_path)
        first = made(tmp_path / "a", endpoint(server.url), steps)
        asked = len(server.requests)
        again = made(tmp_path / "b", endpoint(server.url), steps)
        assert len(server.requests) == asked and again.metrics["answers_now"] == 0, "all answers were kept"
        for name in ("rows.jsonl", "preferences.jsonl", "dropped.jsonl"):
            assert (first.out / name).read_bytes() == (again.out / name).read_bytes()
        other = made(tmp_path / "c", endpoint(server.url), steps, seed=1)
        assert len(server.requests) > asked and rows_of(other) != rows_of(first)


def test_interrupted_it_asks_only_what_is_missing(tmp_path: Path) -> None:
    author, over = Author(), threading.Event()

    def tired(body: dict[str, Any], number: int) -> tuple[int, Any]:
        if number > 60 and not over.is_set():
            return 503, {"error": "overloaded"}
        return author(body, number)

    steps = chain(tmp_path)
    with serving(tired) as server:
        writer = endpoint(server.url, attempts=1)
        with pytest.raises(PipelineError, match=r"The writer at .* gives no answer \(HTTP 503.*is kept"):
            made(tmp_path / "a", writer, steps)
        over.set()
        answered = sum(author.asked.values())
        assert answered == 60
        work = made(tmp_path / "b", writer, steps)
    with serving(Author()) as server:
        whole = made(tmp_path / "c", endpoint(server.url), steps)
        assert len(server.requests) == sum(author.asked.values()), "nothing was asked twice"
    assert [row["messages"] for row in rows_of(work)] == [row["messages"] for row in rows_of(whole)]


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


def test_what_is_busy_or_garbled_is_asked_again(tmp_path: Path) -> None:
    author = Author()
    failing = {3: (429, {}), 9: (200, b"<html>"), 14: (500, {}), 20: (200, b'{"choices": []}')}

    def brain(body: dict[str, Any], number: int) -> Any:
        status, content = failing.get(number, (0, None))
        return (status, content, {"Retry-After": "0"}) if status else author(body, number)

    with serving(brain) as server:
        work = made(tmp_path / "w", endpoint(server.url), chain(tmp_path)[:1])
    assert len(rows_of(work)) == 12


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


def conversations(path: Path) -> str:
    """Rows of several forms: a question, one with a system text, one of several turns, one with tools, broken ones."""
    tools = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}])
    return save(
        path,
        [
            {"instruction": "Name three tall trees of the north.", "input": "", "output": "Pine, birch, fir."},
            {"messages": [{"role": "system", "content": "Be brief."},
                          {"role": "user", "content": "Why is moss green?"}]},
            {"messages": [{"role": "user", "content": "What is fern?"}, {"role": "assistant", "content": "A plant."},
                          {"role": "user", "content": "And what is larch then?"}]},
            {"messages": [{"role": "user", "content": "Find some slate nearby."}], "tools": tools},
            {"prompt": ""},
            {"instruction": "Name three tall trees of the north.", "input": "", "output": "Pine, birch, fir."},
        ],
    )  # fmt: skip


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


def test_revision_takes_several_rounds_and_an_unusable_one_changes_nothing(tmp_path: Path) -> None:
    author = Author()
    kinds = author.kinds()
    critique = lambda text: "" if "Pine" in text else "Not kind enough."  # noqa: E731
    author.kinds = lambda: {**kinds, "critique": (kinds["critique"][0], critique)}  # type: ignore[method-assign]
    (tmp_path / "constitution.txt").write_text("# ours\n" + "\n".join(PRINCIPLES) + "\n\n")
    steps = [
        {"kind": "answer"},
        {"kind": "revise", "principles_file": str(tmp_path / "constitution.txt"), "rounds": 3},
    ]
    rows = {"kind": "json", "name": "mine", "path": conversations(tmp_path / "mine.jsonl")}
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), steps, rows=rows)
    done = rows_of(work)
    same = [row for row in done if "revise" not in steps_of(row)]
    assert [row["messages"][1]["content"] for row in same] == ["Pine, birch, fir."]
    for row in done:
        if row not in same:
            step = row["made"]["steps"][-1]
            assert row["messages"][-1]["content"] == step["original"] + " Be well." * 3
            assert len(step["principles"]) == 3 and {*step["principles"][:2]} == {*PRINCIPLES}, (
                "none twice while others are"
            )
    assert len(read_jsonl(work.out / "preferences.jsonl")) == len(done) - 1
    assert sum(count for (_, reason), count in dropped(work).items() if reason.startswith("the critique got")) == 3


def test_the_recipes_own_words_take_the_place_of_a_prompt(tmp_path: Path) -> None:
    author = Author()
    words = "You rewrite instructions, my way.\n----------\n{{ instruction }}\n----------\n"
    with serving(author) as server:
        steps = [*chain(tmp_path)[:1], {"kind": "evolve", "operations": ["deepen"]}]
        made(tmp_path / "w", endpoint(server.url), steps, prompts={"evolve_deepen": words})
        assert sum("my way" in str(body) for body in server.requests) == 12


def test_the_budget_holds_over_all_steps(tmp_path: Path) -> None:
    author = Author()
    with serving(author) as server:
        prices = {"prompt_price": 1.0, "budget": 0.0041, "concurrency": 1}  # a question is 100 tokens: 0.0001
        with pytest.raises(PipelineError, match=r"The writer's budget of 0.0041 is used up after \d+ of \d+ questions"):
            made(tmp_path / "a", endpoint(server.url, **prices), chain(tmp_path))
        assert 41 <= len(server.requests) <= 42
        assert author.asked["evolve"] > 0, "the first step alone did not use it up"


def test_a_writer_that_makes_no_lists_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    with serving(lambda body, number: (200, completion("As you wish."))) as server:
        with pytest.raises(
            InputError, match=r"step '1 self_instruct' .* keeps nothing \(4 of 4 times: it is no list of tasks\)"
        ) as error:
            made(tmp_path / "w", endpoint(server.url), chain(tmp_path, patience=2))
        assert len(server.requests) == 4, "two prompts at once, twice"
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_an_endpoint_that_is_down_and_a_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"The writer at http://127.0.0.1:9/v1 gives no answer"):
        made(tmp_path / "a", endpoint("http://127.0.0.1:9/v1", attempts=1), chain(tmp_path))
    with pytest.raises(PipelineError, match=r"NO_SUCH_KEY is not set; put the writer's API key"):
        made(tmp_path / "b", endpoint("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"), chain(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "is empty; write one seed task per line"),
        ('{"text": "x"}\n[1]\n', "holds no seed task: row 1 as a seed has no prompt"),
        ("\xff", "holds no seed task|UTF-8"),
    ],
)
def test_seeds_that_are_none_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "none.jsonl").write_text(content, encoding="latin-1")
    step = {"kind": "self_instruct", "seeds": str(tmp_path / "none.jsonl")}
    with pytest.raises(InputError, match=message):
        made(tmp_path / "w", endpoint("http://127.0.0.1:9/v1"), [step])


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


BASE: Row = {"name": "made", "writer": endpoint("https://host/v1"), "steps": [{"kind": "answer"}]}
FROM: Row = {"rows": {"kind": "json", "name": "mine", "path": "x.jsonl"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "begins with either 'rows' or a first step 'self_instruct'"),
        ({**FROM, "steps": [{"kind": "answer"}, {"kind": "self_instruct", "seeds": "x"}]}, "is not the first step"),
        ({**FROM, "steps": [{"kind": "self_instruct", "seeds": "x"}]}, "give one of both"),
        ({**FROM, "steps": []}, "at least 1 item"),
        ({**FROM, "steps": [{"kind": "revise"}]}, "needs 'principles' or 'principles_file'"),
        ({**FROM, "steps": [{"kind": "revise", "principles": [" "]}]}, "holds an empty one"),
        ({**FROM, "steps": [{"kind": "evolve", "operations": ["shout"]}]}, "constraints"),
        ({**FROM, "prompts": {"shout": "x"}}, "the prompts are instructions"),
        ({**FROM, "prompts": {"critique": "x"}}, "has no place for what it is about"),
        ({**FROM, "writer": endpoint("https://me:secret@host/v1")}, "environment variable"),
        ({**FROM, "writer": endpoint("https://h/v1", options={"temperature": 1})}, "has a field of its own"),
        ({**FROM, "writer": {"kind": "local", "model": "sft"}}, "before the SFT model is there"),
        ({"steps": [{"kind": "self_instruct", "seeds": "x", "words": [9, 3]}]}, "fewest <= most"),
    ],
)
def test_a_synthesis_that_cannot_be_is_refused(change: Row, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        SynthesisRecipe.model_validate({**BASE, **change})
    assert "secret" not in "; ".join(explain(SynthesisRecipe, error.value))


def test_a_revision_without_answers_is_named(tmp_path: Path) -> None:
    rows = {"kind": "json", "name": "mine", "path": save(tmp_path / "mine.jsonl", [{"prompt": "Name three trees."}])}
    with pytest.raises(InputError, match="No row has an answer for the step '1 revise'; put a step"):
        made(tmp_path / "w", endpoint("http://127.0.0.1:9/v1"), [{"kind": "revise", "principles": ["x"]}], rows=rows)


def test_principles_that_are_not_there_are_named(tmp_path: Path) -> None:
    steps = [{"kind": "revise", "principles_file": str(tmp_path / "none.txt")}]
    rows = {"kind": "json", "name": "mine", "path": conversations(tmp_path / "mine.jsonl")}
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        made(tmp_path / "a", endpoint("http://127.0.0.1:9/v1"), steps, rows=rows)
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    with pytest.raises(InputError, match="holds no principle"):
        made(tmp_path / "b", endpoint("http://127.0.0.1:9/v1"), steps, rows=rows)


# a local model


def local(folder: Path, **more: Any) -> Row:
    if not folder.exists():
        tokenizer = tiny_tokenizer()
        new_llama(tokenizer, 0, hidden=32, layers=2, heads=2, positions=1024).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {"kind": "local", "model": str(folder), "max_new_tokens": 12, "batch_size": 4, **more}


def questions(folder: Path, count: int = 70) -> Row:
    rows = [{"prompt": new_instruction(n)} for n in range(count)]
    return {"kind": "json", "name": "mine", "path": save(folder / "mine.jsonl", rows)}


def test_a_local_model_answers_the_same_again_also_when_it_was_interrupted(tmp_path: Path) -> None:
    writer = local(tmp_path / "model", temperature=1.0, max_new_tokens=100)  # a random model seldom ends
    rows, steps = questions(tmp_path), [{"kind": "answer"}]
    first = made(tmp_path / "a", writer, steps, rows=rows)
    texts = [row["messages"][1]["content"] for row in rows_of(first)]
    assert 8 < len({*texts}) == len(texts) < 70, "each is drawn by itself"
    assert dropped(first)["1 answer", "was cut at 100 tokens"] > 30
    about = rows_of(first)[0]["made"]
    assert about["model"] == "model" and len(about["digest"]) == 64 and about["temperature"] == 1.0
    work = work_in(tmp_path / "b")
    lines = (tmp_path / "a" / "scratch" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 70
    (work.scratch / "answers.jsonl").write_text("\n".join(lines[:37]) + '\n{"key": "cut')
    done: list[int] = []
    work.on_progress = lambda count, total, note: done.append(count)
    recipe = SynthesisRecipe.model_validate({"name": "made", "writer": writer, "steps": steps, "rows": rows})
    synthesise(recipe, {}, work)
    assert (work.out / "rows.jsonl").read_bytes() == (first.out / "rows.jsonl").read_bytes()
    again = (work.scratch / "answers.jsonl").read_text().splitlines()
    assert len(again) == 38 + 70 - 32, "whole chunks of 32 are kept, and a chunk that is not whole is drawn again"
    other = made(tmp_path / "c", writer, steps, seed=1, rows=rows)
    assert [row["messages"] for row in rows_of(other)] != [row["messages"] for row in rows_of(first)]


def test_what_a_local_model_does_not_end_or_cannot_hold_is_dropped(tmp_path: Path) -> None:
    writer, rows = local(tmp_path / "model", max_new_tokens=3, temperature=0.0), questions(tmp_path, 8)
    save(tmp_path / "mine.jsonl", [{"prompt": "Name " + "very " * 2000 + "tall trees."}, {"prompt": "Name a tree."}])
    reason = r"keeps nothing \(1 of 2 times: it got no text from the writer \(longer than the writer's context of 1024"
    with pytest.raises(InputError, match=reason) as error:
        made(tmp_path / "a", writer, [{"kind": "answer"}], rows=rows)
    assert "\n" not in str(error.value)


def test_a_writer_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows, steps = questions(tmp_path, 4), [{"kind": "answer"}]
    with pytest.raises(InputError, match=r"The writer's folder .*none does not exist; give a folder, a hub id\."):
        made(tmp_path / "a", {"kind": "local", "model": str(tmp_path / "none")}, steps, rows=rows)


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
