"""Cells over runs: time with its interval, and the commits at which it changed for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from marlin_bench.plots.canvas import settle, shared_legend, small_multiples, themed
from marlin_bench.plots.theme import MUTED, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from marlin_bench.history import Series


def draw(found: Sequence[Series]) -> Figure:
    """A panel a cell, a line a backend; PlotError when there are none or too many."""
    cells = list(dict.fromkeys(series.cell for series in found))
    chosen = looks(series.backend for series in found)
    with themed():
        figure, panels = small_multiples(len(cells), "Time over runs", x_label="run, oldest first", y_label="µs")
        for cell, panel in zip(cells, panels, strict=True):
            panel.set_title(cell)
            for series in found:
                if series.cell == cell:
                    _line(panel, series, chosen[series.backend].colour, chosen[series.backend].marker)
        shared_legend(figure, panels)
        settle(figure)
    return figure


def _line(panel: Axes, series: Series, colour: str, marker: str) -> None:
    values = [point.time.value * 1e6 for point in series.points]
    # few blocks have no interval: no bar rather than one to the edge of the figure
    bars = [
        [max(0.0, min(point.time.value - point.time.low, point.time.value)) * 1e6 for point in series.points],
        [max(0.0, min(point.time.high - point.time.value, point.time.value)) * 1e6 for point in series.points],
    ]
    panel.errorbar(
        range(len(values)), values, yerr=bars, color=colour, marker=marker, markersize=4, label=series.backend
    )
    for index in series.changes:
        panel.axvline(index - 0.5, color=MUTED, linestyle=":", linewidth=1)
        label = f"{series.points[index].commit} {100 * (series.step(index) - 1):+.1f}%"
        panel.annotate(
            label, (index - 0.5, values[index]), rotation=90, fontsize=7, color=MUTED, va="bottom", ha="right"
        )
