"""Predicted speed-ups over M: the ideal of the other GPU, and what the measured efficiency leaves of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from marlin_bench.plots.canvas import settle, shared_legend, small_multiples, themed
from marlin_bench.plots.theme import FAINT, INK, MUTED, looks
from marlin_bench.predict import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(found: Sequence[Prediction], title: str) -> Figure:
    """A panel a layer; every curve is labelled as predicted."""
    layers = list(dict.fromkeys((one.layer, one.K, one.N, one.group_size) for one in found))
    with themed():
        figure, axes = small_multiples(len(layers), title, x_label="batch size M", y_label="predicted speed-up")
        styles = looks(one.backend for one in found)
        for ax, place in zip(axes, layers, strict=True):
            here = [one for one in found if (one.layer, one.K, one.N, one.group_size) == place]
            for backend in dict.fromkeys(one.backend for one in here):
                own = sorted((one for one in here if one.backend == backend), key=lambda one: one.M)
                batches, look = [one.M for one in own], styles[backend]
                ax.plot(
                    batches, [one.ideal for one in own], "--", color=INK, linewidth=1, label="ideal by the datasheet"
                )
                expected = [one.expected for one in own]
                ax.plot(
                    batches, expected, marker=look.marker, linestyle=(0, (5, 2)), color=look.colour,
                    markerfacecolor="white", label=f"{backend} (predicted)",
                )  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
            ax.grid(axis="y", color=FAINT, linewidth=0.5)
            ax.axhline(1, color=MUTED, linewidth=1)
            ax.set_ylim(0)
            ax.set_title(f"{place[0]}  (K={place[1]} N={place[2]})")
        shared_legend(figure, axes)
        settle(figure)
        return figure
