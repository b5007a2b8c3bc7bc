"""Predictions as a table, each line marked as one."""

from __future__ import annotations

from collections.abc import Sequence

from marlin_bench.predict import Prediction
from marlin_bench.table import Column, Line, Table
from marlin_bench.units import format_percent, format_ratio

_COLUMNS = (
    Column("layer"),
    Column("M", right=True),
    Column("backend"),
    Column("gpu"),
    Column("ideal", right=True),
    Column("efficiency", right=True, rank=1),
    Column("measured on", rank=2),
    Column("expected", right=True),
    Column("origin"),
)


def prediction_table(found: Sequence[Prediction]) -> Table:
    """One line a prediction."""
    lines = [
        Line(
            (
                one.layer,
                str(one.M),
                one.backend,
                one.gpu,
                format_ratio(one.ideal),
                format_percent(one.efficiency),
                one.measured_on,
                format_ratio(one.expected),
                "predicted",
            )
        )
        for one in found
    ]
    return Table(_COLUMNS, lines)
