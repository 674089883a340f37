"""Every answer of a model that can be used is kept as soon as it is there, so that it is not paid for twice."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from labeling.ai.endpoint import Messages
from labeling.ai.prompts import Answer, Question, Rubric, read_answer
from tasks.artifact import Work
from tasks.recipe import stable_hash


@dataclass(frozen=True)
class Said:
    """What a judge said to one question, before it is read."""

    at: str
    text: str = ""
    whole: bool = True
    refused: str = ""
    worth: tuple[float, ...] | None = None
    """Probability of each letter, where those were read instead."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def read(self, question: Question, rubric: Rubric) -> Answer:
        """The answer in it."""
        if self.refused:
            return Answer(question.order, invalid=self.refused.partition(":")[0])
        if self.worth is not None:
            return Answer(question.order, worth=dict(zip(question.order, self.worth, strict=True)))
        return read_answer(self.text, question, rubric, whole=self.whole)


class Kept:
    """Answers by question in a file that is only ever added to, one line each; in memory is only where each stands.

    Several processes may add to it. What a crash cut off is left out when it is read, and asked again.
    """

    def __init__(self, path: Path, judge: str) -> None:
        self.path, self.judge, self.lock = path, judge, Lock()
        self._last: dict[bytes, int] = {}
        self._before: dict[bytes, list[int]] = {}
        """What was said before to the same question as well: it was paid for."""
        self._reading: BinaryIO | None = None
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            return
        place = 0
        with path.open("rb") as lines:
            for line in lines:
                if found := _line(line):
                    self._take(found[0], place)
                place += len(line)

    def __len__(self) -> int:
        return len(self._last)

    def __contains__(self, key: str) -> bool:
        return _short(key) in self._last

    def key(self, messages: Messages, *more: Any) -> str:
        """What a question to this judge is kept under; `more` tells apart what is asked in the same words."""
        return stable_hash([self.judge, [dict(message) for message in messages], *more])

    def get(self, key: str) -> Said | None:
        """The last answer to a question."""
        return self.read(key) if key in self else None

    def read(self, key: str) -> Said:
        """The last answer to a question that has one."""
        return self._at(self._last[_short(key)])

    def all(self, key: str) -> Iterator[Said]:
        """Every answer to a question."""
        short = _short(key)
        if short in self._last:
            for place in [*self._before.get(short, ()), self._last[short]]:
                yield self._at(place)

    def add(self, key: str, said: Said) -> None:
        """Keep an answer: it is in the file when this returns."""
        line = json.dumps({"key": key, **asdict(said)}, ensure_ascii=False)
        with self.lock:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file.fileno()).st_size
                cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
                _write(file.fileno(), ("\n" * cut + line + "\n").encode())
            self._take(key, size + cut)

    def _take(self, key: str, place: int) -> None:
        short = _short(key)
        if short in self._last:
            self._before.setdefault(short, []).append(self._last[short])
        self._last[short] = place

    def _at(self, place: int) -> Said:
        with self.lock:
            self._reading = self._reading or self.path.open("rb")
            self._reading.seek(place)
            found = _line(self._reading.readline())
        assert found is not None
        return found[1]


def _short(key: str) -> bytes:
    """A key in fewer bytes."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _line(line: bytes) -> tuple[str, Said] | None:
    """A key and what was said, None where the line is none."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
        key, worth = row.pop("key"), row.pop("worth")
        return key, Said(**row, worth=tuple(worth) if worth is not None else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def now() -> str:
    """The time of an answer."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def kept_answers(judge: str, work: Work) -> Kept:
    """Answers of an endpoint, for all rounds and recipes: they are paid. In `RLHF_HOME`, or the work's scratch."""
    home = os.environ.get("RLHF_HOME")
    folder = Path(home) / "ai-answers" if home else work.scratch
    return Kept(folder / f"{stable_hash(judge)[:16]}.jsonl", judge)
