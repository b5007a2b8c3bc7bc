"""`clocks`: look at the clocks, hold them by hand, give back what a dead run left locked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.findings import Finding

app = typer.Typer(
    help="Look at the GPU's clocks, hold them, or give back what a dead run left locked.\n\n"
    "Example: marlin-bench clocks status",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GPU", show_default="all of them", help="A GPU UUID, or its number in nvidia-smi."),
]


def _chosen(gpu: str | None) -> list[str]:
    """UUIDs of the GPUs meant; ClockError when there is none."""
    from marlin_bench.clocks import ClockError
    from marlin_bench.nvml import NvmlError, device_uuids

    try:
        uuids = device_uuids()
    except NvmlError as error:
        raise ClockError(f"no GPU to be seen ({error}): run this on a machine with an NVIDIA driver") from error
    if gpu is None and uuids:
        return uuids
    chosen = [uuid for index, uuid in enumerate(uuids) if gpu in {uuid, str(index)}]
    if not chosen:
        raise ClockError(f"there is no GPU '{gpu}': this machine has {', '.join(uuids) or 'none'}")
    return chosen


def _print(uuid: str, found: list[Finding]) -> None:
    from marlin_bench.table import Column, Line, Table, print_table

    typer.echo(uuid, err=True)
    styles = {"ok": "", "warn": "yellow", "fail": "red"}
    lines = [Line((one.state, one.name, one.found, one.remedy or ""), styles[one.state]) for one in found]
    columns = (Column("state"), Column("what"), Column("found", wrap=True), Column("what to do", wrap=True))
    print_table(Table(columns, lines), sys.stdout)


@app.command("status")
def status(gpu: Gpu = None, as_json: options.AsJson = False) -> None:
    """Tell clocks, rights and locks of each GPU.

    Example: marlin-bench clocks status --gpu 0
    """
    import json
    from dataclasses import asdict

    from marlin_bench.clock_findings import clock_findings

    found = {uuid: clock_findings(uuid) for uuid in _chosen(gpu)}
    if as_json:
        sys.stdout.write(json.dumps({uuid: [asdict(one) for one in each] for uuid, each in found.items()}) + "\n")
        return
    for uuid, each in found.items():
        _print(uuid, each)


@app.command("lock")
def lock(
    sm: Annotated[str, typer.Option("--sm", metavar="CLOCK", help="MHz, base or max.")] = "base",
    memory: Annotated[int | None, typer.Option("--memory", metavar="MHZ", help="Memory clock, if at all.")] = None,
    gpu: Gpu = None,
) -> None:
    """Lock the clocks of a GPU until Ctrl-C.

    They are given back however this process ends.

    Example: sudo marlin-bench clocks lock --sm base
    """
    import signal
    from typing import Literal, cast

    from marlin_bench.clocks import ClockError, ClockRequest, hold_clocks
    from marlin_bench.units import format_clock

    if sm not in {"base", "max"} and not sm.isdecimal():
        raise options.OptionError(f"--sm takes MHz, base or max: '{sm}' is none of them")
    chosen = _chosen(gpu)
    if len(chosen) > 1:
        raise ClockError(f"this machine has {len(chosen)} GPUs: say which one with --gpu")
    clock = int(sm) if sm.isdecimal() else cast(Literal["base", "max"], sm)
    with hold_clocks(ClockRequest("require", clock, memory), chosen[0], run="marlin-bench clocks lock") as state:
        if state.warning:
            typer.echo(state.warning, err=True)
        held = "the base clock" if state.sm_hz is None else format_clock(state.sm_hz)
        typer.echo(f"{chosen[0]}: SM clock locked at {held}; Ctrl-C gives it back", err=True)
        signal.pause()


@app.command("reset")
def reset(gpu: Gpu = None) -> None:
    """Give back what a run that was cut off left locked.

    Touches no lock of anybody else.

    Example: sudo marlin-bench clocks reset
    """
    from marlin_bench.clock_journal import HeldError, find_holder
    from marlin_bench.clocks import ClockError, describe, recover
    from marlin_bench.nvml import NvmlError

    for uuid in _chosen(gpu):
        holder = find_holder(uuid)
        if holder is None:
            typer.echo(f"{uuid}: this program left nothing locked")
            continue
        try:
            left = recover(uuid)
        except HeldError as error:
            raise ClockError(describe(holder, uuid)) from error
        except NvmlError as error:
            raise ClockError(f"the clocks of {uuid} cannot be given back ({error}): try again as root") from error
        if left is not None:
            did = "the journal is removed" if left.rebooted else "the clocks are given back"
            typer.echo(f"{uuid}: {left.journal} was cut off; {did}")
