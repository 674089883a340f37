"""Who writes: an endpoint with its faults and its budget, and a local model."""

from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError, PipelineError, Row
from tasks.models.pretrain_engine import new_llama
from tasks.synthesis.recipe import SynthesisRecipe
from tasks.synthesis.synthesise import synthesise
from tests.synthesis_author import Author, chain, dropped, endpoint, made, new_instruction, rows_of
from tests.test_ai_endpoint import serving
from tests.test_mixture import save
from tests.tiny_models import tiny_tokenizer, work_in


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


def test_what_is_busy_or_garbled_is_asked_again(tmp_path: Path) -> None:
    author = Author()
    failing = {3: (429, {}), 9: (200, b"<html>"), 14: (500, {}), 20: (200, b'{"choices": []}')}

    def brain(body: dict[str, Any], number: int) -> Any:
        status, content = failing.get(number, (0, None))
        return (status, content, {"Retry-After": "0"}) if status else author(body, number)

    with serving(brain) as server:
        work = made(tmp_path / "w", endpoint(server.url), chain(tmp_path)[:1])
    assert len(rows_of(work)) == 12


def test_the_budget_holds_over_all_steps(tmp_path: Path) -> None:
    author = Author()
    with serving(author) as server:
        prices = {"prompt_price": 1.0, "budget": 0.0041, "concurrency": 1}  # a question is 100 tokens: 0.0001
        with pytest.raises(PipelineError, match=r"The writer's budget of 0.0041 is used up after \d+ of \d+ questions"):
            made(tmp_path / "a", endpoint(server.url, **prices), chain(tmp_path))
        assert 41 <= len(server.requests) <= 42
        assert author.asked["evolve"] > 0, "the first step alone did not use it up"


def test_an_endpoint_that_is_down_and_a_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"The writer at http://127.0.0.1:9/v1 gives no answer"):
        made(tmp_path / "a", endpoint("http://127.0.0.1:9/v1", attempts=1), chain(tmp_path))
    with pytest.raises(PipelineError, match=r"NO_SUCH_KEY is not set; put the writer's API key"):
        made(tmp_path / "b", endpoint("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"), chain(tmp_path))


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
