"""Instruction data at scale: rows per second and memory of the real data stage on one core.

python -m benchmarks.instructions
python -m benchmarks.instructions 400000

So many rows of two sets, a quarter of them near-duplicates or broken, are told in templates, filtered by length and
characters, freed of exact and near-duplicates, split by the ledger and mixed. "one instruction" has the same 24 words
before every question of 6 to 11 words, as sets for one task often do: most of every row is what all others say too.
Each size runs in a process of its own; the peak is that of its resident memory, libraries included, and the size
beside it is what the sets hold.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measured import ROOT, keep, show

WORDS = 20_000


def main() -> None:
    counts = [int(count) for count in sys.argv[1:]] or [25_000, 50_000, 100_000, 200_000]
    cases = [(count, "apart") for count in counts] + [(min(counts[-1], 100_000), "one instruction")]
    found = []
    with tempfile.TemporaryDirectory(prefix="rlhf-benchmark-") as folder:
        for count, case in cases:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.instructions", "--one", str(count), folder, case],
                cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            found.append(json.loads(done.stdout.splitlines()[-1]))
    if not sys.argv[1:]:
        keep("instructions", found)
    names = ("case", "rows", "megabytes", "kept", "seconds", "rows per second", "peak MiB", "MiB before")
    show("Instruction data, CPU seconds on one core", list(names), [[row[name] for name in names] for row in found])


def one(count: int, folder: Path, case: str = "apart") -> None:
    """Prepare one mixture and print what it took."""
    from pydantic import TypeAdapter

    from tasks.artifact import Work
    from tasks.data.prepare import DataRecipe, prepare_data

    sizes = [_write(folder / f"{name}-{count}.jsonl", rows) for name, rows in _sets(count, case).items()]
    templates = [
        {"prompt": "{{ question }}", "completion": "{{ answer }}"},
        {"prompt": "Answer this question.\n\n{{ question }}", "completion": "{{ answer }}"},
        {
            "prompt": "Which question has this answer?\n\n{{ answer }}",
            "completion": "{{ question }}",
            "kind": "inverted",
        },
    ]
    recipe = {
        "source": "mixture",
        "sets": [
            {"name": "chat", "kind": "json", "path": str(folder / f"chat-{count}.jsonl")},
            {"name": "table", "kind": "json", "path": str(folder / f"table-{count}.jsonl"), "templates": templates},
        ],
        "mix": {"strategy": "temperature"},
        "filters": [
            {"kind": "length", "completion": [5, 400]},
            {"kind": "characters", "symbols": 0.3, "letters": 0.5, "repeated": 0.5},
            {"kind": "duplicates"},
        ],
    }
    work = Work(folder / f"out-{count}-{case}", folder / f"scratch-{count}-{case}")
    work.out.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.process_time()
    prepare_data(TypeAdapter(DataRecipe).validate_python(recipe), {}, work)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found: dict[str, Any] = {
        "case": case,
        "rows": count,
        "megabytes": sum(sizes) / 1e6,
        "kept": count - int(work.metrics["dropped/all"]),
    }
    found |= {"seconds": seconds, "rows per second": count / seconds, "peak MiB": peak, "MiB before": before}
    print(json.dumps(found))


def _sets(count: int, case: str) -> dict[str, Iterator[dict[str, Any]]]:
    asked = ("", 8, 32) if case == "apart" else (_INSTRUCTION, 6, 11)
    chat, table = _pairs(count // 2, 0, *asked), _pairs(count - count // 2, 1, *asked)
    return {
        "chat": ({"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in chat),
        "table": ({"question": q, "answer": a} for q, a in table),
    }


_INSTRUCTION = (
    "Read the sentence below, decide whether the person who wrote it is pleased or not, and say in one short sentence "
    "what makes you think so: "
)


def _pairs(count: int, seed: int, before: str, fewest: int, most: int) -> Iterator[tuple[str, str]]:
    """Questions of so many words and answers of about 80, in Zipf's proportions; some as data from the web is."""
    rng = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ai") for c in _ENDINGS][:WORDS]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    drawn = iter(())
    old: list[tuple[str, str]] = []

    def say(length: int) -> str:
        nonlocal drawn
        said = []
        for _ in range(length):
            word = next(drawn, None)
            if word is None:
                drawn = iter(rng.choices(words, weights, k=100_000))
                word = next(drawn)
            said.append(word)
        return " ".join(said).capitalize()

    for _ in range(count):
        kind = rng.random()
        if kind < 0.1 and old:  # told before, word for word or nearly
            question, answer = rng.choice(old)
            if kind < 0.05:
                answer = answer.replace(" ", "  ", 3).upper() + "!"
            else:
                answer += " " + say(3)
        else:
            question, answer = before + say(rng.randint(fewest, most)) + "?", say(rng.randint(10, 150)) + "."
        if kind > 0.97:
            answer = "OK"
        elif kind > 0.94:
            answer = "#$%" * 100
        elif kind > 0.91:
            answer = "Again and again. " * 40
        if len(old) < 5000:
            old.append((question, answer))
        yield question, answer


_ENDINGS = [f"{a}{b}{c}" for a in "bdklmnrst" for b in "aeiou" for c in ("", "n", "r", "s", "t", "nd", "lk")]


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return path.stat().st_size


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main()
