"""What a person at the terminal sees while stages run: one bar per stage on a terminal, a line per event elsewhere."""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from flows.plain_text import visible
from tasks.artifact import Artifact, Row
from tasks.lineage import Record


class _Bars(Progress):
    """Progress bars with a table below them."""

    def __init__(self, below: Callable[[], Table | None], *columns: ProgressColumn, **options: Any) -> None:
        self._below = below
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if (table := self._below()) is not None:
            yield table


def table_of(rows: list[Row]) -> Table:
    """Rows with the same keys as a table for the terminal."""
    table = Table(*rows[0], box=None) if rows else Table(box=None)
    for row in rows:
        table.add_row(*(escape(visible(str(cell))) for cell in row.values()))
    return table


class Screen:
    """Progress on stderr; stdout stays free for the result."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._live = sys.stderr.isatty()
        self._table: Table | None = None
        self._progress = _Bars(
            lambda: self._table,
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", table_column=Column(ratio=3, no_wrap=True)),
            expand=True,
            console=self.console,
            disable=not self._live,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(visible(text), markup=False, highlight=False)

    def begin(self, stage: str) -> None:
        if self._live:
            self._bars[stage] = self._progress.add_task(stage, total=None, note="")
        else:
            self.say(f"{stage}: building")

    def advance(self, stage: str, done: int, total: int, note: str) -> None:
        if self._live and stage in self._bars:
            if done < total and any(bar.id == self._bars[stage] and bar.finished for bar in self._progress.tasks):
                self._progress.reset(self._bars[stage])  # a first part of the stage was whole: the next one begins
            self._progress.update(self._bars[stage], completed=done, total=max(total, 1), note=visible(note))

    def end(self, stage: str, artifact: Artifact) -> None:
        word = "reused" if artifact.reused else f"built in {artifact.seconds:.1f} s"
        if not self._live:
            self.say(f"{stage}: {word}")
            return
        bar = self._bars.get(stage)
        if bar is None:
            bar = self._progress.add_task(stage, total=1, note="")
        self._progress.update(bar, completed=1, total=1, note=f"{word}  {_headline(artifact.metrics)}")
        self._progress.stop_task(bar)
        self._table = None

    def show(self, rows: list[Row]) -> None:
        """A table below the bars, in place of the one before; on a terminal only."""
        self._table = table_of(rows)

    def drop(self, stage: str) -> None:
        """A stage that failed leaves the screen; its error follows."""
        bar = self._bars.pop(stage, None)
        if bar is not None:
            self._progress.remove_task(bar)


class StageListener:
    """Passes what one stage reports to the screen and to MLflow."""

    def __init__(self, screen: Screen, stage: str, run_id: str, record: Record) -> None:
        self._screen, self._stage, self._run, self._record = screen, stage, run_id, record

    def progress(self, done: int, total: int, note: str) -> None:
        self._screen.advance(self._stage, done, total, note)

    def notify(self, text: str) -> None:
        self._screen.say(text)

    def show(self, rows: list[Row]) -> None:
        self._screen.show(rows)

    def curve(self, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        self._record.curve(self._run, metrics, step, timestamp)


def _headline(metrics: Mapping[str, float], most: int = 3) -> str:
    """The first few figures of an artifact, short enough for one line."""
    return "  ".join(f"{name} {value:.3g}" for name, value in list(metrics.items())[:most])
