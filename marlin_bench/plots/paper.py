"""The paper's figures: quoted values behind, pale and open, a run's own in front."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from marlin_bench.panels import RooflinePanel, Series, SpeedupPanel
from marlin_bench.paper import ModelBar, PaperRoofline, PaperSpeedup
from marlin_bench.plots.canvas import PlotError, name_panel, settle, shared_legend, small_multiples, themed
from marlin_bench.plots.theme import FAINT, FONT_SIZE, INK, MUTED, Look, looks
from marlin_bench.units import format_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TERA = 1e12
_LABEL_APART = 0.3  # octaves
_SMALL = FONT_SIZE - 2
_QUOTED = "A10, published"
_HATCHES = ("", "//", "..", "xx")


def draw_speedup(found: PaperSpeedup, title: str, device: str | None) -> Figure:
    """Figure 1, 10 or 12."""
    with themed():
        figure, (ax,) = small_multiples(1, title, x_label="batch size M", y_label="speed-up over FP16")
        panels = [found.quoted] + ([] if found.measured is None else [found.measured])
        styles = looks(series.backend for panel in panels for series in panel.series)
        _speedup_curves(ax, found.quoted, styles, quoted=True, suffix=_QUOTED)
        if found.measured is not None:
            _speedup_curves(ax, found.measured, styles, quoted=False, suffix=device or "")
        batches = {point.M for panel in panels for series in panel.series for point in series.points}
        ax.set_xscale("log", base=2)
        ax.set_xticks(_apart(batches))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(axis="y", color=FAINT, linewidth=0.5)
        ax.axhline(1, color=MUTED, linewidth=1)
        ax.set_ylim(0)
        name_panel(ax, (found.measured or found.quoted).title, narrow=False)
        shared_legend(figure, [ax])
        settle(figure)
        return figure


def _speedup_curves(ax: Axes, panel: SpeedupPanel, styles: dict[str, Look], *, quoted: bool, suffix: str) -> None:
    for ideal in panel.ideals:
        xs, ys = zip(*ideal.points, strict=True)
        colour, width = (MUTED, 0.9) if quoted else (INK, 1.2)
        ax.plot(
            xs,
            ys,
            color=colour,
            linewidth=width,
            linestyle=_ideal_style(ideal.format),
            label=_ideal(ideal.format, suffix),
        )
    for series in panel.series:
        look = styles[series.backend]
        ax.plot(
            [point.x for point in series.points],
            [point.y for point in series.points],
            color=look.colour,
            marker=look.marker,
            alpha=0.45 if quoted else 1,
            markersize=4.5,
            linewidth=1 if quoted else 1.8,
            markerfacecolor="white" if quoted else look.colour,
            label=f"{series.backend} ({suffix})",
            zorder=2 if quoted else 3,
        )


def _ideal_style(fmt: str) -> str:
    return ":" if fmt.endswith("_zp") else "-." if "2of4" in fmt else "--"


def _ideal(fmt: str, suffix: str) -> str:
    zeros = " with zero points" if fmt.endswith("_zp") else ""
    return f"ideal {fmt.split('_g', maxsplit=1)[0]}{zeros} ({suffix})"


def _apart(batches: Collection[int]) -> list[int]:
    """Powers of two, and what is far enough from them for a label of its own: 65 is not, beside 64."""
    powers = [batch for batch in batches if batch & (batch - 1) == 0]
    return sorted({*powers, *(b for b in batches if all(abs(math.log2(b / power)) > _LABEL_APART for power in powers))})


def draw_roofline(found: Sequence[PaperRoofline], title: str, device: str | None) -> Figure:
    """Figure 11."""
    with themed():
        figure, axes = small_multiples(len(found), title, x_label="FLOP per compulsory byte", y_label="TFLOP/s")
        both = [panel for pair in found for panel in (pair.quoted, pair.measured) if panel is not None]
        styles = looks(series.backend for panel in both for series in panel.series)
        for ax, pair in zip(axes, found, strict=True):
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.minorticks_off()
            ax.xaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.grid(which="major", color=FAINT, linewidth=0.5)
            _roofs(ax, pair.quoted, colour=MUTED, label=f"roofs ({_QUOTED})")
            _points(ax, pair.quoted.series, styles, quoted=True, suffix=_QUOTED)
            if pair.measured is not None:
                _roofs(ax, pair.measured, colour=INK, label=f"roofs ({device})")
                _points(ax, pair.measured.series, styles, quoted=False, suffix=device or "")
            name_panel(ax, pair.quoted.title, narrow=False)
        shared_legend(figure, axes)
        settle(figure)
        return figure


def _roofs(ax: Axes, panel: RooflinePanel, *, colour: str, label: str) -> None:
    if panel.memory is None or not panel.compute:
        return
    rate = max(roof.rate for roof in panel.compute if not roof.name.endswith("2:4"))
    xs = [point.x for series in panel.series for point in series.points]
    knee = rate / panel.memory
    left, right = min(*xs, knee) / 1.5, max(*xs, knee) * 1.5
    heights = [left * panel.memory / _TERA, rate / _TERA, rate / _TERA]
    ax.plot([left, knee, right], heights, color=colour, linewidth=1.2, label=label)


def _points(ax: Axes, found: Sequence[Series], styles: dict[str, Look], *, quoted: bool, suffix: str) -> None:
    for series in found:
        look = styles[series.backend]
        ax.plot(
            [point.x for point in series.points],
            [point.y / _TERA for point in series.points],
            look.marker,
            color=look.colour,
            markersize=4.5,
            alpha=0.5 if quoted else 1,
            markerfacecolor="white" if quoted else look.colour,
            label=f"{series.backend} ({suffix})",
            zorder=2 if quoted else 3,
        )


def _model_label(model: str, bars: Sequence[ModelBar]) -> str:
    """The paper's model, and under it the one like it that a run measured."""
    own = next((bar.measured_on for bar in bars if bar.model == model and bar.measured_on is not None), None)
    return model.removeprefix("paper-") + ("" if own is None else f"\n(run: {own})")


