"""`history`: a cell over runs, with the commits at which it changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.history import Series


def history(
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Draw it: .svg or .png.")
    ] = None,
    results: options.Results = None,
) -> None:
    """Show each cell over all runs under --results, and the runs at which it changed for good.

    Example: marlin-bench history --only '72k_x_18k/*/M16' --backend marlin -o history.svg
    """
    from marlin_bench.cli.locate import NoRunError
    from marlin_bench.history import has_change_points
    from marlin_bench.history import history as series_of
    from marlin_bench.selection import model_shapes_of, select
    from marlin_bench.store import find_runs, read_run, results_folder

    root = results_folder(results)
    runs = [read_run(folder, with_telemetry=False) for folder in find_runs(root)]
    if not runs:
        raise NoRunError(f"there is no run under {root}: measure one with `marlin-bench run smoke`")
    records = list({record.id: record for run in runs for record in run.records}.values())
    chosen = select(records, options.selection(only, layer, backend, batch), model_shapes_of(runs[-1].meta))
    found = series_of(runs, (record.id for record in chosen))
    if not found:
        raise NoRunError("no measured run holds what was selected: leave out a part of the selection")
    _print(found)
    if not has_change_points():
        typer.echo("change points need ruptures: pip install 'marlin-bench[history]'", err=True)
    if output is not None:
        _draw(found, output)
        typer.echo(output)


def _print(found: list[Series]) -> None:
    from marlin_bench.table import Column, Line, Table, print_table
    from marlin_bench.units import format_clock, format_percent, format_time

    columns = (
        Column("cell"),
        Column("backend"),
        Column("run", rank=2),
        Column("commit"),
        Column("time", right=True),
        Column("±", right=True, rank=1),
        Column("clock", right=True, rank=2),
        Column("changed", right=True),
    )
    lines = []
    for series in found:
        for index, point in enumerate(series.points):
            changed = f"{100 * (series.step(index) - 1):+.1f}%" if index in series.changes else ""
            cells = (
                series.cell,
                series.backend,
                point.run,
                point.commit,
                format_time(point.time.value),
                format_percent(point.time.margin, 1),
                format_clock(point.sm_clock_hz),
                changed,
            )
            lines.append(Line(cells, "bold" if changed else ""))
    print_table(Table(columns, lines), sys.stdout)


def _draw(found: list[Series], output: Path) -> None:
    from marlin_bench.plots.canvas import save
    from marlin_bench.plots.history import draw

    save(draw(found), (output,))
