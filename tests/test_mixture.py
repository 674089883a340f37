"""Instruction mixtures through the real data stage: many formats in, one ledger and one mixture out."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from flows.recipe import LifecycleRecipe
from tasks.artifact import InputError, Row, Work, read_jsonl
from tasks.data.mixing import Mix, Wanted, amounts, rates
from tasks.data.prepare import DataRecipe, prepare_data
from tasks.data.preview import table
from tasks.data.splits import SPLITS
from tasks.recipe import load_recipe
from tasks.training.sft_engine import encode_rows
from tests.tiny_models import tiny_tokenizer

ROOT = Path(__file__).parents[1]

WORDS = (
    "amber birch cedar dune ember fern grove heath iris jade kelp larch moss nettle oak pine quartz reed slate thyme"
)
NOUNS = WORDS.split()


def prepare(folder: Path, seed: int = 0, **settings: Any) -> Work:
    work = Work(folder / "out", folder / "scratch", seed)
    work.out.mkdir(parents=True)
    prepare_data(TypeAdapter(DataRecipe).validate_python({"source": "mixture", **settings}), {}, work)
    return work


def save(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(a: int, b: int = 0) -> str:
    """Questions that are no near-duplicates of each other."""
    return f"What of {NOUNS[a % 20]} {a} and {NOUNS[(a * 7 + b) % 20]} {a * 31 + b}?"


def alpaca(path: Path, count: int, start: int = 0) -> str:
    rows = [{"instruction": question(n), "input": "", "output": f"It is {n}."} for n in range(start, start + count)]
    return save(path, rows)


def sft(work: Work) -> list[Row]:
    return read_jsonl(work.out / "sft.jsonl")


def by_set(work: Work) -> dict[str, Row]:
    return {row["set"]: row for row in table(work.out, "mixture")}


def test_sets_in_different_formats_are_told_filtered_and_mixed(tmp_path: Path) -> None:
    lines = ["claim\tanswer"] + [
        f"{NOUNS[n % 20]} number {n * 13} is green\t{'yes' if n % 2 else 'no'}" for n in range(60)
    ]
    (tmp_path / "claims.tsv").write_text("\n".join([*lines, "empty answer\t"]) + "\n")
    templates = [{"prompt": "Is it so? {{ claim }}", "completion": "{{ answer }}"},
                 {"prompt": "{{ claim }}. Right?", "completion": "{{ answer }}"}]  # fmt: skip
    sets = [
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 40)},
        {"name": "claims", "kind": "csv", "path": str(tmp_path / "claims.tsv"), "templates": templates},
    ]
    shares = {"sft": 0.5, "reward_train": 0.2, "reward_validation": 0.1, "rl": 0.1, "evaluation": 0.1}
    filters = [{"kind": "length", "unit": "characters", "prompt": [1, 34]}]
    work = prepare(tmp_path, sets=sets, shares=shares, filters=filters)
    rows = sft(work)
    assert {row["set"] for row in rows} == {"chat", "claims"}
    assert {row["form"] for row in rows if row["set"] == "claims"} == {"template 1", "template 2"}
    assert all(len(row["messages"][0]["content"]) <= 34 for row in rows)
    dropped = read_jsonl(work.out / "dropped.jsonl")
    assert ("claims", 61, "form", "has an empty completion") in {
        (r["set"], r["line"], r["filter"], r["reason"]) for r in dropped
    }
    long = [row for row in dropped if row["filter"] == "length"]
    assert long and all(row["reason"] == "the prompt has more than 34 characters" for row in long)
    assert {row["filter"]: row["dropped"] for row in table(work.out, "filters")} == {"form": 1, "length": len(long)}
    ledger = read_jsonl(work.out / "ledger.jsonl")
    assert len(ledger) == 101 - 1 - len(long) and {row["split"] for row in ledger} == set(SPLITS)
    again = prepare(tmp_path / "again", sets=sets, shares=shares, filters=filters)
    assert [f.read_bytes() for f in sorted(work.out.glob("*.jsonl"))] == [
        f.read_bytes() for f in sorted(again.out.glob("*.jsonl"))
    ]


def test_evaluation_sets_are_held_out_whole_and_nothing_like_them_is_trained_on(tmp_path: Path) -> None:
    exam = [{"prompt": question(n, 1)} for n in range(30)]
    leaked = [{"prompt": row["prompt"].upper() + "!!", "completion": "leak"} for row in exam[:5]]
    text = " ".join(f"word{n}" for n in range(20))
    exam.append({"prompt": text})
    leaked.append({"prompt": "Please tell me about this text at once", "completion": f"As it says, {text} and more."})
    train = [{"prompt": question(n + 100), "completion": "fine"} for n in range(40)]
    sets = [
        {"name": "train", "kind": "json", "path": save(tmp_path / "train.jsonl", train + leaked)},
        {"name": "exam", "kind": "json", "path": save(tmp_path / "exam.jsonl", exam), "use": "evaluation"},
    ]
    shares = {"sft": 0.5, "reward_train": 0.2, "reward_validation": 0.1, "rl": 0.2, "evaluation": 0}
    work = prepare(tmp_path, sets=sets, shares=shares, filters=[{"kind": "contamination", "words": 8}])
    assert len(read_jsonl(work.out / "evaluation.jsonl")) == 31
    assert not any("leak" in json.dumps(row) or "word5" in json.dumps(row) for row in sft(work))
    reasons = {(row["filter"], row["set"]) for row in read_jsonl(work.out / "dropped.jsonl")}
    assert reasons == {("contamination", "train")}
    without = prepare(tmp_path / "ledger", sets=sets, shares=shares)
    assert table(without.out, "dropped by set") == [
        {"set": "train", "filter": "ledger", "reason": "is a near-duplicate of an evaluation prompt", "rows": 5}
    ]


def test_an_evaluation_prompt_is_known_in_any_phrasing_and_beside_any_answer(tmp_path: Path) -> None:
    templates = [{"prompt": "Solve this, step by step and with care:\n{{ q }}", "completion": "{{ why }} So {{ a }}"}]
    solved = [
        {"q": question(n), "a": f"{n}", "why": f"Because {NOUNS[n % 20]} and {n * 17} make {n}."} for n in range(60)
    ]
    exam = [{"prompt": row["q"].lower()} for row in solved[:7]]
    sets = [
        {"name": "solved", "kind": "json", "path": save(tmp_path / "s.jsonl", solved), "templates": templates},
        {"name": "exam", "kind": "json", "path": save(tmp_path / "e.jsonl", exam), "use": "evaluation"},
    ]
    work = prepare(tmp_path / "one", sets=sets)
    assert [row["line"] for row in read_jsonl(work.out / "dropped.jsonl")] == list(range(1, 8))
    told = [{**sets[0], "use": "evaluation"}, {**sets[1], "use": "split"}, sets[1] | {"name": "other", "use": "sft"}]
    told[2]["path"] = alpaca(tmp_path / "other.jsonl", 60, 500)
    work = prepare(tmp_path / "other way", sets=told, shares={"sft": 1, **dict.fromkeys(SPLITS[1:], 0)})
    assert [row["line"] for row in read_jsonl(work.out / "dropped.jsonl") if row["set"] == "exam"] == list(range(1, 8))


def test_duplicates_go_across_sets_and_phrasings_of_one_row_stay(tmp_path: Path) -> None:
    first = [{"q": question(n), "a": f"{n}"} for n in range(30)]
    second = [{"q": row["q"].replace("What", "what,"), "a": row["a"]} for row in first[:10]]
    second += [{"q": question(n), "a": f"{n}"} for n in range(200, 230)]
    templates = [
        {"prompt": "{{ q }}", "completion": "{{ a }}"},
        {"prompt": "Tell me: {{ q }}", "completion": "{{ a }}"},
    ]
    sets = []
    for name, rows in (("first", first), ("second", second)):
        told = {"templates": templates, "templates_per_row": 2}
        sets.append({"name": name, "kind": "json", "path": save(tmp_path / f"{name}.jsonl", rows), **told})
    work = prepare(tmp_path, sets=sets, filters=[{"kind": "duplicates"}])
    kept = by_set(work)
    assert kept["first"]["kept"] == 30 and kept["second"]["kept"] == 30
    assert work.metrics["dropped/duplicates"] == 20 and work.metrics["prompts/all"] == 120
    split_of = {row["id"]: row["split"] for row in read_jsonl(work.out / "ledger.jsonl")}
    assert len(split_of) == 120 and len({row["group"] for row in read_jsonl(work.out / "ledger.jsonl")}) == 60


def test_a_set_that_loses_most_rows_as_duplicates_is_told_of_with_the_likely_reason(tmp_path: Path) -> None:
    long = "Read the text below with care and say in one short word whether what it tells is right or wrong: "
    alike = [{"prompt": f"{long}{NOUNS[n % 20]} {n}", "completion": f"It is {n}."} for n in range(60)]
    sets = [
        {"name": "first", "kind": "json", "path": alpaca(tmp_path / "first.jsonl", 40)},
        {"name": "copy", "kind": "json", "path": alpaca(tmp_path / "copy.jsonl", 40)},
        {"name": "alike", "kind": "json", "path": save(tmp_path / "alike.jsonl", alike)},
    ]
    work = prepare(tmp_path, sets=sets, filters=[{"kind": "duplicates"}])
    told = [row["notice"] for row in table(work.out, "notices")]
    copies, repeated = (each for each in told if each.startswith("The filter 'duplicates' drops"))
    assert copies.endswith("drops 40 of the 40 rows of 'copy'. 40 of them say what rows of 'first' say.")
    assert "of the 60 rows of 'alike'. If they begin with the same long instruction, give" in repeated


def test_plain_text_takes_its_share(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("<|end|>".join(f"Story {n}. " + "And so it went on. " * 20 for n in range(300)))
    sets = [
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 200), "use": "sft"},
        {"name": "more", "kind": "json", "path": alpaca(tmp_path / "more.jsonl", 200, 1000)},
        {"name": "text", "kind": "text", "path": str(tmp_path / "text.txt"), "separator": "<|end|>", "characters": 200},
    ]
    sets[-1]["share"] = 0.2
    work = prepare(tmp_path, sets=sets)
    rows = sft(work)
    texts = [row for row in rows if "text" in row]
    assert len(texts) / len(rows) == pytest.approx(0.2, abs=0.01) and all(len(row["text"]) <= 200 for row in texts)
    assert all(row["text"].split()[-1] in ["And", "so", "it", "went", "on."] for row in texts), "no word is cut"
    assert not any("Story" in json.dumps(row) for row in read_jsonl(work.out / "evaluation.jsonl"))
    assert by_set(work)["chat"]["for sft"] == 200


SETS = [Wanted("big", 90_000), Wanted("middle", 9_000), Wanted("small", 1_000)]


def test_rates_are_those_of_the_t5_paper() -> None:
    assert rates(Mix(), SETS) == pytest.approx({"big": 0.9, "middle": 0.09, "small": 0.01})
    assert rates(Mix(cap=9000), SETS) == pytest.approx({"big": 9 / 19, "middle": 9 / 19, "small": 1 / 19})
    roots = {"big": 300.0, "middle": 9000**0.5, "small": 1000**0.5}
    by_root = {name: root / sum(roots.values()) for name, root in roots.items()}
    assert rates(Mix(strategy="temperature", temperature=2), SETS) == pytest.approx(by_root)
    weighted = [Wanted("a", 10, weight=3), Wanted("b", 1000, weight=1)]
    assert rates(Mix(strategy="weights"), weighted) == pytest.approx({"a": 0.75, "b": 0.25})
    boosted = [Wanted("a", 100, boost=3), Wanted("b", 100), Wanted("t", 50, share=0.2)]
    assert rates(Mix(), boosted) == pytest.approx({"a": 0.6, "b": 0.2, "t": 0.2})
    with pytest.raises(InputError, match=r"add up to 1\.1"):
        rates(Mix(), [Wanted("a", 1, share=0.6), Wanted("b", 1, share=0.5), Wanted("c", 1)])


def test_amounts_repeat_no_set_too_often_and_share_out_the_rest() -> None:
    assert amounts(Mix(), SETS) == {"big": 90_000, "middle": 9_000, "small": 1_000}
    assert amounts(Mix(cap=1000), SETS) == {"big": 1000, "middle": 1000, "small": 1000}
    assert amounts(Mix(rows=100), SETS) == {"big": 90, "middle": 9, "small": 1}
    poor = [Wanted("rich", 1000, weight=1), Wanted("poor", 10, weight=1)]
    assert amounts(Mix(strategy="weights", rows=200), poor) == {"rich": 160, "poor": 40}
    assert amounts(Mix(strategy="weights", rows=200, repeats=10), poor) == {"rich": 100, "poor": 100}
    assert amounts(Mix(rows=10_000, repeats=2), poor) == {"rich": 2000, "poor": 20}
    assert amounts(Mix(), [Wanted("none", 0), Wanted("some", 3)]) == {"none": 0, "some": 3}


def test_fixed_shares_are_kept_beside_all_rows_of_the_others() -> None:
    fifth = [Wanted("a", 100, share=0.2), Wanted("b", 1000)]
    assert amounts(Mix(), fifth) == {"a": 250, "b": 1000}, "1000 / 0.8 in all"
    assert amounts(Mix(cap=400), fifth) == {"a": 100, "b": 400}
    assert amounts(Mix(rows=50), fifth) == {"a": 10, "b": 40}
    assert amounts(Mix(repeats=1), fifth) == {"a": 100, "b": 1000}, "what a cannot give is not made up by repeating b"
    both = [Wanted("a", 100, share=0.5), Wanted("b", 1000, share=0.25), Wanted("none", 0, share=0.25)]
    assert amounts(Mix(), both) == {"a": 100, "b": 50, "none": 0}, "two thirds and one third, no row twice"
    whole = [Wanted("a", 300, share=0.6), Wanted("b", 100, share=0.4)]
    assert amounts(Mix(), whole) == {"a": 150, "b": 100}


def test_sets_of_fixed_shares_alone_are_trained_on(tmp_path: Path) -> None:
    sets = [
        {
            "name": name,
            "kind": "json",
            "path": alpaca(tmp_path / f"{name}.jsonl", 40, start),
            "use": "sft",
            "share": 0.5,
        }
        for name, start in (("a", 0), ("b", 500))
    ]
    sets.append({"name": "exam", "kind": "json", "path": alpaca(tmp_path / "e.jsonl", 5, 900), "use": "evaluation"})
    shares = {"sft": 1, **dict.fromkeys(SPLITS[1:], 0)}
    assert len(sft(prepare(tmp_path, sets=sets, shares=shares))) == 80


ONE = {"name": "a", "kind": "json", "path": "x"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": []}, "at least 1 item"),
        ({"sets": [ONE, ONE]}, "two sets are named 'a'"),
        ({"sets": [{**ONE, "kind": "text"}]}, "no set has conversations to learn from"),
        ({"sets": [{**ONE, "cot": {"rationale": "y"}}]}, "'cot' without templates"),
        ({"sets": [ONE], "filters": [{"kind": "length", "sets": ["b"]}]}, "names the set 'b'"),
        ({"sets": [ONE], "filters": [{"kind": "characters", "forbidden": ["("]}]}, "not a regular"),
        ({"sets": [ONE | {"templates": [{"prompt": "{{ a"}]}]}, r"The template '\{\{ a' is not valid Jinja"),
        ({"sets": [ONE | {"templates": [{"prompt": "a", "completion": "{% if b %}"}]}]}, "is not valid Jinja"),
        ({"sets": [ONE], "shares": {"sft": 0.4, "evaluation": 0}}, "shares.evaluation"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(DataRecipe).validate_python({"source": "mixture", **settings})


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        (None, {}, "does not exist"),
        ("", {}, "is empty"),
        ('{"text": "x"}\n' * 3, {}, "no usable row: 3 of 3 has no prompt .the first: .*x.*; check its format"),
        ('{"prompt": "x"}\n{"prompt": "y"}\n', {}, "No row of the data has a completion|stays empty"),
        ('{"prompt": "x", "completion": "y"}\n', {"filters": [{"kind": "contamination"}]}, "nothing to protect"),
        (
            '{"prompt": "x", "completion": "y"}\n',
            {"filters": [{"kind": "length", "completion": [5]}]},
            "No row is left: of 1 rows 'length' dropped 1; loosen",
        ),
    ],
)
def test_sets_that_give_nothing_are_refused_in_one_sentence(
    tmp_path: Path, content: str | None, extra: dict[str, Any], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        prepare(tmp_path, sets=[{"name": "a", "kind": "json", "path": str(path)}], **extra)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_few_shot_examples_count_for_no_fault_and_rows_with_different_details_for_one(tmp_path: Path) -> None:
    good = [{"q": question(n), "a": "So."} for n in range(20)]
    sets: list[Any] = [{"name": "a", "kind": "json", "path": save(tmp_path / "a.jsonl", [*good, *([{"q": "x"}] * 9)])}]
    sets[0] |= {"templates": [{"prompt": "{{ q }}", "completion": "{{ a }}"}], "fewshot": {"pool": 32}}
    save(tmp_path / "b.jsonl", [{"prompt": " " * n} for n in range(5)] + [{"messages": [{"role": "x"}]}] * 4)
    with pytest.raises(InputError, match=r"'b' has no usable row: 5 of 9 has no prompt .*; check its format"):
        prepare(tmp_path / "b", sets=[*sets, {"name": "b", "kind": "json", "path": str(tmp_path / "b.jsonl")}])


def test_what_a_mixture_falls_short_of_is_told_with_figures(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"A story about {noun}." for noun in NOUNS[:5]))
    sets: list[dict[str, Any]] = [
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 60), "use": "sft"},
        {"name": "other", "kind": "json", "path": alpaca(tmp_path / "other.jsonl", 40, 500)},
        {"name": "short", "kind": "json", "path": alpaca(tmp_path / "short.jsonl", 9, 900)},
        {"name": "text", "kind": "text", "path": str(tmp_path / "text.txt"), "share": 0.5},
    ]
    filters = [{"kind": "length", "completion": [9], "sets": ["short"]}]
    told: list[str] = []
    work = Work(tmp_path / "out", tmp_path / "scratch", on_notify=told.append)
    work.out.mkdir()
    recipe = {"source": "mixture", "sets": sets, "mix": {"rows": 1000, "repeats": 2}, "filters": filters}
    prepare_data(TypeAdapter(DataRecipe).validate_python(recipe), {}, work)
    used = {row["set"]: row["rows"] for row in table(work.out, "mixture")}
    assert told[0] == "The set 'short' gives nothing: of 9 rows 'length' dropped 9."
    assert told[1].startswith(f"The mixture has {sum(used.values())} of the 1000 rows that mix.rows asks for")
    assert told[2].startswith("The set 'text' is 6.") and "instead of 50.0%: it has 5 rows" in told[2]
    assert table(work.out, "notices") == [{"notice": notice} for notice in told] and len(told) == 3


def test_rows_of_protected_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    sets = [{"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 30)}]
    exam = save(tmp_path / "exam.jsonl", [{"prompt": question(3)}, {"doc": {"question": question(4)}}])
    work = prepare(tmp_path, sets=sets, filters=[{"kind": "contamination", "against": [exam]}])
    assert [row["dropped"] for row in table(work.out, "filters")] == [0, 1]
    [notice] = table(work.out, "notices")
    assert notice["notice"].startswith(f"1 rows of {exam} are not protected (the first, row 2, has no prompt)")


def test_only_the_last_piece_of_a_document_ends(tmp_path: Path) -> None:
    long = " ".join(f"{noun} and {n}" for n, noun in enumerate(NOUNS * 40))
    (tmp_path / "text.txt").write_text(f"A short tale of one moss.\n\n{long}\n\nAnd the end of it all.")
    sets = [
        {"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 30)},
        {"name": "text", "kind": "text", "path": str(tmp_path / "text.txt"), "characters": 100},
    ]
    rows = [row for row in sft(prepare(tmp_path, sets=sets, near_duplicates=1)) if row["set"] == "text"]
    ending = [row for row in rows if not row.get("goes_on")]
    assert len(rows) > 50 and len(ending) == 3
    tokenizer = tiny_tokenizer()
    encoded = encode_rows([rows[0], ending[0], next(row for row in rows if row.get("goes_on"))], tokenizer)
    assert [each.input_ids[-1] == tokenizer.eos_token_id for each in encoded] == [True, True, False]


def test_what_filters_dropped_is_in_the_report_of_data_that_they_emptied(tmp_path: Path) -> None:
    sets = [{"name": "chat", "kind": "json", "path": alpaca(tmp_path / "chat.jsonl", 30)}]
    with pytest.raises(InputError, match="of 30 rows 'length' dropped 30"):
        prepare(tmp_path, sets=sets, filters=[{"kind": "length", "completion": [9]}])
    assert [row["dropped"] for row in table(tmp_path / "out", "filters")] == [0, 30]
    assert len(read_jsonl(tmp_path / "out" / "dropped.jsonl")) == 30


def test_the_recipe_that_shows_instruction_data_prepares_files_like_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    recipe = load_recipe(LifecycleRecipe, ROOT / "deployments" / "recipes" / "instructions.toml")
    monkeypatch.chdir(tmp_path)
    alpaca(tmp_path / "conversations.jsonl", 60)
    lines = ["claim\tanswer\texplanation"]
    lines += [f"{question(n, 3)}\t{'yes' if n % 2 else 'no'}\tSo it is with {NOUNS[n % 20]} {n}." for n in range(90)]
    (tmp_path / "claims.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join(f"The story of {noun} and of {n}." for n, noun in enumerate(NOUNS))
    )
    save(tmp_path / "exam.jsonl", [{"prompt": question(n, 5)} for n in range(500, 520)])
    work = Work(tmp_path / "out", tmp_path / "scratch")
    work.out.mkdir()
    prepare_data(recipe.data, {}, work)
    shares = by_set(work)
    assert shares["text"]["share"] == pytest.approx(0.1, abs=0.03) and shares["exam"]["rows"] == 0
    kinds = {row["form"].removesuffix("-shot") for row in sft(work) if row["set"] == "claims"}
    told = {
        (row["phrasing"], row["kind"]): row["rows"] for row in table(work.out, "phrasings") if row["set"] == "claims"
    }
    assert sum(told.values()) == shares["claims"]["rows"] and {kind for _, kind in told} == {
        "direct",
        "cot",
        "inverted",
    }
    assert len(told) == 5 and any("cot" in form for form in kinds) and any(form[-1] in "12" for form in kinds)
    assert {row["filter"] for row in table(work.out, "filters")} >= {"length", "language", "pii", "duplicates"}


def test_kept_counts_no_row_that_the_ledger_drops_later(tmp_path: Path) -> None:
    rows = [{"prompt": question(n), "completion": "So." if n % 3 else ""} for n in range(60)]
    for row in rows[::3]:
        del row["completion"]
    exam = save(tmp_path / "exam.jsonl", [{"prompt": question(n, 5)} for n in range(500, 520)])
    work = prepare(
        tmp_path,
        sets=[
            {"name": "chat", "kind": "json", "path": save(tmp_path / "chat.jsonl", rows), "use": "sft"},
            {"name": "exam", "kind": "json", "path": exam, "use": "evaluation"},
        ],
        shares={"sft": 1, "reward_train": 0, "reward_validation": 0, "rl": 0, "evaluation": 0},
    )
    line = by_set(work)["chat"]
    dropped = read_jsonl(work.out / "dropped.jsonl")
    assert (line["read"], line["kept"], line["for sft"], len(dropped)) == (60, 40, 40, 20)
