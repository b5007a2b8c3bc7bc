"""Figures with a panel a layer, and the files they are saved to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from marlin_bench.plots.theme import RC

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
MOST_PANELS = 24
ABOVE = "above a measured roof or the ideal"
_WIDTH_INCHES = 8.3  # a README column of 830 px at 100 dpi
_PNG_DPI = 200


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
    figure = Figure(figsize=(_WIDTH_INCHES, panel_height * lines + 0.9), layout="constrained")
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
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure, axes[:count]


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend under all panels, each label once."""
    entries: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if ABOVE in entries:
        entries[ABOVE] = entries.pop(ABOVE)  # the remark comes last
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(len(entries), 5),
        columnspacing=1.4,
        handletextpad=0.5,
    )


def settle(figure: Figure) -> None:
    """Give every panel its final size and keep it: laying out costs more than drawing, and is done once."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Write the figure to each path (.svg or .png); PlotError when a path cannot be written."""
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {}  # the same records give the same bytes
        try:
            with themed():
                figure.savefig(path, dpi=_PNG_DPI, metadata=metadata, facecolor="white")
        except OSError as error:
            raise PlotError(f"cannot write {path} ({error.strerror}): choose another file with -o") from error
