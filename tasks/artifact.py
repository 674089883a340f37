"""What a stage receives and returns: a finished artifact, the work in progress, and rows on disk."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PipelineError(Exception):
    """Something a user can mend: the message is one sentence that says what is wrong and the next step."""


class InputError(PipelineError, ValueError):
    """Data or a model that came from outside cannot be used as it is."""


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str
    tools: NotRequired[str]
    """On a conversation's first message: the tools there are, a JSON array of function schemas."""
    tool_calls: NotRequired[list["Row"]]
    """What the assistant calls, `{"function": {"name", "arguments"}, "id", "type"}`; the arguments are JSON text."""
    tool_call_id: NotRequired[str]
    """Of a message of the role `tool`: which call it answers."""
    name: NotRequired[str]
    weight: NotRequired[Literal[0]]
    """On an assistant's turn: it is shown and not learnt from."""


Row = dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """The whole, verified output of one stage."""

    key: str
    """hash(stage, version, recipe part, seed, digests of inputs)"""
    stage: str
    digest: str
    """Hash of the content (what is under `report/` does not count)."""
    path: Path
    run_id: str
    """The MLflow run whose output it is."""
    metrics: Mapping[str, float]
    reused: bool = False
    seconds: float = 0.0


@dataclass
class Work:
    """What a stage function may touch while it builds one artifact."""

    out: Path
    """Empty folder; what is in it when the function returns is the artifact."""
    scratch: Path
    """For checkpoints: kept when the build is killed, removed when it is finished."""
    seed: int = 0
    key: str = ""
    """Key of the artifact being built."""
    checkpoint_seconds: float = 20.0
    """Wall time between checkpoints of a long stage: about what a kill may cost."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final figures, in the manifest and in MLflow: filled by `log` without a step."""
    on_log: Callable[[Mapping[str, float], int], None] = lambda metrics, step: None
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None
    on_notify: Callable[[str], None] = lambda text: None
    on_show: Callable[[list["Row"]], None] = lambda rows: None

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Report figures: over steps when `step` is given, else as a final figure of the artifact."""
        if step is None:
            self.metrics.update({name: float(value) for name, value in metrics.items()})
        else:
            self.on_log({name: float(value) for name, value in metrics.items()}, step)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Move the stage's progress bar."""
        self.on_progress(done, total, note)

    def notify(self, text: str) -> None:
        """Show a text to the person at the terminal, and nowhere else: it may hold a password."""
        self.on_notify(text)

    def show(self, rows: "list[Row]") -> None:
        """Show a table (rows with the same keys) below the progress bars, in place of the one before."""
        self.on_show(rows)

    def figure(self, name: str, figure: "Figure") -> None:
        """Keep a matplotlib figure as `report/NAME.png`, where MLflow shows it."""
        path = self.out / "report" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=110, bbox_inches="tight")

    def text(self, name: str, markdown: str) -> None:
        """Keep Markdown as `report/NAME.md`, where MLflow and Prefect show it. What it quotes must be escaped."""
        path = self.out / "report" / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(markdown, encoding="utf-8")

    def table(self, name: str, rows: list[Row]) -> None:
        """Keep rows (all with the same keys) as `report/NAME.json` in the form MLflow shows as a table."""
        columns = list(rows[0]) if rows else []
        path = self.out / "report" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"columns": columns, "data": [[row[c] for c in columns] for row in rows]}, ensure_ascii=False)
        )


def below(inputs: Collection[str]) -> tuple[str, ...]:
    """Names of the inputs that a policy is loaded on top of, in order: the champion that its round started from, or
    base and SFT."""
    return ("start",) if "start" in inputs else tuple(name for name in ("base", "sft") if name in inputs)


def without_credentials(url: str) -> str:
    """A service's address as it may be shown: without a user and password in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def read_jsonl(path: Path) -> list[Row]:
    """The rows of a JSONL file. Raises `InputError` naming the line that is not a JSON object."""
    return list(iterate_jsonl(path))


def iterate_jsonl(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path in the recipe.")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path} line {number} is not JSON ({error}); mend or remove the line.") from error
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number} is not a JSON object; one object per line is expected.")
            yield row


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def link_tree(source: Path, target: Path) -> None:
    """The same files in another folder without a second copy of their bytes (a copy only across file systems)."""
    for file in source.rglob("*"):
        if not file.is_file():
            continue
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except FileExistsError:
            continue  # somebody linked the same file
        except OSError:
            shutil.copy2(file, place)
