"""The CUDA timers: a graph of rotated launches (`kernel`, the headline) and one launch on a flushed L2 (`cold`).

`kernel`: all launches of whole rounds in one graph between two events. A spin kernel holds the stream while graph and
events are queued, so that the first event fires right before the first node; launch gaps are those of graph nodes.

`cold`: before each launch the L2 is filled with clean lines (a read of twice its size: a memset would leave dirty lines
whose write-back competes with the kernel) and persisting lines are reset. An event pair around a single kernel also
counts what it takes to start and to retire one; that constant is measured with an empty kernel and taken off, and the
same empty kernel as a graph node is put back, so that both timers count a launch alike.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from marlin_bench.clock_probe import ClockProbe
from marlin_bench.record import TimerName
from marlin_bench.timer import Launch, Sample, Stopwatch, rounds_for

_MOST_GRAPH_NODES = 4096
_HOLD_NANOSECONDS = 40_000
_COLD_HOLD_NANOSECONDS = 120_000  # a mark, two events and a launch take the host some 50 us to enqueue
_EMPTY_LAUNCHES = 200
_EMPTY_SAMPLES = 10
_COLD_LAUNCHES = 4


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def capture(launches: Sequence[Launch], rounds: int = 1) -> torch.cuda.CUDAGraph:
    """A graph of `rounds` times all `launches`, in order, on one stream."""
    return _capture_with_results(launches, rounds)[0]


def _capture_with_results(
    launches: Sequence[Launch], rounds: int
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor | None]]:
    """The graph and what the launches of its last round give: tensors in the graph's own pool, kept from reuse."""
    graph = torch.cuda.CUDAGraph()
    results: list[torch.Tensor | None] = [None] * len(launches)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for index, launch in enumerate(launches):
                results[index] = None  # an earlier round's memory may serve the next launch, as it does outside a graph
                results[index] = launch()
    return graph, results


def quick_seconds(launches: Sequence[Launch], repeats: int = 3) -> float:
    """Seconds a launch, roughly: the best of a few graph replays; what tuning compares configurations with."""
    for launch in launches:
        launch()
    graph = capture(launches)
    graph.replay()
    best = float("inf")
    for _ in range(repeats):
        start, stop = _event(), _event()
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        best = min(best, start.elapsed_time(stop) * 1e-3)
    return best / len(launches)


_CONTEST_SECONDS = 0.01
_CONTEST_TURNS = 3


def fastest(contestants: Mapping[str, Sequence[Launch]]) -> str:
    """The name whose launches take the least time under load: what tuning chooses between equals with.

    A burst is not enough: three replays picked the slower of two layouts by 3 % on an H200 (cuBLAS FP16, K=28672
    N=8192, M=1). So each keeps the GPU busy for a while, in turns, and the last turns are compared.
    """
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    for name, launches in contestants.items():
        for launch in launches:
            launch()
        seconds = quick_seconds(launches, repeats=1) * len(launches)
        graphs[name] = (capture(launches), max(1, round(_CONTEST_SECONDS / seconds)))
    latest = {}
    for _ in range(_CONTEST_TURNS):
        for name, (graph, replays) in graphs.items():
            start, stop = _event(), _event()
            start.record()
            for _ in range(replays):
                graph.replay()
            stop.record()
            stop.synchronize()
            latest[name] = start.elapsed_time(stop) / (replays * len(contestants[name]))
    return min(latest, key=lambda name: latest[name])


@dataclass(frozen=True)
class _GraphStopwatch:
    graph: torch.cuda.CUDAGraph
    results: Sequence[torch.Tensor | None]
    launches: int
    probe: ClockProbe

    def sample(self) -> Sample:
        start, stop = _event(), _event()
        started = time.monotonic()
        self.probe.mark(0)
        self.probe.spin(_HOLD_NANOSECONDS)
        start.record()
        self.graph.replay()
        stop.record()
        self.probe.mark(1)
        torch.cuda.synchronize()
        ended = time.monotonic()
        seconds = start.elapsed_time(stop) * 1e-3
        return Sample([seconds / self.launches], started, ended, self.probe.hertz(0, 1))

    def keep_busy(self, seconds: float) -> int:
        ends = time.monotonic() + seconds
        calls = 0
        queued: torch.cuda.Event | None = None
        while time.monotonic() < ends:
            self.graph.replay()  # one replay runs while the next is queued: the GPU never waits for the host
            calls += self.launches
            if queued is not None:
                queued.synchronize()
            queued = _event()
            queued.record()
        torch.cuda.synchronize()
        return calls


