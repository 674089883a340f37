"""Filters that ask a model: scores are the model's own, a judge's ratings decide, a classifier learns them."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tasks.artifact import InputError, Row, read_jsonl
from tasks.data.judging import Classifier, _comparison, held_out_auc
from tasks.data.mixture import AnyFilter
from tasks.data.preview import table
from tasks.data.rows import Example
from tasks.data.scoring_engine import Scorer
from tasks.data.splits import SPLITS
from tasks.models.chat import encode_completion
from tasks.models.loading import load_causal_lm, load_tokenizer
from tasks.models.pretrain_engine import new_llama
from tasks.models.templates import prepare_tokenizer
from tests.test_ai_endpoint import completion, serving
from tests.test_mixture import NOUNS, prepare, question, save, sft
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.tiny_tokenizers import family_tokenizer


def model_folder(folder: Path) -> Path:
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def asked(text: str, answer: str) -> Example:
    return Example([{"role": "user", "content": text}], [answer])


def test_losses_are_the_models_own_with_and_without_the_prompt(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    examples = [asked(f"Where is the bread {'and the milk ' * n}?", "In aisle 4." * (n + 1)) for n in range(5)]
    examples.append(Example([{"role": "user", "content": "no answer"}], []))
    scorer = Scorer(folder)
    batches: list[int] = []
    given, alone = scorer.losses(examples, False, batches.append), scorer.losses(examples, True, lambda count: None)
    assert np.isnan(given[5]) and np.isnan(alone[5]) and sum(batches) == 5
    tokenizer, model = prepare_tokenizer(load_tokenizer(folder)), load_causal_lm([folder])
    for place, example in enumerate(examples[:5]):
        prompt, answer = encode_completion(tokenizer, example.prompt, example.completions[0])
        for before, loss in ((prompt, given[place]), ([tokenizer.bos_token_id], alone[place])):
            ids = torch.tensor([[*before, *answer]])
            labels = ids.clone()
            labels[:, : len(before)] = -100
            with torch.no_grad():
                assert float(model(input_ids=ids, labels=labels).loss) == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen", "gpt2", "opt", "gemma"])
def test_difficulty_compares_the_same_tokens_of_a_completion(tmp_path: Path, family: str) -> None:
    tokenizer: Any = prepare_tokenizer(family_tokenizer(family))
    new_llama(tokenizer, 0, hidden=32, layers=2, heads=2, positions=128).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    example, scorer = asked("Where is the bread?", "In aisle 4."), Scorer(tmp_path)
    [given], [alone] = (scorer.losses([example], each, lambda count: None) for each in (False, True))
    prompt, answer = encode_completion(tokenizer, example.prompt, example.completions[0])
    begins = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    model, skipped = load_causal_lm([tmp_path]), 1 - len(begins)
    for before, loss in ((prompt, given), (begins, alone)):
        ids = torch.tensor([[*before, *answer]])
        labels = ids.clone()
        labels[:, : len(before) + skipped] = -100
        with torch.no_grad():
            assert float(model(input_ids=ids, labels=labels).loss) == pytest.approx(loss, abs=1e-4)


def test_what_is_longer_than_the_model_takes_is_cut(tmp_path: Path) -> None:
    scorer = Scorer(model_folder(tmp_path))
    long = [asked("bread " * 300, "milk."), asked("bread?", "milk " * 300)]
    assert np.isfinite(scorer.losses(long, False, lambda count: None)).all()


def chat(path: Path, count: int) -> tuple[str, list[Row]]:
    rows = [
        {"prompt": question(n), "completion": f"It is {NOUNS[n % 20]}" + " or so" * (n % 5) + "."} for n in range(count)
    ]
    return save(path, rows), rows


@pytest.mark.parametrize("kind", ["perplexity", "difficulty"])
def test_scores_outside_their_bounds_are_dropped(tmp_path: Path, kind: str) -> None:
    model = str(model_folder(tmp_path / "model"))
    path, rows = chat(tmp_path / "chat.jsonl", 60)
    sets = [{"name": "chat", "kind": "json", "path": path}]
    filters = [{"kind": kind, "model": model, "keep": [0.1, 0.8], **({"most": None} if kind == "difficulty" else {})}]
    work = prepare(tmp_path / "work", sets=sets, filters=filters)
    examples = [asked(row["prompt"], row["completion"]) for row in rows]
    scorer = Scorer(Path(model))
    alone = scorer.losses(examples, True, lambda count: None)
    expected = np.exp(alone) if kind == "perplexity" else scorer.losses(examples, False, lambda count: None) / alone
    lower, upper = np.quantile(expected, [0.1, 0.8])
    out = {row["line"]: row["reason"] for row in read_jsonl(work.out / "dropped.jsonl")}
    assert set(out) == set((np.flatnonzero((expected < lower) | (expected > upper)) + 1).tolist()) and len(out) == 18
    assert all(reason.startswith(f"the {kind} is ") for reason in out.values())
    line = table(work.out, "scores")[0]
    assert line["filter"] == kind and line["scored"] == 60
    assert line["median"] == pytest.approx(float(np.median(expected)), rel=1e-3)


def rate(good: int, bad: int) -> Any:
    """A judge that rates by whether the answer says "right"."""

    def brain(body: dict[str, Any], number: int) -> tuple[int, Any]:
        text = body["messages"][0]["content"]
        shown = re.search(r"\[answer A (\w{8})\]\n(.*?)\n\[end of answer", text, re.DOTALL)
        assert shown and "Truth counts." in text
        if "silent" in shown[2]:
            return 200, completion("I would rather not.")
        rating = good if "right" in shown[2] else bad
        return 200, completion(f"Clear.\nVerdict {shown[1]} quality: A {rating}")

    return brain


def judged(tmp_path: Path, url: str, rows: list[Row], **settings: Any) -> Any:
    judge = {"kind": "endpoint", "url": url, "model": "judge"}
    filters = [{"kind": "judge", "judge": judge, "rubric": "Truth counts.", **settings}]
    return prepare(
        tmp_path, sets=[{"name": "chat", "kind": "json", "path": save(tmp_path / "c.jsonl", rows)}], filters=filters
    )


def test_models_are_asked_after_rows_are_compared(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    path = save(tmp_path / "c.jsonl", [*answers(20), *answers(20)])
    with serving(rate(4, 4)) as server:
        judge = {"kind": "judge", "judge": {"kind": "endpoint", "url": server.url, "model": "judge"}}
        filters = [{**judge, "rubric": "Truth counts."}, {"kind": "duplicates"}]
        prepare(tmp_path, sets=[{"name": "chat", "kind": "json", "path": path}], filters=filters)
        assert len(server.requests) == 20


def answers(count: int) -> list[Row]:
    return [
        {
            "prompt": question(n),
            "completion": f"{'This is right' if n % 2 else 'A wrong thing'} about {NOUNS[n % 20]} {n}",
        }
        for n in range(count)
    ]


def test_a_judges_low_ratings_drop_rows_and_what_it_does_not_rate_stays(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    rows = [*answers(30), {"prompt": question(99), "completion": "silent"}]
    (tmp_path / "a").mkdir()
    with serving(rate(4, 2)) as server:
        work = judged(tmp_path / "a", server.url, rows)
        assert len(server.requests) == 31
    dropped = read_jsonl(work.out / "dropped.jsonl")
    assert len(dropped) == 15 and {row["reason"] for row in dropped} == {"the judge rates it below 3"}
    assert all("wrong" in json.dumps(row["row"]) for row in dropped)
    assert not any("wrong" in json.dumps(row) for row in sft(work))
    line = table(work.out, "scores")[0]
    assert (line["asked"], line["unreadable"], line["least"], line["most"]) == (31, 1, 2, 4)


def test_a_classifier_learns_the_ratings_of_a_sample(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    with serving(rate(5, 1)) as server:
        work = judged(tmp_path, server.url, answers(300), sample=80)
        assert len(server.requests) == 80
    reasons = [row["reason"] for row in read_jsonl(work.out / "dropped.jsonl")]
    assert len(reasons) == 150 and set(reasons) == {
        "the judge rates it below 3", "the classifier expects a rating below 3",
    }  # fmt: skip
    assert table(work.out, "scores")[0]["auc"] > 0.95


def test_a_classifier_that_has_learnt_nothing_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    rows = [
        {"prompt": question(n), "completion": f"{'right' if (n * n) % 7 < 3 else ''} It is {n}."} for n in range(200)
    ]

    def coin(body: dict[str, Any], number: int) -> tuple[int, Any]:
        mark = re.search(r"\[answer A (\w{8})\]", body["messages"][0]["content"])
        assert mark
        return 200, completion(f"Verdict {mark[1]} quality: A {1 + 4 * (int(mark[1], 16) % 2)}")

    with serving(coin) as server, pytest.raises(InputError, match="hardly better than chance"):
        judged(tmp_path, server.url, rows, sample=100)
    (tmp_path / "even").mkdir()
    with serving(rate(5, 5)) as server, pytest.raises(InputError, match="too uneven for a classifier"):
        judged(tmp_path / "even", server.url, rows, sample=100)


def test_the_classifier_tells_words_apart_and_its_auc_is_held_out() -> None:
    examples = [asked(question(n), f"{'fine' if n % 3 else 'bad'} answer {n}") for n in range(90)]
    good = np.array([bool(n % 3) for n in range(90)])
    scores = Classifier(examples, good).scores(examples)
    assert scores[good].min() > 0.5 > scores[~good].max()
    assert held_out_auc(examples, good) > 0.99
    shuffled = np.random.default_rng(0).permutation(good)
    assert abs(held_out_auc(examples, shuffled) - 0.5) < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "perplexity", "model": "m", "keep": [0.9, 0.1]}, "'keep' must be"),
        ({"kind": "judge", "judge": {"kind": "local", "model": "x/y"}}, "must write"),
        ({"kind": "judge", "judge": {"kind": "local", "model": "sft", "answer": "text"}}, "before the SFT model"),
        (
            {"kind": "judge", "judge": {"kind": "local", "model": "x/y", "answer": "text"}, "at_least": 6},
            "over 'scale'",
        ),
    ],
)
def test_impossible_filters_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AnyFilter).validate_python(settings)


def test_a_filters_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    path, _ = chat(tmp_path / "chat.jsonl", 30)
    filters = [{"kind": "perplexity", "model": str(tmp_path / "none")}]
    with pytest.raises(InputError, match="does not exist; check the perplexity filter's model"):
        prepare(tmp_path, sets=[{"name": "chat", "kind": "json", "path": path}], filters=filters)


def calling(zone: str) -> Example:
    function = {"name": "find", "arguments": json.dumps({"zone": zone})}
    call = {"type": "function", "id": "call00000", "function": function}
    return replace(asked("Where is the bread?", ""), calls=[call])


def test_an_answer_that_is_a_call_is_scored_and_judged_by_its_call(tmp_path: Path) -> None:
    family_tokenizer("qwen").save_pretrained(model_folder(tmp_path))
    scorer = Scorer(tmp_path)
    examples = [calling("b"), calling("the very last of all"), asked("Where is the bread?", "It is here.")]
    alone = scorer.losses(examples, True, lambda count: None)
    assert np.isfinite(alone).all() and len(set(alone.round(6))) == 3
    assert '"zone": "b"' in scorer.tokenizer.decode(scorer._row(calling("b"), True)[0])
    first, second = (_comparison(calling(zone)) for zone in "bc")
    assert first.completions[0].text == 'find {"zone": "b"}' and first.id != second.id


def test_answers_that_call_different_things_are_no_duplicates_and_calls_are_not_contaminated(tmp_path: Path) -> None:
    secret = "one two three four five six seven eight nine"
    zones = [f"{noun} {secret}" if n < 3 else f"{noun} {n * 17}" for n, noun in enumerate(NOUNS)]
    rows = [
        {"prompt": question(n), "completion": [{"role": "assistant", "tool_calls": calling(zone).calls}]}
        for n in range(20) for zone in (zones[n], zones[n], " ".join(NOUNS[n % 7 : n % 7 + 9]))
    ]  # fmt: skip
    exam = save(tmp_path / "exam.jsonl", [{"prompt": secret}])
    sets = [
        {"name": "calls", "kind": "json", "path": save(tmp_path / "rows.jsonl", rows), "use": "sft"},
        {"name": "chat", "kind": "json", "path": chat(tmp_path / "chat.jsonl", 40)[0]},
        {"name": "exam", "kind": "json", "path": exam, "use": "evaluation"},
    ]
    filters = [{"kind": "contamination", "words": 8}, {"kind": "duplicates", "threshold": 1}]
    work = prepare(
        tmp_path, sets=sets, filters=filters, shares={"sft": 1, **dict.fromkeys(SPLITS[1:], 0)}, near_duplicates=1
    )
    dropped = [row for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "calls"]
    assert Counter(row["filter"] for row in dropped) == {"contamination": 6, "duplicates": 17}
