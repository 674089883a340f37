"""One file of the user's: whatever holds rows is read, and what cannot be is told in one sentence."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.artifact import InputError, Row
from tasks.data.files import read_examples
from tasks.data.mixture import AnySet
from tasks.data.preference_formats import read_preferences
from tasks.data.telling import tell
from tests.test_data import QUESTIONS, prepare, save

TWO = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
TALKS = [
    [{"role": "user", "content": each["prompt"]}, {"role": "assistant", "content": each["completion"]}] for each in TWO
]
LINES = "".join(json.dumps(row) + "\n" for row in TWO)

READ: dict[str, tuple[str, str]] = {
    "lines": ("a.jsonl", LINES),
    "lines in .json": ("a.json", LINES),
    "array in .jsonl": ("a.jsonl", json.dumps(TWO)),
    "array over lines in .jsonl": ("a.jsonl", json.dumps(TWO, indent=2)),
    "arrays one after another": ("a.json", "\n".join(json.dumps([row]) for row in TWO)),
    "objects over lines": ("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in TWO)),
    "wrapper": ("a.json", json.dumps({"version": 1, "data": TWO})),
    "wrapper over lines": ("a.jsonl", json.dumps({"version": 1, "data": TWO}, indent=2)),
    "by id": ("a.json", json.dumps({"x": TWO[0], "y": TWO[1]})),
    "columns by row": ("a.json", json.dumps({name: {n: row[name] for n, row in enumerate(TWO)} for name in TWO[0]})),
    "columns as lists": ("a.json", json.dumps({name: [row[name] for row in TWO] for name in TWO[0]})),
    "a conversation a line": ("a.jsonl", "".join(json.dumps(talk) + "\n" for talk in TALKS)),
    "an array of conversations": ("a.json", json.dumps(TALKS)),
    "BOM": ("a.jsonl", "\ufeff" + LINES),
    "table": ("a.csv", "prompt,completion\na,b\nc,d\n"),
    "table by tabs": ("a.tsv", "prompt\tcompletion\na\tb\nc\td\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("packed", [False, True])
def test_whatever_holds_rows_is_read(tmp_path: Path, kind: str, packed: bool) -> None:
    name, text = READ[kind]
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    examples, dropped = read_examples(path, "refuse")
    assert [(each.prompt[0]["content"], each.completions) for each in examples] == [("a", ["b"]), ("c", ["d"])]
    assert not dropped


def test_parquet_is_read_and_one_row_alone_is_a_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TWO), tmp_path / "rows.data")
    assert len(read_examples(tmp_path / "rows.data", "refuse")[0]) == 2
    for row in (TWO[0], {"messages": TALKS[0]}, {"conversations": ["a", "b"], "source": "x"}, {"turns": ["a", "b"]}):
        [example], _ = read_examples(Path(save(tmp_path / "one.jsonl", [row])), "refuse")
        assert example.prompt[0]["content"] == "a"


REFUSED = [
    ("a.json", json.dumps({"train": TWO, "test": TWO}).encode(), r"several lists of rows \(train, test\)"),
    ("a.jsonl", LINES.encode("utf-16"), "is UTF-16 text; convert it to UTF-8"),
    ("a.jsonl", LINES.encode("utf-16-le"), "is no UTF-8 text; convert it"),
    ("a.jsonl", b"prompt,completion\na,b\n", "no usable row: 2 of 2 is not JSON"),
    ("a.csv", b"prompt;completion\na;b\n", r"has one column, 'prompt;completion', .*set delimiter = .;"),
    ("a.csv", b"prompt\tcompletion\na\tb\n", r"set delimiter = ..t"),
    ("a.tsv", b"prompt,completion\na,b\n", r"set delimiter = .,"),
    ("a.csv", LINES.encode(), 'is JSON, not a table; set kind = "json"'),
    ("a.jsonl", '{"prompt": "é", "completion": "b"}\n'.encode("latin-1"), "1 of 1 has characters that cannot"),
    ("a.json", b'[{"prompt": "a"}]\noops', "is not whole JSON after its row 1"),
    ("none.jsonl", None, "does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
@pytest.mark.parametrize("source", ["jsonl", "preferences"])
def test_what_cannot_be_read_is_told_in_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, message: str, source: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    settings: Row = {"source": source, "path": str(tmp_path / name)}
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "work", {**settings, **({"on_bad_row": "drop"} if source == "jsonl" else {})})
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    if source == "jsonl":
        assert error.match(message)


def test_lines_that_are_no_rows_are_dropped_by_one_reason_that_quotes_nothing(tmp_path: Path) -> None:
    odd = ['"Ann Smith, ann@home.example"', "5", "[1]", "null", "{"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*odd, *(json.dumps(row) for row in QUESTIONS)]))
    work = prepare(tmp_path / "a", {"source": "jsonl", "path": str(path), "on_bad_row": "drop"})
    assert work.metrics["dropped/is not a JSON object"] == 4 and work.metrics["dropped/is not JSON"] == 1
    with pytest.raises(InputError, match=r"rows.jsonl row 1 is not a JSON object; mend or remove it"):
        prepare(tmp_path / "b", {"source": "jsonl", "path": str(path)})
    part: Any = TypeAdapter(AnySet).validate_python({"name": "set", "kind": "json", "path": str(path)})
    assert {row.problem for row in tell(part, part.lines(), 0) if row.problem} == {
        "is not a JSON object", "is not JSON",
    }  # fmt: skip
    _, dropped = read_preferences(
        Path(save(tmp_path / "p.jsonl", ["x", {"prompt": "a", "chosen": "b", "rejected": "c"}]))
    )
    assert [row["reason"] for row in dropped] == ["not an object"]
