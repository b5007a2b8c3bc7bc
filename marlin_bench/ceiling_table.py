"""A machine's measured roofs beside what its vendor promises."""

from __future__ import annotations

from collections.abc import Sequence

from marlin_bench.datasheet import find_datasheet
from marlin_bench.record import Ceiling, Environment
from marlin_bench.table import Column, Line, Table
from marlin_bench.units import (
    NOTHING,
    format_bandwidth,
    format_clock,
    format_flops,
    format_percent,
    format_time,
)

_BANDWIDTHS = {"hbm_read", "hbm_copy", "l2_read", "ram_triad"}


def measured_here(device: str | None) -> tuple[Environment, list[Ceiling]]:
    """Open a device in a worker of its own and measure its roofs; DeviceError when it cannot be had."""
    from marlin_bench.device import DeviceError, device_names
    from marlin_bench.executor import LocalExecutor, WorkerLostError

    name = device_names(device, _default_kind())[0]
    try:
        session = LocalExecutor().open(name)
    except WorkerLostError as lost:
        raise DeviceError(f"{name} cannot be opened here: {lost.reason}") from lost
    try:
        return session.ready.environment, session.ceilings()
    except WorkerLostError as lost:
        raise DeviceError(f"the ceilings of {name} could not be measured: {lost.reason}") from lost
    finally:
        session.close()


def _default_kind() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def format_ceiling(ceiling: Ceiling) -> str:
    """The value in the unit of its kind."""
    if ceiling.name == "launch":
        return format_time(ceiling.value)
    return format_bandwidth(ceiling.value) if ceiling.name in _BANDWIDTHS else format_flops(ceiling.value)


def ceiling_table(device_name: str, ceilings: Sequence[Ceiling]) -> Table:
    """One line a ceiling; the datasheet's column is empty where there is none."""
    sheet = find_datasheet(device_name)
    promised = {} if sheet is None else {ceiling.name: ceiling for ceiling in sheet.ceilings()}
    lines = []
    for ceiling in ceilings:
        promise = promised.get(ceiling.name)
        share = None if promise is None else ceiling.value / promise.value
        lines.append(
            Line(
                (
                    ceiling.name,
                    format_ceiling(ceiling),
                    format_clock(ceiling.sm_clock_hz),
                    NOTHING if promise is None else format_ceiling(promise),
                    NOTHING if promise is None else format_clock(promise.sm_clock_hz),
                    format_percent(share),
                    ceiling.detail,
                )
            )
        )
    columns = (
        Column("ceiling"),
        Column("measured", right=True),
        Column("at", right=True, rank=1),
        Column("datasheet", right=True),
        Column("its clock", right=True, rank=3),
        Column("share", right=True),
        Column("won by", rank=2, elastic=True),
    )
    return Table(columns, lines)
