"""Where each kernel leaves its ideal and where FP16 overtakes it, layer by layer, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from marlin_bench.knee import KNEE_EFFICIENCY, Knee
from marlin_bench.plots.canvas import PlotError, shared_legend, themed
from marlin_bench.plots.theme import FAINT, MUTED, Look, looks
from marlin_bench.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 120
_LINE_INCHES = 0.2
_BEYOND = "beyond the measured M (knee above, crossover below)"


def draw(found: Sequence[Knee], title: str) -> Figure:
    """One line a layer and backend; an arrow where the curve ends before the value; PlotError when there is none."""
    from matplotlib.figure import Figure as Canvas

    if not found:
        raise PlotError("there is nothing to draw: no backend has a share of the ideal at two M")
    if len(found) > MOST_LINES:
        raise PlotError(f"{len(found)} curves are more than a page shows ({MOST_LINES}): choose some with --layer")
    with themed():
        figure = Canvas(figsize=(8.3, 1.8 + _LINE_INCHES * len(found)), layout="constrained")
        ax = figure.subplots()
        styles = looks(knee.curve.backend for knee in found)
        for height, knee in enumerate(reversed(found)):
            look = styles[knee.curve.backend]
            _mark(ax, knee, knee.knee, height, look, filled=True)
            _mark(ax, knee, knee.crossover, height, look, filled=False)
            if knee.perfect is not None and math.isfinite(knee.perfect):
                ax.plot(
                    [knee.perfect],
                    [height],
                    "|",
                    color=MUTED,
                    markersize=9,
                    label="a kernel on the roofs leaves memory",
                )
        ax.set_yticks(range(len(found)), [f"{k.curve.layer}  {k.curve.backend}" for k in reversed(found)], fontsize=7.5)
        ax.set_ylim(-0.7, len(found) - 0.3)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(axis="both", color=FAINT, linewidth=0.5)
        ax.set_axisbelow(True)
        ax.set_xlabel("batch size M")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        shared_legend(figure, [ax])
        return figure


def _mark(ax: Axes, knee: Knee, value: Interval, height: int, look: Look, *, filled: bool) -> None:
    what = f"knee: under {KNEE_EFFICIENCY:.0%} of ideal" if filled else "crossover: the 16-bit baseline wins"
    face = look.colour if filled else "white"
    if not knee.first < value.value < math.inf:  # before the first M measured, or beyond the last
        place, marker = (knee.first, "$\\leftarrow$") if value.value <= knee.first else (knee.last, "$\\rightarrow$")
        lifted = height + (0.18 if filled else -0.18)
        ax.plot([place], [lifted], marker=marker, linestyle="none", color=look.colour, alpha=0.8, label=_BEYOND)
        return
    low = min(max(value.low, knee.first), value.value)
    high = max(min(value.high, knee.last), value.value)
    ax.plot([low, high], [height, height], color=look.colour, linewidth=1)
    style = "o" if filled else "D"
    ax.plot([value.value], [height], style, color=look.colour, markerfacecolor=face, markersize=5, label=what, zorder=3)
