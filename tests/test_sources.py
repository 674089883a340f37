"""Sources and phrasings of instruction sets: all kinds of files give the same rows; the seed draws phrasings."""

import csv
import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.artifact import InputError, Row, read_jsonl
from tasks.data import json_reading, reading
from tasks.data.columns import column_types, typed
from tasks.data.flan import kinds_of, read_flan
from tasks.data.mixture import AnySet
from tasks.data.promptsource import JinjaPhrasing, read_promptsource
from tasks.data.sources import TextSet
from tasks.data.telling import Told, tell
from tests.test_mixture import prepare, question, save, sft

ROWS: list[Row] = [{"prompt": f'Say "{n}",\nplease; é', "completion": f"It is {n}."} for n in range(40)]


def told(seed: int = 0, **settings: Any) -> list[Told]:
    part: Any = TypeAdapter(AnySet).validate_python({"name": "set", "kind": "json", **settings})
    return list(tell(part, part.lines(), seed))


def prompts(rows: list[Told]) -> list[str]:
    return [example.prompt[-1]["content"] for row in rows for example in row.examples]


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_array(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8-sig")


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["prompt", "completion"])
        table.writeheader()
        table.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_parquets(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path.mkdir()
    for begin in (0, 20):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[begin : begin + 20]), path / f"{begin:02d}.parquet")


def save_hub(path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(path))


def copy_hub(path: Path) -> None:
    path.mkdir()
    write_lines(path / "train.jsonl")


@pytest.mark.parametrize(
    ("name", "kind", "write"),
    [
        ("rows.jsonl", "json", write_lines),
        ("rows.json", "json", write_array),
        ("rows.json", "json", write_lines),
        ("rows.jsonl.gz", "json", write_gzip),
        ("rows.csv", "csv", write_csv),
        ("rows.parquet", "parquet", write_parquet),
        ("parquets", "parquet", write_parquets),
        ("saved", "hub", save_hub),
        ("copied", "hub", copy_hub),
    ],
)
def test_every_kind_of_source_gives_the_same_rows(
    tmp_path: Path, name: str, kind: str, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_reading, "CHUNK", 97)  # a row lies across several reads
    write(tmp_path / name)
    found = told(kind=kind, path=str(tmp_path / name))
    assert prompts(found) == [row["prompt"] for row in ROWS]
    assert [example.completions for row in found for example in row.examples] == [[row["completion"]] for row in ROWS]
    assert [row.line for row in found] == list(range(1, 41))
    part: Any = TypeAdapter(AnySet).validate_python({"name": "set", "kind": kind, "path": str(tmp_path / name)})
    assert part.source_files() and all(file.is_file() for file in part.source_files())


def test_quotation_marks_are_plain_characters_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"Six feet" is 72",yes\nsay "a,b\n')
    assert prompts(told(kind="csv", path=str(path), quotes=False)) == ['"Six feet" is 72"', 'say "a']


def test_a_table_without_a_header_or_with_ragged_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('"A" is it?\tyes\nno answer\nWhat\\nnow?\tgo\n')
    found = told(kind="csv", path=str(path), header=["prompt", "completion"], escapes=True)
    assert prompts(found) == ['"A" is it?', "What\nnow?"]
    assert found[1].problem == "has another number of values than there are columns (2)"


