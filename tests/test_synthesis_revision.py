"""Critique and revision: what becomes an answer, and what a pair."""

import re
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError, Row, read_jsonl
from tasks.data.preference_formats import read_preferences
from tasks.data.preview import table
from tests.synthesis_author import (
    PRINCIPLES,
    SEEDS,
    Author,
    between,
    chain,
    conversations,
    dropped,
    endpoint,
    made,
    rows_of,
    steps_of,
)
from tests.test_ai_endpoint import serving
from tests.test_mixture import save


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))


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


def told_to(author: Author, **replies: Any) -> Author:
    """The author with other replies to some kinds of questions."""
    kinds = author.kinds()
    new = {kind: (kinds[kind][0], reply) for kind, reply in replies.items()}
    author.kinds = lambda: {**kinds, **new}  # type: ignore[method-assign]
    return author


def coded(folder: Path) -> Row:
    rows = [
        {"prompt": f"Give me rule {n} as code.", "completion": f"```\nrule = {n}\n```" if n % 2 else f'"Rule {n}."'}
        for n in range(8)
    ]
    return {"kind": "json", "name": "mine", "path": save(folder / "mine.jsonl", rows)}


REVISE = {"kind": "revise", "principles": PRINCIPLES}


@pytest.mark.parametrize(
    "around", ["{}", "Here is the revised answer:\n\n{}", "Sure! Here's the improved answer: {}  "]
)
def test_an_answer_that_is_repeated_makes_no_pair_and_keeps_its_form(tmp_path: Path, around: str) -> None:
    author = told_to(Author(), revision=lambda text: around.format(between(text, 2)))
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), [REVISE], rows=coded(tmp_path))
    assert not read_jsonl(work.out / "preferences.jsonl") and author.asked["revision"] == 8
    assert [row["messages"][1]["content"] for row in rows_of(work)][:2] == ['"Rule 0."', "```\nrule = 1\n```"]
    assert all(steps_of(row) == ["rows"] for row in rows_of(work)) and work.metrics["revised/round 1"] == 0


def test_a_revision_out_of_the_fence_is_the_same_answer(tmp_path: Path) -> None:
    author = told_to(Author(), revision=lambda text: between(text, 2).strip('`"\n'))
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), [REVISE], rows=coded(tmp_path))
    assert not read_jsonl(work.out / "preferences.jsonl")


def test_an_answer_without_fault_is_left_as_it_is_and_not_asked_about_again(tmp_path: Path) -> None:
    verdict = lambda text: "It is fine.\nVerdict: " + ("keep" if "rule 1 " in text else "revise")  # noqa: E731
    author = told_to(Author(), critique=verdict)
    with serving(author) as server:
        work = made(tmp_path / "w", endpoint(server.url), [REVISE], rows=coded(tmp_path))
        critiques = [text for text in (str(body) for body in server.requests) if "Write the answer anew" in text]
    assert author.asked["revision"] == 7 == len(read_jsonl(work.out / "preferences.jsonl"))
    assert not any("Verdict" in text for text in critiques)


@pytest.mark.parametrize(
    "said", ["No revision needed.", "The original answer is right: rule.", "I follow the critique: be kind. Rule."]
)
def test_a_revision_that_speaks_of_itself_is_dropped(tmp_path: Path, said: str) -> None:
    with serving(told_to(Author(), revision=lambda text: said)) as server:
        work = made(tmp_path / "w", endpoint(server.url), [REVISE], rows=coded(tmp_path))
    assert [steps_of(row) for row in rows_of(work)] == [["rows"]] * 8
    [((_, reason), count)] = dropped(work).items()
    assert count == 8 and re.fullmatch(r"the revision says '.*', which is from its prompt", reason)


def test_every_revision_makes_pairs_whatever_comes_after_it(tmp_path: Path) -> None:
    again = {"kind": "answer", "again": True}
    with serving(Author()) as server:
        writer = endpoint(server.url)
        replaced = made(tmp_path / "a", writer, [REVISE, again], rows=coded(tmp_path))
        twice = made(tmp_path / "b", writer, [REVISE, REVISE], rows=coded(tmp_path))
        alone = made(
            tmp_path / "c", writer, [REVISE, {"kind": "evolve", "keep_originals": False}], rows=coded(tmp_path)
        )
    for work, count in ((replaced, 8), (twice, 16), (alone, 8)):
        pairs = read_preferences(work.out / "preferences.jsonl")[0]
        assert len(pairs) == count
        assert all(pair["chosen"][0]["content"] == pair["rejected"][0]["content"] + " Be well." for pair in pairs)
    assert not any("Be well" in row["messages"][1]["content"] for row in rows_of(replaced))


@pytest.mark.parametrize("apologies", ["drop", "keep"])
def test_an_apology_takes_no_answers_place_unless_it_may(tmp_path: Path, apologies: str) -> None:
    """Neither the answer with a fault nor the apology is learnt from; answers that apologise already may be revised."""
    sorry = "I'm sorry, but I can't help with that."
    revision = lambda text: sorry if "rule 3 " in text or "rule 5 " in text else between(text, 2) + " Be well."  # noqa: E731
    rows = [{"prompt": f"Give me rule {n} as text.", "completion": f"Rule {n}."} for n in range(7)]
    rows[5]["completion"] = "Sorry, there is no such rule."
    begun = {"kind": "json", "name": "mine", "path": save(tmp_path / "mine.jsonl", rows)}
    step = {**REVISE, "rounds": 2, "apologies": apologies}
    with serving(told_to(Author(), revision=revision)) as server:
        work = made(tmp_path / "w", endpoint(server.url), [step], rows=begun)
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows_of(work)}
    pairs = read_jsonl(work.out / "preferences.jsonl")
    assert len(answers) == len(pairs) == (6 if apologies == "drop" else 7)
    assert answers.get("Give me rule 3 as text.") == (None if apologies == "drop" else sorry)
    assert (
        answers["Give me rule 5 as text."] == sorry
        and answers["Give me rule 1 as text."] == "Rule 1. Be well. Be well."
    )
    told = dropped(work)["1 revise", "the revision is an apology"]
    assert told == (1 if apologies == "drop" else 0)
