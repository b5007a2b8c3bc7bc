"""One cell over many runs: its level in each, and the runs at which it changed for good.

Runs are ordered by when they started and compared only with runs of the same device. Change points come from ruptures
(PELT: Killick, Fearnhead and Eckley 2012, "Optimal detection of changepoints with a linear computational cost"), on
the logarithm of the medians, with a penalty in multiples of the noise from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from marlin_bench.record import Origin, Record, Status
from marlin_bench.statistics import Interval, block_medians, median_interval
from marlin_bench.store import Run

_LEAST_RUNS = 4
_LEAST_SEGMENT = 2
_PENALTY = 4.0  # a change must explain this many times log(n) variances, the weight of BIC for a mean and a place
_NORMAL_SPREAD = 1.4826  # standard deviation over median absolute deviation, for normal samples
_LEAST_NOISE = 1e-3  # a change under 0.1 % of the time is nobody's regression


class HistoryError(RuntimeError):
    """A history that cannot be told; one sentence."""


@dataclass(frozen=True)
class Point:
    """One cell in one run: seconds a launch with their interval."""

    run: str
    started: str
    commit: str
    time: Interval
    sm_clock_hz: float | None


@dataclass(frozen=True)
class Series:
    """One (device, cell, backend) over runs, oldest first; `changes` are indices of the first run after a change."""

    device: str
    cell: str
    backend: str
    points: tuple[Point, ...]
    changes: tuple[int, ...]

    def step(self, index: int) -> float:
        """The change at a change point, new over old medians of the segments beside it: 1.05 is 5 % slower."""
        bounds = [0, *self.changes, len(self.points)]
        place = bounds.index(index)
        before = [point.time.value for point in self.points[bounds[place - 1] : index]]
        after = [point.time.value for point in self.points[index : bounds[place + 1]]]
        return float(np.median(after) / np.median(before))


def _noise(logs: Sequence[float]) -> float:
    """Standard deviation from run to run, from the differences of neighbours: a step moves only one of them."""
    differences = np.diff(logs)
    spread = _NORMAL_SPREAD * float(np.median(np.abs(differences - np.median(differences)))) / math.sqrt(2)
    return max(spread, _LEAST_NOISE)


def _without_outliers(logs: Sequence[float]) -> NDArray[np.float64]:
    """Each value as the median of itself and its neighbours: one strange run goes, a lasting step keeps its place."""
    padded = np.asarray([logs[1], *logs, logs[-2]])
    smooth: NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)
    return smooth


def change_points(logs: Sequence[float]) -> tuple[int, ...]:
    """Where the level of a series changes for good; HistoryError where ruptures is not installed."""
    if len(logs) < _LEAST_RUNS:
        return ()
    if find_spec("ruptures") is None:
        raise HistoryError("change points need ruptures: pip install 'marlin-bench[history]'")
    import ruptures

    scaled = _without_outliers(logs).reshape(-1, 1) / _noise(logs)
    found = ruptures.Pelt(model="l2", min_size=_LEAST_SEGMENT, jump=1).fit(scaled)
    ends: list[int] = found.predict(pen=_PENALTY * math.log(len(logs)))
    return tuple(int(end) for end in ends[:-1])


def has_change_points() -> bool:
    """Whether change points can be found here."""
    return find_spec("ruptures") is not None


def history(runs: Iterable[Run], wanted: Iterable[str] | None = None, *, timer: str = "kernel") -> list[Series]:
    """Every series of `runs`, of the record ids in `wanted` where given; without ruptures no changes are marked."""
    ids = None if wanted is None else set(wanted)
    gathered: dict[tuple[str, str, str], list[tuple[str, Point]]] = {}
    for run in runs:
        if run.meta.origin is not Origin.MEASURED:
            continue
        for record in run.records:
            if record.timer != timer or record.status is not Status.OK or (ids is not None and record.id not in ids):
                continue
            key = (record.device, record.cell, record.backend)
            gathered.setdefault(key, []).append((run.meta.started, _point(run, record)))
    found = []
    for key, pairs in gathered.items():
        points = tuple(point for _, point in sorted(pairs, key=lambda pair: pair[0]))
        logs = [math.log(point.time.value) for point in points]
        found.append(Series(*key, points, change_points(logs) if has_change_points() else ()))
    return found


def _point(run: Run, record: Record) -> Point:
    environment = run.meta.environment
    return Point(
        run.meta.run,
        run.meta.started,
        environment.commit + ("+changes" if environment.dirty else ""),
        median_interval(block_medians([block.times for block in record.blocks])),
        record.sm_clock_hz,
    )
