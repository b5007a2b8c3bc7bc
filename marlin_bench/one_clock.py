"""Two runs of a cell as if both had held one SM clock.

Under a power limit the clock wanders by some percent within a run and from run to run, and takes the times with it: a
kernel on the tensor cores slows down as the clock does, one that waits for memory does not notice. How much a kernel
follows, its elasticity e (1: time ~ 1/clock, 0: the clock does not matter), is seen in the blocks themselves: the slope
of log time over log clock within each run, common to both runs, which is the analysis of covariance (Fisher 1932,
"Statistical Methods for Research Workers", 4th ed., section 49.1). Each block is then moved along that slope to the
clock half-way between the two runs. What is not known of e stays in the draws of the bootstrap: where the clock hardly
moved within the runs but differs between them, e is anywhere between 0 and 1 and the change anywhere between that of
the time and that of the cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marlin_bench.bootstrap import RESAMPLES, Doubt, Floats, drawn_blocks
from marlin_bench.record import Record
from marlin_bench.statistics import block_medians

_STILL = 1e-6  # a clock that spreads by less than this (relative) did not move


@dataclass(frozen=True, eq=False)
class Blocks:
    """One record's blocks: logarithms of seconds and of hertz (None unless every block knows its clock), [n] each."""

    times: Floats
    clocks: Floats | None
    stream: int


def blocks_of(record: Record, stream: int) -> Blocks:
    """The series of a record with samples."""
    clocks = [block.sm_clock_hz for block in record.blocks]
    known = [clock for clock in clocks if clock]
    times = np.log(block_medians([block.times for block in record.blocks]))
    return Blocks(times, np.log(known) if len(known) == len(clocks) else None, stream)


@dataclass(frozen=True, eq=False)
class Elasticity:
    """How far times follow the clock, 0 to 1, and RESAMPLES values that it might have had."""

    value: float
    draws: Floats


def elasticity(runs: Sequence[tuple[Floats, Floats, int]]) -> Elasticity:
    """The common slope of (log times, log clocks, stream) within each run."""
    products = squares = 0.0
    drawn_products, drawn_squares = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for times, clocks, stream in runs:
        chosen = drawn_blocks(len(times), stream)
        offsets = clocks - clocks.mean()
        products += float(times @ offsets)
        squares += float(offsets @ offsets)
        drawn_clocks = offsets[chosen]
        drawn_clocks -= drawn_clocks.mean(axis=1, keepdims=True)
        drawn_products += np.einsum("ij,ij->i", (times - times.mean())[chosen], drawn_clocks)
        drawn_squares += np.einsum("ij,ij->i", drawn_clocks, drawn_clocks)
    if squares <= sum(len(times) for times, _, _ in runs) * _STILL**2:
        return Elasticity(0.5, np.linspace(0, 1, RESAMPLES))  # the clock never moved: nothing is known
    draws = np.divide(-drawn_products, drawn_squares, out=np.full(RESAMPLES, 0.5), where=drawn_squares > 0)
    return Elasticity(min(1.0, max(0.0, -products / squares)), np.clip(draws, 0.0, 1.0))


@dataclass(frozen=True, eq=False)
class Shifted:
    """Log times of a run at the common clock, with what is not known of the shift."""

    times: Floats
    doubt: Doubt


@dataclass(frozen=True, eq=False)
class OneClock:
    """Both runs at the clock half-way between them."""

    old: Shifted
    new: Shifted
    elasticity: float


def at_one_clock(old: Blocks, new: Blocks) -> OneClock | None:
    """Both records at one clock; None where a block does not know its own."""
    if old.clocks is None or new.clocks is None:
        return None
    found = elasticity([(old.times, old.clocks, old.stream), (new.times, new.clocks, new.stream)])
    middle = float(np.median(old.clocks) + np.median(new.clocks)) / 2
    spread = found.draws - found.value
    was, now = (
        Shifted(blocks.times + found.value * (clocks - middle), Doubt(spread, clocks - middle))
        for blocks, clocks in ((old, old.clocks), (new, new.clocks))
    )
    return OneClock(was, now, found.value)
