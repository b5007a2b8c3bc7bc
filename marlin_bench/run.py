"""A run: a suite's cells measured (sweep.py) into a folder of their own, with resume, budget and Ctrl-C.

A record is on disk before the next cell starts, and running again measures what is missing and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from marlin_bench.backends import load_backend
from marlin_bench.cell_runner import DeviceRunner
from marlin_bench.clocks import ClockRequest, ClockState, hold_clocks
from marlin_bench.device import DeviceError, slug
from marlin_bench.executor import Executor, LocalExecutor, WorkerLostError
from marlin_bench.exit_codes import ExitCode, deciding
from marlin_bench.messages import HeldClocks
from marlin_bench.open_devices import open_devices
from marlin_bench.plan import Cell, Selection, plan, selected_cells
from marlin_bench.provenance import Revision
from marlin_bench.record import Ceiling, Record, RunMeta, Status
from marlin_bench.run_writer import DiskFullError, open_writer
from marlin_bench.store import StoreError, find_runs, read_meta, read_run
from marlin_bench.suite import Suite
from marlin_bench.sweep import TIME_FORMAT, Progress, Sweep


@dataclass(frozen=True)
class RunOutcome:
    """How a sweep ended."""

    folder: Path
    exit_code: ExitCode
    cells_done: int
    cells_total: int
    timed_s: float
    wall_s: float


def _missing_cells(cells: list[Cell], records: list[Record]) -> list[Cell]:
    """Cells without a record for every backend; a backend of its own process records under `<cell>+<backend>`."""
    known = {(record.cell.partition("+")[0], record.backend) for record in records}
    return [cell for cell in cells if any((cell.id, backend) not in known for backend in cell.backends)]


def _folder_to_resume(device_folder: Path, suite: Suite, code_digest: str, cells: list[Cell]) -> Path | None:
    """The newest run of the same suite by the same code that still lacks some of `cells`."""
    for folder in reversed(find_runs(device_folder)):
        try:
            run = read_run(folder)
        except StoreError:
            continue
        same = run.meta.suite_digest == suite.digest and run.meta.environment.code_digest == code_digest
        if same and run.meta.suite == suite.name:
            return folder if _missing_cells(cells, run.records) else None
    return None


def _load_backends_meanwhile(names: Sequence[str]) -> None:
    """Import what the backends need (torch, a second or two) in a thread, while the workers do the same."""

    def load() -> None:
        for name in names:
            load_backend(name)

    threading.Thread(target=load, daemon=True).start()


_FREE = ClockState(locked=False)


@contextmanager
def _held_clocks(suite: Suite, runners: list[DeviceRunner], run: str, progress: Progress) -> Iterator[ClockState]:
    """The suite's clock policy on every device; what holds for all of them is what is recorded."""
    request = ClockRequest(suite.clocks.policy, suite.clocks.sm_mhz, suite.clocks.memory_mhz)
    states = []
    with ExitStack() as stack:
        for runner in runners:
            uuid = runner.session.ready.device_uuid
            if uuid is None:  # a CPU has no clocks to hold
                continue
            state = stack.enter_context(hold_clocks(request, uuid, run=run, measure=runner.session.clock))
            states.append(state)
            if state.warning:
                progress.note(state.warning)
        yield states[0] if states and all(state.locked for state in states) else _FREE


_EXIT_OF_STATUS = {
    Status.WRONG: ExitCode.WRONG_RESULT,
    Status.IMPOSSIBLE: ExitCode.WRONG_RESULT,
    Status.CRASHED: ExitCode.PARTLY_FAILED,
    Status.TIMEOUT: ExitCode.PARTLY_FAILED,
    Status.OUT_OF_MEMORY: ExitCode.PARTLY_FAILED,
}


def exit_code_of(statuses: list[Status]) -> ExitCode:
    """The exit code that a set of record statuses means; NOTHING_MEASURED when none is `ok`."""
    codes = [_EXIT_OF_STATUS[status] for status in statuses if status in _EXIT_OF_STATUS]
    if Status.OK not in statuses:
        codes.append(ExitCode.NOTHING_MEASURED)
    return deciding(codes)


