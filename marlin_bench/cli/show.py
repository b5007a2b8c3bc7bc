"""`show`: a run as a table or as JSON."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from marlin_bench.cli import options

Timer = Annotated[
    str | None,
    typer.Option("--timer", metavar="TIMER", show_default="kernel", help="kernel | cold | host | all"),
]


def show(
    run: options.RunArgument = None,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    timer: Timer = None,
    as_json: options.AsJson = False,
    datasheet: Annotated[bool, typer.Option("--datasheet", help="Judge by the vendor's roofs.")] = False,
    results: options.Results = None,
) -> None:
    """Show a run: times with their intervals, speed-ups, how much of the ideal and of the roofs is reached.

    Example: marlin-bench show --backend marlin -M 1,16
    """
    from marlin_bench.cli.locate import headline_timer, open_run
    from marlin_bench.export import to_json
    from marlin_bench.record_table import record_table
    from marlin_bench.speedup import without_companions
    from marlin_bench.store import results_folder
    from marlin_bench.table import print_table

    chosen = options.selection(only, layer, backend, batch)
    found = open_run(run, results_folder(results), chosen, datasheet=datasheet)
    rows = found.rows
    if timer not in {None, "all"}:
        rows = [row for row in rows if row.record.timer == timer]
        if not rows:
            known = ", ".join(dict.fromkeys(row.record.timer for row in found.rows))
            raise options.OptionError(f"this run has no timer '{timer}': it has {known}")
    if as_json:
        sys.stdout.write(to_json(rows))
        return
    if timer is None:
        headline = headline_timer(rows)
        rows = [row for row in rows if row.record.timer == headline]
    dropped = print_table(record_table(without_companions(rows)), sys.stdout)
    if dropped:
        typer.echo(f"a wider terminal also shows {', '.join(dropped)}", err=True)
