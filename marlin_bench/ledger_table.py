"""Ledgers as a table."""

from __future__ import annotations

from collections.abc import Iterable

from marlin_bench.ledger import Profile, ledger
from marlin_bench.table import Column, Line, Table
from marlin_bench.units import NOTHING, format_bytes, format_percent

_COLUMNS = (
    Column("cell"),
    Column("backend"),
    Column("level"),
    Column("operand"),
    Column("counted", right=True),
    Column("measured", right=True),
    Column("excess", right=True),
    Column("tensor pipe", right=True, rank=2),
    Column("issue", right=True, rank=1),
)


def ledger_table(profiles: Iterable[Profile]) -> Table:
    """One line an entry; utilisation stands in the first line of each product."""
    lines = []
    for profile in profiles:
        for index, entry in enumerate(ledger(profile)):
            first = index == 0
            lines.append(
                Line(
                    (
                        profile.cell if first else "",
                        profile.backend if first else "",
                        entry.level,
                        entry.operand,
                        format_bytes(entry.counted),
                        NOTHING if entry.measured is None else format_bytes(entry.measured),
                        NOTHING if entry.excess is None else f"{entry.excess:.2f}x",
                        format_percent(profile.tensor_pipe) if first else "",
                        format_percent(profile.issue) if first else "",
                    )
                )
            )
    return Table(_COLUMNS, lines)