def draw_models(bars: Sequence[ModelBar], title: str) -> Figure:
    """Figure 9: bars by model, one for each GPU and backend; quoted ones are open and hatched."""
    from matplotlib.figure import Figure as Canvas

    if not bars:
        raise PlotError("there is nothing to draw: no model has a speed-up")
    with themed():
        figure = Canvas(figsize=(8.3, 4.2), layout="constrained")
        ax = figure.subplots()
        models = list(dict.fromkeys(bar.model for bar in bars))
        groups = list(dict.fromkeys((bar.device, bar.backend, bar.published) for bar in bars))
        styles = looks(bar.backend for bar in bars)
        width = 0.86 / len(groups)
        for place, (device, backend, published) in enumerate(groups):
            own = {bar.model: bar.speedup for bar in bars if (bar.device, bar.backend) == (device, backend)}
            centres = [index + (place + 0.5) * width - 0.43 for index, model in enumerate(models) if model in own]
            heights = [own[model] for model in models if model in own]
            drawn = ax.bar(
                centres,
                heights,
                width * 0.92,
                color="white" if published else styles[backend].colour,
                edgecolor=MUTED if published else styles[backend].colour,
                hatch=_HATCHES[place % len(_HATCHES)] if published else None,
                linewidth=0.8,
                label=f"{backend} on {device}{' (published)' if published else ''}",
            )
            ax.bar_label(drawn, [format_ratio(height)[:-1] for height in heights], fontsize=_SMALL - 1.5, padding=1)
        ax.set_xticks(range(len(models)), [_model_label(model, bars) for model in models])
        ax.set_ylabel("speed-up of all linear layers, M=16")
        ax.set_ylim(0, 1.08 * math.ceil(max(bar.speedup for bar in bars)))
        ax.axhline(1, color=MUTED, linewidth=1)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        shared_legend(figure, [ax])
        settle(figure)
        return figure
