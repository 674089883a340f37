"""Every instruction file in the shared folder, as a set: read whole, what cannot be used named."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.artifact import Row
from tasks.data.flan import fields, read_flan
from tasks.data.mixture import AnySet
from tasks.data.promptsource import read_promptsource
from tasks.data.telling import Told, tell
from tests.test_mixture import prepare, sft

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared folder with real data is not beside the project"
)


def told(path: str, **settings: Any) -> list[Told]:
    values = {"name": "set", "kind": "json", "path": str(SHARED / path), **settings}
    part = TypeAdapter(AnySet).validate_python(values)
    return list(tell(part, part.lines(), 0))  # type: ignore[arg-type]


def problems(rows: list[Told]) -> Counter[str]:
    return Counter(row.problem for row in rows if row.problem)


DOWN = "has an answer that somebody rated down"
TRUTHFUL = {"kind": "csv", "rename": {"Question": "question", "Best Answer": "answer"}}
CREAK = {"kind": "csv", "header": ["input", "target", "explanation"], "escapes": True}


@pytest.mark.parametrize(
    ("path", "settings", "rows", "demonstrated", "dropped"),
    [
        ("fastchat/dummy_conversation.json", {}, 500, 500, {}),
        ("fastchat/mt_bench_question.jsonl", {}, 80, 0, {}),
        ("self-instruct/seed_tasks.jsonl", {}, 175, 175, {}),
        ("gsm8k/train-first2000.jsonl", {}, 2000, 2000, {}),
        ("llama-factory/identity.json", {}, 91, 91, {}),
        ("llama-factory/kto_en_demo.json", {}, 300, 150, {DOWN: 150}),
        ("llama-factory/dpo_en_demo.json.gz", {}, 300, 300, {}),
        ("hh-rlhf/harmless-base-first312.jsonl", {}, 312, 311, {"has an empty completion": 1}),
        ("ifeval/input_data-first100.jsonl", {}, 100, 0, {}),
        ("xstest/completions_gpt4.csv", {"kind": "csv"}, 450, 450, {}),
        ("truthfulqa/TruthfulQA-first200.csv", TRUTHFUL, 200, 200, {}),
        ("harmbench/behaviors-first80.csv", {"kind": "csv", "rename": {"Behavior": "prompt"}}, 80, 0, {}),
        ("flan/creak_train-first1000.tsv", CREAK, 1000, 1000, {}),
    ],
)
def test_files_in_the_usual_forms_are_read_whole(
    path: str, settings: dict[str, Any], rows: int, demonstrated: int, dropped: dict[str, int]
) -> None:
    found = told(path, **settings)
    assert len(found) == rows and problems(found) == dropped
    assert sum(bool(example.completions) for row in found for example in row.examples) == demonstrated


def test_calls_of_tools_go_through_the_spool_to_the_rows_for_sft(tmp_path: Path) -> None:
    path = str(SHARED / "llama-factory" / "glaive_toolcall_en_demo.json")
    work = prepare(tmp_path, sets=[{"name": "tools", "kind": "json", "path": path}], filters=[{"kind": "length"}])
    turns = [turn for row in sft(work) for turn in row["messages"]]
    assert any("tool_calls" in turn for turn in turns) and any(turn["role"] == "tool" for turn in turns)
    assert any("tools" in row["messages"][0] for row in sft(work))


def test_who_the_model_is_can_be_filled_in() -> None:
    found = told("llama-factory/identity.json", fill={"name": "Ada", "author": "the library"})
    answers = [example.completions[0] for row in found for example in row.examples]
    assert not any("{{" in answer for answer in answers) and sum("Ada" in answer for answer in answers) > 50


def test_flans_quotes_and_line_breaks_are_as_they_were_written() -> None:
    first, second = told("flan/creak_train-first1000.tsv", **CREAK)[:2]
    assert first.examples[0].prompt[0]["content"].startswith('Claim: "Only people named Floyd')
    assert second.examples[0].prompt[0]["content"].startswith('"Marlboro used iconic imagery')
    assert second.examples[0].prompt[0]["content"].endswith("\nOptions:\n- yes\n- no")


ROWS: dict[str, Row] = {
    "ag_news": {"text": "Rates rise ||| again.", "label": 2},
    "common_gen": {
        "concepts": ["ski", "mountain", "skier"],
        "target": "A skier skis down the mountain.",
        "concept_set_idx": 0,
    },
    "dbpedia_14": {"title": "Oak", "content": "Oak is a tree of the beech family.", "label": 10},
    "gigaword": {"document": "rates rose on monday .", "summary": "rates rise"},
    "imdb": {"text": "What a fine film.", "label": 1},
    "paws_labeled_final": {"sentence1": "A saw B.", "sentence2": "B saw A.", "label": 1, "id": 3},
    "piqa": {"goal": "Boil an egg", "sol1": "Use water", "sol2": "Use sand", "label": 0},
    "rotten_tomatoes": {"text": "dull and long", "label": 0},
    "trivia_qa_unfiltered": {"question": "Who wrote it?", "answer": {"aliases": ["Ann", "Anne"], "value": "Ann"}},
    "xsum": {"document": "A long report.", "summary": "A report.", "id": "1"},
}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_promptsource_templates_say_what_their_jinja_says(name: str) -> None:
    """Each template beside Jinja's own plain environment on the same row, its draws made alike."""
    from jinja2 import Environment

    path, row = SHARED / "promptsource" / f"{name}.yaml", ROWS[name]
    found = read_promptsource(path)
    assert len(found) == path.read_text().count("!Template\n") and len({each.title for each in found}) == len(found)
    for phrasing in found:
        prompt, targets = phrasing.render(row, Random(1))
        draws = Random(1)
        plain = Environment()
        plain.globals["zip"] = zip
        plain.filters |= {"choice": draws.choice, "most_frequent": list}
        shielded = {
            key: value.replace("|||", "<bars>") if isinstance(value, str) else value for key, value in row.items()
        }
        choices = None
        if phrasing.answer_choices is not None:
            listed = plain.from_string(phrasing.answer_choices).render(**shielded)
            choices = [choice.strip() for choice in listed.split("|||")]
        whole = plain.from_string(phrasing.jinja).render(**shielded, answer_choices=choices)
        parts = [part.replace("<bars>", "|||").strip() for part in whole.split("|||")]
        assert [prompt, *targets] == parts, phrasing.title
        if choices and "answer_choices[label]" in phrasing.jinja and "label" in row:
            assert targets == [choices[row["label"]]]
        assert phrasing.say(row, Random(1))[1] in targets


