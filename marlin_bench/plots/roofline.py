"""The roofline: what each product reached against what the machine allows, FP16 and 4-bit twins joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from marlin_bench.panels import Mark, Point, RooflinePanel, Series
from marlin_bench.plots.canvas import (
    ABOVE,
    CROSSOVER,
    DOUBTFUL,
    IMPOSSIBLE,
    PROFILED,
    list_crossovers,
    name_panel,
    settle,
    shared_legend,
    small_multiples,
    themed,
)
from marlin_bench.plots.roofs import Limits, SlopeLabel, draw_roofs, lay_along
from marlin_bench.plots.theme import FAINT, FONT_SIZE, INK, Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TERA = 1e12
_SMALL = FONT_SIZE - 2
_ONE_LABEL = 1.15  # roofs closer than this share a line of text


def draw(panels: Sequence[RooflinePanel], title: str) -> Figure:
    """A figure with a roofline for every panel; PlotError when there is none."""
    with themed():
        figure, axes = small_multiples(len(panels), title, x_label="FLOP per compulsory byte", y_label="TFLOP/s")
        detailed = len(panels) == 1
        slopes: list[SlopeLabel] = []
        limits = _limits(panels)
        styles = looks(_backends(panels))
        _frame(axes, limits, detailed=detailed)
        for ax, panel in zip(axes, panels, strict=True):
            slopes += draw_roofs(ax, panel, limits, detailed=detailed)
            _twins(ax, panel, styles)
            for series in panel.series:
                _points(ax, series, styles[series.backend])
            _error_bars(ax, panel, styles)
            _crossovers(ax, panel.crossovers, styles, len(panels))
            _impossible(ax, panel.impossible, styles)
            _profiled(ax, panel.profiled, styles)
            _label_batches(ax, panel, styles, apart=1.7 if detailed else 3.5)
            name_panel(ax, panel.title, narrow=len(panels) > 4)
        shared_legend(figure, axes)
        settle(figure)
        lay_along(slopes)
        return figure


def _backends(panels: Sequence[RooflinePanel]) -> list[str]:
    drawn = [series.backend for panel in panels for series in panel.series]
    return drawn + [mark.backend for panel in panels for mark in panel.impossible]


def _limits(panels: Sequence[RooflinePanel]) -> Limits:
    """Axis limits with room around every point and every roof."""
    xs = [point.x for panel in panels for series in panel.series for point in series.points]
    ys = [point.y / _TERA for panel in panels for series in panel.series for point in series.points]
    xs += [panel.knee for panel in panels if panel.knee is not None]
    ys += [roof.highest / _TERA for panel in panels for roof in panel.compute]
    return (min(xs) / 1.6, max(xs) * 2.2), (min(ys) / 2, max(ys) * 2.2)


def _frame(axes: Sequence[Axes], limits: Limits, *, detailed: bool) -> None:
    """Scales, limits and grids; what the panels share is set once, as setting it on each sets it on all every time."""
    first = axes[0]
    first.set_xscale("log")
    first.set_yscale("log")
    first.set_xlim(limits[0])
    first.set_ylim(limits[1])
    first.set_xticks(_decades(*limits[0]))
    first.set_yticks(_decades(*limits[1]))
    first.xaxis.set_major_formatter("{x:g}")
    first.yaxis.set_major_formatter("{x:g}")
    if not detailed:
        first.minorticks_off()  # two thirds of the time a page of panels takes, for marks that nobody can tell apart
    for ax in axes:
        _grid(ax, limits)
        for axis in (ax.xaxis, ax.yaxis):  # the marks of an inner panel say nothing, and cost more than its points
            axis.set_visible(axis.get_tick_params()["labelbottom" if axis is ax.xaxis else "labelleft"])


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def _grid(ax: Axes, limits: Limits) -> None:
    """A line at every decade, all of them one artist."""
    from matplotlib.collections import LineCollection

    (left, right), (bottom, top) = limits
    lines = [[(x, bottom), (x, top)] for x in _decades(left, right)]
    lines += [[(left, y), (right, y)] for y in _decades(bottom, top)]
    ax.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.5, zorder=0.5), autolim=False)


def _twins(ax: Axes, panel: RooflinePanel, styles: dict[str, Look]) -> None:
    from matplotlib.collections import LineCollection

    lines = [[(x, y / _TERA) for x, y in (baseline, point)] for _, baseline, point in panel.twins]
    colours = [styles[backend].colour for backend, _, _ in panel.twins]
    ax.add_collection(LineCollection(lines, colors=colours, linewidths=0.7, alpha=0.45, zorder=1), autolim=False)


def _points(ax: Axes, series: Series, look: Look) -> None:
    label = f"{series.backend} (published)" if series.published else series.backend
    ax.plot(
        [point.x for point in series.points],
        [point.y / _TERA for point in series.points],
        look.marker,
        color=look.colour,
        markersize=5,
        markeredgecolor="white" if not series.published else look.colour,
        markerfacecolor="white" if series.published else look.colour,
        markeredgewidth=0.6,
        label=label,
        zorder=3,
    )
    fade_doubtful(ax, [(point.x, point.y / _TERA) for point in series.points if point.doubtful], look)
    ring_flagged(ax, [(point.x, point.y / _TERA) for point in series.points if point.flagged])


def _error_bars(ax: Axes, panel: RooflinePanel, styles: dict[str, Look]) -> None:
    """The intervals of all points of a panel, as one collection."""
    from matplotlib.collections import LineCollection

    bounded = [
        (series.backend, point.x, point.low, point.high)
        for series in panel.series
        for point in series.points
        if point.low is not None and point.high is not None
    ]
    lines = [[(x, low / _TERA), (x, high / _TERA)] for _, x, low, high in bounded]
    colours = [styles[backend].colour for backend, *_ in bounded]
    ax.add_collection(LineCollection(lines, colors=colours, linewidths=0.9, zorder=3), autolim=False)


def fade_doubtful(ax: Axes, places: Sequence[tuple[float, float]], look: Look) -> None:
    """A white veil over points that did not converge, were throttled or read warm operands."""
    if places:
        xs, ys = zip(*places, strict=True)
        ax.plot(
            xs,
            ys,
            look.marker,
            color="white",
            markeredgecolor=look.colour,
            markersize=5,
            alpha=0.6,
            markeredgewidth=0.6,
            label=DOUBTFUL,
            zorder=3.5,
        )


def _crossovers(ax: Axes, marks: Sequence[Mark], styles: dict[str, Look], panels: int) -> None:
    """A bar across the curve where the 16-bit baseline overtakes it."""
    first = marks[0] if marks else None
    for mark in marks:
        ax.plot(
            [mark.x],
            [mark.y / _TERA],
            marker="|",
            linestyle="none",
            color=styles[mark.backend].colour,
            markersize=12,
            markeredgewidth=1.6,
            zorder=4,
            label=CROSSOVER if mark is first else None,
        )
    if panels == 1:  # the other corner holds the knee
        list_crossovers(ax, [(mark.backend, mark.M) for mark in marks], styles, upper=False, panels=panels)


def _impossible(ax: Axes, marks: Sequence[Mark], styles: dict[str, Look]) -> None:
    for mark in marks:
        colour = styles[mark.backend].colour
        ax.plot(
            [mark.x], [mark.y / _TERA], "x", color=colour, markersize=9, markeredgewidth=2, label=IMPOSSIBLE, zorder=5
        )


def _profiled(ax: Axes, marks: Sequence[Mark], styles: dict[str, Look]) -> None:
    """The same product over the bytes that a profiler saw cross the memory bus, not over those that must."""
    for mark in marks:
        look = styles[mark.backend]
        ax.plot(
            [mark.x], [mark.y / _TERA], look.marker, color=look.colour, markerfacecolor="none", markersize=8, zorder=4,
            label=PROFILED,
        )  # fmt: skip


def ring_flagged(ax: Axes, places: Sequence[tuple[float, float]]) -> None:
    """A ring around points above a measured roof or above ideal: a reader should ask why."""
    if places:
        ax.scatter(
            [x for x, _ in places],
            [y for _, y in places],
            s=90,
            facecolors="none",
            edgecolors=INK,
            linewidths=0.9,
            label=ABOVE,
            zorder=4,
        )


def _label_batches(ax: Axes, panel: RooflinePanel, styles: dict[str, Look], apart: float) -> None:
    """M below the lowest 4-bit point of each batch, where no roof and no line to a twin passes.

    The joined baseline has the same M; where there is no other backend the baseline's own points are labelled.
    """
    series = [one for one in panel.series if not one.is_baseline] or list(panel.series)
    lowest: dict[int, tuple[Point, str]] = {}
    for one in series:
        for point in one.points:
            if point.M not in lowest or point.y < lowest[point.M][0].y:
                lowest[point.M] = (point, styles[one.backend].colour)
    batches = sorted(lowest)
    kept: list[int] = []
    for batch in batches:
        if not kept or lowest[batch][0].x >= apart * lowest[kept[-1]][0].x:
            kept.append(batch)
    for batch in kept:
        point, colour = lowest[batch]
        ax.annotate(
            f"M={batch}" if batch == batches[0] else str(batch),
            (point.x, point.y / _TERA),
            xytext=(3, -4),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=_SMALL,
            color=colour,
        )
