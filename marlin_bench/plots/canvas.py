"""Figures with a panel a layer, and the files they are saved to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from marlin_bench.plots.arrange import arrange
from marlin_bench.plots.theme import FONT_SIZE, RC, Look

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
MOST_PANELS = 24
ABOVE = "above a measured roof or the ideal"
DOUBTFUL = "pale: not converged or throttled"
IMPOSSIBLE = "impossible: beats physics, shown on the roof"
PROFILED = "over the bytes a profiler counted"
CROSSOVER = "from here on FP16 wins"
_REMARKS = (CROSSOVER, ABOVE, DOUBTFUL, IMPOSSIBLE, PROFILED)
_WIDTH_INCHES = 8.3  # a README column of 830 px at 100 dpi
_PNG_DPI = 200
_SVG_DPI = 72  # what a point is in an SVG
_MOST_LINES = 8  # of text in the corner of a large panel
_LETTER_INCHES = 0.068  # a letter of the legend, on average, and what a handle and its gaps take
_HANDLE_INCHES = 0.5


class PlotError(ValueError):
    """Nothing to draw, or a file that cannot be written; one sentence."""


@contextmanager
def themed() -> Iterator[None]:
    """The house style while a figure is made."""
    import matplotlib

    with matplotlib.rc_context(RC):  # type: ignore[arg-type]
        yield


def small_multiples(count: int, title: str, *, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most three a row, with shared axes; PlotError for more than a page holds."""
    from matplotlib.figure import Figure

    if count == 0:
        raise PlotError("there is nothing to draw: no selected record has a time")
    if count > MOST_PANELS:
        raise PlotError(f"{count} layers are more than a page shows ({MOST_PANELS}): choose some with --layer")
    columns = 1 if count == 1 else 2 if count in {2, 4} else 3
    lines = math.ceil(count / columns)
    panel_height = {1: 4.6, 2: 3.5, 3: 2.9}[columns]
    figure = Figure(figsize=(_WIDTH_INCHES, panel_height * lines + 0.9))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    axes: list[Axes] = list(grid.flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    for index, panel in enumerate(axes[:count]):
        panel.tick_params(labelbottom=index + columns >= count)
        if index + columns >= count:
            panel.set_xlabel(x_label)
        if index % columns == 0:
            panel.set_ylabel(y_label)
    figure.suptitle(title, x=0.01, ha="left", va="top", fontweight="bold", fontsize=11)
    return figure, axes[:count]


def name_panel(panel: Axes, title: str, *, narrow: bool) -> None:
    """The title over a panel; where three stand side by side the shape goes under the name."""
    text = title.replace("  (", "\n(", 1) if narrow else title
    panel.set_title(text, y=1)  # a place of its own need not be searched for


def list_crossovers(
    panel: Axes, found: Sequence[tuple[str, float]], styles: Mapping[str, Look], *, upper: bool, panels: int
) -> int:
    """(backend, M) of every crossover, a line each, in a right-hand corner: beside their marks they hide the curves.

    Nothing where they would cover the panel, one of `panels` on the page: the marks are enough then. Returns the number
    of lines written.
    """
    if len(found) > (_MOST_LINES if panels <= 2 else _MOST_LINES // 2 if panels <= 6 else 0):
        return 0
    ordered = sorted(found, key=lambda one: one[1], reverse=not upper)
    for place, (backend, batch) in enumerate(ordered):
        panel.annotate(
            f"{backend} 1x at M={batch:.0f}",
            (1, 1 if upper else 0),
            xycoords="axes fraction",
            xytext=(-2, (-2 - 9 * place) if upper else (3 + 9 * place)),
            textcoords="offset points",
            ha="right",
            va="top" if upper else "bottom",
            fontsize=FONT_SIZE - 2,
            color=styles[backend].colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
        )
    return len(found)


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend under all panels, each label once."""
    entries: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for remark in _REMARKS:  # remarks come last
        if remark in entries:
            entries[remark] = entries.pop(remark)
    is_grid = figure.get_layout_engine() is None
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="lower center" if is_grid else "outside lower center",
        ncols=_legend_columns(list(entries)),
        columnspacing=1.4,
        handletextpad=0.5,
    )


def settle(figure: Figure) -> None:
    """Give every panel its final size and keep it: that takes long, and is done once."""
    figure.set_dpi(_PNG_DPI)  # texts are as wide as they will be: on coarse pixels they are rounded
    engine = figure.get_layout_engine()
    if engine is None:
        arrange(figure)
    else:
        engine.execute(figure)
        figure.set_layout_engine("none")


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns as the page is wide, at most five; a legend is filled down its columns, the first ones longer."""
    for columns in range(min(5, len(labels)), 1, -1):
        lines, longer = divmod(len(labels), columns)
        starts = [column * lines + min(column, longer) for column in range(columns + 1)]
        widest = [max(map(len, labels[start:end])) for start, end in pairwise(starts)]
        if sum(_HANDLE_INCHES + _LETTER_INCHES * width for width in widest) <= _WIDTH_INCHES:
            return columns
    return 1


def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the figure to each path (.svg or .png); PlotError when a path cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if figure.get_layout_engine() is not None:
        with themed():  # labels are made when they are laid out
            settle(figure)
    figure.set_facecolor("white")
    for path in paths:
        try:
            with themed():  # straight to the canvas: `savefig` draws everything once more to lay it out
                if path.suffix == ".svg":
                    figure.set_dpi(_SVG_DPI)
                    # without a date the same records give the same bytes
                    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})  # type: ignore[no-untyped-call]
                else:
                    figure.set_dpi(_PNG_DPI)
                    # the highest level takes three times as long for 3 % fewer bytes
                    FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 2})  # type: ignore[no-untyped-call]
        except OSError as error:
            raise PlotError(f"cannot write {path} ({error.strerror}): choose another file with -o") from error