def run_suite(
    suite: Suite,
    *,
    selection: Selection,
    results: Path,
    devices: str | None,
    budget_s: float | None,
    progress: Progress,
    executor: Executor | None = None,
) -> RunOutcome:
    """Measure a suite into a run folder under `results`, resuming an unfinished one of the same suite and code.

    Raises DeviceError or ClockError (exit 6), SelectionError (2), StoreError when the folder cannot be had.
    """
    began = time.monotonic()
    cells = selected_cells(suite, selection)
    _load_backends_meanwhile(cells[0].backends)
    runners = open_devices(suite, devices, executor or LocalExecutor())
    try:
        environment = runners[0].session.ready.environment
        device_folder = results / slug(environment.device_name)
        folder = _folder_to_resume(device_folder, suite, environment.code_digest, cells)
        if folder is None:
            meta = _new_meta(suite, runners[0], device_folder)
            folder = device_folder / meta.run
        with open_writer(folder) as writer:
            if (folder / "run.json").exists():
                meta = read_meta(folder)
                progress.note(f"resuming {folder}")
            missing = _missing_cells(cells, read_run(folder).records) if (folder / "run.json").exists() else cells
            progress.started(len(cells), len(cells) - len(missing))
            with _held_clocks(suite, runners, meta.run, progress) as state:
                meta = meta.model_copy(update={"locked_sm_hz": state.sm_hz, "locked_memory_hz": state.memory_hz})
                if not meta.ceilings:
                    progress.note("measuring the machine's ceilings")
                    meta = meta.model_copy(update={"ceilings": _ceilings(runners[0])})
                writer.write_meta(meta)
                sweep = Sweep(suite, writer, meta, progress, began)
                try:
                    sweep.measure(runners, missing, budget_s, HeldClocks(locked=state.locked, profile=state.profile))
                finally:
                    _write_totals(sweep)
        return _outcome(folder, cells, sweep, time.monotonic() - began)
    finally:
        for runner in runners:
            runner.close()


def _write_totals(sweep: Sweep) -> None:
    try:
        sweep.write_totals()
    except DiskFullError as error:
        sweep.failure = sweep.failure or error


def _outcome(folder: Path, cells: list[Cell], sweep: Sweep, wall_s: float) -> RunOutcome:
    records = read_run(folder).records
    wanted = {cell.id for cell in cells}
    statuses = [record.status for record in records if record.cell.partition("+")[0] in wanted]
    codes = [exit_code_of(statuses)]
    if sweep.interruption.asked.is_set():
        codes.append(ExitCode.INTERRUPTED)
    if sweep.failure is not None:
        sweep.progress.note(str(sweep.failure))
        codes = [ExitCode.PARTLY_FAILED, *(code for code in codes if code is ExitCode.INTERRUPTED)]
    done = len(cells) - len(_missing_cells(cells, records))
    return RunOutcome(folder, deciding(codes), done, len(cells), sweep.timed_s, wall_s)


def _ceilings(runner: DeviceRunner) -> list[Ceiling]:
    try:
        return runner.session.ceilings()
    except WorkerLostError as lost:
        raise DeviceError(f"the machine's ceilings could not be measured: {lost.reason}") from lost


def _new_meta(suite: Suite, runner: DeviceRunner, device_folder: Path) -> RunMeta:
    environment = runner.session.ready.environment
    while True:  # two runs that start within a second must not share a folder
        started = datetime.now(UTC).strftime(TIME_FORMAT)
        name = f"{started}_{suite.name}_{Revision(environment.commit, environment.dirty).tag}"
        if not (device_folder / name).exists():
            break
        time.sleep(0.1)
    return RunMeta(
        run=name,
        suite=suite.name,
        suite_text=suite.text,
        suite_digest=suite.digest,
        started=started,
        clock_policy=suite.clocks.policy,
        duty_cycle=suite.sampling.duty_cycle,
        environment=environment,
        cells=len(plan(suite)),
    )
