"""What NVML says beside each block: a thread samples while the GPU is timed, and a window of it goes into the record.

Quick sensors are read 25 times a second; the counters, several milliseconds a call on a Hopper, as often as the driver
steps them (100 ms, seen on an H200). A block is much shorter than that: what is said about it is what the samples
around it say, and power and energy are told only for windows long enough to hold some.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import fmean, median
from types import TracebackType
from typing import Generic, TypeVar

from marlin_bench.clock_reasons import flags, must_repeat
from marlin_bench.nvml import Counters, Device, Instant, NvmlError, open_device
from marlin_bench.record import Telemetry

__all__ = ["Sidecar", "Trace", "flags", "must_repeat", "summarize"]

_PERIOD_SECONDS = 0.04
_COUNTER_PERIOD_SECONDS = 0.1
_STALE_SECONDS = 0.25
_LEAST_POWER_SECONDS = 0.1
_LEAST_ENERGY_SECONDS = 1.0
"""Ten steps of the energy counter: it is then right to about 10 %."""
_MOST_READINGS = 40_000
"""Some 13 to 27 minutes of quick sensors, longer than any cell: a sidecar may live as long as a sweep."""

_IDLE = "gpu_idle"

Reading = TypeVar("Reading")


@dataclass
class Trace(Generic[Reading]):
    """Readings in order of time (time.monotonic); the older half is forgotten when there are `most`."""

    most: int = _MOST_READINGS
    times: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)

    def add(self, moment: float, reading: Reading) -> None:
        """Append."""
        if len(self.times) >= self.most:
            del self.times[: self.most // 2], self.readings[: self.most // 2]
        self.times.append(moment)
        self.readings.append(reading)

    def within(self, start: float, end: float) -> list[Reading]:
        """Readings taken in the window."""
        return self.readings[bisect_left(self.times, start) : bisect_right(self.times, end)]

    def near(self, start: float, end: float) -> list[Reading]:
        """Readings taken in the window, else the last before and the first after it, unless they are stale."""
        inside = self.within(start, end)
        if inside:
            return inside
        after = bisect_left(self.times, start)
        neighbours = range(max(0, after - 1), min(after + 1, len(self.times)))
        return [
            self.readings[index]
            for index in neighbours
            if end - _STALE_SECONDS <= self.times[index] <= start + _STALE_SECONDS
        ]


def _rise(times: list[float], values: list[float], start: float, end: float) -> float | None:
    """How far a counter rose in the window, straight lines between its readings and on from the last two.

    None where the readings do not reach the window.
    """
    if len(times) < 2 or start < times[0] - _STALE_SECONDS or end > times[-1] + _STALE_SECONDS:
        return None

    def at(moment: float) -> float:
        right = min(max(bisect_left(times, moment), 1), len(times) - 1)
        left = right - 1
        slope = (values[right] - values[left]) / (times[right] - times[left])
        return values[left] + slope * (moment - times[left])

    return max(0.0, at(end) - at(start))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _highest(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _energy(counters: Trace[Counters], start: float, end: float) -> float | None:
    if end - start < _LEAST_ENERGY_SECONDS:
        return None
    known = [
        (moment, reading.energy_j)
        for moment, reading in zip(counters.times, counters.readings, strict=False)
        if reading.energy_j is not None
    ]
    return _rise([moment for moment, _ in known], [joules for _, joules in known], start, end)


def _throttled(counters: Trace[Counters], start: float, end: float) -> dict[str, float]:
    """Seconds of the window under each reason that was counted at all."""
    first = max(0, bisect_right(counters.times, start) - 2)  # two readings before, for a window after the last one
    last = min(len(counters.times), bisect_left(counters.times, end) + 1)
    times, readings = counters.times[first:last], counters.readings[first:last]
    names = set.intersection(*(set(reading.throttle_s) for reading in readings)) if readings else set()
    found: dict[str, float] = {}
    for name in sorted(names):
        seconds = _rise(times, [reading.throttle_s[name] for reading in readings], start, end)
        if seconds:
            found[name] = min(seconds, end - start)
    return found


def summarize(instants: Trace[Instant], counters: Trace[Counters], start: float, end: float) -> Telemetry:
    """The window from `start` to `end` (time.monotonic); None for what no sample says.

    Clocks are medians, the temperature is the highest one. Power is None below 100 ms, energy below a second.
    """
    near, slow = instants.near(start, end), counters.near(start, end)
    powers = [reading.power_w for reading in instants.within(start, end)]
    margins = [reading.temperature_margin_c for reading in slow if reading.temperature_margin_c is not None]
    return Telemetry(
        sm_clock_hz=_median([reading.sm_clock_hz for reading in near]),
        memory_clock_hz=_median([reading.memory_clock_hz for reading in near]),
        power_w=_mean(powers) if end - start >= _LEAST_POWER_SECONDS else None,
        energy_j=_energy(counters, start, end),
        temperature_c=_highest([reading.temperature_c for reading in near]),
        temperature_margin_c=min(margins, default=None),
        event_reasons=sorted({reason for reading in near for reason in reading.reasons} - {_IDLE}),
        throttle_s=_throttled(counters, start, end),
    )


class Sidecar:
    """Samples one GPU from a thread while the context is open.

        with Sidecar(uuid) as sidecar:
            telemetry = sidecar.window(start, end)

    Raises NvmlError at once when the GPU cannot be read; a reading that fails later is left out. NVML calls let go of
    the interpreter lock, so the timed thread waits for none of them.
    """

    def __init__(self, device_uuid: str) -> None:
        self.instants: Trace[Instant] = Trace()
        self.counters: Trace[Counters] = Trace()
        self._open = ExitStack()
        self._device: Device = self._open.enter_context(open_device(device_uuid))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="nvml sidecar", daemon=True)

    def __enter__(self) -> Sidecar:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._open.close()

    def window(self, start: float, end: float) -> Telemetry:
        """What the sensors said between two readings of time.monotonic; see `summarize`."""
        with self._lock:
            return summarize(self.instants, self.counters, start, end)

    __call__ = window

    def _sample(self) -> None:
        counters_due = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            try:
                self._keep(self.instants, now, self._device.instant())
                if now >= counters_due:
                    counters_due = now + _COUNTER_PERIOD_SECONDS
                    self._keep(self.counters, now, self._device.counters())
            except NvmlError:  # a GPU in trouble: the samples end here, the blocks say so by having none
                pass
            self._stop.wait(max(0.0, now + _PERIOD_SECONDS - time.monotonic()))

    def _keep(self, trace: Trace[Reading], moment: float, reading: Reading) -> None:
        with self._lock:
            trace.add(moment, reading)
