"""The judge as a stage: a local model, an endpoint over HTTP, interruptions, and what a round makes of its opinions."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from labeling.ai.feedback import Opinion, form_opinion, opinion_from
from labeling.ai.prompts import Answer, Rubric, questions_of
from labeling.collection.sheets import Plan
from labeling.comparison import Comparison, Judgement
from labeling.question import QUESTION, guidelines_version
from labeling.service import argilla as argilla_api
from labeling.service.connection import connect, items, request
from tasks.ai.feedback import JudgingRecipe, judge_comparisons, judging_of
from tasks.ai.kept import Kept, Said
from tasks.ai.recipe import AiRecipe, ai_faults
from tasks.ai.round import Ai, conclude, more_for_people, read_ai, share_of_people, suggestions
from tasks.artifact import InputError, PipelineError, Row, Work, read_jsonl, write_jsonl
from tasks.labels.recipe import LabelRecipe
from tasks.labels.round import plan_of
from tasks.models.chat import encode_prompt
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.models.pretrain_engine import new_llama
from tasks.recipe import identity
from tests.lifecycle_runs import TINY, rlhf
from tests.test_ai_endpoint import KEY, completion, serving
from tests.tiny_models import tiny_base, tiny_tokenizer, work_in

TEXTS = ("Aisle 4, with pleasure!", "Aisle 4.", "Aisle 9.")
GUIDELINES = "# Rank\nThe right and polite answer first."
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


def rows(count: int, texts: Sequence[str] = TEXTS) -> list[Row]:
    return [
        {
            "id": f"{number:016x}",
            "split": "train",
            "prompt": [{"role": "user", "content": f"Where is item {number}?"}],
            "stratum": "odd" if number % 2 else "even",
            "completions": [{"id": f"{number:016x}-{k}", "text": text} for k, text in enumerate(texts)],
        }
        for number in range(count)
    ]


def completions(folder: Path, count: int, texts: Sequence[str] = TEXTS) -> dict[str, Path]:
    write_jsonl(folder / "completions.jsonl", rows(count, texts))
    return {"completions": folder}


def reader(body: dict[str, Any], number: int) -> tuple[int, Any]:
    """A judge that prefers what stands earlier in `TEXTS`, wherever it is shown."""
    text = body["messages"][0]["content"]
    shown = dict(re.findall(r"\[answer ([A-H]) \w{8}\]\n(.*?)\n\[end of answer", text, re.DOTALL))
    mark = re.search(r"\[guidelines (\w{8})\]", text)
    assert mark and GUIDELINES in text
    letters = sorted(shown, key=lambda letter: TEXTS.index(shown[letter]))
    return 200, completion(f"The politest wins.\nVerdict {mark[1]}: {' > '.join(letters)}", prompt=1000, given=20)


def position_biased(body: dict[str, Any], number: int) -> tuple[int, Any]:
    text = body["messages"][0]["content"]
    mark = re.search(r"\[guidelines (\w{8})\]", text)
    letters = re.findall(r"\[answer ([A-H]) ", text)
    assert mark
    return 200, completion(f"Verdict {mark[1]}: {' > '.join(letters)}")


def endpoint(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "url": url, "model": "vendor/judge-1", "api_key_env": "JUDGE_KEY", **more}


def judging(judge: dict[str, Any], **more: Any) -> JudgingRecipe:
    settings: dict[str, Any] = {"use": "ai_only", "judge": judge, **more}
    return judging_of(AiRecipe(**settings), LabelRecipe(guidelines=GUIDELINES))


def opinions_in(work: Work) -> list[Opinion]:
    return [opinion_from(row) for row in read_jsonl(work.out / "opinions.jsonl")]


def test_an_endpoint_judges_every_comparison_in_both_orders(tmp_path: Path) -> None:
    notices: list[tuple[int, int, str]] = []
    with serving(reader) as server:
        work = work_in(tmp_path / "w")
        work.on_progress = lambda *step: notices.append(step)
        recipe = judging(endpoint(server.url, prompt_price=2.0, completion_price=10.0))
        judge_comparisons(recipe, completions(tmp_path / "in", 10), work)
        assert len(server.requests) == 20 and notices[-1][:2] == (20, 20)
    opinions = opinions_in(work)
    assert len(opinions) == 10
    for opinion in opinions:
        judgement = opinion.judgement
        assert judgement and judgement.ranks and judgement.by == "ai" and judgement.annotator == "ai-judge-1"
        assert [judgement.ranks[f"{opinion.record}-{k}"] for k in range(3)] == [1, 2, 3] and opinion.sure == 1
        assert judgement.guidelines == guidelines_version(GUIDELINES) and judgement.rationale == "The politest wins."
    assert work.metrics["prompt_tokens"] == 20_000 and work.metrics["completion_tokens"] == 400
    assert work.metrics["cost"] == pytest.approx(0.04 + 0.004) == work.metrics["cost_now"]
    assert work.metrics["position_consistency"] == 1 and work.metrics["invalid_answers"] == 0
    held = [file.read_bytes() for file in [*tmp_path.rglob("*.jsonl"), *tmp_path.rglob("*.json")]]
    assert held and not any(KEY.encode() in content for content in held)


def test_a_position_biased_judge_says_nothing(tmp_path: Path) -> None:
    with serving(position_biased) as server:
        work = work_in(tmp_path / "w")
        judge_comparisons(judging(endpoint(server.url)), completions(tmp_path / "in", 6), work)
    for opinion in opinions_in(work):
        assert opinion.judgement and set((opinion.judgement.ranks or {}).values()) == {1} and opinion.sure == 0.5
    assert work.metrics["position_consistency"] == 0 and work.metrics["first_wins_both"] == 1


def test_invalid_answers_are_counted_and_never_guessed(tmp_path: Path) -> None:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        text = body["messages"][0]["content"]
        item = int(text.split("Where is item ")[1].split("?")[0])
        broken = {0: "I like A best.", 1: "Verdict: A > B > C", 2: ""}
        if item == 3:
            return 400, {"error": {"message": "too long"}}
        if item == 4:
            return 200, completion(reader(body, number)[1]["choices"][0]["message"]["content"], finish="length")
        return (200, completion(broken[item])) if item in broken else reader(body, number)

    with serving(brain) as server:
        work = work_in(tmp_path / "w")
        judge_comparisons(judging(endpoint(server.url), usable=0.3), completions(tmp_path / "in", 8), work)
    opinions = opinions_in(work)
    assert [opinion.judgement is None for opinion in opinions] == [True] * 5 + [False] * 3
    assert (work.metrics["invalid_records"], work.metrics["invalid_answers"]) == (5, 10)
    reasons = [opinion.answers[0].invalid for opinion in opinions[:5]]
    assert reasons == ["no verdict", "no verdict", "no verdict", "HTTP 400", "cut at the token limit"]


def test_an_interrupted_run_pays_nothing_twice(tmp_path: Path) -> None:
    def tired(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return reader(body, number) if number <= 7 else (503, {})

    inputs = completions(tmp_path / "in", 10)
    with serving(tired) as server:
        recipe = judging(endpoint(server.url, attempts=1, concurrency=1, prompt_price=1.0))
        with pytest.raises(PipelineError, match="what was answered is kept"):
            judge_comparisons(recipe, inputs, work_in(tmp_path / "first"))
        server.brain = reader
        before = len(server.requests)
        work = work_in(tmp_path / "second")  # an edited recipe has another scratch, and pays nothing twice either
        dearer = judging(endpoint(server.url, attempts=3, concurrency=2, prompt_price=2.0))
        judge_comparisons(dearer, inputs, work)
        assert len(server.requests) - before == 20 - 7
        assert work.metrics["cost"] == pytest.approx(20 * 1000 * 2 / 1e6)
        assert work.metrics["cost_now"] == pytest.approx(13 * 1000 * 2 / 1e6)
        judge_comparisons(dearer, inputs, work_in(tmp_path / "third"))
        assert len(server.requests) - before == 20 - 7
        reworded = dearer.model_copy(update={"guidelines": f"{GUIDELINES}\nShort ones first."})
        judge_comparisons(reworded, inputs, work_in(tmp_path / "fourth"))
        assert len(server.requests) - before == 20 - 7 + 20, "other guidelines are another question"


def test_a_killed_process_pays_only_for_what_was_under_way(tmp_path: Path) -> None:
    def slow(body: dict[str, Any], number: int) -> tuple[int, Any]:
        time.sleep(0.05)
        return reader(body, number)

    inputs = completions(tmp_path / "in", 60)
    with serving(slow) as server:
        recipe = judging(endpoint(server.url, concurrency=2))
        work_in(tmp_path / "w")
        code = (
            "import sys; from pathlib import Path; from tasks.artifact import Work\n"
            "from tasks.ai.feedback import JudgingRecipe, judge_comparisons\n"
            "recipe, given, folder = JudgingRecipe.model_validate_json(sys.argv[1]), *map(Path, sys.argv[2:])\n"
            "judge_comparisons(recipe, {'completions': given}, Work(folder / 'out', folder / 'scratch'))"
        )
        arguments = [recipe.model_dump_json(), str(inputs["completions"]), str(tmp_path / "w")]
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, env={**os.environ})
        deadline = time.monotonic() + 60
        while len(server.requests) < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 20 <= len(server.requests) < 120
        time.sleep(0.2)
        work = Work(tmp_path / "w" / "out", tmp_path / "w" / "scratch")
        judge_comparisons(recipe, inputs, work)
        assert 120 <= len(server.requests) <= 120 + 2, "two were under way"
    assert len(opinions_in(work)) == 60


def test_the_budget_is_kept(tmp_path: Path) -> None:
    inputs = completions(tmp_path / "in", 10)
    with serving(reader) as server:
        settings: dict[str, Any] = {"prompt_price": 1.0, "concurrency": 1}
        tight = judging(endpoint(server.url, budget=0.0055, **settings))
        with pytest.raises(PipelineError, match=r"budget of 0.0055 is used up after 6 of 20 questions"):
            judge_comparisons(tight, inputs, work_in(tmp_path / "a"))
        asked = len(server.requests)
        assert 6 <= asked <= 7
        with pytest.raises(PipelineError, match="used up"):
            judge_comparisons(tight, inputs, work_in(tmp_path / "b"))
        assert len(server.requests) == asked, "nothing more is asked"
        judge_comparisons(judging(endpoint(server.url, budget=0.02, **settings)), inputs, work_in(tmp_path / "c"))


def test_the_budget_holds_for_answers_that_could_not_be_used_too(tmp_path: Path) -> None:
    inputs = completions(tmp_path / "in", 10)
    with serving(lambda body, number: (200, completion("I like both.", prompt=1000, given=20))) as server:
        with pytest.raises(PipelineError, match="no usable judgement on 10 of 10"):
            judge_comparisons(judging(endpoint(server.url, prompt_price=1.0)), inputs, work_in(tmp_path / "a"))
        asked = len(server.requests)
        with pytest.raises(PipelineError, match=r"budget of 0\.01 is used up after 0 of 20"):
            tight = judging(endpoint(server.url, budget=0.01, prompt_price=1.0))
            judge_comparisons(tight, inputs, work_in(tmp_path / "b"))
        assert len(server.requests) == asked == 20


def test_a_judge_that_never_answers_the_question_is_not_asked_a_whole_round(tmp_path: Path) -> None:
    with serving(lambda body, number: (200, completion("I like both."))) as server:
        with pytest.raises(PipelineError, match=r"None of the judge's first 50 answers can be used .*no verdict"):
            recipe = judging(endpoint(server.url, concurrency=2))
            judge_comparisons(recipe, completions(tmp_path / "in", 100), work_in(tmp_path / "w"))
        assert 50 <= len(server.requests) <= 53


def test_what_was_kept_survives_a_cut_line_and_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    first, second = Kept(path, "j"), Kept(path, "j")
    first.add("a", Said("now", "yes", prompt_tokens=3))
    second.add("b", Said("now", worth=(0.25, 0.5)))
    with path.open("a") as file:
        file.write('{"key": "c", "text": "ha')
    third = Kept(path, "j")
    assert len(third) == 2 and third.get("a") == Said("now", "yes", prompt_tokens=3) and third.get("c") is None
    assert third.get("b") == Said("now", worth=(0.25, 0.5))
    third.add("c", Said("now", "ü\u2028" * 100_000))
    assert Kept(path, "j").read("c").text == "ü\u2028" * 100_000 and len(Kept(path, "j")) == 3
    assert path.stat().st_mode & 0o077 == 0


def long_judge(folder: Path, positions: int = 4096, seed: int = 0) -> Path:
    tokenizer = tiny_tokenizer()
    new_llama(tokenizer, seed, hidden=32, layers=2, heads=2, positions=positions).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def test_a_local_judges_letters_are_the_models_own_probabilities(tmp_path: Path) -> None:
    folder = long_judge(tmp_path / "judge")
    inputs = completions(tmp_path / "in", 5)
    notices: list[str] = []
    work = work_in(tmp_path / "w")
    work.on_notify = notices.append
    recipe = judging({"kind": "local", "model": str(folder), "batch_size": 3})
    judge_comparisons(recipe, inputs, work)
    model, tokenizer = load_causal_lm([folder]), load_tokenizer(folder)
    plan = plan_of(LabelRecipe(guidelines=GUIDELINES), read_jsonl(inputs["completions"] / "completions.jsonl"), 0)
    for comparison, opinion in zip(plan.comparisons, opinions_in(work), strict=True):
        assert opinion.judgement and opinion.judgement.annotator == "ai-judge"
        for question, answer in zip(questions_of(comparison, recipe.rubric()), opinion.answers, strict=True):
            ids = encode_prompt(tokenizer, [{"role": "user", "content": question.messages[0]["content"]}])
            with torch.no_grad():
                probabilities = model(torch.tensor([ids])).logits[0, -1].float().softmax(-1)
            for letter, completion_id in zip("ABC", question.order, strict=True):
                variants = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, f" {letter}")]
                expected = sum(float(probabilities[ids[0]]) for ids in variants if len(ids) == 1)
                assert answer.worth and answer.worth[completion_id] == pytest.approx(expected, rel=1e-3)
    assert work.metrics["invalid_answers"] == 0 and work.metrics["questions"] == 10 and work.metrics["cost"] == 0
    assert work.metrics["letters_probability"] < 0.1 and "does not answer the question" in notices[0]
    again = work_in(tmp_path / "again")
    judge_comparisons(recipe, inputs, again)
    strip = [replace(each.judgement, inserted_at="", updated_at="") for each in opinions_in(work) if each.judgement]
    same = [replace(each.judgement, inserted_at="", updated_at="") for each in opinions_in(again) if each.judgement]
    assert strip == same


def test_a_local_judge_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.ai import local as ai_local

    folder, inputs = long_judge(tmp_path / "judge"), completions(tmp_path / "in", 8)
    recipe = judging({"kind": "local", "model": str(folder), "batch_size": 2})
    monkeypatch.setattr(ai_local, "ROUNDS", 1)
    calls = 0
    real = ai_local.decode

    def failing(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(ai_local, "decode", failing)
    work = work_in(tmp_path / "w")
    with pytest.raises(KeyboardInterrupt):
        judge_comparisons(recipe, inputs, work)
    assert len(read_jsonl(work.scratch / "answers.jsonl")) == 6
    calls = 10
    judge_comparisons(recipe, inputs, work)
    assert calls == 10 + 5 and len(opinions_in(work)) == 8


def test_a_local_judge_that_writes_nonsense_makes_no_judgement(tmp_path: Path) -> None:
    folder = long_judge(tmp_path / "judge")
    work = work_in(tmp_path / "w")
    recipe = judging({"kind": "local", "model": str(folder), "answer": "text", "max_new_tokens": 8, "name": "scribe"})
    with pytest.raises(PipelineError, match="ai-scribe gave no usable judgement on 3 of 3 records"):
        judge_comparisons(recipe, completions(tmp_path / "in", 3), work)
    assert all(opinion.judgement is None for opinion in opinions_in(work))
    assert work.metrics["invalid_records"] == 3 and work.metrics["invalid_answers"] == 6
    assert work.metrics["completion_tokens"] > 0


def test_a_question_longer_than_the_context_is_invalid(tmp_path: Path) -> None:
    work = work_in(tmp_path / "w")
    recipe = judging({"kind": "local", "model": str(tiny_base(tmp_path / "b")), "name": "short"}, use="assisted")
    with pytest.raises(PipelineError) as failed:
        judge_comparisons(recipe, completions(tmp_path / "in", 2), work)
    assert str(failed.value) == (
        "ai-short gave no usable judgement on 2 of 2 records; the commonest reason: longer than the judge's context of "
        "128 tokens (4 of 4 answers); take a judge with a longer context, or shorten label.guidelines or the "
        "completions, and run again, which asks again what cannot be used."
    )
    reasons = {answer.invalid for opinion in opinions_in(work) for answer in opinion.answers}
    assert reasons == {"longer than the judge's context of 128 tokens"}


def test_a_broken_endpoint_ends_the_run_and_is_asked_again_when_it_is_mended(tmp_path: Path) -> None:
    def broken(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return 200, completion(f"\x1b[31mI like A,\nBearer {KEY} " + "and so on " * 40)

    inputs = completions(tmp_path / "in", 24)
    with serving(broken) as server:
        recipe = judging(endpoint(server.url, prompt_price=1.0))
        with pytest.raises(PipelineError) as failed:
            judge_comparisons(recipe, inputs, work_in(tmp_path / "broken"))
        said = str(failed.value)
        assert "24 of 24 records; the commonest reason: no verdict (48 of 48 answers, for one '[31mI like A," in said
        assert (
            "\x1b" not in said
            and "\n" not in said
            and KEY not in said
            and "Bearer (key) and so on" in said
            and "...')" in said
        )
        assert said.endswith("follows instructions, and run again, which asks again what cannot be used.")
        server.brain = reader
        work = work_in(tmp_path / "mended")
        judge_comparisons(recipe, inputs, work)
        assert len(server.requests) == 96 and work.metrics["invalid_records"] == 0
        assert work.metrics["cost"] == pytest.approx(48 * 1000 / 1e6), "what could not be used is no answer of it"
        judge_comparisons(recipe, inputs, work_in(tmp_path / "again"))
        assert len(server.requests) == 96


def unreadable_below(item: int) -> Any:
    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        asked = int(body["messages"][0]["content"].split("Where is item ")[1].split("?")[0])
        return (200, completion("Hm.")) if asked < item else reader(body, number)

    return brain


@pytest.mark.parametrize("use", ["ai_only", "assisted", "route"])
def test_few_usable_judgements_end_the_run_and_some_lacking_are_told(tmp_path: Path, use: str) -> None:
    inputs, notices = completions(tmp_path / "in", 20), []
    with serving(unreadable_below(12)) as server:
        recipe = judging(endpoint(server.url), use=use)
        with pytest.raises(PipelineError, match=r"on 12 of 20 records.*ai\.usable, which is 0\.5, to 0\.4 or less"):
            judge_comparisons(recipe, inputs, work_in(tmp_path / "few"))
        work = work_in(tmp_path / "accepted")
        work.on_notify = notices.append
        judge_comparisons(recipe.model_copy(update={"usable": 0.4}), inputs, work)
        assert len(server.requests) == 40 + 24, "only what could not be used is asked again"
        assert len(notices) == 1 and "12 of 20 records; the commonest reason: no verdict (24 of 40" in notices[0]
        assert "set label.ai.usable over 0.40" in notices[0]
        server.brain = unreadable_below(2)
        judge_comparisons(recipe, inputs, work)
        assert len(notices) == 1, "one in ten is not worth a word"


def test_a_key_that_is_not_there_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    judge = 'label.ai={use = "route", judge = {kind = "endpoint", url = "http://127.0.0.1:9/v1", model = "j", '
    judge += 'api_key_env = "NO_SUCH_KEY"}}'
    ended = rlhf("run", TINY, "--set", judge, RLHF_HOME=str(tmp_path / "nobody"))
    assert ended.error == "NO_SUCH_KEY is not set; put the judge's API key into that environment variable."
    logs = {path.name for path in (tmp_path / "nobody").rglob("*.log")}
    assert logs <= {"stages.log"}, "no service was started for it, at most a worker that was early"


def test_the_runs_own_sft_model_may_judge(tmp_path: Path) -> None:
    base, sft = long_judge(tmp_path / "base"), long_judge(tmp_path / "sft", seed=1)
    inputs = completions(tmp_path / "in", 2)
    own, other = work_in(tmp_path / "own"), work_in(tmp_path / "other")
    judge_comparisons(judging({"kind": "local", "model": "sft"}), {**inputs, "base": base, "sft": sft}, own)
    judge_comparisons(judging({"kind": "local", "model": str(sft)}), inputs, other)
    assert [each.chances for each in opinions_in(own)] == [each.chances for each in opinions_in(other)]
    ids = [{each.judgement.id for each in opinions_in(work) if each.judgement} for work in (own, other)]
    assert not ids[0] & ids[1] and all(len(each) == 2 for each in ids)


def test_impossible_recipes_are_named() -> None:
    good: dict[str, Any] = {"use": "route", "judge": {"kind": "local", "model": "sft"}}
    assert AiRecipe(**good).annotator == "ai-sft"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"use": "assisted", "audit_share": 0.2}, "'audit_share' has no effect"),
        ({"unvalidated": True}, "'unvalidated' has no effect"),
        ({"unvalidated": True}, "undo what an extended recipe sets: unvalidated = false"),
        ({"form": "rate"}, "needs a judge that writes"),
        ({"judge": endpoint("http://me:pass@host/v1")}, "'url' holds a user"),
        ({"judge": endpoint("https://host/v1", budget=3.0)}, "'budget' needs prices"),
        ({"judge": endpoint("https://host/v1", options={"n": 2})}, "'options' holds 'n'"),
        ({"judge": endpoint("https://host/v1", api_key="sk-1")}, "Extra inputs"),
        ({"judge": {"kind": "oracle"}}, "oracle"),
    ]
    for change, message in cases:
        with pytest.raises(ValidationError, match=re.escape(message)):
            AiRecipe(**{**good, **change})
    assert not AiRecipe(**good, unvalidated=False).unvalidated, "a recipe that this one extends may set it"
    with pytest.raises(InputError, match=r"judge's folder .* does not exist"):
        AiRecipe(use="route", judge={"kind": "local", "model": "/nowhere/at/all"}).external_files()  # type: ignore[arg-type]


def test_a_judge_that_nothing_can_validate_is_refused() -> None:
    judge = {"kind": "local", "model": "sft"}
    alone = AiRecipe(use="ai_only", judge=judge, audit_share=0)  # type: ignore[arg-type]
    assert "cannot be validated" in next(ai_faults(alone, gold=False))
    assert not list(ai_faults(alone, gold=True))
    assert not list(ai_faults(alone.model_copy(update={"unvalidated": True}), gold=False))
    assert not list(ai_faults(alone.model_copy(update={"validation": Path("earlier")}), gold=False))
    routed = AiRecipe(use="route", judge=judge, audit_share=0)  # type: ignore[arg-type]
    assert "never checked by people" in next(ai_faults(routed, gold=True))


def test_thresholds_do_not_ask_again_and_models_do(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "judge")
    one = judging({"kind": "local", "model": str(folder)}, audit_share=0.1)
    assert identity(one) == identity(judging({"kind": "local", "model": str(folder)}, audit_share=0.5))
    assert {file.name for file in one.external_files()} >= {"model.safetensors", "tokenizer.json", "config.json"}


# What a round makes of it.


def plan(count: int = 60, **more: Any) -> Plan:
    return plan_of(LabelRecipe(guidelines=GUIDELINES, min_submitted=1, **more), rows(count, TEXTS[:2]), 0)


def opinion(comparison: Comparison, sure: bool, best: int = 0) -> Opinion:
    answers = []
    for question in questions_of(comparison, Rubric(GUIDELINES)):
        by_content = {id: 1 if id.endswith(f"-{best}") else 2 for id in question.order}
        ranks = by_content if sure else {id: place for place, id in enumerate(question.order, 1)}
        answers.append(Answer(question.order, ranks=ranks))
    return form_opinion(
        comparison, answers, judge="j", annotator="ai-j", guidelines="v", at="2026-01-01T00:00:00+00:00"
    )


def ai(use: str, held: Plan, unsure: int = 0, best: int = 0, **more: Any) -> Ai:
    recipe = AiRecipe(use=use, judge={"kind": "local", "model": "sft", "name": "j"}, **more)  # type: ignore[arg-type]
    asked = [each for each in held.comparisons if each.kind != "repeat"]
    return Ai(recipe, tuple(opinion(each, number >= unsure, best) for number, each in enumerate(asked)), (), 0)


def people(comparisons: Sequence[Comparison], best: int = 0) -> list[Judgement]:
    return [
        Judgement(
            f"p-{each.id}", each.id, "annotator-1", "submitted",
            {completion.id: 1 if completion.id.endswith(f"-{best}") else 2 for completion in each.completions},
            "v", "", "",
        )
        for each in comparisons
    ]  # fmt: skip


def test_routing_gives_people_the_unsure_and_the_audit(tmp_path: Path) -> None:
    held = plan()
    given = ai("route", held, unsure=20, audit_share=0.5, at_least=10)
    share = share_of_people(given, held, [])
    assert len(share.comparisons) == 20 + 20 and share.round == held.round
    routed = given.routed(held.comparisons)
    judgements = people(share.comparisons)
    assert share_of_people(given, held, judgements).comparisons == share.comparisons
    work = work_in(tmp_path / "w")
    used = conclude(given, held.comparisons, judgements, work)
    assert {each.record for each in used if each.by == "ai"} == set(routed.ai)
    assert {each.record for each in used} == {each.id for each in held.comparisons}
    assert work.metrics["ai_validated"] == 1 and work.metrics["ai_validation_records"] == 20
    report = (work.out / "report" / "ai.md").read_text()
    assert "**Validated" in report
    assert "Of 60 records 20 are labelled by the judge alone and 40 are people's: 20 that it was not sure of" in report


def test_a_judge_that_people_contradict_gets_nothing(tmp_path: Path) -> None:
    held = plan()
    given = ai("route", held, unsure=20, audit_share=0.5, at_least=10)
    share = share_of_people(given, held, [])
    against = people(share.comparisons, best=1)
    partly = share_of_people(given, held, against[:-1])
    assert {each.id for each in partly.comparisons} <= {each.id for each in held.comparisons}
    assert share_of_people(given, held, against) == held, "people get the rest too"
    work = work_in(tmp_path / "w")
    assert conclude(given, held.comparisons, people(held.comparisons, best=1), work) == people(held.comparisons, best=1)
    assert work.metrics["ai_validated"] == 0
    report = (work.out / "report" / "ai.md").read_text()
    assert "NOT VALIDATED" in report and "none of its labels is used: the 20 records that it would have" in report
    assert "(60 instead of 40), who judged 60 of them" in report and "the judge alone and" not in report
    told = more_for_people(given, share, held, against)
    assert told.startswith(
        "ai-j is not validated: the lower bound of its tie-discounted agreement with people is 0.00 on 20"
    )
    assert told.endswith("people get 20 records more, 60 instead of 40.")


def test_the_unsure_do_not_speak_for_the_sure() -> None:
    held = plan()
    given = ai("route", held, unsure=40, audit_share=0.5, at_least=1)
    routed = given.routed(held.comparisons)
    found = given.validation(held.comparisons, people(held.comparisons))
    assert len(routed.people) == 40
    assert found.records == 20, "what the judge ties because of position is not held against it"


def test_the_judge_alone_is_used_only_when_validated(tmp_path: Path) -> None:
    held = plan()
    given = ai("ai_only", held, audit_share=0.5, at_least=20)
    share = share_of_people(given, held, [])
    assert len(share.comparisons) == 30
    used = conclude(given, held.comparisons, people(share.comparisons), work_in(tmp_path / "good"))
    assert len(used) == 60 and {each.by for each in used} == {"ai"}
    bad = work_in(tmp_path / "bad")
    with pytest.raises(PipelineError, match=r"ai-j is not validated: .* 0\.00 on 30 records .* 0\.70 on 20"):
        conclude(given, held.comparisons, people(share.comparisons, best=1), bad)
    assert "NOT VALIDATED" in (bad.out / "report" / "ai.md").read_text(), "reported before it is refused"
    with pytest.raises(PipelineError, match="nobody judged a record that it judged too"):
        conclude(given, held.comparisons, [], work_in(tmp_path / "none"))


def test_unvalidated_use_is_said_loudly(tmp_path: Path) -> None:
    held, notices = plan(), []
    given = ai("ai_only", held, audit_share=0, unvalidated=True)
    assert share_of_people(given, held, []).comparisons == ()
    work = work_in(tmp_path / "w")
    work.on_notify = notices.append
    assert len(conclude(given, held.comparisons, [], work)) == 60
    assert (
        "not validated: " in notices[0]
        and "nobody judged" in notices[0]
        and "UNVALIDATED" in (work.out / "report" / "ai.md").read_text()
    )


def test_gold_and_an_earlier_round_validate_too(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    known = [
        {"prompt": f"Gold {n}?", "completions": list(TEXTS[:2]), "ranks": [1, 2] if n < 18 else [2, 1]}
        for n in range(20)
    ]
    write_jsonl(gold, known)
    held = plan(40, gold=gold)
    given = ai("ai_only", held, audit_share=0, at_least=20, minimum_agreement=0.6)
    work = work_in(tmp_path / "w")
    used = conclude(given, held.comparisons, [], work)
    assert work.metrics["ai_validation_records"] == 20 and work.metrics["ai_pairwise_agreement"] == 0.9
    assert len(used) == 60, "its answers on gold go along: the bar holds for it too"

    earlier = tmp_path / "earlier"
    before = plan(30)  # the same ids with the same prompts: an earlier round of the same run
    write_jsonl(earlier / "comparisons.jsonl", [each.row() for each in before.comparisons])
    write_jsonl(earlier / "judgements.jsonl", [each.row() for each in people(before.comparisons)])
    now = plan(30)
    with serving(reader) as server:
        recipe = AiRecipe(
            use="ai_only", judge=endpoint(server.url), audit_share=0, validation=earlier, at_least=30,  # type: ignore[arg-type]
        )  # fmt: skip
        stage = work_in(tmp_path / "stage")
        label = LabelRecipe(guidelines=GUIDELINES)
        judge_comparisons(judging_of(recipe, label), completions(tmp_path / "in", 30, TEXTS[:2]), stage)
        assert len(server.requests) == 60, "the same comparisons are asked once"
    read = read_ai(recipe, stage.out, seed=0)
    last = work_in(tmp_path / "last")
    used = conclude(read, now.comparisons, [], last)
    report = (last.out / "report" / "ai.md").read_text()
    assert "Of 30 records it labels 30. People judged 0 of the 0" in report and "people have" not in report
    assert "It answered 120 questions: 120,000 tokens of prompts, 2,400 of answers; the recipe has no prices" in report
    assert len(used) == 30 and len({each.id for each in used}) == 30


def test_assisted_people_see_suggestions_and_only_their_judgements_count(tmp_path: Path) -> None:
    held = plan(20, repeats=0.2)
    given = ai("assisted", held, unsure=3)
    assert share_of_people(given, held, []).comparisons == held.comparisons
    shown = suggestions(given, held)
    assert set(shown) == {each.id for each in held.asked}
    assert not suggestions(ai("route", held), held)
    work = work_in(tmp_path / "w")
    assert conclude(given, held.comparisons, people(held.asked), work) == people(held.asked)
    assert "People saw the judge's ranks" in (work.out / "report" / "ai.md").read_text()


def test_argilla_takes_the_suggestions(argilla: dict[str, str]) -> None:
    held = plan(6, round=f"assisted-{random.randrange(10**9)}", workspace="ai-suggestions")
    shown = suggestions(ai("assisted", held), held)
    client = connect(argilla["ARGILLA_API_URL"], argilla["ARGILLA_API_KEY"])
    dataset = argilla_api.publish(client, held.round, held.comparisons)
    questions = {each["name"]: each["id"] for each in items(client, f"/api/v1/datasets/{dataset}/questions")}
    records = []
    for comparison in held.comparisons:
        suggestion = dict(shown[comparison.id])
        suggestion["question_id"] = questions[suggestion.pop("question")]
        records.append({**argilla_api.record_of(comparison), "suggestions": [suggestion]})
    request(client, "PUT", f"/api/v1/datasets/{dataset}/records/bulk", json={"items": records})
    found = {each["external_id"]: each["suggestions"] for each in argilla_api.records(client, dataset, "suggestions")}
    assert len(found) == 6
    for record, [suggestion] in found.items():
        assert suggestion["agent"] == "ai-j" and suggestion["type"] == "model"
        assert suggestion["value"] == shown[record]["value"] and suggestion["score"] == shown[record]["score"]
        assert suggestion["question_id"] == questions[QUESTION]
    assert json.dumps(shown)


def test_kept_answers_are_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "answers.jsonl", "j")
    for number in range(1000):
        kept.add(str(number), Said("now", f"{number} " * 2000, prompt_tokens=1))
    kept.add("7", Said("now", "again", prompt_tokens=2))
    size = (tmp_path / "answers.jsonl").stat().st_size
    del kept
    tracemalloc.start()
    kept = Kept(tmp_path / "answers.jsonl", "j")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 500_000 < size / 10
    assert kept.read("999").text.startswith("999 999") and kept.read("7").text == "again"
    assert [said.prompt_tokens for said in kept.all("7")] == [1, 2] and not list(kept.all("none"))
