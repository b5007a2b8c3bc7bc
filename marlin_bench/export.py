"""Rows as data: one object a record with the same fields in CSV, Parquet and JSON, in SI base units."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from marlin_bench.speedup import Row

FileFormat = Literal["csv", "parquet", "json"]


class ExportError(RuntimeError):
    """Rows that cannot be written as asked; one sentence."""


@dataclass(frozen=True)
class ExportedRow:
    """One record as other programs read it: seconds, hertz, flop/s, bytes/s; None (empty in CSV) where unknown."""

    backend: str
    device: str
    layer: str
    M: int
    N: int
    K: int
    group_size: int | None
    format: str
    timer: str
    status: str
    time_s: float | None
    time_low_s: float | None
    time_high_s: float | None
    speedup: float | None
    ideal_speedup: float | None
    fraction_of_ideal: float | None
    achieved_flops: float | None
    achieved_bandwidth: float | None
    sm_clock_hz: float | None
    cycles: float | None
    id: str
    origin: str
    flags: list[str]
    energy_per_call_j: float | None
    energy_per_token_j: float | None


FIELDS = tuple(field.name for field in fields(ExportedRow))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def exported(row: Row) -> ExportedRow:
    """The row as it is written out; bounds that nothing bounds are None."""
    record, time = row.record, row.time
    return ExportedRow(
        backend=record.backend,
        device=record.device,
        layer=record.layer,
        M=record.M,
        N=record.N,
        K=record.K,
        group_size=record.group_size,
        format=record.format,
        timer=record.timer,
        status=record.status.value,
        time_s=None if time is None else time.value,
        time_low_s=None if time is None else _finite(time.low),
        time_high_s=None if time is None else _finite(time.high),
        speedup=None if row.speedup is None else row.speedup.value,
        ideal_speedup=row.ideal_speedup,
        fraction_of_ideal=row.fraction_of_ideal,
        achieved_flops=row.achieved_flops,
        achieved_bandwidth=row.achieved_bandwidth,
        sm_clock_hz=row.sm_clock_hz,
        cycles=row.cycles,
        id=record.id,
        origin=record.origin.value,
        flags=[flag.value for flag in row.flags],
        energy_per_call_j=None if record.energy is None else record.energy.joules_a_call,
        energy_per_token_j=None if record.energy is None else record.energy.joules_a_call / record.M,
    )


def to_json(rows: Sequence[Row]) -> str:
    """A JSON array, one object a line."""
    lines = (json.dumps(asdict(exported(row)), allow_nan=False) for row in rows)
    return "[" + ",\n".join(lines) + "]\n"


def to_csv(rows: Sequence[Row]) -> str:
    """CSV with a header; flags joined by semicolons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        data = asdict(exported(row))
        writer.writerow(data | {"flags": ";".join(data["flags"])})
    return text.getvalue()


def to_parquet(rows: Sequence[Row], path: Path) -> None:
    """A Parquet file with typed columns, even where every value is missing; ExportError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExportError("Parquet needs pyarrow: pip install 'marlin-bench[parquet]'") from error
    types = {
        "str": pyarrow.string(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "list[str]": pyarrow.list_(pyarrow.string()),
    }
    schema = pyarrow.schema(
        [pyarrow.field(field.name, types[str(field.type).removesuffix(" | None")]) for field in fields(ExportedRow)]
    )
    table = pyarrow.Table.from_pylist([asdict(exported(row)) for row in rows], schema=schema)
    pyarrow.parquet.write_table(table, path)


def write(rows: Sequence[Row], file_format: FileFormat, path: Path) -> None:
    """Write `rows` to `path`; ExportError when the file cannot be written."""
    try:
        if file_format == "parquet":
            to_parquet(rows, path)
        else:
            path.write_text(to_json(rows) if file_format == "json" else to_csv(rows), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write {path} ({error.strerror}): choose another file") from error
