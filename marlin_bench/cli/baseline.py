"""`baseline`: the accepted run of each device and suite, which gates compare with."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from marlin_bench.cli import options

app = typer.Typer(
    help="Keep the accepted run of each device and suite.\n\nExample: marlin-bench baseline set 20261121",
    no_args_is_help=True,
)


@app.command("set")
def set_(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            show_default="the newest run",
            help="Run folders, or parts of their names; several of the same code are pooled.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a slower run, or one of uncommitted code, all the same.")
    ] = False,
    results: options.Results = None,
) -> None:
    """Accept a run as the baseline of its device and suite; a better one is replaced only with --force.

    Three runs of the same code make a better baseline than one: processes differ by 1 or 2 % now and then.

    Example: marlin-bench baseline set 20261121T0800 20261121T0810 20261121T0820
    """
    from marlin_bench.baseline import set_baseline
    from marlin_bench.cli.locate import find_run
    from marlin_bench.gate_rules import RelativeRule
    from marlin_bench.store import read_run, results_folder

    root = results_folder(results)
    named: list[str | None] = [*runs] if runs else [None]
    first, *others = [read_run(find_run(run, root)) for run in named]
    accepted = set_baseline(first, root, RelativeRule(rule="relative"), force=force, others=others)
    size = sum(path.stat().st_size for path in accepted.folder.iterdir())
    typer.echo(accepted.folder)
    instead = f" instead of {accepted.replaced}" if accepted.replaced else ""
    typer.echo(f"accepted{instead}: {size / 1e3:.0f} kB to commit", err=True)


@app.command("show")
def show(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Device as in `baseline list`, such as h200.")],
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="Name of the suite.")],
    results: options.Results = None,
) -> None:
    """Show an accepted run as `show` does.

    Example: marlin-bench baseline show h200 h200
    """
    from marlin_bench.baseline import baseline_folder
    from marlin_bench.cli.locate import NoRunError
    from marlin_bench.cli.show import show as show_run
    from marlin_bench.store import results_folder

    folder = baseline_folder(results_folder(results), device, suite)
    if not folder.is_dir():
        raise NoRunError(f"device '{device}' has no baseline of suite '{suite}': see `marlin-bench baseline list`")
    show_run(str(folder), results=results)


@app.command("list")
def list_(as_json: options.AsJson = False, results: options.Results = None) -> None:
    """List the accepted runs.

    Example: marlin-bench baseline list
    """
    import json

    from marlin_bench.baseline import list_baselines
    from marlin_bench.store import results_folder
    from marlin_bench.table import Column, Line, Table, print_table

    found = list_baselines(results_folder(results))
    lines = [
        {
            "device": folder.parent.name,
            "suite": meta.suite,
            "run": meta.run,
            "commit": meta.environment.commit,
            "clocks": meta.clock_policy,
        }
        for folder, meta in found
    ]
    if as_json:
        sys.stdout.write(json.dumps(lines, indent=1) + "\n")
        return
    columns = tuple(Column(name) for name in ("device", "suite", "run", "commit", "clocks"))
    print_table(Table(columns, [Line(tuple(line.values())) for line in lines]), sys.stdout)
    if not lines:
        typer.echo("no baseline yet: accept a run with `marlin-bench baseline set RUN`", err=True)
