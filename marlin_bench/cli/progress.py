"""How a sweep goes, on stderr: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from marlin_bench.record import Status
from marlin_bench.statistics import block_medians, median_interval
from marlin_bench.units import counted, format_duration, format_time

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from marlin_bench.plan import Cell
    from marlin_bench.record import Record
    from marlin_bench.sweep import Progress

Clock = Callable[[], float]


class Pace:
    """Cells done and the time that the rest will take, from the cells of this session."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.total = 0
        self.done = 0
        self._resumed = 0

    def start(self, total: int, done: int) -> None:
        """The sweep has `total` cells, `done` of them measured before."""
        self.total, self.done, self._resumed = total, done, done
        self._began = self._clock()

    def cell_done(self) -> None:
        """One more."""
        self.done += 1

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the end at the pace so far; None before the first cell is through."""
        measured = self.done - self._resumed
        if measured == 0:
            return None
        return (self._clock() - self._began) / measured * (self.total - self.done)

    def __str__(self) -> str:
        remaining = self.remaining_s
        eta = "" if remaining is None or self.done >= self.total else f", {format_duration(remaining)} left"
        return f"{self.done} of {counted(self.total, 'cell')}{eta}"


def result_line(record: Record) -> str:
    """A finished record in a line: time, or the reason why there is none."""
    what = f"{record.cell} {record.backend}"
    if record.status is not Status.OK:
        return f"{what}: {record.status.value}" + (f", {record.reason}" if record.reason else "")
    interval = median_interval(block_medians([block.times for block in record.blocks]))
    return f"{what}: {format_time(interval.value)}" + ("" if record.timer == "kernel" else f" ({record.timer})")


class PlainProgress:
    """A line a record, for logs."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._pace = Pace(clock)
        self._lock = threading.Lock()

    def _line(self, text: str) -> None:
        with self._lock:
            self._stream.write(text + "\n")
            self._stream.flush()

    def started(self, cells_total: int, cells_done: int) -> None:
        """See Progress."""
        self._pace.start(cells_total, cells_done)
        resumed = f", {cells_done} of them measured before" if cells_done else ""
        self._line(f"{counted(cells_total, 'cell')}{resumed}")

    def cell_started(self, cell: Cell) -> None:
        """See Progress."""

    def backend_progress(self, cell: Cell, backend: str, phase: str) -> None:
        """See Progress."""

    def record_done(self, record: Record) -> None:
        """See Progress."""
        self._line(result_line(record))

    def cell_done(self, cell: Cell, seconds: float) -> None:
        """See Progress."""
        self._pace.cell_done()
        self._line(f"[{self._pace}] {cell.id} in {format_duration(seconds)}")

    def note(self, sentence: str) -> None:
        """See Progress."""
        self._line(sentence)


class LiveProgress:
    """A bar that stays in place: cells done, time left, what runs now, and the last result."""

    def __init__(self, console: Console, live: Live, clock: Clock = time.monotonic) -> None:
        self._console, self._live = console, live
        self._pace = Pace(clock)
        self._now: dict[str, str] = {}
        self._last = ""
        self._lock = threading.Lock()

    def _show(self) -> None:
        self._live.update(self._render())

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=max(1, self._pace.total), completed=self._pace.done, width=30), str(self._pace))
        now = Text("  ".join(self._now.values()), no_wrap=True, overflow="ellipsis")
        return Group(grid, now, Text(self._last, style="dim", no_wrap=True, overflow="ellipsis"))

    def started(self, cells_total: int, cells_done: int) -> None:
        """See Progress."""
        with self._lock:
            self._pace.start(cells_total, cells_done)
            self._show()

    def cell_started(self, cell: Cell) -> None:
        """See Progress."""
        with self._lock:
            self._now[cell.id] = cell.id
            self._show()

    def backend_progress(self, cell: Cell, backend: str, phase: str) -> None:
        """See Progress."""
        with self._lock:
            self._now[cell.id] = f"{cell.id} {backend}: {phase}"
            self._show()

    def record_done(self, record: Record) -> None:
        """See Progress."""
        with self._lock:
            self._last = result_line(record)
            if record.status not in {Status.OK, Status.UNSUPPORTED, Status.MISSING}:
                self._console.print(self._last, markup=False, highlight=False)  # stays above the bar
            self._show()

    def cell_done(self, cell: Cell, seconds: float) -> None:
        """See Progress."""
        with self._lock:
            self._now.pop(cell.id, None)
            self._pace.cell_done()
            self._show()

    def note(self, sentence: str) -> None:
        """See Progress."""
        with self._lock:
            self._console.print(sentence, markup=False, highlight=False)


@contextmanager
def open_progress(stream: TextIO) -> Iterator[Progress]:
    """The progress that suits `stream`; a bar is taken away at the end, however it ends."""
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    with Live(console=console, transient=True, refresh_per_second=8) as live:
        yield LiveProgress(console, live)
