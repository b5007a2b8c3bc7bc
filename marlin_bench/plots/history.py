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

_MOST_NAMES = 12
_SHORT = 10  # letters of a commit


def draw(found: Sequence[Series]) -> Figure:
    """A panel a cell, a line a backend; PlotError when there are none or too many."""
    cells = list(dict.fromkeys(series.cell for series in found))
    chosen = looks(series.backend for series in found)
    with themed():
        figure, panels = small_multiples(len(cells), "Time over runs", x_label="run, oldest first", y_label="µs")
        for cell, panel in zip(cells, panels, strict=True):
            panel.set_title(cell)
            shown = [series for series in found if series.cell == cell]
            places = _places(shown)
            for series in shown:
                _line(panel, series, places, chosen[series.backend].colour, chosen[series.backend].marker)
            _name_runs(panel, shown, places)
        shared_legend(figure, panels)
        settle(figure)
    return figure


def _places(shown: Sequence[Series]) -> dict[str, int]:
    """Where each run stands, the oldest first: one place for all lines of a panel."""
    runs = {point.run: point.started for series in shown for point in series.points}
    return {run: place for place, run in enumerate(sorted(runs, key=lambda run: (runs[run], run)))}


def _name_runs(panel: Axes, shown: Sequence[Series], places: dict[str, int]) -> None:
    """Commits under the runs, every so many where there are many."""
    commits = {point.run: point.commit for series in shown for point in series.points}
    step = -(-len(places) // _MOST_NAMES)
    named = list(places)[::step]
    panel.set_xticks([places[run] for run in named], [commits[run][:_SHORT] for run in named], rotation=30, ha="right")


def _line(panel: Axes, series: Series, places: dict[str, int], colour: str, marker: str) -> None:
    at = [places[point.run] for point in series.points]
    values = [point.time.value * 1e6 for point in series.points]
    # few blocks have no interval: no bar rather than one to the edge of the figure
    bars = [
        [max(0.0, min(point.time.value - point.time.low, point.time.value)) * 1e6 for point in series.points],
        [max(0.0, min(point.time.high - point.time.value, point.time.value)) * 1e6 for point in series.points],
    ]
    panel.errorbar(at, values, yerr=bars, color=colour, marker=marker, markersize=4, label=series.backend)
    for index in series.changes:
        between = (at[index - 1] + at[index]) / 2
        panel.axvline(between, color=MUTED, linestyle=":", linewidth=1)
        label = f"{series.points[index].commit[:_SHORT]} {100 * (series.step(index) - 1):+.1f}%"
        panel.annotate(
            label,
            (between, 0.98),
            xycoords=panel.get_xaxis_transform(),
            rotation=90,
            fontsize=7,
            color=colour,
            va="top",
            ha="right",
        )
