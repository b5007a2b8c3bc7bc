"""The timed part of a cell: blocks in which every backend has a turn, in random order, until the ratios are known.

A block times every backend once, in random order; ratios are taken within a block. A backend leaves the rotation when
the interval of its paired ratio is narrow enough or its share of the budget is spent (`converged: false`); baselines
stay as long as anyone needs them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from marlin_bench.backends import TWIN_SUFFIX
from marlin_bench.entrant import Emitter, Entrant, Job
from marlin_bench.machine import Machine, TelemetryWindow
from marlin_bench.record import Block, TimerName
from marlin_bench.statistics import median_interval, paired_ratio
from marlin_bench.telemetry import flags as telemetry_flags
from marlin_bench.telemetry import must_repeat
from marlin_bench.timer import Sample

_LEAST_BLOCKS = 6  # fewer samples have no 95 % interval
_CHECK_EVERY = 5
_CROSS_CHECK_BLOCKS = 10
_COOL_DOWN_SECONDS = 2.0
_MOST_REPEATS = 3


class Timing:
    """Times the entrants of one cell and leaves the blocks with them.

    `watched` gives the context that a backend's code runs in. After `time`: `timed_s`, the seconds inside timed work,
    and `power_w`, the board's mean power meanwhile (None without sensors).
    """

    def __init__(
        self, job: Job, machine: Machine, emitter: Emitter, watched: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self.job, self.machine, self.emitter, self._watched = job, machine, emitter, watched
        self.random = random.Random(f"{job.cell.seed}/{job.cell.id}/{job.first_block}")
        self.timed_s = 0.0
        self.power_w: float | None = None

    def time(self, entrants: list[Entrant]) -> None:
        """All timers of the cell, the headline first."""
        with self.machine.sensors() as window:
            began = time.monotonic()
            for timer in self.job.cell.timers:
                if timer not in self.machine.timers:
                    continue
                for entrant in entrants:
                    self.emitter.phase(entrant.name, f"prepare timer {timer}")
                    with self._watched(entrant.name):
                        stopwatch = self.machine.timers[timer].stopwatch(
                            entrant.launches, self.job.sampling.block_seconds
                        )
                    entrant.stopwatches[timer] = stopwatch
                    entrant.blocks[timer], entrant.throttled_blocks[timer] = [], []
                self._blocks(timer, entrants, window)
            for entrant in entrants:
                self._time_quantization(entrant)
            self.power_w = None if window is None else window(began, time.monotonic()).power_w
        if self.job.energy_seconds is not None:
            for entrant in entrants:
                self.emitter.phase(entrant.name, "energy")
                headline = entrant.stopwatches[self.job.cell.timers[0]]
                entrant.energy = self.machine.energy(headline, self.job.energy_seconds)

    def _time_quantization(self, entrant: Entrant) -> None:
        """What making 8-bit activations takes, beside the product: the median of a few blocks."""
        if not entrant.eight_bit:
            return
        self.emitter.phase(entrant.name, "activation quantisation")
        with self._watched(entrant.name):
            launches = [given.quantize for given in entrant.eight_bit]
            stopwatch = self.machine.timers["kernel"].stopwatch(launches, self.job.sampling.block_seconds)
            times = sorted(time for _ in range(_CROSS_CHECK_BLOCKS) for time in stopwatch.sample().times)
        entrant.quantization_s = times[len(times) // 2]

    def _blocks(self, timer: TimerName, entrants: list[Entrant], window: TelemetryWindow | None) -> None:
        sampling = self.job.sampling
        headline = timer == self.job.cell.timers[0]
        most = sampling.max_blocks if headline else min(_CROSS_CHECK_BLOCKS, sampling.max_blocks)
        least = min(sampling.min_blocks, most)
        share = sampling.cell_seconds / max(1, len(entrants))
        spent = dict.fromkeys((entrant.name for entrant in entrants), 0.0)
        running = list(entrants)
        if headline:
            self._settle(timer, entrants)
        for index in range(self.job.first_block, self.job.first_block + most):
            order = list(running)
            self.random.shuffle(order)
            for position, entrant in enumerate(order):
                block, seconds = self._turn(timer, entrant, index, position, window)
                entrant.blocks[timer].append(block)
                spent[entrant.name] += seconds
                self.emitter.block(timer, entrant.name, block)
            done = index - self.job.first_block + 1
            if done >= _LEAST_BLOCKS and (done % _CHECK_EVERY == 0 or max(spent.values()) >= share):
                running = self._still_needed(timer, running, spent, done >= least, share)
            if not running or self.job.finish():
                break
        for entrant in entrants:
            entrant.converged[timer] = self._is_narrow(timer, entrant, entrants)

    def _settle(self, timer: TimerName, entrants: list[Entrant]) -> None:
        """The rotation of the blocks, untimed: a rested card starts at a clock that it cannot keep up."""
        ends = time.monotonic() + self.job.sampling.settle_seconds
        while time.monotonic() < ends and not self.job.finish():
            for entrant in entrants:
                self.emitter.phase(entrant.name, "settle")
                sample = entrant.stopwatches[timer].sample()
                self._rest(sample.ended - sample.started)

    def _still_needed(
        self, timer: TimerName, running: list[Entrant], spent: dict[str, float], enough: bool, share: float
    ) -> list[Entrant]:
        candidates = [entrant for entrant in running if not self._is_baseline(entrant)]
        baselines = [entrant for entrant in running if self._is_baseline(entrant)]

        def goes_on(entrant: Entrant) -> bool:
            if spent[entrant.name] >= share:
                return False
            return not (enough and self._is_narrow(timer, entrant, running))

        candidates = [entrant for entrant in candidates if goes_on(entrant)]
        if candidates:
            originals = {entrant.name.removesuffix(TWIN_SUFFIX) for entrant in candidates}
            return [entrant for entrant in running if entrant.name in originals or entrant in candidates + baselines]
        return [entrant for entrant in baselines if goes_on(entrant)]

    def _is_baseline(self, entrant: Entrant) -> bool:
        return entrant.name in self.job.baselines

    def _is_narrow(self, timer: TimerName, entrant: Entrant, entrants: list[Entrant]) -> bool:
        """Whether the interval of the paired ratio (of the time itself for a baseline) is narrow enough.

        A twin is there to be compared with its original, so that this is the ratio it stays for.
        """
        baseline = next((other for other in entrants if self._is_baseline(other)), None)
        if entrant.name.endswith(TWIN_SUFFIX):
            original = entrant.name.removesuffix(TWIN_SUFFIX)
            baseline = next((other for other in entrants if other.name == original), baseline)
        own = entrant.medians(timer)
        if len(own) < _LEAST_BLOCKS:
            return False
        if baseline is None or baseline is entrant:
            interval = median_interval(own)
        else:
            mates = {
                block.index: time for block, time in zip(baseline.blocks[timer], baseline.medians(timer), strict=True)
            }
            pairs = [
                (mates[block.index], time)
                for block, time in zip(entrant.blocks[timer], own, strict=True)
                if block.index in mates
            ]
            interval = paired_ratio([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return interval.relative_width <= self.job.sampling.interval

    def _turn(
        self, timer: TimerName, entrant: Entrant, index: int, position: int, window: TelemetryWindow | None
    ) -> tuple[Block, float]:
        """One backend's turn; while the hardware slows itself down, measured again after a cool-down."""
        for attempt in range(_MOST_REPEATS):
            self.emitter.phase(entrant.name, "timing")
            with self._watched(entrant.name):
                sample = entrant.stopwatches[timer].sample()
            block = self._block(sample, index, position, window)
            self._rest(sample.ended - sample.started)
            if block.telemetry is None or not must_repeat(block.telemetry) or attempt == _MOST_REPEATS - 1:
                break
            entrant.throttled_blocks[timer].append(block)  # kept and flagged, but no part of the result
            time.sleep(_COOL_DOWN_SECONDS)
        seconds = sum(sample.times) / len(sample.times) * entrant.stopwatches[timer].launches
        self.timed_s += seconds
        return block, seconds

    def _rest(self, worked_s: float) -> None:
        """Idle time after a turn: or, at the power limit, a kernel runs at the clock that its neighbours leave it."""
        rest_s = worked_s * (1 / self.job.sampling.duty_cycle - 1)
        if rest_s > 0:
            time.sleep(rest_s)

    def _block(self, sample: Sample, index: int, position: int, window: TelemetryWindow | None) -> Block:
        telemetry = None if window is None else window(sample.started, sample.ended)
        # more digits than the clocks behind them have would only make records large
        return Block(
            index=index,
            order=position,
            times=[float(f"{time:.7g}") for time in sample.times],
            started_s=round(max(0.0, sample.started - self.job.clock_origin), 3),
            sm_clock_hz=None if sample.sm_clock_hz is None else round(sample.sm_clock_hz, -4),
            telemetry=telemetry,
            flags=[] if telemetry is None else telemetry_flags(telemetry),
        )
