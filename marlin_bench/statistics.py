"""Medians with intervals that assume nothing about the shape of the noise.

GPU timings are skewed, stepped by the timer and sometimes bimodal, so nothing here needs a normal distribution.
The interval of a median stands on order statistics: the number of samples below the median is binomial(n, 1/2)
(Thompson 1936), interpolated between neighbouring ranks so that its coverage is close to the one asked for at every n
(Hettmansperger and Sheather 1986, "Confidence intervals based on interpolated order statistics", Statistics &
Probability Letters 4, 75-79). It costs microseconds, so that the measuring loop can ask after every block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the bounds of its confidence interval, in the unit of the samples.

    The bounds are infinite where there are too few samples for the confidence asked for (fewer than 6 at 95 %), so
    that no comparison with a limit can pass on them.
    """

    value: float
    low: float
    high: float

    @property
    def relative_width(self) -> float:
        """Width of the interval over its value: 0.005 is half a percent."""
        return (self.high - self.low) / self.value

    @property
    def margin(self) -> float:
        """The larger of the two distances to the bounds over the value: the `±` of a table."""
        return max(self.high - self.value, self.value - self.low) / self.value

    def contains(self, value: float) -> bool:
        """Whether `value` lies within the bounds."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class _Ranks:
    """The lower bound: (1 - weight) of the sample at `rank` (from 1) plus weight of the next; the upper mirrors it."""

    rank: int
    weight: float


@lru_cache(maxsize=4096)
def _ranks(n: int, confidence: float) -> _Ranks | None:
    """Where the bounds lie among n sorted samples; None where even the whole range covers less than `confidence`."""
    log_half = n * math.log(0.5)
    log_n = math.lgamma(n + 1)
    below = 0.0  # P(at most rank-1 samples lie below the median)
    covered = 1.0
    for rank in range(1, n // 2 + 2):
        below += math.exp(log_n - math.lgamma(rank) - math.lgamma(n - rank + 2) + log_half)
        inner = 1 - 2 * below
        if inner < confidence:
            if rank == 1:
                return None
            outer = rank - 1
            share = (covered - confidence) / (covered - inner)
            return _Ranks(outer, (n - outer) * share / (outer + (n - 2 * outer) * share))
        covered = inner
    raise AssertionError(f"no rank covers less than {confidence} of {n} samples")


def _checked(samples: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("a median needs a flat sequence with at least one sample")
    if not np.isfinite(values).all():
        raise ValueError("a sample is not a finite number")
    return values


def median_interval(samples: Sequence[float] | NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The median of independent `samples` with its distribution-free interval; ValueError for none or a NaN."""
    ordered: list[float] = np.sort(
        _checked(samples)
    ).tolist()  # plain numbers: arithmetic on numpy's is slow one by one
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    ranks = _ranks(n, confidence)
    if ranks is None:
        return Interval(median, -math.inf, math.inf)
    low = (1 - ranks.weight) * ordered[ranks.rank - 1] + ranks.weight * ordered[ranks.rank]
    high = (1 - ranks.weight) * ordered[n - ranks.rank] + ranks.weight * ordered[n - ranks.rank - 1]
    return Interval(median, low, high)


def block_medians(blocks: Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64]) -> NDArray[np.float64]:
    """One number a block: the median of its samples (a block of one sample may be given as a number)."""
    if isinstance(blocks, np.ndarray):
        return _checked(blocks)
    return _checked(
        [
            block[0]  # asked first: thousands of records of a hundred such blocks are read at once
            if isinstance(block, list) and len(block) == 1
            else block
            if isinstance(block, float | int)
            else _median_of_block(block)
            for block in blocks
        ]
    )


def _median_of_block(samples: Sequence[float]) -> float:
    # numpy's median costs 50 us a call, which the measuring loop would pay for every block again and again
    return median(samples) if all(map(math.isfinite, samples)) else math.nan


def paired_ratio(
    baseline_blocks: Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64],
    candidate_blocks: Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64],
    confidence: float = CONFIDENCE,
) -> Interval:
    """How many times faster the candidate is: the median over blocks of baseline time / candidate time.

    Element i of both holds the seconds (or samples) of block i, in which both ran under the same conditions, so that
    a drifting clock cancels. The median and its bounds are taken of logarithms: exchanging the two sides gives exactly
    the reciprocal. ValueError when the blocks do not pair up or a time is not positive.
    """
    if len(baseline_blocks) != len(candidate_blocks):
        raise ValueError(f"{len(baseline_blocks)} baseline blocks do not pair with {len(candidate_blocks)} blocks")
    baseline = block_medians(baseline_blocks)
    candidate = block_medians(candidate_blocks)
    if not ((baseline > 0).all() and (candidate > 0).all()):
        raise ValueError("a ratio needs times above zero")
    return ratio_of_logs(np.log(baseline / candidate), confidence)


def ratio_of_logs(differences: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The ratio whose logarithm has one of these `differences` in each block: what `paired_ratio` is of two series."""
    logs = median_interval(differences, confidence)
    # exp(-inf) is 0, the honest lower bound of a ratio that nothing bounds
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))
