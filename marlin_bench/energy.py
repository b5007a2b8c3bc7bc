"""Energy a call, from the GPU's total-energy counter: the whole board, static power included.

The counter steps about every 100 ms, so a reading before and after would be wrong by up to a step at each end. Instead
it is watched while the GPU is kept busy, and the power between its first and its last step is taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from marlin_bench.nvml import NvmlError

_POLL_SECONDS = 0.005
_LEAST_STEPS = 5

KeepBusy = Callable[[float], int]
"""Calls the kernel back to back for about so many seconds, waits for the last one and returns how many they were."""
ReadJoules = Callable[[], float | None]
"""The energy counter in joules; None where the device has none."""


@dataclass(frozen=True)
class Energy:
    """What was measured: calls in `seconds` of busy time, at a mean of `power_w`."""

    calls: int
    seconds: float
    power_w: float

    @property
    def joules_a_call(self) -> float:
        """Mean energy of one call."""
        return self.power_w * self.seconds / self.calls


def counter_power(readings: Sequence[tuple[float, float]]) -> float | None:
    """Watts between the first and the last step in (seconds, joules); None with fewer than five steps between."""
    steps = [later for earlier, later in pairwise(readings) if later[1] != earlier[1]]
    if len(steps) <= _LEAST_STEPS:
        return None
    (first_time, first_joules), (last_time, last_joules) = steps[0], steps[-1]
    return (last_joules - first_joules) / (last_time - first_time)


def measure_energy(keep_busy: KeepBusy, read_joules: ReadJoules, seconds: float) -> Energy | None:
    """Keep the GPU busy for about `seconds` while the counter is watched; None where it does not tell.

    The first step seen belongs partly to the time before and only starts the clock.
    """
    readings: list[tuple[float, float]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                joules = read_joules()
            except NvmlError:  # a GPU in trouble: too few readings, and so no energy
                return
            if joules is None:
                return
            readings.append((time.monotonic(), joules))
            stop.wait(_POLL_SECONDS)

    watcher = threading.Thread(target=watch, name="energy counter", daemon=True)
    started = time.monotonic()
    watcher.start()
    try:
        calls = keep_busy(seconds)
        ended = time.monotonic()
    finally:
        stop.set()
        watcher.join()
    power = counter_power([reading for reading in readings if started <= reading[0] <= ended])
    return None if power is None or calls == 0 else Energy(calls, ended - started, power)
