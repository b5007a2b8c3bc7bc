"""Where a curve over M falls through a level: between two measured M along the straight line that a plot draws.

M is on a logarithmic axis, the value on a linear one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def falls_below(points: Sequence[tuple[int, float]], level: float) -> float:
    """The M at which a curve of (M, value) first falls below `level`: the first M, or infinite, beyond its ends."""
    before: tuple[int, float] | None = None
    for M, value in points:
        if not value >= level:
            if before is None:
                return float(M)
            left, above = before
            share = (above - level) / (above - value)
            return left * math.pow(M / left, share)
        before = (M, value)
    return math.inf


def stays_below(points: Sequence[tuple[int, float]], level: float) -> float:
    """The M from which a curve stays below `level` to its end: infinite where it ends above it."""
    tail = len(points)
    while tail > 0 and not points[tail - 1][1] >= level:
        tail -= 1
    if tail == len(points):
        return math.inf
    return falls_below(points[max(0, tail - 1) :], level)
