"""Importing preference files: three forms become one, and what is broken is dropped by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifact import InputError
from tasks.data.preference_formats import count_reasons, read_preferences
from tasks.recipe import stable_hash

HH = Path(__file__).parents[1].parent / "shared" / "data" / "hh-rlhf"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        {"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Go.")]},
        {"chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("Go.")]},
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("Go.")]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello.", "rejected": "Go."},
    ],
    ids=["strings", "messages", "conversations", "prompt and conversations", "transcripts", "transcript prompt"],
)
def test_every_form_gives_the_same_row(tmp_path: Path, row: dict[str, Any]) -> None:
    rows, dropped = read_preferences(write(tmp_path / "pairs.jsonl", [row]))

    assert dropped == []
    assert rows[0]["prompt"] == [user("Hi")]
    assert rows[0]["chosen"] == [assistant("Hello.")]
    assert rows[0]["rejected"] == [assistant("Go.")]
    assert rows[0]["prompt_id"] == stable_hash([user("Hi")])[:16]


def test_transcripts_keep_all_turns_before_the_answer(tmp_path: Path) -> None:
    shared = "\n\nHuman: One\n\nnot a turn: two\n\nAssistant: Three\n\nHuman: Four"
    path = write(
        tmp_path / "pairs.jsonl", [{"chosen": shared + "\n\nAssistant: A", "rejected": shared + "\n\nAssistant: B"}]
    )

    rows, _ = read_preferences(path)

    assert rows[0]["prompt"] == [user("One\n\nnot a turn: two"), assistant("Three"), user("Four")]


def test_broken_pairs_are_dropped_with_their_reason(tmp_path: Path) -> None:
    def transcripts(chosen: str, rejected: str) -> dict[str, str]:
        return {"chosen": chosen, "rejected": rejected}

    good = transcripts("\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Hi\n\nAssistant: B")
    broken: list[tuple[str, Any]] = [
        ("not JSON", "{"),
        ("not an object", [1]),
        ("chosen or rejected missing", {"chosen": "x"}),
        ("not text or messages", {"prompt": "Hi", "chosen": 3, "rejected": "B"}),
        ("not text or messages", {"prompt": "Hi", "chosen": "half \ud83d", "rejected": "B"}),
        ("not text or messages", {"prompt": "Hi", "chosen": [{"role": "tool", "content": "x"}], "rejected": "B"}),
        ("transcript not parseable", transcripts("Just text", "Other text")),
        ("no answer at the end", transcripts("\n\nHuman: Hi", "\n\nHuman: Hi\n\nAssistant: B")),
        ("empty answer", transcripts("\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Hi\n\nAssistant: ")),
        ("empty turn in the prompt", transcripts("\n\nHuman:\n\nAssistant: A", "\n\nHuman:\n\nAssistant: B")),
        ("turns do not alternate", transcripts("\n\nAssistant: A", "\n\nAssistant: B")),
        ("prompts differ", transcripts("\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Ho\n\nAssistant: B")),
        ("identical answers", transcripts("\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Hi\n\nAssistant: A ")),
        ("duplicate", good),
    ]
    rows, dropped = read_preferences(write(tmp_path / "pairs.jsonl", [good, *(row for _, row in broken)]))

    assert len(rows) == 1
    assert [(row["line"], row["reason"]) for row in dropped] == [(n, reason) for n, (reason, _) in enumerate(broken, 2)]
    assert count_reasons(dropped)["not text or messages"] == 3


def test_files_without_one_usable_pair_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_preferences(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="is empty"):
        read_preferences(write(tmp_path / "empty.jsonl", ["", "  "]))
    with pytest.raises(InputError, match=r"no usable preference pair .identical answers: 2"):
        read_preferences(
            write(tmp_path / "same.jsonl", [{"prompt": p, "chosen": "A", "rejected": "A"} for p in ("x", "y")])
        )


def test_hh_rlhf_is_read_and_its_broken_pairs_counted() -> None:
    if not HH.exists():
        pytest.skip("shared/data/hh-rlhf is not here")
    files = sorted(HH.glob("*.jsonl"))
    lines = sum(1 for file in files for line in file.open(encoding="utf-8") if line.strip())
    read = [read_preferences(file) for file in files]

    rows = [row for kept, _ in read for row in kept]
    dropped = [row for _, broken in read for row in broken]
    assert len(rows) + len(dropped) == lines
    assert len(rows) > 0.9 * lines
    assert count_reasons(dropped)["empty answer"] >= 1
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)
