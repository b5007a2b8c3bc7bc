"""`verify`: right answers only, no timing."""

from __future__ import annotations

import sys

import typer

from marlin_bench.cli import options
from marlin_bench.cli.run import SuiteArgument


def verify(
    suite: SuiteArgument,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    device: options.Device = None,
) -> None:
    """Check the answers of every backend against float64 products of the weights it holds; time and store nothing.

    Example: marlin-bench verify smoke
    """
    from marlin_bench.exit_codes import ExitCode
    from marlin_bench.record import Status
    from marlin_bench.run import exit_code_of
    from marlin_bench.suite import load_suite
    from marlin_bench.table import Column, Line, Table, print_table
    from marlin_bench.verify import verify_suite

    lines, statuses = [], []
    selection = options.selection(only, layer, backend, batch)
    for found in verify_suite(load_suite(suite), selection=selection, devices=device):
        if found.refusal is not None:
            status, check, notes = found.refusal.status, None, found.refusal.reason or ""
            check = found.refusal.checks[-1] if found.refusal.checks else None
        else:
            status, check, notes = Status.OK, found.check, ""
        statuses.append(status)
        typer.echo(f"{found.cell.id} {found.backend}: {status.value}", err=True)
        error = "–" if check is None else f"{check.mean_error:.2e}"
        limit = "–" if check is None else f"{check.limit:.2e}"
        style = "" if status is Status.OK else "dim" if status in {Status.UNSUPPORTED, Status.MISSING} else "red"
        lines.append(Line((found.cell.id, found.backend, status.value, error, limit, notes), style))
    columns = (
        Column("cell"),
        Column("backend"),
        Column("answer"),
        Column("mean error", right=True),
        Column("limit", right=True, rank=2),
        Column("notes", rank=1, elastic=True),
    )
    print_table(Table(columns, lines), sys.stdout)
    right = statuses.count(Status.OK)
    typer.echo(f"{right} of {len(statuses)} right, nothing was timed", err=True)
    code = exit_code_of(statuses)
    raise typer.Exit(code if statuses else ExitCode.NOTHING_MEASURED)
