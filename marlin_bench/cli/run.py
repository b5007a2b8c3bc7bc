"""`run`: measure a suite, or say what measuring it would take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.plan import Cell
    from marlin_bench.roofline import Roofs
    from marlin_bench.run import RunOutcome
    from marlin_bench.suite import Suite

SuiteArgument = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite file, or the name of a shipped one (`list suites`).")
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="TIME", show_default="no limit", help="Stop after the cell in progress: 90s, 8m, 1h30m."
    ),
]


def run(
    suite: SuiteArgument,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with each cell's floor time; measure nothing.")
    ] = False,
    budget: Budget = None,
    device: options.Device = None,
    results: options.Results = None,
) -> None:
    """Measure a suite into a run folder. Running it again measures what is missing and nothing else.

    Example: marlin-bench run suites/h200.yaml --layer 72k_x_18k -M 1,16 --budget 8m
    """
    from marlin_bench.store import results_folder
    from marlin_bench.suite import load_suite
    from marlin_bench.units import parse_duration

    selection = options.selection(only, layer, backend, batch)
    budget_s = None if budget is None else parse_duration(budget)
    loaded = load_suite(suite)
    if dry_run:
        from marlin_bench.plan import selected_cells

        _print_plan(loaded, selected_cells(loaded, selection))
        return
    from marlin_bench.cli.progress import open_progress
    from marlin_bench.run import run_suite

    with open_progress(sys.stderr) as progress:
        outcome = run_suite(
            loaded,
            selection=selection,
            results=results_folder(results),
            devices=device,
            budget_s=budget_s,
            progress=progress,
        )
    report(outcome)
    raise typer.Exit(outcome.exit_code)


def report(outcome: RunOutcome, folder_to: TextIO | None = None) -> None:
    """How a sweep ended: where its records are on stdout (or `folder_to`), the rest on stderr."""
    from marlin_bench.units import counted, format_duration, format_percent

    typer.echo(outcome.folder, file=folder_to)
    done = f"{outcome.cells_done} of {counted(outcome.cells_total, 'cell')}"
    share = format_percent(outcome.timed_s / outcome.wall_s) if outcome.wall_s > 0 else "0%"
    wall = format_duration(outcome.wall_s)
    typer.echo(f"{done}; {wall}, {share} of it inside timed work", err=True)
    if outcome.cells_done < outcome.cells_total:
        typer.echo(f"{done}, run again to resume", err=True)


def _print_plan(suite: Suite, cells: list[Cell]) -> None:
    from marlin_bench.plan import floor_seconds, launch_floors
    from marlin_bench.table import Column, Line, Table, print_table
    from marlin_bench.units import NOTHING, counted, format_duration, format_time

    roofs = _known_roofs(suite)
    rate = None if roofs is None else max(roofs.compute.values())
    lines, total = [], 0.0
    for cell in cells:
        launch, floor = NOTHING, NOTHING
        if roofs is not None and rate is not None:
            slowest = max(launch_floors(cell, roofs.memory, rate).values())
            seconds = floor_seconds(cell, roofs.memory, rate, sampling=suite.sampling)
            launch, floor = format_time(slowest), format_time(seconds)
            total += seconds
        lines.append(Line((cell.id, str(cell.M), str(cell.K), str(cell.N), str(len(cell.backends)), launch, floor)))
    columns = (
        Column("cell"),
        Column("M", right=True),
        Column("K", right=True, rank=1),
        Column("N", right=True, rank=1),
        Column("backends", right=True),
        Column("slowest launch ≥", right=True, rank=2),
        Column("timed work ≥", right=True),
    )
    print_table(Table(columns, lines), sys.stdout)
    # every timer of a cell has the budget of a cell
    most = len(cells) * suite.sampling.cell_seconds * len(suite.sampling.timers)
    most_text = f"about {format_duration(most)} if no cell converges early"
    if roofs is None:
        estimate = f"{most_text}; floor times need a datasheet of the device, which this suite does not name"
    else:
        estimate = f"at least {format_duration(total)} of timed work, {most_text}"
    planned = f"{counted(len(cells), 'cell')} with {', '.join(cells[0].backends)}"
    typer.echo(f"{planned}: {estimate}; nothing was measured", err=True)


def _known_roofs(suite: Suite) -> Roofs | None:
    """The datasheet of the device that the suite names."""
    from marlin_bench.datasheet import find_datasheet

    sheet = None if suite.device.name is None else find_datasheet(suite.device.name)
    return None if sheet is None else sheet.roofs()
