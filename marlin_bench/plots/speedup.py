"""Speed-up over the 16-bit baseline against batch size, under the ideal line, with the crossover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from marlin_bench.panels import Series, SpeedupPanel
from marlin_bench.plots.canvas import list_crossovers, name_panel, settle, shared_legend, small_multiples, themed
from marlin_bench.plots.roofline import ring_flagged
from marlin_bench.plots.theme import FAINT, FONT_SIZE, INK, MUTED, Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IDEAL_STYLES = ("--", "-.", ":")
_SMALL = FONT_SIZE - 2
_SAME_IDEAL = 0.03
_LINE_HEIGHT = 0.06  # of a line of small text, of what the curves take


def draw(panels: Sequence[SpeedupPanel], title: str) -> Figure:
    """A figure with speed-up curves for every panel; PlotError when there is none."""
    with themed():
        baselines = {panel.baseline for panel in panels}
        over = baselines.pop() if len(baselines) == 1 else "the baseline"  # whose line bears its name in each panel
        figure, axes = small_multiples(len(panels), title, x_label="batch size M", y_label=f"speed-up over {over}")
        # marked everywhere where it differs from some panel's baseline: a backend stands in the legend once
        dtypes = {line.backend: line.other_dtype for panel in panels for line in panel.series if line.other_dtype}
        styles = looks(series.backend for panel in panels for series in panel.series)
        formats = list(dict.fromkeys(ideal.format for panel in panels for ideal in panel.ideals))
        lines = 0  # of crossovers, which stand above the highest curve
        for ax, panel in zip(axes, panels, strict=True):
            _frame(ax, panel)
            named: list[float] = []  # ideals that nearly coincide (with zero points and without) are named once
            for ideal in panel.ideals:
                style = _IDEAL_STYLES[formats.index(ideal.format) % len(_IDEAL_STYLES)]
                xs, ys = zip(*ideal.points, strict=True)
                ax.plot(xs, ys, color=INK, linestyle=style, linewidth=1.1, label=f"ideal {ideal.format}")
                if all(abs(ys[0] - other) > _SAME_IDEAL * other for other in named):
                    _value_at_start(ax, xs[0], ys[0])
                    named.append(ys[0])
            for series in panel.series:
                _curve(ax, series, styles[series.backend], dtypes.get(series.backend, ""))
            lines = max(lines, _crossovers(ax, panel.crossovers, styles, len(panels)))
            name_panel(ax, panel.title, narrow=len(panels) > 4)
        highest = max(
            [point.y for panel in panels for series in panel.series for point in series.points]
            + [y for panel in panels for ideal in panel.ideals for _, y in ideal.points]
        )
        axes[0].set_ylim(0, (1.08 + _LINE_HEIGHT * lines) * highest)
        shared_legend(figure, axes)
        settle(figure)
        return figure


def _value_at_start(ax: Axes, x: float, y: float) -> None:
    """What an ideal line begins at, over its left end."""
    ax.annotate(f"{y:.2f}x", (x, y), xytext=(0, 3), textcoords="offset points", fontsize=_SMALL, color=MUTED)


def _frame(ax: Axes, panel: SpeedupPanel) -> None:
    batches = sorted({point.M for series in panel.series for point in series.points})
    ax.set_xscale("log", base=2)
    ax.set_xticks([4**power for power in range(12) if batches[0] <= 4**power <= batches[-1]] or batches)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.grid(axis="y", color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.axhline(1, color=MUTED, linewidth=1)
    ax.annotate(
        panel.baseline,
        (batches[0], 1),
        xytext=(0, -2),
        textcoords="offset points",
        fontsize=_SMALL,
        color=MUTED,
        va="top",
    )


def _curve(ax: Axes, series: Series, look: Look, dtype: str) -> None:
    xs = [point.x for point in series.points]
    ys = [point.y for point in series.points]
    marks = [dtype, "published"] if series.published else [dtype]
    label = f"{series.backend} ({', '.join(filter(None, marks))})" if any(marks) else series.backend
    ax.plot(
        xs,
        ys,
        color=look.colour,
        marker=look.marker,
        markersize=4.5,
        markeredgewidth=0.6,
        label=label,
        zorder=3,
        markeredgecolor=look.colour if series.published else "white",
        markerfacecolor="white" if series.published else look.colour,
    )
    bounded = [(p.x, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
    if bounded:
        ax.fill_between(
            [x for x, _, _ in bounded],
            [low for _, low, _ in bounded],
            [high for _, _, high in bounded],
            color=look.colour,
            alpha=0.2,
            linewidth=0,
        )
    ring_flagged(ax, [(point.x, point.y) for point in series.points if point.flagged])


def _crossovers(ax: Axes, found: Sequence[tuple[str, float]], styles: dict[str, Look], panels: int) -> int:
    """Where the curves fall through 1, marked on the baseline's line; the number of lines that name them."""
    for backend, batch in found:
        ax.plot([batch], [1], marker="|", color=styles[backend].colour, markersize=11, markeredgewidth=1.6, zorder=4)
    return list_crossovers(ax, found, styles, upper=True, panels=panels)
