"""The cells of one run over one or more devices: each goes to whichever is free, and its records to disk at once.

Where a cell runs is the executor's business; only this process writes results.
"""

from __future__ import annotations

import queue
import threading
import time
from datetime import UTC, datetime
from typing import Protocol

from marlin_bench.backends import load_backend
from marlin_bench.cell_runner import DeviceRunner
from marlin_bench.device import slug
from marlin_bench.errand import BackendFacts, Listener, RunContext
from marlin_bench.executor import WorkerLostError
from marlin_bench.interruption import Interruption
from marlin_bench.messages import HeldClocks
from marlin_bench.plan import Cell
from marlin_bench.record import Record, RunMeta, Status
from marlin_bench.run_writer import RunWriter
from marlin_bench.store import StoreError
from marlin_bench.suite import Suite

TIME_FORMAT = "%Y%m%dT%H%M%SZ"


class Progress(Protocol):
    """Who is told how the sweep goes."""

    def started(self, cells_total: int, cells_done: int) -> None:
        """The sweep begins; `cells_done` were measured by an earlier run of it."""

    def cell_started(self, cell: Cell) -> None:
        """A cell begins."""

    def backend_progress(self, cell: Cell, backend: str, phase: str) -> None:
        """A backend of it enters a phase."""

    def record_done(self, record: Record) -> None:
        """A record is on disk."""

    def cell_done(self, cell: Cell, seconds: float) -> None:
        """A cell is through."""

    def note(self, sentence: str) -> None:
        """Something the user should read."""


def backend_facts(cell: Cell) -> dict[str, BackendFacts]:
    """What the parent needs to know of a cell's backends."""
    facts = {}
    for name in cell.backends:
        backend = load_backend(name)
        facts[name] = BackendFacts(
            name=name,
            is_baseline=backend.is_baseline,
            own_process=backend.isolation == "own",
            format=backend.format(cell.problem).name,
            activation_dtype=backend.operand_dtype,
            output_dtype=backend.output_dtype,
            version=backend.version() if backend.missing() is None else "missing",
        )
    return facts


class Sweep:
    """The cells of one run, shared over the devices."""

    def __init__(self, suite: Suite, writer: RunWriter, meta: RunMeta, progress: Progress, began: float) -> None:
        """`began`: when this go at the run started, on the monotonic clock."""
        self.suite, self.writer, self.meta, self.progress = suite, writer, meta, progress
        self._began = began
        self.interruption = Interruption()
        self.timed_s = 0.0
        self.cells_done = 0
        self.statuses: list[Status] = []
        self.failure: StoreError | None = None
        self._lock = threading.Lock()
        self._deadline: float | None = None
        origin = datetime.strptime(meta.started, TIME_FORMAT).replace(tzinfo=UTC)
        self._clock_origin = time.monotonic() - (datetime.now(UTC) - origin).total_seconds()

    def measure(
        self, runners: list[DeviceRunner], cells: list[Cell], budget_s: float | None, clocks: HeldClocks
    ) -> None:
        """Measure `cells`, each on whichever device is free."""
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        for cell in cells:
            waiting.put(cell)
        self.interruption.on_first = lambda: self._finish_early(runners)
        with self.interruption.handled():
            if len(runners) == 1:
                self._serve(runners[0], waiting, clocks)
                return
            threads = [threading.Thread(target=self._serve, args=(runner, waiting, clocks)) for runner in runners]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.2)  # wakes up for signals

    def _finish_early(self, runners: list[DeviceRunner]) -> None:
        self.progress.note("stopping after the block in progress; press Ctrl-C again to stop at once")
        for runner in runners:
            try:
                runner.session.finish()
            except WorkerLostError:
                continue  # its cell already reports the loss

    def _must_stop(self) -> bool:
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return late or self.interruption.asked.is_set() or self.failure is not None

    def _serve(self, runner: DeviceRunner, waiting: queue.SimpleQueue[Cell], clocks: HeldClocks) -> None:
        context = RunContext(
            run=self.meta.run,
            device=slug(self.meta.environment.device_name),
            sampling=self.suite.sampling,
            clock_origin=self._clock_origin,
            effort=self.suite.tune,
            clocks=clocks,
            energy=self.suite.energy,
        )
        while not self._must_stop():
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._one_cell(runner, cell, context)
            except StoreError as error:
                self.failure = error

    def _one_cell(self, runner: DeviceRunner, cell: Cell, context: RunContext) -> None:
        began = time.monotonic()
        self.progress.cell_started(cell)
        listener = Listener(
            phase=lambda backend, phase: self.progress.backend_progress(cell, backend, phase),
            record=self._keep,
            verified=lambda _backend, _check: None,
        )
        timed_s = runner.run(cell, backend_facts(cell), context, listener)
        with self._lock:
            self.timed_s += timed_s
            self.cells_done += 1
            self.write_totals()  # after each cell: a run that is killed keeps them
        self.progress.cell_done(cell, time.monotonic() - began)

    def write_totals(self) -> None:
        """The run's seconds so far, with those of earlier goes, to run.json; DiskFullError where that has no room."""
        wall_s = self.meta.wall_s + time.monotonic() - self._began
        totals = {"timed_s": self.meta.timed_s + self.timed_s, "wall_s": wall_s}
        self.writer.write_meta(self.meta.model_copy(update=totals))

    def _keep(self, record: Record) -> None:
        with self._lock:
            self.writer.append(record)
            self.statuses.append(record.status)
        self.progress.record_done(record)
