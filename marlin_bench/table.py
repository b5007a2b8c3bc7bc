"""Tables for people: rich on a terminal, aligned plain lines anywhere else.

A narrow terminal loses the least important columns, never digits: what is left out is named below the table. Colour
only repeats what a word already says, and NO_COLOR is obeyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

_GAP = 2
_ELIDED = 24


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; numbers stand to the right.

    The higher `rank`, the sooner a narrow terminal drops it; 0 never. An `elastic` one is cut short before others go,
    a `wrap` one flows over several lines.
    """

    title: str
    right: bool = False
    rank: int = 0
    elastic: bool = False
    wrap: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One row of cells, with a rich style for terminals that have colour."""

    cells: tuple[str, ...]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and the lines under them."""

    columns: Sequence[Column]
    lines: Sequence[Line] = field(default_factory=list)

    def fitting(self, width: int) -> tuple[Table, list[str]]:
        """The table within `width` characters as far as columns may go, and the titles of those that went."""
        kept = list(range(len(self.columns)))
        widths = [self.least_width(index) for index in kept]
        dropped: list[str] = []
        while sum(widths[index] + _GAP for index in kept) > width:
            candidate = max(kept, key=lambda index: (self.columns[index].rank, index))
            if self.columns[candidate].rank == 0:
                break
            kept.remove(candidate)
            dropped.append(self.columns[candidate].title)
        columns = [self.columns[index] for index in kept]
        lines = [Line(tuple(line.cells[index] for index in kept), line.style) for line in self.lines]
        return Table(columns, lines), dropped

    def least_width(self, index: int) -> int:
        """Characters that column `index` needs: everything it holds, or a useful part where it may be cut or flow."""
        column = self.columns[index]
        return min(self._width(index), _ELIDED) if column.elastic or column.wrap else self._width(index)

    def _width(self, index: int) -> int:
        return max(len(self.columns[index].title), *(len(line.cells[index]) for line in self.lines), 0)

    def plain(self) -> str:
        """Aligned lines without colour or rules, every column, however wide: for files, pipes and logs."""
        widths = [self._width(index) for index in range(len(self.columns))]

        def text(cells: Sequence[str]) -> str:
            parts = (
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(cells, widths, self.columns, strict=True)
            )
            return (" " * _GAP).join(parts).rstrip()

        titles = [column.title for column in self.columns]
        return "".join(text(cells) + "\n" for cells in [titles, *(line.cells for line in self.lines)])


def print_table(table: Table, stream: TextIO) -> list[str]:
    """Write `table` to `stream`; gives the titles of the columns that a narrow terminal had no room for."""
    if not stream.isatty():
        stream.write(table.plain())
        return []
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    fitting, dropped = table.fitting(console.width)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_edge=False)
    for index, column in enumerate(fitting.columns):
        shown.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",
            min_width=fitting.least_width(index),
        )
    for line in fitting.lines:
        shown.add_row(*(Text(cell) for cell in line.cells), style=line.style or None)
    console.print(shown)
    return dropped
