"""Synthesis through the real stage, against a real HTTP endpoint that answers by the prompt."""

import threading
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError, PipelineError
from tests.synthesis_author import Author, chain, endpoint, made, rows_of
from tests.test_ai_endpoint import completion, serving


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


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


def test_a_writer_that_makes_no_lists_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    with serving(lambda body, number: (200, completion("As you wish."))) as server:
        with pytest.raises(
            InputError, match=r"step '1 self_instruct' .* keeps nothing \(4 of 4 times: it is no list of tasks\)"
        ) as error:
            made(tmp_path / "w", endpoint(server.url), chain(tmp_path, patience=2))
        assert len(server.requests) == 4, "two prompts at once, twice"
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
