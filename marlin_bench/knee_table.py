"""Knees and crossovers as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable

from marlin_bench.knee import Knee
from marlin_bench.statistics import Interval
from marlin_bench.table import Column, Line, Table
from marlin_bench.units import NOTHING

_COLUMNS = (
    Column("layer"),
    Column("K", right=True, rank=3),
    Column("N", right=True, rank=3),
    Column("g", right=True, rank=4),
    Column("backend"),
    Column("knee M", right=True),
    Column("interval", right=True, rank=1),
    Column("on the roofs", right=True, rank=2),
    Column("crossover M", right=True),
    Column("its interval", right=True, rank=1),
)


def _batch(value: float, knee: Knee) -> str:
    """An M; beyond the measured ones only the side is known."""
    if math.isinf(value):
        return f"> {knee.last}"
    return f"<= {knee.first}" if value <= knee.first else f"{value:.0f}"


def _bounds(found: Interval, knee: Knee) -> str:
    low, high = sorted((found.low, found.high))
    return f"{_batch(low, knee)} … {_batch(high, knee)}"


def knee_table(found: Iterable[Knee]) -> Table:
    """One line a layer and backend."""
    lines = [
        Line(
            (
                knee.curve.layer,
                str(knee.curve.K),
                str(knee.curve.N),
                "K" if knee.curve.group_size is None else str(knee.curve.group_size),
                knee.curve.backend,
                _batch(knee.knee.value, knee),
                _bounds(knee.knee, knee),
                NOTHING if knee.perfect is None or math.isinf(knee.perfect) else f"{knee.perfect:.0f}",
                _batch(knee.crossover.value, knee),
                _bounds(knee.crossover, knee),
            )
        )
        for knee in found
    ]
    return Table(_COLUMNS, lines)