BROKEN = [
    ("a.json", "[1, {}", "is not whole JSON after its row 2"),
    ("a.json", '"text"', "is not a JSON array of objects"),
    (
        "a.csv",
        "a,a\n1,2\n",
        "has two columns 'a'; mend their names, or, where a table",
    ),
    ("a.csv", ",\n1,2\n", "does not begin with the names of its columns"),
    (
        "a.csv",
        'a,b\n"x\ny",2\n3,"4\n5,6\n7,8\n',
        r"a\.csv: the record that begins in line 4 .*never closed",
    ),
    ("a.csv", 'a,b\n1,"2\n3,"4"\n', "in line 2 .* goes on after its closing .* set quotes = false"),
    ("a.parquet", "no", "cannot be read as Parquet"),
    ("a.jsonl.gz", "no", "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named_in_one_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    kind = {"csv": "csv", "parquet": "parquet"}.get(path.suffix[1:], "json")
    with pytest.raises(InputError, match=message) as error:
        told(kind=kind, path=str(path))
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


OTHER_KINDS = [
    ('{"prompt": "a"}'.encode("utf-16"), r"is UTF-16 text; convert it to UTF-8\."),
    (b"PAR1...", 'is Parquet; set kind = "parquet"'),
    (b"PK\x03\x04...", "is a zip archive; unpack it"),
    (b"BZh91AY", "is compressed by bzip2"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd"),
]


@pytest.mark.parametrize(("content", "message"), OTHER_KINDS)
def test_files_that_are_no_text_are_told_by_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        told(path=str(tmp_path / "rows.jsonl"))


def test_compressed_files_are_known_by_their_content(tmp_path: Path) -> None:
    write_gzip(tmp_path / "rows.jsonl")
    assert prompts(told(path=str(tmp_path / "rows.jsonl"))) == [row["prompt"] for row in ROWS]


def test_columns_named_twice_or_beside_the_header_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has two columns 'a'"):
        told(kind="parquet", path=str(tmp_path / "a.parquet"))
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(InputError, match="begins with the names of its columns already; leave 'header' out"):
        told(kind="csv", path=str(tmp_path / "a.csv"), header=["prompt", "completion"])


def test_content_in_parts_of_text_is_one_text(tmp_path: Path) -> None:
    def talk(*parts: Any) -> Row:
        developer = {"role": "developer", "content": "Be brief."}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}
        return {"messages": [developer, {"role": "user", "content": list(parts)}, answer]}

    text, image = {"type": "text", "text": "Hello "}, {"type": "image_url", "image_url": {"url": "x"}}
    rows = [talk(text, {"type": "text", "text": "there."}), talk(text, image), talk(), talk(3), talk({"type": "text"})]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, *others = told(path=str(path))
    assert [turn["content"] for turn in first.examples[0].prompt] == ["Be brief.", "Hello there."]
    assert first.examples[0].prompt[0]["role"] == "system" and first.examples[0].completions == ["Hi."]
    assert {row.problem for row in others} == {"has a message that is not text of system, user, assistant or tool"}
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": [text], "tool_calls": [call]}]
    path.write_text(json.dumps({"messages": [*turns, {"role": "tool", "content": [text]}, *turns[1:]]}))
    asked = told(path=str(path))[0].examples[0]
    assert [turn["content"] for turn in asked.prompt] == ["Where?", "Hello ", "Hello "]


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the path, or give a hub id"):
        told(kind="hub", path=str(tmp_path / "none"))
    save_hub(tmp_path / "saved")
    with pytest.raises(InputError, match=r"check its name, config, split \('test'\)"):
        told(kind="hub", path=str(tmp_path / "saved"), split="test")


def test_broken_lines_are_dropped_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": \n[1]\n{"prompt": "\xff", "completion": "b"}\n')
    found = told(path=str(path))
    assert [(row.line, row.problem) for row in found] == [
        (1, ""), (2, "is not JSON"), (3, "is not a JSON object"), (4, "has characters that cannot be written as UTF-8"),
    ]  # fmt: skip


def claims(path: Path, count: int = 120) -> str:
    rows = [{"claim": question(n), "answer": ("no", "yes")[n % 2], "why": f"Because of {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TEMPLATES = [
    {"prompt": "True? {{ claim }}", "completion": "{{ answer }}"},
    {"prompt": "{{ claim }} Is it so?", "completion": "{{ answer }}", "system": "Be brief."},
    {"prompt": "Claim something of which one says {{ answer }}.", "completion": "{{ claim }}", "kind": "inverted"},
]


def test_phrasings_are_drawn_by_the_seed_and_the_kinds_weights(tmp_path: Path) -> None:
    path = claims(tmp_path / "claims.jsonl")
    weights = {"direct": 1, "inverted": 1, "cot": 1}
    settings: dict[str, Any] = {"path": path, "templates": TEMPLATES, "cot": {"rationale": "why"}, "variants": weights}
    first, again, other = told(0, **settings), told(0, **settings), told(1, **settings)
    assert prompts(first) == prompts(again) != prompts(other)
    kinds = Counter(example.kind for row in first for example in row.examples)
    assert set(kinds) == {"direct", "cot", "inverted"} and min(kinds.values()) > 25
    reasoned = next(e for row in first for e in row.examples if e.kind == "cot")
    assert reasoned.completions[0].startswith("Because of ") and "\nSo the answer is " in reasoned.completions[0]
    only = told(0, **settings | {"variants": {"direct": 0, "inverted": 0, "cot": 1}})
    assert {example.kind for row in only for example in row.examples} == {"cot"}
    shorter = told(0, **settings, max_rows=30)
    assert prompts(shorter) == prompts(first)[:30], "what a row is told in does not depend on the others"
    every = told(0, **{**settings, "cot": None}, templates_per_row=3)
    assert Counter(example.form for row in every for example in row.examples) == {
        f"template {n}": 120 for n in (1, 2, 3)
    }
    with pytest.raises(InputError, match="has only inverted phrasings, and 'variants' draws none"):
        told(0, path=path, templates=TEMPLATES[2:], variants={"inverted": 0})


def test_a_row_without_reasons_is_told_in_the_phrasings_that_fit(tmp_path: Path) -> None:
    rows = [{"q": f"Is {n} odd?", "a": "yes", **({"why": "It is."} if n % 2 else {"why": None})} for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "path": str(path), "templates": [{"prompt": "{{ q }}", "completion": "{{ a }}"}], "cot": {"rationale": "why"},
    }  # fmt: skip
    found = told(**settings)
    kinds = Counter((example.kind, row.line % 2) for row in found for example in row.examples)
    assert not any(row.problem for row in found)
    assert kinds["direct", 1] == 30 and kinds["cot", 0] > 5 and kinds["cot", 1] == 0
    only = told(**settings, variants={"direct": 0})
    assert Counter(row.problem for row in only if row.problem) == {"has no text in the column 'why'": 30}


def test_a_null_drops_a_row_by_the_templates_name(tmp_path: Path) -> None:
    rows = [{"q": "Why?", "a": "So.", "given": None}, {"q": "Why?", "a": None, "given": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"q": "Why?", "a": NaN, "given": "x"}\n')
    template = {"prompt": "{{ q }}{% if given %} {{ given }}{% endif %}", "completion": "{{ a }}"}
    found = told(path=str(path), templates=[template])
    assert [row.problem for row in found] == ["", "does not fit 'template 1'", "does not fit 'template 1'"]
    assert prompts(found) == ["Why?"] and all("'a' is null" in row.detail for row in found[1:])


@pytest.mark.parametrize("names", [("train-0.parquet", "test-0.parquet"), ("train/0.parquet", "test/0.parquet")])
def test_a_folder_of_parquet_is_read_by_the_splits_its_names_say(tmp_path: Path, names: tuple[str, str]) -> None:
    import pyarrow
    import pyarrow.parquet

    for name, rows in zip(names, (ROWS[:30], ROWS[30:]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    settings: dict[str, Any] = {"kind": "parquet", "path": str(tmp_path)}
    assert len(told(**settings)) == 30 and len(told(**settings, split="test")) == 10
    with pytest.raises(InputError, match=r"no files of the split 'dev'; set 'split' to one of test, train\."):
        told(**settings, split="dev")


def test_splits_with_names_of_their_own_are_told_apart(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    parts = {"train_sft": ROWS[:30], "train_gen": ROWS[30:35], "test_sft": ROWS[35:]}
    for name, rows in parts.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}-00000-of-00001.parquet")
    settings: dict[str, Any] = {"kind": "parquet", "path": str(tmp_path)}
    for name, rows in parts.items():
        assert len(told(**settings, split=name)) == len(rows)
    assert len(told(**settings, split="test")) == len(parts["test_sft"]), "the one there is"
    with pytest.raises(
        InputError, match=r"several splits that 'train' may mean; set 'split' to one of train_gen, train_s"
    ):
        told(**settings)
    with pytest.raises(InputError, match=r"no files of the split 'train_all'; .* test_sft, train_gen, train_sft"):
        told(**settings, split="train_all")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:3]), tmp_path / "train-00000-of-00001.parquet")
    assert len(told(**settings)) == 3, "the split of that very name"


def test_a_configuration_that_a_folder_does_not_have_is_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "train.jsonl")
    parts = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    assert len(told(kind="hub", path=str(tmp_path), config="two")) == 40
    with pytest.raises(InputError, match=r"has no configuration 'tow'; set 'config' to one of one, two\."):
        told(kind="hub", path=str(tmp_path), config="tow")
    copy_hub(tmp_path / "plain")
    part: Any = TypeAdapter(AnySet).validate_python(
        {"name": "set", "kind": "hub", "path": str(tmp_path / "plain"), "config": "tow"}
    )
    assert (
        len(list(part.lines())) == 40 and "has no configurations, so config = 'tow' says nothing" in part.remarks()[0]
    )


MISSPELT = [
    ({"templates": [{"prompt": "{{ claim }}", "completion": "{{ answer }}"}, {"prompt": "{{ clame }}"}]},
     "no row that fits 'template 2': tried on .*there is no column 'clame'.* the columns claim, answer, why"),
    ({"templates": [{"prompt": "{{ claim }}", "completion": "{{ answer }}"}], "cot": {"rationale": "reason"}},
     "no row that fits 'template 1 cot'.* has no column .reason.* the columns claim, answer, why"),
    ({"templates": [{"prompt": "{{ claim.text }}", "completion": "{{ answer }}"}]},
     "no row that fits 'template 1': tried on 120, .* has no attribute 'text'"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), MISSPELT)
def test_a_phrasing_that_fits_no_row_is_named_with_the_columns_there_are(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        told(path=claims(tmp_path / "claims.jsonl"), **settings)
    assert "\n" not in str(error.value)


def test_a_row_without_a_column_that_others_have_is_dropped_by_the_templates_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "Why?", "a": "So."}\n{"q": "How?"}\n')
    found = told(path=str(path), templates=[{"prompt": "{{ q }}", "completion": "{{ a }}"}])
    assert [row.problem for row in found] == ["", "does not fit 'template 1'"] and "no column 'a'" in found[1].detail


@pytest.mark.parametrize("form", ["text", "turns"])
def test_few_shot_examples_are_solved_and_used_as_nothing_else(tmp_path: Path, form: str) -> None:
    path = claims(tmp_path / "claims.jsonl")
    shots = {"share": 0.5, "shots": [2, 2], "pool": 8, "form": form}
    found = told(path=path, templates=TEMPLATES[:2], fewshot=shots)
    pool = {question(row.line - 1) for row in found if row.problem == "is kept as a few-shot example"}
    assert len(pool) == 8
    shown = [example for row in found for example in row.examples if example.form.endswith("2-shot")]
    assert 35 < len(shown) < 77 and len(found) == 120
    for example in shown:
        text = "\n".join(turn["content"] for turn in example.prompt)
        assert sum(claim in text for claim in pool) == 2
        assert len(example.prompt) == (example.prompt[0]["role"] == "system") + (5 if form == "turns" else 1)
    asked = {example.prompt[-1]["content"] for row in found for example in row.examples if "shot" not in example.form}
    assert not any(claim in text for claim in pool for text in asked)


def test_a_constant_prompt_is_trained_on_and_never_evaluated(tmp_path: Path) -> None:
    templates = [TEMPLATES[0], {"prompt": "Make a claim.", "completion": "{{ claim }}", "kind": "inverted"}]
    sets = [{"name": "claims", "kind": "json", "path": claims(tmp_path / "c.jsonl"), "templates": templates}]
    work = prepare(tmp_path / "work", sets=sets)
    assert "Make a claim." in {row["messages"][0]["content"] for row in sft(work)}
    for split in ("reward_train", "reward_validation", "rl", "evaluation"):
        held = [row["prompt"][0]["content"] for row in read_jsonl(work.out / f"{split}.jsonl")]
        assert held and "Make a claim." not in held


def test_flan_tables_are_parsed_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "templates.py"
    mark = tmp_path / "run"
    run = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    path.write_text(run + 'N = 2\nPATTERNS: dict = {"t": [("{q}", "{a}"), {"inputs": "Ask: {a}", "targets": "{q}"}]}\n')
    assert read_flan(path) == {"t": [("{q}", "{a}"), ("Ask: {a}", "{q}")]} and not mark.exists()
    assert kinds_of(read_flan(path)["t"]) == ["direct", "inverted"]
    path.write_text('PATTERNS = {"t": [("{q}", open("/etc/passwd").read())]}')
    with pytest.raises(InputError, match="line 1: PATTERNS has an entry that is not a list of"):
        read_flan(path)
    path.write_text("X = {}")
    with pytest.raises(InputError, match="has no dictionary PATTERNS"):
        read_flan(path)
    path.write_text("def (")
    with pytest.raises(InputError, match="is not Python source"):
        read_flan(path)


def test_promptsource_files_reach_no_python(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text("templates:\n  a: !!python/object/apply:os.system ['touch x']\n")
    with pytest.raises(InputError, match="is not a promptsource file"):
        read_promptsource(path)
    for jinja in ("{{ ''.__class__.__mro__ }} ||| x", "{{ 'x' * 10 ** 9 }} ||| x", "{{ 10 ** 99999 }} ||| x"):
        path.write_text("templates:\n  a: !Template\n    name: n\n    jinja: " + json.dumps(jinja) + "\n")
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"a": 1}\n')
        assert told(path=str(rows), promptsource={"path": str(path)})[0].problem == "does not fit 'promptsource n'"
    path.write_text("templates:\n  a: !Template\n    name: n\n    jinja: '{{ a '\n")
    with pytest.raises(InputError, match="the template 'n' is not valid Jinja"):
        read_promptsource(path)


def test_a_template_without_end_is_not_tried_on_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"a": n}) + "\n" for n in range(10_000)))
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ a }}"
    with pytest.raises(InputError, match=r"no row that fits 'template 1': tried on 20, .*it goes round too often"):
        told(path=str(path), templates=[{"prompt": endless, "completion": "x"}])


