"""Rows as the table that `show` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable

from marlin_bench.record import Origin, Status
from marlin_bench.speedup import HEADLINE_BASELINE, Row
from marlin_bench.statistics import Interval
from marlin_bench.table import Column, Line, Table
from marlin_bench.units import NOTHING, format_percent, format_ratio

_COLUMNS = (
    Column("layer"),
    Column("M", right=True),
    Column("K", right=True, rank=7),
    Column("N", right=True, rank=7),
    Column("g", right=True, rank=8),
    Column("backend"),
    Column("time µs", right=True),
    Column("±", right=True, rank=4),
    Column("speed-up", right=True),
    Column("of ideal", right=True, rank=1),
    Column("GB/s", right=True, rank=3),
    Column("of memory roof", right=True, rank=5),
    Column("TFLOP/s", right=True, rank=3),
    Column("MHz", right=True, rank=6),
    Column("kcycles", right=True, rank=9),
    Column("notes", rank=2, elastic=True),
)
PATH = "path"
"""The choice of a library that has two ways to a product: its fused kernel, or dequantising for cuBLAS."""
_NOT_MEASURED = {Status.UNSUPPORTED, Status.MISSING}


def _number(value: float | None, scale: float, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    scaled = value / scale
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)))) if scaled else 0
    return f"{scaled:.{min(decimals, 6)}f}"


def _margin(interval: Interval | None) -> str:
    return NOTHING if interval is None else format_percent(interval.margin, 1)


def _speedup(row: Row) -> str:
    if row.baseline == row.record.backend:
        return "baseline"
    return format_ratio(None if row.speedup is None else row.speedup.value)


def notes(row: Row) -> str:
    """What a reader of a row should know beside its numbers: flags, a reason, other types than the baseline's."""
    record = row.record
    found = [flag.value for flag in row.flags]
    if record.origin is Origin.PUBLISHED and record.published is not None:
        found.insert(0, f"published: {record.published.source}")
    if record.status is not Status.OK:
        found.insert(0, record.reason or record.status.value)
    if row.baseline not in (None, record.backend, HEADLINE_BASELINE):
        found.append(f"over {row.baseline}")
    if row.headline is not None and row.headline.dtypes is not None:
        found.append(row.headline.dtypes)
    if PATH in record.choice:
        found.append(f"path: {record.choice[PATH]}")
    if record.activation_quantization_s is not None:
        found.append(f"quantising its activations {record.activation_quantization_s * 1e6:.3g} µs more")
    return ", ".join(found)


def _style(row: Row) -> str:
    if row.record.status is Status.OK:
        return "dim" if row.record.baseline else ""
    return "dim" if row.record.status in _NOT_MEASURED else "red"


def record_table(rows: Iterable[Row]) -> Table:
    """One line a record; `time µs` holds the status of what was not measured, and `notes` its reason."""
    lines = []
    for row in rows:
        record, ok = row.record, row.record.status is Status.OK
        cells = (
            record.layer,
            str(record.M),
            str(record.K),
            str(record.N),
            "K" if record.group_size is None else str(record.group_size),
            record.backend,
            _number(None if row.time is None else row.time.value, 1e-6, 4) if ok else record.status.value,
            _margin(row.time),
            _speedup(row),
            format_percent(row.fraction_of_ideal),
            _number(row.achieved_bandwidth, 1e9),
            format_percent(row.fraction_of_memory_roof),
            _number(row.achieved_flops, 1e12),
            NOTHING if row.sm_clock_hz is None else f"{row.sm_clock_hz / 1e6:.0f}",
            _number(row.cycles, 1e3),
            notes(row),
        )
        lines.append(Line(cells, _style(row)))
    return Table(_COLUMNS, lines)
