"""`ceilings`: measure the machine's roofs and print them beside the datasheet."""

from __future__ import annotations

import sys

import typer

from marlin_bench.cli import options


def ceilings(device: options.Device = None, as_json: options.AsJson = False) -> None:
    """Measure the machine's roofs: memory, L2, tensor cores, launch floor; beside them the vendor's datasheet.

    Example: marlin-bench ceilings --device 0
    """
    from marlin_bench.ceiling_table import ceiling_table, measured_here
    from marlin_bench.table import print_table

    environment, found = measured_here(device)
    typer.echo(f"{environment.device_name}, each the best of several shapes and kernels", err=True)
    if as_json:
        sys.stdout.write("[" + ",\n".join(ceiling.model_dump_json() for ceiling in found) + "]\n")
        return
    print_table(ceiling_table(environment.device_name, found), sys.stdout)
