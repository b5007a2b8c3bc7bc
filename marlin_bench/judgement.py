"""When a change is a change: the verdict on one cell, from ratios that must agree.

A kernel is slower only when everything that could tell says so. Three ratios are taken, each new over old:
- its time;
- its cycles (time x SM clock), where clocks were free: a clock that fell slows nothing in cycles;
- its time over that of the 16-bit baseline of the same block, where that baseline is the same library in both runs: a
  machine that slowed down slows both.
The last of these is judged, or the time where there is no such baseline: the change must lie beyond the tolerance at
5 % over all cells together (Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
of Statistics 6, 65-70), and the others must show at least half of it. The tolerance is a relative rule's: the largest
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
    """What two records of one cell say about each other; `tolerance` and `noise` are relative (0.01 is 1 %)."""

    time: Change
    cycles: Change | None
    paired: Change | None
    baseline: str | None
    baseline_part: Change | None
    baseline_is_same: bool
    clocks_locked: bool
    tolerance: float
    noise: float

    @property
    def deciding(self) -> Change:
        """The change that is judged."""
        return self.time if self.paired is None else self.paired

    @property
    def confirming(self) -> dict[str, Change]:
        """The changes that must agree, by what they are changes of."""
        found = {"time": self.time} if self.paired is not None else {}
        return found if self.cycles is None else found | {"cycles": self.cycles}


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
    return f"{100 * math.expm1(log):+.1f}%"


def judge(seen: Evidence, *, is_slower: bool, is_faster: bool) -> tuple[Judgement, str]:
    """The verdict on one cell, given what holds at the significance over all cells together."""
    limit = math.log1p(seen.tolerance)
    if is_slower and all(other.log >= limit / 2 for other in seen.confirming.values()):
        return Judgement.WORSE, _confirmed(seen, "slower")
    if is_faster and all(other.log <= -limit / 2 for other in seen.confirming.values()):
        return Judgement.BETTER, _confirmed(seen, "faster")
    if seen.time.within(limit):
        return Judgement.SAME, f"{_signed(seen.time.log)} in time"
    if seen.paired is not None and seen.paired.within(limit):
        return _moved_together(seen, limit)
    if is_slower or is_faster:
        others = ", ".join(f"{_signed(other.log)} in {what}" for what, other in seen.confirming.items())
        return Judgement.AMBIGUOUS, f"{_signed(seen.deciding.log)}{_against(seen)}, but {others}"
    bounds = f"{_signed(seen.deciding.low)} to {_signed(seen.deciding.high)}{_against(seen)}"
    return Judgement.AMBIGUOUS, f"{bounds}: too noisy for a tolerance of {format_percent(seen.tolerance, 1)}"


def _moved_together(seen: Evidence, limit: float) -> tuple[Judgement, str]:
    """The time changed, but not against the baseline: the machine did, or the clock."""
    if seen.cycles is not None and seen.cycles.within(limit):
        return Judgement.SAME, f"{_signed(seen.cycles.log)} in cycles{_against(seen)}: the clock moved"
    moved = f"{_signed(seen.time.log)} in time, and so is {seen.baseline}"
    if seen.cycles is None and not seen.clocks_locked:
        return Judgement.SAME, f"{moved}: the machine moved"
    return Judgement.AMBIGUOUS, f"{moved}: look at the machine, then measure again"


def _against(seen: Evidence) -> str:
    return "" if seen.paired is None else f" against {seen.baseline}"


def _confirmed(seen: Evidence, word: str) -> str:
    size = format_percent(abs(math.expm1(seen.deciding.log)), 1)
    agreed = f", confirmed in {' and '.join(seen.confirming)}" if seen.confirming else ""
    return f"{size} {word}{_against(seen)}{agreed}"
