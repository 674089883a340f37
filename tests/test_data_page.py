"""docs/data.md: every key of a mixture is there, and its examples are recipes that work."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter

from tasks.data.flan import FlanTable
from tasks.data.mixing import Mix
from tasks.data.mixture import AnyFilter, AnySet, MixtureData, MixtureStage
from tasks.data.phrasings import ChainOfThought, FewShot, Variants
from tasks.data.preview import table
from tasks.data.promptsource import PromptsourceFile
from tasks.data.splits import SPLITS
from tasks.data.templates import ChatTemplate
from tests.test_mixture import NOUNS, alpaca, prepare, question

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
EXAMPLES: list[dict[str, Any]] = [tomllib.loads(each) for each in re.findall(r"```toml\n(.*?)```", PAGE, re.S)]
PARTS: list[type[BaseModel]] = [
    MixtureData, MixtureStage, Mix, Variants, FewShot, ChainOfThought, ChatTemplate, FlanTable, PromptsourceFile,
    *get_args(get_args(AnySet)[0]), *get_args(get_args(AnyFilter)[0]),
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_every_key_is_on_the_page(part: type[BaseModel]) -> None:
    quoted = " ".join(re.findall(r"```toml\n.*?```|`[^`\n]+`", PAGE, re.S))
    missing = [name for name in part.model_fields if not re.search(rf"\b{name}\b", quoted)]
    assert not missing
    kind = part.model_fields.get("kind")
    assert kind is None or all(re.search(rf"\b{each}\b", quoted) for each in get_args(kind.annotation))


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_makes_data(example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a set of conversations where it has none of its own."""
    monkeypatch.chdir(tmp_path)
    alpaca(tmp_path / "conversations.jsonl", 120)
    lines = ["claim\tanswer\texplanation"]
    lines += [f"{question(n, 3)}\t{'yes' if n % 2 else 'no'}\tSo it is with {NOUNS[n % 20]} {n}." for n in range(120)]
    (tmp_path / "claims.tsv").write_text("\n".join(lines) + "\n")
    asked = [f'"{question(n, 5)}",It is {n}.' for n in range(900, 920)]
    (tmp_path / "exam.csv").write_text("\n".join(["Question,Answer", *asked]) + "\n")
    chat = {"name": "chat", "kind": "json", "path": "conversations.jsonl"}
    exam = {"name": "held", "kind": "csv", "path": "exam.csv", "use": "evaluation",
            "rename": {"Question": "question", "Answer": "answer"}}  # fmt: skip
    data = {"sets": [], **example["data"]}
    others = [each for each in (chat, exam) if each["name"] not in [made["name"] for made in data["sets"]]]
    work = prepare(tmp_path, **{**data, "sets": [*data["sets"], *others]})
    rows = {row["set"]: row["rows"] for row in table(work.out, "mixture")}
    trained = [each["name"] for each in data["sets"] if each.get("use") != "evaluation"]
    assert all(rows[name] for name in trained or ["chat"])
    written = {path.name for path in work.out.glob("*.jsonl")}
    assert {"sft.jsonl", "ledger.jsonl", "dropped.jsonl", *(f"{split}.jsonl" for split in SPLITS)} <= written
    assert all(name.split(".")[0] in PAGE for name in written)


def test_the_page_names_every_form_of_a_mixture() -> None:
    assert len(EXAMPLES) == 8
    TypeAdapter(MixtureData).validate_python(EXAMPLES[0]["data"])
