"""The place of every panel on a page: only what lies at an edge is measured.

matplotlib's constrained layout measures every text of every panel, twice, which takes longer than drawing the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_GAP_INCHES = 0.08  # between things that must not touch
_TITLE_GAP_INCHES = 0.1  # between a title and its panel
_LINE = 1.2  # of a font's size
_POINTS = 72  # an inch


def arrange(figure: Figure) -> None:
    """Spread a grid of panels that share their axes over the page, under its title and above its legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    width, height = figure.get_size_inches()
    spec = figure.axes[0].get_gridspec()
    assert spec is not None  # of the grid that all panels are in
    lines, columns = spec.nrows, spec.ncols
    grid = [figure.axes[start : start + columns] for start in range(0, lines * columns, columns)]
    panels = [panel for panel in figure.axes if panel.axison]
    over = max(map(_title_inches, panels)) + _GAP_INCHES
    top = over + _head(figure, renderer)
    legend = sum(_height(one.get_window_extent(renderer), figure) + _GAP_INCHES for one in figure.legends)
    left = right = under = 0.5
    for _ in range(2):  # how many ticks there are depends on the size of a panel, and its size on their labels
        panel_height = (height - top - under - legend - (lines - 1) * over) / lines
        panel_width = (width - left - right - (columns - 1) * 2 * _GAP_INCHES) / columns
        figure.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            top=1 - top / height,
            bottom=(under + legend) / height,
            hspace=over / panel_height,
            wspace=2 * _GAP_INCHES / panel_width,
        )
        left, right, under = _edges(figure, grid, renderer)


def _title_inches(panel: Axes) -> float:
    """What the title over a panel takes: its lines, as it is not yet known where they stand."""
    import matplotlib

    title = panel.get_title(loc="left")
    size = float(matplotlib.rcParams["axes.titlesize"])
    return _TITLE_GAP_INCHES + (1 + title.count("\n")) * _LINE * size / _POINTS if title else 0.0


def _height(box: Bbox, figure: Figure) -> float:
    return float(box.height) / figure.dpi


def _head(figure: Figure, renderer: RendererAgg) -> float:
    """Inches that the page's title takes, which is put in its place."""
    title = figure._suptitle  # type: ignore[attr-defined]
    if title is None:
        return _GAP_INCHES
    title.set_y(1 - _GAP_INCHES / figure.get_size_inches()[1])
    return _height(title.get_window_extent(renderer), figure) + 2 * _GAP_INCHES


def _edges(figure: Figure, grid: list[list[Axes]], renderer: RendererAgg) -> tuple[float, float, float]:
    """Inches that labels need left of the first column, right of the last one and under the last line."""
    left = right = under = 0.0
    for line in grid:
        axis = line[0].yaxis.get_tightbbox(renderer)
        if axis is not None:
            left = max(left, line[0].bbox.x0 - axis.x0)
    for panel in (*grid[-1], grid[0][-1]):
        axis = panel.xaxis.get_tightbbox(renderer) if panel.axison else None
        if axis is not None:
            under = max(under, panel.bbox.y0 - axis.y0)
            right = max(right, axis.x1 - panel.bbox.x1)
    return left / figure.dpi + _GAP_INCHES, right / figure.dpi + _GAP_INCHES, under / figure.dpi + _GAP_INCHES
