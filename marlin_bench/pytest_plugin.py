"""GPU timings inside pytest-benchmark: the suite's own timers and checks, results in its own JSON.

`gpu_benchmark` measures a backend (or your own launches) and hands the times of the GPU to pytest-benchmark, so that
`--benchmark-json`, `compare` and `--benchmark-compare-fail=median:5%` work on them. `pytest --marlin-suite SUITE` runs
a whole suite as tests, one a cell and backend; `pytest --marlin-backend package:Class` runs the conformance test of a
backend. Without a GPU all of them skip, unless MARLIN_BENCH_REQUIRE_GPU=1 is set.

torch is imported when the first GPU test runs, never when pytest starts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from marlin_bench.machine import Machine
    from marlin_bench.record import Record

REQUIRE_VARIABLE = "MARLIN_BENCH_REQUIRE_GPU"
_CONFORMANCE = Path(__file__).with_name("conformance.py")
_CELL_SECONDS = 2.0
_ROUNDS = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's options."""
    group = parser.getgroup("marlin-bench")
    group.addoption("--marlin-suite", metavar="SUITE", help="run a suite as tests, one a cell and backend")
    group.addoption(
        "--marlin-backend",
        metavar="NAME",
        action="append",
        default=[],
        help="run the conformance test on a backend: its registered name, or package.module:Class; may be repeated",
    )
    group.addoption("--marlin-results", metavar="DIR", help="where the suite's run folder goes")
    group.addoption(
        "--marlin-device", choices=("cuda", "cpu"), default="cuda", help="what gpu_benchmark measures on (cuda)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """With --marlin-suite or --marlin-backend and no test paths of one's own, that is all there is to run."""
    suite = config.getoption("--marlin-suite")
    paths = [] if suite is None else [str(_suite_path(suite))]
    if config.getoption("--marlin-backend"):
        paths.append(str(_CONFORMANCE))
        config.option.reportchars += "s"  # whoever names a backend wants to know why it is skipped
    if paths:
        config.args = [*config.args, *paths] if config.args_source is pytest.Config.ArgsSource.ARGS else paths


def _suite_path(name: str) -> Path:
    """The file of a suite given by path or by the name of a shipped one."""
    from marlin_bench.suite import shipped_suites_folder

    path = Path(name)
    shipped = shipped_suites_folder() / f"{path.stem}.yaml"
    if not path.is_file() and not shipped.is_file():
        raise pytest.UsageError(
            f"--marlin-suite {name}: there is no such suite file, and no shipped suite of that name"
        )
    return path if path.is_file() else shipped


def unavailable(reason: str) -> None:
    """Skip, or fail where a GPU was promised."""
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{REQUIRE_VARIABLE}=1 is set, but {reason}", pytrace=False)
    pytest.skip(reason)


class _Replay:
    """A clock that shows times already measured: pytest-benchmark reads it around a call that does nothing."""

    def __init__(self, times: Sequence[float]) -> None:
        self._times = iter(times)
        self._now = 0.0

    def read(self) -> float:
        """What pytest-benchmark takes for its timer."""
        return self._now

    def rewind(self) -> None:
        """Back to zero, so that a difference is exactly the time measured."""
        self._now = 0.0

    def advance(self) -> None:
        """Let the next measured time pass."""
        self._now = next(self._times, 0.0)


def _hand_over(benchmark: Any, times: Sequence[float], extra_info: dict[str, object]) -> None:
    """Give measured seconds to a pytest-benchmark fixture; anything that is no time fails the test."""
    if not times or not all(math.isfinite(time) and time > 0 for time in times):
        pytest.fail("a measured time is missing or not a positive number", pytrace=False)
    benchmark.extra_info.update(extra_info)
    replay = _Replay(times)
    benchmark._timer = replay.read
    benchmark.pedantic(replay.advance, setup=replay.rewind, rounds=len(times), iterations=1)


def _info(record: Record) -> dict[str, object]:
    """What a reader of the JSON wants to know beside the times."""
    return {
        "marlin_bench_id": record.id,
        "cell": record.cell,
        "backend": record.backend,
        "backend_version": record.backend_version,
        "format": record.format,
        "kernel_digest": record.kernel_digest,
        "sm_clock_hz": record.sm_clock_hz,
        "flags": [flag.value for flag in record.flags],
    }


class GpuBenchmark:
    """What the `gpu_benchmark` fixture gives: call it with launches, or ask for a backend by name."""

    def __init__(self, benchmark: Any, machine: Machine) -> None:
        self._benchmark = benchmark
        self._machine = machine

    def __call__(
        self,
        launch: Callable[[], None] | Sequence[Callable[[], None]],
        *,
        check: Callable[[], bool] | None = None,
        rounds: int = _ROUNDS,
        block_seconds: float = 0.005,
    ) -> list[float]:
        """Time your own launch, or a round of launches over rotated operands, on the GPU; gives seconds a launch.

        `check` says whether the output is right; it is asked before timing and after. Rotating operands past the L2 is
        yours to do: give a launch for each set.
        """
        launches = [launch] if callable(launch) else list(launch)
        for one in launches:
            one()
        self._machine.synchronize()
        if check is not None and not check():
            pytest.fail("the output is wrong before timing", pytrace=False)
        stopwatch = self._machine.timers["kernel"].stopwatch(launches, block_seconds)
        times = [time for _ in range(rounds) for time in stopwatch.sample().times]
        self._machine.synchronize()
        if check is not None and not check():
            pytest.fail("the output is wrong after timing", pytrace=False)
        _hand_over(self._benchmark, times, {"launches": stopwatch.launches})
        return times

    def backend(self, name: str, *, M: int, N: int, K: int, group_size: int | None = 128) -> Record:
        """Measure a registered backend with the suite's operands, checks and rotation; gives its record.

        Skips what the backend does not support or what is not installed; a wrong answer fails.
        """
        record = _measured(self._machine, name, M, N, K, group_size)
        _settle(record)
        _hand_over(self._benchmark, [_median(block.times) for block in record.blocks], _info(record))
        return record


def _median(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


def _settle(record: Record) -> None:
    """Skip or fail a test whose record has no times."""
    from marlin_bench.record import Status

    reason = f"{record.backend} in {record.cell}: {record.status.value}"
    reason += f" ({record.reason})" if record.reason else ""
    if record.status in {Status.UNSUPPORTED, Status.MISSING}:
        pytest.skip(reason)
    if record.status is not Status.OK:
        pytest.fail(reason, pytrace=False)


def _measured(machine: Machine, name: str, M: int, N: int, K: int, group_size: int | None) -> Record:
    from marlin_bench.conformance import measured
    from marlin_bench.problem import Problem
    from marlin_bench.suite_format import Sampling

    sampling = Sampling(max_blocks=_ROUNDS, cell_seconds=_CELL_SECONDS)
    return measured(machine, name, Problem(M, N, K, group_size), sampling)


@pytest.fixture(scope="session")
def marlin_machine(request: pytest.FixtureRequest) -> Machine:
    """The device of this session, opened once."""
    device = request.config.getoption("--marlin-device")
    try:
        import torch
    except ImportError:
        unavailable("torch is not installed")
        raise
    if device == "cuda" and not torch.cuda.is_available():
        unavailable("torch sees no CUDA device")
    from marlin_bench.machine import open_machine

    return open_machine(device)


@pytest.fixture
def gpu_benchmark(request: pytest.FixtureRequest, marlin_machine: Machine) -> GpuBenchmark:
    """pytest-benchmark on GPU time: `gpu_benchmark.backend("marlin", M=16, N=4096, K=4096)`."""
    try:
        benchmark = request.getfixturevalue("benchmark")
    except pytest.FixtureLookupError:
        pytest.fail("gpu_benchmark needs pytest-benchmark: pip install pytest-benchmark", pytrace=False)
    return GpuBenchmark(benchmark, marlin_machine)


# -- a suite as tests ------------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """The suite file of --marlin-suite, and no other YAML; the module of conformance checks for --marlin-backend."""
    if file_path == _CONFORMANCE and parent.config.getoption("--marlin-backend"):
        from marlin_bench.pytest_conformance import ConformanceCollector

        checks: pytest.Collector = ConformanceCollector.from_parent(parent, path=file_path)
        return checks
    suite = parent.config.getoption("--marlin-suite")
    if suite is None or file_path.resolve() != _suite_path(suite).resolve():
        return None
    collector: pytest.Collector = SuiteCollector.from_parent(parent, path=file_path)
    return collector


class SuiteCollector(pytest.File):
    """A suite's cells as tests; all that are selected are measured in one run, at the first of them."""

    _records: dict[tuple[str, str], Record] | None = None
    _obstacle: str | None = None

    def collect(self) -> Iterator[pytest.Item]:
        """One test a cell and backend, in the order of the plan."""
        from marlin_bench.plan import plan
        from marlin_bench.suite import SuiteError, load_suite

        try:
            cells = plan(load_suite(self.path))
        except SuiteError as error:
            raise self.CollectError(f"--marlin-suite: {error}") from error
        for cell in cells:
            for backend in cell.backends:
                yield SuiteItem.from_parent(self, name=f"{cell.id}[{backend}]", cell=cell.id, backend=backend)

    def record(self, cell: str, backend: str) -> Record | None:
        """The record of one test, after measuring all of them."""
        if self._records is None and self._obstacle is None:
            self._measure()
        if self._obstacle is not None:
            unavailable(self._obstacle)
        return (self._records or {}).get((cell, backend))

    def _measure(self) -> None:
        from marlin_bench.cli.progress import open_progress
        from marlin_bench.device import DeviceError
        from marlin_bench.plan import Selection
        from marlin_bench.run import run_suite
        from marlin_bench.store import read_run, results_folder
        from marlin_bench.suite import load_suite

        chosen = [item for item in self.session.items if isinstance(item, SuiteItem) and item.parent is self]
        results = self.config.getoption("--marlin-results")
        try:
            with open(os.devnull, "w", encoding="utf-8") as silent, open_progress(silent) as progress:
                outcome = run_suite(
                    load_suite(self.path),
                    selection=Selection(only=tuple(dict.fromkeys(item.cell for item in chosen))),
                    results=results_folder(None if results is None else Path(results)),
                    devices=None,
                    budget_s=None,
                    progress=progress,
                )
        except DeviceError as error:
            self._obstacle = str(error)
            return
        self._records = {
            (record.cell.partition("+")[0], record.backend): record
            for record in read_run(outcome.folder).records
            if record.timer == "kernel" and not (record.isolated and record.baseline)
        }


class SuiteItem(pytest.Item):
    """One backend in one cell: right and measured, or failed; its times go to pytest-benchmark where it is there."""

    def __init__(self, *, cell: str, backend: str, **fields: Any) -> None:
        super().__init__(**fields)
        self.cell, self.backend = cell, backend

    def runtest(self) -> None:
        """Look at the record of this cell and backend."""
        collector = self.parent
        assert isinstance(collector, SuiteCollector)  # made by its collect()
        record = collector.record(self.cell, self.backend)
        if record is None:
            pytest.fail(f"{self.backend} left no record in {self.cell}", pytrace=False)
        _settle(record)
        session = getattr(self.config, "_benchmarksession", None)
        if session is None or session.disabled:
            return
        from pytest_benchmark.fixture import BenchmarkFixture

        fixture = BenchmarkFixture(  # type: ignore[no-untyped-call]
            self,
            add_stats=session.benchmarks.append,
            logger=session.logger,
            warner=self.warn,
            disabled=session.disabled,
            **session.options,
        )
        _hand_over(fixture, [_median(block.times) for block in record.blocks], _info(record))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the test stands in reports."""
        return self.path, None, self.name
