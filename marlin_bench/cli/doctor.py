"""`doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import typer

from marlin_bench.cli import options


def doctor(as_json: options.AsJson = False, results: options.Results = None) -> None:
    """Look at GPU, driver, CuPy, NVRTC, clock rights, ECC, other processes and disk; exit 6 when something fails.

    Example: marlin-bench doctor
    """
    from marlin_bench.doctor import examine
    from marlin_bench.exit_codes import ExitCode
    from marlin_bench.store import results_folder
    from marlin_bench.table import Column, Line, Table, print_table

    found = examine(results_folder(results))
    if as_json:
        sys.stdout.write("[" + ",\n".join(json.dumps(asdict(finding)) for finding in found) + "]\n")
    else:
        styles = {"ok": "", "warn": "yellow", "fail": "red"}
        lines = [Line((f.state, f.name, f.found, f.remedy or ""), styles[f.state]) for f in found]
        columns = (Column("state"), Column("what"), Column("found", wrap=True), Column("what to do", wrap=True))
        print_table(Table(columns, lines), sys.stdout)
    if any(finding.state == "fail" for finding in found):
        raise typer.Exit(ExitCode.ENVIRONMENT)
