"""`tune`: search marlin_hopper's configurations for a layer on this GPU, and keep the winners as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marlin_bench.cli import options


def tune(
    K: Annotated[int, typer.Option("-K", min=64, help="Input features.")],
    N: Annotated[int, typer.Option("-N", min=64, help="Output features.")],
    M: Annotated[str, typer.Option("-M", metavar="M,M…", help="Batch rows, such as 1,16,64.")] = "1,16,32,64,128,256",
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="Merge the winners into this table (JSON).")
    ] = None,
) -> None:
    """Check and time every sensible configuration of marlin_hopper for a layer; needs a Hopper GPU.

    Example: marlin-bench tune -K 8192 -N 8192 -M 1,16,64 --table my_h100.json
    """
    from marlin_bench.device import DeviceError
    from marlin_bench.units import format_time

    try:
        sizes = sorted({int(part) for part in M.split(",")})
    except ValueError as error:
        raise options.OptionError(f"-M '{M}' is not a list of numbers: give 1,16,64") from error
    if sizes[0] < 1:
        raise options.OptionError(f"-M {sizes[0]} is below 1")
    if K % 128 or N % 64:
        raise options.OptionError(f"K {K} N {N}: K must be a multiple of 128 and N of 64")
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        raise DeviceError(
            "tune searches configurations of marlin_hopper and needs a Hopper GPU (compute capability 9.0)"
        )
    from marlin_bench.tune import tune_layer, write_table

    winners = {}
    for batch, timed, rejected in tune_layer(N, K, sizes):
        if not timed:
            typer.echo(f"M={batch}: none of {len(rejected)} configurations was right", err=True)
            continue
        winners[batch] = timed[0].plan
        typer.echo(f"M={batch}  {format_time(timed[0].seconds)}  {timed[0].plan.name}")
        typer.echo(f"  of {len(timed)} right and {len(rejected)} rejected configurations", err=True)
    if table is not None:
        write_table(table, torch.cuda.get_device_name(), {(N, K): winners})
        typer.echo(f"wrote {table}", err=True)
