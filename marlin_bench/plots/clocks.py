"""What the clocks did while the run lasted: clock, power, temperature and events over time, cells marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from marlin_bench.clock_timeline import CellSpan, ClockTimeline, Event, Line, timeline
from marlin_bench.plots.canvas import PlotError, settle, themed
from marlin_bench.plots.theme import BAND, FONT_SIZE, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from marlin_bench.store import Run

_WIDTH_INCHES = 8.3
_PANEL_INCHES = 1.7
_EVENT_INCHES = 0.22
_BLUE, _ORANGE, _RED = "#0072b2", "#e69f00", "#d55e00"
_MOST_LABELS = 16
_MEGA = 1e6


def draw(run: Run) -> Figure:
    """A figure of the run's clocks; PlotError when no block carries any."""
    found = timeline(run.records)
    has_power = bool(found.power) or any(cell.power_w is not None for cell in found.cells)
    panels = ([_power] if has_power else []) + ([_temperature] if found.temperature else [])
    if not found.probe and not found.nvml:
        raise PlotError(f"{run.folder.name} has no clocks to draw: they are recorded on GPUs only")
    with themed():
        figure, axes = _layout(run, len(panels), len(found.events))
        _clocks(axes[0], found, run.meta.environment.max_sm_clock_hz)
        for ax, panel in zip(axes[1:], panels, strict=False):
            panel(ax, found)
            ax.set_ylim(bottom=0)
        if found.events:
            _events(axes[-1], found.events)
        for ax in axes:
            _shade(ax, found.cells)
        _name_cells(axes[0], found.cells)
        axes[-1].set_xlabel("seconds since the start of the run")
        settle(figure)
        return figure


def _layout(run: Run, panels: int, events: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    heights = [1.3 * _PANEL_INCHES, *[_PANEL_INCHES] * panels]
    if events:
        heights.append(0.3 + _EVENT_INCHES * events)
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 1.3), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    title = f"{run.meta.environment.device_name}, {run.meta.suite}, clocks {run.meta.clock_policy}"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure, list(axes[:, 0])


def _dots(ax: Axes, line: Line, colour: str, label: str | None = None, marker: str = ".") -> None:
    ax.plot(*zip(*line, strict=True), marker, color=colour, markersize=3, markeredgewidth=0.6, label=label, zorder=3)


def _clocks(ax: Axes, found: ClockTimeline, highest: float | None) -> None:
    if found.nvml:
        _dots(ax, [(moment, hertz / _MEGA) for moment, hertz in found.nvml], MUTED, "NVML", "_")
    if found.probe:
        _dots(ax, [(moment, hertz / _MEGA) for moment, hertz in found.probe], _BLUE, "probe, over each block")
    if highest is not None:
        ax.axhline(highest / _MEGA, color=INK, linewidth=0.8, linestyle=":", label="highest SM clock")
    ax.set_ylabel("SM clock (MHz)")
    ax.set_ylim(bottom=0)
    ax.legend(loc="lower left", ncols=3, fontsize=FONT_SIZE - 1)


def _power(ax: Axes, found: ClockTimeline) -> None:
    """Blocks that were long enough to have one, and the mean of each cell."""
    if found.power:
        _dots(ax, found.power, _ORANGE)
    for cell in found.cells:
        if cell.power_w is not None:
            ax.hlines(cell.power_w, cell.start_s, cell.end_s, color=_ORANGE, linewidth=1.5, zorder=2)
    ax.set_ylabel("power (W)")


def _temperature(ax: Axes, found: ClockTimeline) -> None:
    _dots(ax, found.temperature, _RED)
    ax.set_ylabel("temperature (°C)")


def _events(ax: Axes, events: Sequence[Event]) -> None:
    for row, event in enumerate(reversed(events)):
        colour = _RED if event.slowed else _ORANGE
        ax.plot(event.times, [row] * len(event.times), "|", color=colour, markersize=7, zorder=3)
    ax.set_yticks(range(len(events)), [event.reason for event in reversed(events)])
    ax.set_ylim(-0.6, len(events) - 0.4)


def _shade(ax: Axes, cells: Sequence[CellSpan]) -> None:
    """Every other cell on a grey band."""
    for cell in cells[::2]:
        ax.axvspan(cell.start_s, cell.end_s, color=BAND, linewidth=0, zorder=0)


def _name_cells(ax: Axes, cells: Sequence[CellSpan]) -> None:
    """Names above the bands; where there are too many to read those of the layers, each where it begins."""
    named: dict[str, CellSpan] = {}
    for cell in cells:
        named.setdefault(cell.cell.partition("/")[0] if len(cells) > _MOST_LABELS else cell.cell, cell)
    step = -(-len(named) // _MOST_LABELS) or 1
    for name, cell in list(named.items())[::step]:
        ax.annotate(
            name,
            ((cell.start_s + cell.end_s) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=40,
            ha="left",
            va="bottom",
            fontsize=FONT_SIZE - 2.5,
            color=MUTED,
        )