@dataclass(frozen=True)
class GraphTimer:
    """The headline timer."""

    probe: ClockProbe
    name: TimerName = "kernel"

    def stopwatch(self, launches: Sequence[Launch], block_seconds: float) -> Stopwatch:
        """Capture as many rounds as fill a block; the launches have run before, so nothing is compiled in capture."""
        one_round = _GraphStopwatch(*_capture_with_results(launches, 1), len(launches), self.probe)
        round_seconds = one_round.sample().times[0] * len(launches)
        if round_seconds >= block_seconds:
            return one_round
        round_seconds = min(round_seconds, one_round.sample().times[0] * len(launches))  # the first one was cold
        rounds = rounds_for(block_seconds, round_seconds, len(launches), _MOST_GRAPH_NODES)
        several = _GraphStopwatch(*_capture_with_results(launches, rounds), rounds * len(launches), self.probe)
        several.sample()
        return several


def reset_persisting_l2() -> None:
    """Give persisting L2 lines back: windows set by some kernels survive any flush."""
    from cupy_backends.cuda.api import runtime

    reset = getattr(runtime, "ctxResetPersistingL2Cache", None)
    if reset is not None:
        reset()
        return
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuCtxResetPersistingL2Cache()


@dataclass
class _ColdStopwatch:
    round: Sequence[Launch]
    flush: torch.Tensor
    probe: ClockProbe
    overhead: float
    sink: torch.Tensor = field(init=False)
    results: list[torch.Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sink = torch.empty((), dtype=torch.int64, device="cuda")

    @property
    def launches(self) -> int:
        return len(self.round)

    def _cold(self, index: int, launch: Launch) -> tuple[torch.cuda.Event, torch.cuda.Event, torch.Tensor | None]:
        start, stop = _event(), _event()
        reset_persisting_l2()
        torch.sum(self.flush, dim=0, out=self.sink)
        self.probe.spin(_COLD_HOLD_NANOSECONDS)
        self.probe.mark(2 * index)  # the clock of the launch itself: flush and spin draw another power
        start.record()
        result = launch()
        stop.record()
        self.probe.mark(2 * index + 1)
        return start, stop, result

    def sample(self) -> Sample:
        started = time.monotonic()
        pairs = [self._cold(index, launch) for index, launch in enumerate(self.round)]
        torch.cuda.synchronize()
        times = [max(0.0, start.elapsed_time(stop) * 1e-3 - self.overhead) for start, stop, _ in pairs]
        self.results[:] = [result for _, _, result in pairs]
        clocks = [self.probe.hertz(2 * index, 2 * index + 1) for index in range(len(pairs))]
        known = [clock for clock in clocks if clock is not None]
        return Sample(times, started, time.monotonic(), median(known) if known else None)

    def keep_busy(self, seconds: float) -> int:
        ends = time.monotonic() + seconds
        calls = 0
        while time.monotonic() < ends:
            self.sample()
            calls += self.launches
        return calls


class ColdTimer:
    """The cross-check: single launches on a flushed L2, start-up cost of an event pair taken off."""

    name: TimerName = "cold"

    def __init__(self, l2_bytes: int) -> None:
        self._probe = ClockProbe(slots=2 * _COLD_LAUNCHES)
        self._flush = torch.ones(2 * l2_bytes // 8, dtype=torch.int64, device="cuda")
        self._overhead: float | None = None

    def _measure_overhead(self) -> float:
        """Seconds by which an event pair around one empty kernel exceeds an empty node of a graph."""
        empty = self._probe.empty
        stopwatch = _ColdStopwatch([empty] * _COLD_LAUNCHES, self._flush, self._probe, overhead=0.0)
        stopwatch.sample()
        pair = median(time for _ in range(_EMPTY_SAMPLES) for time in stopwatch.sample().times)
        return max(0.0, pair - quick_seconds([empty] * _EMPTY_LAUNCHES))

    def stopwatch(self, launches: Sequence[Launch], block_seconds: float) -> Stopwatch:
        """Each launch of at most one round is one cold sample."""
        if self._overhead is None:
            self._overhead = self._measure_overhead()
        return _ColdStopwatch(launches[:_COLD_LAUNCHES], self._flush, self._probe, self._overhead)
