"""Launches → seconds a launch: what a timer is, and the two that need no GPU.

A timer turns the launches of one rotation round into a stopwatch (untimed: capture, calibration); every `sample` of it
is one backend's turn in one block. Timers are passed in, so that scheduling is tested with scripted times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from marlin_bench.record import TimerName

if TYPE_CHECKING:
    from torch import Tensor

Launch = Callable[[], "Tensor | None"]
"""One product; gives its result where it did not write into an output that was given to it."""

_CALIBRATION_SECONDS = 0.002


@dataclass(frozen=True)
class Sample:
    """One turn: seconds a launch, when it ran (time.monotonic), and the SM clock held meanwhile."""

    times: list[float]
    started: float
    ended: float
    sm_clock_hz: float | None = None


class Stopwatch(Protocol):
    """One backend, ready to be timed."""

    @property
    def launches(self) -> int:
        """Launches behind one sample."""

    @property
    def results(self) -> Sequence[Tensor | None]:
        """What the launches of the newest round gave, in their order; a sample writes over it."""

    def sample(self) -> Sample:
        """Time one turn."""

    def keep_busy(self, seconds: float) -> int:
        """Launch back to back for about so long and wait for the last one; how many launches it were."""


class Timer(Protocol):
    """A way of timing."""

    @property
    def name(self) -> TimerName:
        """As stored in records."""

    def stopwatch(self, launches: Sequence[Launch], block_seconds: float) -> Stopwatch:
        """A stopwatch over whole rounds of `launches` that takes about `block_seconds` a sample."""


def rounds_for(block_seconds: float, round_seconds: float, launches: int, most_launches: int) -> int:
    """Whole rounds that fill a block: at least one, and beyond it no more launches than `most_launches`."""
    wanted = round(block_seconds / round_seconds) if round_seconds > 0 else most_launches
    return max(1, min(wanted, most_launches // launches))


@dataclass(frozen=True)
class _CallStopwatch:
    round: Sequence[Launch]
    rounds: int
    synchronize: Callable[[], None]
    results: list[Tensor | None] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return len(self.round) * self.rounds

    def sample(self) -> Sample:
        self.synchronize()
        started = time.monotonic()
        begin = time.perf_counter_ns()
        for _ in range(self.rounds):
            results = [launch() for launch in self.round]
        self.synchronize()
        elapsed = (time.perf_counter_ns() - begin) * 1e-9
        self.results[:] = results
        return Sample([elapsed / self.launches], started, time.monotonic())

    def keep_busy(self, seconds: float) -> int:
        ends = time.monotonic() + seconds
        calls = 0
        while time.monotonic() < ends:
            self.sample()
            calls += self.launches
        return calls


def _nothing() -> None:
    """A CPU call has returned only when it is done."""


@dataclass(frozen=True)
class CallTimer:
    """Wall time a call: enough calls between two readings of perf_counter_ns.

    On the CPU this is the kernel's own time; on a GPU (`synchronize` waits for it) it is what a caller without graphs
    pays, host overhead included.
    """

    name: TimerName = "kernel"
    synchronize: Callable[[], None] = _nothing
    most_launches: int = 10_000

    def stopwatch(self, launches: Sequence[Launch], block_seconds: float) -> Stopwatch:
        """Calibrated with whole rounds until they take long enough to be read well."""
        rounds = 1
        while True:
            elapsed = _CallStopwatch(launches, rounds, self.synchronize).sample().times[0] * len(launches) * rounds
            if elapsed >= min(_CALIBRATION_SECONDS, block_seconds) or rounds * len(launches) >= self.most_launches:
                break
            rounds *= 2
        rounds = rounds_for(block_seconds, elapsed / rounds, len(launches), self.most_launches)
        return _CallStopwatch(launches, rounds, self.synchronize)