def test_the_most_frequent_of_many_items_are_found_at_once() -> None:
    phrasing = JinjaPhrasing("n", "{{ xs|most_frequent|join }} {{ []|most_frequent }} ||| x", None, "direct", (), ())
    assert phrasing.render({"xs": ["b", "a", "c", "a", "b"]}, Random(0)) == ("ba []", ["x"])
    begun = time.process_time()
    phrasing = JinjaPhrasing("n", "{{ range(30000)|most_frequent|length }} ||| x", None, "direct", (), ())
    assert phrasing.render({}, Random(0)) == ("30000", ["x"])
    assert time.process_time() - begun < 2


def test_promptsource_templates_tell_a_table_of_texts_by_what_the_texts_stand_for(tmp_path: Path) -> None:
    table, templates = tmp_path / "rows.csv", tmp_path / "templates.yaml"
    table.write_text("text,label,same,year,id\n" + "fine,1,TRUE,1999,007\nbad,0,false,2001,1\n12,,False,n/a,2\n" * 4)
    jinja = "{{ text.strip() }} {{ year }} {{ id }} {{ 'same' if same else 'other' }}?|||{{ answer_choices[label] }}"
    templates.write_text(
        "templates:\n  a: !Template\n    name: n\n    answer_choices: 'no ||| yes'\n    jinja: "
        + json.dumps(jinja)
        + "\n"
    )
    found = told(kind="csv", path=str(table), promptsource={"path": str(templates)})
    assert prompts(found)[:2] == ["fine 1999 007 same?", "bad 2001 1 other?"]
    assert [row.examples[0].completions for row in found[:2]] == [["yes"], ["no"]]
    assert found[2].problem == "does not fit 'promptsource n'", "it has no label"
    unlabelled = save(tmp_path / "test.jsonl", [{"text": "fine", "label": -1, "same": True, "year": 1, "id": "2"}])
    [row] = told(path=unlabelled, promptsource={"path": str(templates)})
    assert row.problem == "has no label: 'label' is negative, as data sets mark rows without one" and not row.examples


