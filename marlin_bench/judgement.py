"""When a change is a change: the verdict on one cell, from measures that must agree.

A kernel is slower only when everything that could tell says so. Each is a ratio, new over old:
- its time at one SM clock (one_clock.py), so that a clock that fell slows nothing. It lies between the time, which it
  is for a kernel that waits for memory, and the cycles, which it is for one that computes. Where clocks were locked, or
  a block does not know its own, it is the time as it was;
- that over the same of the 16-bit baseline of the same block, where that baseline is the same library in both runs: a
  machine that slowed down slows both.
A change is one only where both lie beyond the tolerance, or the first where there is no such baseline: the larger of
their p-values counts (the intersection-union test: Berger 1982, "Multiparameter hypothesis testing and acceptance
sampling", Technometrics 24, 295-300), at 5 % over all cells together (Holm 1979, "A simple sequentially rejective
multiple test procedure", Scandinavian Journal of Statistics 6, 65-70). The tolerance is a relative rule's: the largest
of a relative part, an absolute part, and a multiple of the A/A noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from marlin_bench.bootstrap import Level
from marlin_bench.statistics import CONFIDENCE, Interval
from marlin_bench.units import format_percent

SIGNIFICANCE = 0.05


class Judgement(StrEnum):
    """What became of a cell."""

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    AMBIGUOUS = "ambiguous"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a time as the logarithm of new over old: 0.02 is 2 % slower. `error` is its standard error."""

    log: float
    low: float
    high: float
    error: float

    @property
    def ratio(self) -> Interval:
        """New over old with its bounds: 1.02 is 2 % slower."""
        return Interval(math.exp(self.log), math.exp(self.low), math.exp(self.high))

    def within(self, tolerance: float) -> bool:
        """Whether the whole interval lies within `tolerance` (a logarithm) of no change."""
        return -tolerance <= self.low and self.high <= tolerance

    def chance_not_above(self, tolerance: float) -> float:
        """One-sided p-value of `not slower than the tolerance`, from the bootstrap's standard error."""
        if self.error == 0:
            return 0.0 if self.log > tolerance else 1.0
        return math.erfc((self.log - tolerance) / self.error / math.sqrt(2)) / 2

    @property
    def reversed(self) -> Change:
        """Old over new."""
        return Change(-self.log, -self.high, -self.low, self.error)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What two records of one cell say about each other; `tolerance` and `noise` are relative (0.01 is 1 %).

    `time` and `cycles` are as they were measured; `steady` is the time at one clock (None where clocks were locked or
    are not known) and `paired` that over the baseline's.
    """

    time: Change
    cycles: Change | None
    steady: Change | None
    paired: Change | None
    baseline: str | None
    baseline_part: Change | None
    baseline_is_same: bool
    clocks_locked: bool
    tolerance: float
    noise: float

    @property
    def own(self) -> Change:
        """The change of the kernel by itself: at one clock, where that is known."""
        return self.time if self.steady is None else self.steady

    @property
    def own_name(self) -> str:
        """What `own` is a change of."""
        return "time" if self.steady is None else "time at one clock"

    @property
    def deciding(self) -> Change:
        """The change that is told: against the baseline, where there is one."""
        return self.own if self.paired is None else self.paired

    def chance_not_slower(self) -> float:
        """p-value of `not slower than the tolerance` in every measure at once."""
        limit = math.log1p(self.tolerance)
        return max(self.own.chance_not_above(limit), self.deciding.chance_not_above(limit))

    def chance_not_faster(self) -> float:
        """p-value of `not faster than the tolerance` in every measure at once."""
        limit = math.log1p(self.tolerance)
        return max(self.own.reversed.chance_not_above(limit), self.deciding.reversed.chance_not_above(limit))


def change(old: Level, new: Level) -> Change:
    """The change between the medians of two independent series of logarithms, with its 95 % bootstrap interval."""
    drawn = new.draws - old.draws
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    seen = new.median - old.median
    return Change(seen, min(float(low), seen), max(float(high), seen), float(np.std(drawn)))


def holm(chances: Sequence[float], significance: float = SIGNIFICANCE) -> list[bool]:
    """Which hypotheses fall when all of `chances` (p-values) are judged together at `significance`."""
    rejected = [False] * len(chances)
    for place, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if not chances[index] <= significance / (len(chances) - place):
            break
        rejected[index] = True
    return rejected


def _signed(log: float) -> str:
    return f"{100 * math.expm1(log):+z.1f}%"


def judge(seen: Evidence, *, is_slower: bool, is_faster: bool) -> tuple[Judgement, str]:
    """The verdict on one cell, given what holds at the significance over all cells together."""
    limit = math.log1p(seen.tolerance)
    if is_slower:
        return Judgement.WORSE, _confirmed(seen, "slower")
    if is_faster:
        return Judgement.BETTER, _confirmed(seen, "faster")
    if seen.own.within(limit):
        return Judgement.SAME, f"{_signed(seen.own.log)} in {seen.own_name}{_clock(seen, limit)}"
    if seen.paired is not None and seen.paired.within(limit):
        return _moved_together(seen)
    if seen.paired is not None and abs(seen.paired.log - seen.own.log) > limit:
        return (
            Judgement.AMBIGUOUS,
            f"{_signed(seen.paired.log)}{_against(seen)}, but {_bounds(seen.own)} in {seen.own_name}",
        )
    bounds = f"{_bounds(seen.deciding)}{_against(seen)}"
    return Judgement.AMBIGUOUS, f"{bounds}: too noisy for a tolerance of {format_percent(seen.tolerance, 1)}"


def _moved_together(seen: Evidence) -> tuple[Judgement, str]:
    """The kernel changed, but not against the baseline: the machine did."""
    moved = f"{_signed(seen.own.log)} in {seen.own_name}, and so is {seen.baseline}"
    if seen.steady is None and not seen.clocks_locked:
        return Judgement.SAME, f"{moved}: the machine moved"  # or its clock, which nobody knows
    return Judgement.AMBIGUOUS, f"{moved}: look at the machine, then measure again"


def _clock(seen: Evidence, limit: float) -> str:
    """That the time changed all the same, where it did."""
    if seen.steady is None or abs(seen.time.log) <= limit:
        return ""
    return f" ({_signed(seen.time.log)} as it was: the clock moved)"


def _bounds(seen: Change) -> str:
    return f"{_signed(seen.low)} to {_signed(seen.high)}"


def _against(seen: Evidence) -> str:
    return "" if seen.paired is None else f" against {seen.baseline}"


def _confirmed(seen: Evidence, word: str) -> str:
    size = format_percent(abs(math.expm1(seen.deciding.log)), 1)
    agreed = "" if seen.paired is None else f", {_signed(seen.own.log)} in {seen.own_name}"
    at = " at one clock" if seen.paired is None and seen.steady is not None else ""
    return f"{size} {word}{_against(seen)}{at}{agreed}"