def test_promptsource_files_tell_a_table(tmp_path: Path) -> None:
    rows = [{"goal": f"Do {n}", "sol1": f"with {n}", "sol2": f"without {n}", "label": n % 2} for n in range(200)]
    path = tmp_path / "piqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"path": str(SHARED / "promptsource" / "piqa.yaml")}
    found = told(str(path), promptsource=file, templates_per_row=2, variants={"inverted": 0})
    forms = Counter(example.form for row in found for example in row.examples)
    assert not problems(found) and len(forms) == 5 and min(forms.values()) > 50 and sum(forms.values()) == 400
    assert {example.kind for row in found for example in row.examples} == {"direct"}
    one = told(str(path), promptsource={**file, "names": ["finish_sentence_with_correct_choice"]})
    assert (
        one[7].examples[0].prompt[0]["content"].startswith("Finish the following sentence with the best choice: Do 7")
    )
    assert one[7].examples[0].completions == ["without 7"]


def test_a_row_that_a_template_passes_over_is_told_in_another(tmp_path: Path) -> None:
    path = tmp_path / "paws.jsonl"
    path.write_text("".join(json.dumps({**ROWS["paws_labeled_final"], "label": n % 2}) + "\n" for n in range(60)))
    file = str(SHARED / "promptsource" / "paws_labeled_final.yaml")
    assert not problems(told(str(path), promptsource={"path": file}))
    only = problems(told(str(path), promptsource={"path": file, "names": ["paraphrase-task"]}))
    assert only == {"is passed over by its templates": 30}


def test_flans_table_says_what_python_would_format() -> None:
    table = read_flan(SHARED / "flan" / "templates.py.txt")
    assert len(table) == 61 and all(len(pairs) == 10 for pairs in table.values())
    for task, pairs in table.items():
        names = {name for pair in pairs for pattern in pair for name in fields(pattern)}
        row = {name: f"<{name} {{of}} the row>" for name in names}
        file = {"path": str(SHARED / "flan" / "templates.py.txt"), "task": task}
        part: Any = TypeAdapter(AnySet).validate_python({"name": "s", "kind": "json", "path": "x", "flan": file})
        for (source, target), phrasing in zip(pairs, part.phrasings(), strict=True):
            prompt, completion = phrasing.say(row, Random(0))
            assert prompt == [{"role": "user", "content": source.format(**row).strip()}]
            assert completion == target.format(**row).strip()


def test_flan_marks_the_phrasings_that_turn_a_task_round() -> None:
    def inverted(task: str) -> list[str]:
        file = {"path": str(SHARED / "flan" / "templates.py.txt"), "task": task}
        part: Any = TypeAdapter(AnySet).validate_python({"name": "s", "kind": "json", "path": "x", "flan": file})
        return [phrasing.source for phrasing in part.phrasings() if phrasing.kind == "inverted"]

    assert inverted("rte") == ["Generate a context and a hypothesis."]
    assert any(source.startswith("Generate a movie review with {answer}") for source in inverted("imdb_reviews"))
    assert inverted("wsc") == []


def test_flan_options_come_from_choices_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "rte.jsonl"
    path.write_text(
        '{"premise": "P", "hypothesis": "H", "label": 1}\n{"premise": "P", "hypothesis": "H", "label": 7}\n'
    )
    file = {
        "path": str(SHARED / "flan" / "templates.py.txt"),
        "task": "rte",
        "choices": ["yes", "no"],
        "label": "label",
    }
    good, bad = told(str(path), flan=file, variants={"inverted": 0})
    assert good.examples[0].prompt[0]["content"].endswith("OPTIONS:\n- yes\n- no") and good.examples[0].completions == [
        "no"
    ]
    assert bad.problem == "has a label that is not the number of an option"
