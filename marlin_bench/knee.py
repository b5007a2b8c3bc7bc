"""Two numbers that stand for a whole curve over M: where a kernel leaves its ideal, and where FP16 wins.

The knee is the M at which the share of the ideal speed-up first drops under 90 %; the crossover is the M at which the
speed-up last falls through 1. Between two measured M both are interpolated on a logarithmic M axis, as the curve is
drawn. Their intervals are those of the curves through all lower and all upper bounds of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from marlin_bench.crossing import falls_below, stays_below
from marlin_bench.roofline import knee_batch
from marlin_bench.speedup import Curve, Row
from marlin_bench.statistics import Interval

KNEE_EFFICIENCY = 0.9
"""Share of the ideal speed-up under which a kernel has left it."""

_TOGETHER = 1.15


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One M with the value of the curve there, bounds included."""

    M: int
    value: Interval


@dataclass(frozen=True, slots=True)
class Knee:
    """What a curve over M is reduced to; `knee` and `crossover` are M, not rounded.

    Infinite where the curve stays above to its last M, the first M where it is below from the start. `perfect` is
    where a kernel on the roofs leaves the memory roof.
    """

    curve: Curve
    knee: Interval
    crossover: Interval
    perfect: float | None
    first: int
    last: int


def _bounds(points: Sequence[CurvePoint]) -> tuple[list[tuple[int, float]], ...]:
    """The curve through the values, through the lower and through the upper bounds; a quotation has only its value."""
    values = [(point.M, point.value.value) for point in points]
    if not all(math.isfinite(point.value.low) and math.isfinite(point.value.high) for point in points):
        return values, values, values
    return values, [(point.M, point.value.low) for point in points], [(point.M, point.value.high) for point in points]


def efficiency(row: Row) -> Interval | None:
    """Share of the ideal speed-up, with its interval; None where there is no ideal."""
    if row.speedup is None or row.ideal_speedup is None or row.fraction_of_ideal is None:
        return None
    ideal = row.ideal_speedup
    return Interval(row.speedup.value / ideal, row.speedup.low / ideal, row.speedup.high / ideal)


def knee(curve: Curve) -> Knee | None:
    """The knee and crossover of a curve; None where fewer than two of its points have a share of the ideal."""
    shares = [CurvePoint(row.record.M, share) for row in curve.points if (share := efficiency(row)) is not None]
    if len(shares) < 2:
        return None
    speedups = [CurvePoint(row.record.M, row.speedup) for row in curve.points if row.speedup is not None]
    record = curve.points[0].record
    roofs = curve.points[0].roofs
    return Knee(
        curve,
        Interval(*(falls_below(side, KNEE_EFFICIENCY) for side in _bounds(shares))),
        Interval(*(stays_below(side, 1.0) for side in _bounds(speedups))),
        None
        if roofs is None
        else knee_batch(
            curve.N,
            curve.K,
            record.weight_format,
            roofs,
            group_size=curve.group_size,
            activation_dtype=record.activation_dtype,
        ),
        shares[0].M,
        shares[-1].M,
    )


def knees(curves: Iterable[Curve]) -> list[Knee]:
    """Every knee there is, in order."""
    found = (knee(curve) for curve in curves)
    return [one for one in found if one is not None]


def told_together(knees: Iterable[tuple[str, float]]) -> list[str]:
    """(format, M at which a perfect kernel leaves memory) as lines of text, the highest M first.

    Formats that leave within 15 % of each other share a line: `M=39 to 41 nf4, int4`.
    """
    groups: list[list[tuple[str, float]]] = []
    for fmt, M in sorted(knees, key=lambda knee: -knee[1]):
        if groups and groups[-1][0][1] < _TOGETHER * M:
            groups[-1].append((fmt, M))
        else:
            groups.append([(fmt, M)])
    lines = []
    for group in groups:
        names = dict.fromkeys(fmt.split("_g")[0] for fmt, _ in group)
        bounds = dict.fromkeys(f"{M:.0f}" for _, M in (group[-1], group[0]))
        lines.append(f"M={' to '.join(bounds)} {', '.join(names)}")
    return lines
