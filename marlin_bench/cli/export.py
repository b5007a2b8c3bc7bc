"""`export`: a run as CSV, Parquet or JSON."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from marlin_bench.cli import options


class Target(StrEnum):
    """What `export` writes."""

    CSV = "csv"
    PARQUET = "parquet"
    JSON = "json"


def export(
    target: Annotated[Target, typer.Argument(metavar="FORMAT", help="csv | parquet | json")],
    run: options.RunArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default="stdout", help="File to write.")
    ] = None,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    results: options.Results = None,
) -> None:
    """Export a run: one row a record, SI base units, every timer.

    Example: marlin-bench export csv -o run.csv
    """
    from marlin_bench.cli.locate import open_run
    from marlin_bench.export import to_csv, to_json, write
    from marlin_bench.store import results_folder
    from marlin_bench.units import counted

    if target is Target.PARQUET and output is None:
        raise options.OptionError("Parquet is binary: name a file with -o run.parquet")
    found = open_run(run, results_folder(results), options.selection(only, layer, backend, batch))
    if output is not None:
        write(found.rows, target.value, output)
        typer.echo(f"wrote {output}: {counted(len(found.rows), 'record')}", err=True)
        return
    sys.stdout.write(to_csv(found.rows) if target is Target.CSV else to_json(found.rows))
