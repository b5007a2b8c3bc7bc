"""How far a median may lie from where it was seen, when neighbouring blocks are alike.

Blocks of one run follow each other in time, so a drifting clock makes neighbours alike and an ordinary bootstrap too
sure of itself. Runs of neighbouring blocks are drawn instead, round the end of the series (the circular block
bootstrap: Politis and Romano 1992, "A circular block-resampling procedure for stationary data"), each n^(1/3) long
(Künsch 1989, Annals of Statistics 17, 1217-1241). The seed is fixed: the same records give the same verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 400
_SEED = 20260101
_SEGMENTS = 6
_LEAST_IN_SEGMENT = 3
_NORMAL_MEDIAN = 1.2533  # standard error of a median over that of a mean, for normal samples

Floats = NDArray[np.float64]


@lru_cache(maxsize=64)
def drawn_blocks(n: int, stream: int) -> NDArray[np.intp]:
    """RESAMPLES x n positions: runs of n^(1/3) neighbours from random starts."""
    length = max(1, round(n ** (1 / 3)))
    runs = math.ceil(n / length)
    starts = np.random.default_rng((_SEED, n, stream)).integers(0, n, size=(RESAMPLES, runs, 1))
    drawn = (starts + np.arange(length)) % n
    return drawn.reshape(RESAMPLES, runs * length)[:, :n].astype(np.intp)


@dataclass(frozen=True, eq=False)
class Doubt:
    """What else is not known of a series: RESAMPLES deviations of a factor, and what it multiplies in each block."""

    deviations: Floats
    by_block: Floats


def resampled_medians(samples: Floats, stream: int = 0, doubts: Sequence[Doubt] = ()) -> Floats:
    """The medians of RESAMPLES series drawn from `samples` [n] (or each column of [n, c]), in block order.

    Series of one length and one `stream` share their draws (so that pairs stay pairs); independent series need
    streams of their own. Each draw takes its own deviation of every doubt along.
    """
    n = len(samples)
    chosen = drawn_blocks(n, stream)
    drawn = samples[chosen]
    for doubt in doubts:
        drawn += doubt.deviations[:, None] * doubt.by_block[chosen]
    ordered = np.sort(drawn, axis=1)
    return np.asarray((ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2, dtype=np.float64)


def drift_of_median(samples: Floats) -> float:
    """How far a whole run's level moves while it lasts: the spread of medians over parts of it, beyond chance.

    `samples` [n] in block order, in the unit of the result. 0 where nothing but noise between blocks is seen, or where
    there are too few blocks to tell.
    """
    if len(samples) < _SEGMENTS * _LEAST_IN_SEGMENT:
        return 0.0
    parts = np.array_split(samples, _SEGMENTS)
    between = float(np.var([np.median(part) for part in parts], ddof=1))
    within = float(np.mean([np.var(part, ddof=1) / len(part) for part in parts])) * _NORMAL_MEDIAN**2
    return math.sqrt(max(0.0, between - within))


@dataclass(frozen=True, eq=False)
class Level:
    """Where a run stands: one number a block, in block order, and what the bootstrap says about their median.

    Levels that are compared with each other need different streams.
    """

    samples: Floats
    stream: int
    doubts: tuple[Doubt, ...] = ()

    @cached_property
    def median(self) -> float:
        """The median of the samples."""
        return float(np.median(self.samples))

    @cached_property
    def draws(self) -> Floats:
        """RESAMPLES medians that the run might have had."""
        return resampled_medians(self.samples, self.stream, self.doubts)

    @cached_property
    def noise(self) -> float:
        """Standard error of the median, the drift of the run included: the floor under which no change is seen."""
        return math.hypot(float(np.std(self.draws)), drift_of_median(self.samples))