def test_what_a_column_holds_is_told_where_it_is_plain() -> None:
    rows = [{"a": "1", "b": "-2.50", "c": "true", "d": "01", "e": "", "f": "1", "g": "3"},
            {"a": "", "b": "7", "c": "FALSE", "d": "2", "e": "", "f": "x", "g": "0"}]  # fmt: skip
    types = column_types(rows)
    assert typed(rows[0], types) == {"a": 1, "b": -2.5, "c": True, "d": "01", "e": "", "f": "1", "g": 3}
    assert typed({"a": "", "b": "n/a", "g": "1e3"}, types) == {"a": None, "b": "n/a", "g": "1e3"}


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    write_gzip(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes(255 - byte for byte in whole[20:60]) + whole[60:])
    with pytest.raises(InputError, match=r"cannot be read \(.*\); check the file\.$"):
        told(path=str(path))


def test_lines_and_elements_without_an_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reading, json_reading):
        monkeypatch.setattr(module, "LONGEST_LINE", 10_000)
    monkeypatch.setattr(json_reading, "CHUNK", 1000)
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"prompt": "a", "completion": "b"}\n' + "x" * 100_000)
    with pytest.raises(InputError, match="a line of more than 10000 characters, its line 2"):
        told(path=str(path))
    table = tmp_path / "rows.csv"
    table.write_text("a," * 50_000)
    with pytest.raises(InputError, match="a line of more than 10000 characters, its line 1"):
        told(kind="csv", path=str(table))
    array = tmp_path / "rows.json"
    array.write_text('[{"prompt": "a", "completion": "b"}, {"prompt": oops' + ", {}" * 50_000 + "]")
    with pytest.raises(InputError, match="is not JSON after its row 1, for 10000 characters"):
        told(path=str(array))


