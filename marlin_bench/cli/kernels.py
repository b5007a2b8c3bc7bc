"""`kernels`: what every kernel build takes, as reviewed, or compiled now."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def kernels(
    build: Annotated[
        bool, typer.Option("--build", help="Compile every build now (no GPU needed) and compare with the table.")
    ] = False,
) -> None:
    """Registers and shared memory of every kernel build, for each architecture; a build that spills is never listed.

    Example: marlin-bench kernels --build
    """
    from marlin_bench.kernel_catalog import check_builds, resource_table
    from marlin_bench.table import Column, Line, Table, print_table

    if build:
        for key in check_builds():
            typer.echo(f"built {key}", err=True)
    columns = [Column("build"), Column("registers", right=True), Column("shared memory KiB", right=True)]
    lines = [Line((key, str(registers), f"{shared / 1024:.1f}")) for key, registers, shared in resource_table()]
    print_table(Table(columns, lines), sys.stdout)
