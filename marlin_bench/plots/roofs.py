"""What bounds a roofline: memory slopes, tensor roofs with their bands, the launch floor, the knee."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marlin_bench.knee import told_together
from marlin_bench.panels import ComputeRoof, LaunchFloor, RooflinePanel
from marlin_bench.plots.theme import BAND, FONT_SIZE, INK, MUTED
from marlin_bench.units import format_bandwidth, format_clock, format_flops, format_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_TERA = 1e12
_SMALL = FONT_SIZE - 2
_ONE_LABEL = 1.15  # roofs closer than this share a line of text

Limits = tuple[tuple[float, float], tuple[float, float]]
"""((x0, x1), (y0, y1)) of the axes, y in TFLOP/s."""


@dataclass(frozen=True)
class SlopeLabel:
    """A text at intensity `x` on the roof of `rate` bytes/s."""

    ax: Axes
    text: Text
    x: float
    rate: float


def draw_roofs(ax: Axes, panel: RooflinePanel, limits: Limits, *, detailed: bool) -> list[SlopeLabel]:
    """Everything that bounds a panel; the labels of the slopes are yet to be laid along them."""
    if panel.memory is None:
        return []
    top = max((roof.rate for roof in panel.compute), default=None)
    memory = f"{panel.memory_name} {format_bandwidth(panel.memory)}"
    labels = [_slope(ax, panel.memory, top, limits, "-", memory, detailed=detailed)]
    if panel.l2 is not None:
        l2 = f"L2 {format_bandwidth(panel.l2)}"
        labels.append(_slope(ax, panel.l2, top, limits, ":", l2, detailed=detailed))
    if panel.launch is not None:
        _launch(ax, panel.launch, limits, detailed=detailed)
    for roof in panel.compute:
        _compute_roof(ax, roof, panel.memory, limits)
    _compute_labels(ax, panel.compute, limits, detailed=detailed)
    if panel.knee is not None:
        ax.axvline(panel.knee, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        ax.annotate(
            "\n".join([f"knee {panel.knee:.0f} FLOP/B", *told_together(panel.knees)]),
            (panel.knee, limits[1][0]),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize=_SMALL,
            color=MUTED,
        )
    return [label for label in labels if label is not None]


def _launch(ax: Axes, floor: LaunchFloor, limits: Limits, *, detailed: bool) -> None:
    """What an empty launch leaves; nothing where it lies above the page."""
    inside = [(x, y / _TERA) for x, y in floor.points if y / _TERA < limits[1][1]]
    if not inside:
        return
    xs, ys = zip(*floor.points, strict=True)
    text = f"launch {format_time(floor.seconds)}"
    ax.plot(
        xs,
        [y / _TERA for y in ys],
        color=MUTED,
        linewidth=1,
        linestyle="-.",
        zorder=1,
        label=None if detailed else text,
    )
    if detailed:
        ax.annotate(
            text, inside[0], xytext=(-3, 0), textcoords="offset points", ha="right", fontsize=_SMALL, color=MUTED
        )


def _compute_roof(ax: Axes, roof: ComputeRoof, memory: float, limits: Limits) -> None:
    """The roof at the clock held, and as a band where it stood at the other clocks of the panel."""
    start, right = roof.rate / memory, limits[0][1]
    ax.plot([start, right], [roof.rate / _TERA] * 2, color=INK, linewidth=1.3)
    if roof.highest > roof.lowest:
        ax.fill_between([start, right], roof.lowest / _TERA, roof.highest / _TERA, color=BAND, linewidth=0, zorder=0)


def _compute_labels(ax: Axes, roofs: Sequence[ComputeRoof], limits: Limits, *, detailed: bool) -> None:
    """A label over each roof; roofs that nearly touch share one over the highest of them."""
    stacks: list[list[ComputeRoof]] = []
    for roof in sorted(roofs, key=lambda roof: roof.rate):
        if stacks and roof.rate < _ONE_LABEL * stacks[-1][0].rate:
            stacks[-1].append(roof)
        else:
            stacks.append([roof])
    for stack in stacks:
        highest = stack[-1]
        clock = f" at {format_clock(highest.sm_clock_hz)}" if detailed and highest.sm_clock_hz is not None else ""
        names = ", ".join(f"{roof.name} {format_flops(roof.rate).split()[0]}" for roof in stack[:-1])
        ax.annotate(
            f"{names}{', ' if names else ''}{highest.name} {format_flops(highest.rate)}{clock}",
            (limits[0][1], highest.highest / _TERA),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=_SMALL,
            color=INK,
        )


def _slope(
    ax: Axes, rate: float, top: float | None, limits: Limits, style: str, label: str, *, detailed: bool
) -> SlopeLabel | None:
    """A memory roof from the left edge to where it meets the highest compute roof.

    Its label lies along it; where panels are small it goes into the legend.
    """
    (left, right), (bottom, upper) = limits
    end = right if top is None else min(right, top / rate)
    xs, ys = [left, end], [left * rate / _TERA, end * rate / _TERA]
    ax.plot(xs, ys, color=INK, linewidth=1.3, linestyle=style, label=None if detailed else label)
    place = max(left, bottom * _TERA / rate) * 2.2  # right of the first point that most runs have, M=1
    if not detailed or place * rate / _TERA >= upper:
        return None
    text = ax.annotate(
        label,
        (place, place * rate / _TERA),
        xytext=(-3, 4),  # over its slope: the points lie on it or under it
        textcoords="offset points",
        rotation_mode="anchor",
        fontsize=_SMALL,
        color=INK,
    )
    return SlopeLabel(ax, text, place, rate)


def lay_along(labels: Sequence[SlopeLabel]) -> None:
    """Turn labels into the direction of their roofs, which is known only once the panels have their size."""
    for label in labels:
        start, end = label.ax.transData.transform([(x, x * label.rate / _TERA) for x in (label.x, 2 * label.x)])
        label.text.set_rotation(math.degrees(math.atan2(end[1] - start[1], end[0] - start[0])))