def test_a_header_that_is_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a" * ((1 << 24) + 1) + ",b\n1,2\n")
    with pytest.raises(InputError, match="the record that begins in line 1 is garbled"):
        told(kind="csv", path=str(path))


def test_hidden_files_beside_a_data_set_are_no_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / ".copies" / "set"
    folder.parent.mkdir()
    copy_hub(folder)
    part: Any = TypeAdapter(AnySet).validate_python({"name": "set", "kind": "hub", "path": str(folder)})
    before = part.source_files()
    for name in (".git/index", ".cache/huggingface/a.metadata", "data/.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert before and part.source_files() == before


def test_without_weights_every_phrasing_is_drawn_alike(tmp_path: Path) -> None:
    templates = [{"prompt": f"{n}: {{{{ q }}}}", "completion": "{{ a }}"} for n in range(3)]
    templates.append({"prompt": "Ask for {{ a }}", "completion": "{{ q }}", "kind": "inverted"})
    rows = [{"q": f"Is it {n}?", "a": f"It is {n}."} for n in range(400)]
    path = save(tmp_path / "qa.jsonl", rows)
    drawn = Counter(
        example.form for told_row in told(0, path=path, templates=templates) for example in told_row.examples
    )
    assert len(drawn) == 4 and all(70 < count < 130 for count in drawn.values())
    weighed = told(0, path=path, templates=templates, variants={"direct": 1, "inverted": 1})
    assert 160 < sum(example.kind == "inverted" for row in weighed for example in row.examples) < 240


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
def test_documents_of_a_file_with_line_ends_of_windows_are_told_apart(tmp_path: Path, separator: str) -> None:
    documents = [f"One line of {n}.\nAnother {'word ' * 40}." for n in range(8000)]  # over the border of two blocks
    path = tmp_path / "text.txt"
    path.write_bytes("\n\n".join(documents).replace("\n", "\r\n").encode())
    part = TextSet(name="text", kind="text", path=str(path), separator=separator)
    assert [row for _, row in part.lines()] == [{"text": text} for text in documents]
