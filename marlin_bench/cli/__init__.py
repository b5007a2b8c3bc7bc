"""The command line: parse, call, print. One module a command group; torch and matplotlib load only where needed.

stdout carries the table or the data, stderr everything else. A complaint is one sentence with the exit code of
DESIGN section 5, never a traceback.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from marlin_bench import __version__
from marlin_bench.cli import (
    answers,
    baseline,
    bisect,
    ceilings,
    clocks,
    closed_pipe,
    compare,
    doctor,
    export,
    gate,
    history,
    kernels,
    listing,
    plot,
    profile,
    publish,
    report,
    run,
    show,
    time,
    tune,
    verify,
)
from marlin_bench.cli.complaints import complaint_of
from marlin_bench.exit_codes import ExitCode

app = typer.Typer(
    name="marlin-bench",
    help=(
        "How close to the machine's limit is this 4-bit GEMM kernel, and did it get worse?\n\n"
        "Example: marlin-bench run smoke && marlin-bench show && marlin-bench plot roofline"
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("time")(time.time)
app.command("verify")(verify.verify)
app.command("show")(show.show)
app.add_typer(plot.app, name="plot")
app.command("report")(report.report)
app.command("profile")(profile.profile)
app.command("ledger")(profile.ledger)
app.command("knees")(answers.knees)
app.command("recommend")(answers.recommend)
app.command("predict")(answers.predict)
app.command("export")(export.export)
app.command("publish")(publish.publish)
app.add_typer(listing.app, name="list")
app.command("ceilings")(ceilings.ceilings)
app.add_typer(clocks.app, name="clocks")
app.command("gate")(gate.gate)
app.command("compare")(compare.compare)
app.command("noise")(compare.noise)
app.add_typer(baseline.app, name="baseline")
app.command("history")(history.history)
app.command("bisect")(bisect.bisect)
app.command("doctor")(doctor.doctor)
app.command("kernels")(kernels.kernels)
app.command("tune")(tune.tune)


def main() -> None:
    """Entry point of `marlin-bench` and `python -m marlin_bench`; always ends in sys.exit."""
    with closed_pipe.tolerated():
        try:
            app(prog_name="marlin-bench")
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)
        except (RuntimeError, ValueError) as error:
            complaint = complaint_of(error)
            if complaint is None:
                raise
            typer.echo(f"marlin-bench: {error}", err=True)
            sys.exit(complaint)
