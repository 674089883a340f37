"""Who writes: an endpoint with its faults and its budget, and a local model."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.ai.local import Loaded
from tasks.artifact import InputError, PipelineError, Row, read_jsonl
from tasks.models.pretrain_engine import new_llama
from tasks.synthesis.recipe import SynthesisRecipe
from tasks.synthesis.synthesise import synthesise
from tests.synthesis_author import Author, chain, dropped, endpoint, made, new_instruction, rows_of
from tests.test_ai_endpoint import completion, serving
from tests.test_mixture import save
from tests.tiny_models import tiny_tokenizer, work_in
from tests.tiny_tokenizers import family_tokenizer


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


def test_what_the_server_says_of_its_refusals_is_told(tmp_path: Path) -> None:
    """Also where a step asks few questions at once, and where it refuses only some."""
    refusal = {"error": {"message": "the window is 17 tokens"}}
    with (
        serving(lambda body, number: (400, refusal)) as server,
        pytest.raises(PipelineError, match=r"refuses every question \(HTTP 400: .*the window is 17 tokens"),
    ):
        made(tmp_path / "a", endpoint(server.url), chain(tmp_path))
    rows = {
        "kind": "json",
        "name": "mine",
        "path": save(tmp_path / "mine.jsonl", [{"prompt": "One?"}, {"prompt": "Two?"}]),
    }
    author = Author()
    with serving(lambda body, number: (400, refusal) if "One?" in str(body) else author(body, number)) as server:
        work = made(tmp_path / "b", endpoint(server.url), [{"kind": "answer"}], rows=rows)
    [lost] = read_jsonl(work.out / "dropped.jsonl")
    assert "the window is 17 tokens" in lost["text"] and len(rows_of(work)) == 1


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


@pytest.mark.parametrize(
    ("family", "end"),
    [
        *[("gemma", "<end_of_turn>"), ("qwen base", "<|im_end|>"), ("llama", "<|eot_id|>"), ("zephyr", "</s>")],
        ("llama", "<|end_of_text|>"),  # by the model's own settings, as Llama 3.1 has them
    ],
)
def test_a_local_model_ends_as_its_family_ends(tmp_path: Path, family: str, end: str) -> None:
    tokenizer = family_tokenizer(family)
    model = new_llama(tokenizer, 0, hidden=32, layers=2, heads=2, positions=256)
    number = tokenizer.convert_tokens_to_ids(end)
    with torch.no_grad():  # whatever it is asked, it says that one token
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[number] = 1.0
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, number] if end == "<|end_of_text|>" else None
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    [said] = Loaded([tmp_path], 1, "writer").texts([[{"role": "user", "content": "Name a tree."}]], 5, seed=0)
    assert said.whole and said.completion_tokens == 1 and not said.text


THOUGHT = "<think>\nWhat is asked? Output: a tree.\n</think>\n\n"


def test_thinking_before_an_answer_is_left_out(tmp_path: Path) -> None:
    thinking = Author()
    calm = Author()
    with serving(lambda body, number: with_text(thinking(body, number), lambda text: THOUGHT + text)) as server:
        work = made(tmp_path / "a", endpoint(server.url), chain(tmp_path))
    with serving(calm) as server:
        same = made(tmp_path / "b", endpoint(server.url), chain(tmp_path))
    assert (work.out / "rows.jsonl").read_bytes() == (same.out / "rows.jsonl").read_bytes()


def test_thinking_that_does_not_end_is_a_cut_answer_and_thinking_alone_an_empty_one(tmp_path: Path) -> None:
    said = {0: THOUGHT, 1: "<think>Let me see, what is", 2: "What is asked?\n</think>\nA <think> tag."}
    rows = questions(tmp_path, 9)
    with serving(lambda body, number: (200, completion(said[len(str(body["messages"])) % 3]))) as server:
        work = made(tmp_path / "w", endpoint(server.url), [{"kind": "answer"}], rows=rows)
    lost = dropped(work)
    assert {reason for _, reason in lost} == {
        "was cut at 1024 tokens", "got an empty text from the writer",
    }  # fmt: skip
    assert {row["messages"][1]["content"] for row in rows_of(work)} == {"A <think> tag."}


def with_text(reply: tuple[int, Any], change: Any) -> tuple[int, Any]:
    message = reply[1]["choices"][0]["message"]
    return 200, completion(change(message["content"]))


@pytest.mark.parametrize("concurrency", [1, 8, 32])
@pytest.mark.parametrize("metered", [True, False])
def test_the_budget_is_never_overrun_by_more_than_an_answer(tmp_path: Path, concurrency: int, metered: bool) -> None:
    def slow(body: dict[str, Any], number: int) -> tuple[int, Any]:
        time.sleep(0.02)
        reply = completion("So it is. " * 3, prompt=100, given=10)
        return 200, reply if metered else {"choices": reply["choices"]}

    notices: list[str] = []
    work = work_in(tmp_path / "w")
    work.on_notify = notices.append
    writer = endpoint(
        "", completion_price=100.0, budget=0.0048, concurrency=concurrency, max_new_tokens=12, temperature=0.0
    )
    with serving(slow) as server:
        recipe = SynthesisRecipe.model_validate(
            {
                "name": "made",
                "writer": {**writer, "url": server.url},
                "steps": [{"kind": "answer"}],
                "rows": questions(tmp_path, 40),
            }
        )
        with pytest.raises(PipelineError, match=r"budget of 0\.0048 is used up after 5 of 40 questions"):
            synthesise(recipe, {}, work)
        assert len(server.requests) == 5, "each costs 0.001, metered or estimated at a token for three bytes"
    assert [("does not count the tokens" in notice) for notice in notices] == [True] * (not metered)


def test_an_answer_that_is_used_again_in_a_run_is_paid_for_once(tmp_path: Path) -> None:
    author = Author()
    kinds = author.kinds()
    author.kinds = lambda: {**kinds, "compare": (kinds["compare"][0], lambda text: "Yes.")}  # type: ignore[method-assign]
    evolve = {"kind": "evolve", "operations": ["deepen"], "generations": 3}
    with serving(author) as server:
        tight = {"prompt_price": 1.0, "budget": 40.5 * 0.0001}  # a question is 100 tokens
        made(tmp_path / "w", endpoint(server.url, **tight), [evolve], rows=questions(tmp_path, 10))
    assert (author.asked["evolve"], author.asked["compare"]) == (30, 10), "the same two are compared three times"


def test_newer_models_take_their_own_name_of_the_limit_and_no_temperature(tmp_path: Path) -> None:
    author = Author()

    def newer(body: dict[str, Any], number: int) -> tuple[int, Any]:
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return 400, {"error": {"message": said, "param": "max_tokens", "code": "unsupported_parameter"}}
        if body.get("temperature", 1) != 1:
            said = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is"
            return 400, {"error": {"message": said, "param": "temperature", "code": "unsupported_value"}}
        return author(body, number)

    with serving(newer) as server:
        work = made(tmp_path / "a", endpoint(server.url, temperature=1.0), chain(tmp_path)[:2])
        assert len(rows_of(work)) > 12 and author.asked["compare"] and author.asked["classification"] == 12
        assert {body.get("max_completion_tokens") for body in server.requests[4:]} - {1024} <= {None}
        with pytest.raises(PipelineError, match=r"takes no temperature but its own: .*; set its 'temperature' to 1\."):
            made(tmp_path / "b", endpoint(server.url, temperature=0.7), chain(tmp_path)[:2])
