"""Draws docs/images/noise_fit.svg: the blocks of a published H200 run, and the noise that tests simulate, fitted.

python docs/noise_fit.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from simulated_noise import (  # noqa: E402
    FITTED_RUN,
    another_run,
    change_at_one_clock,
    changes_between_runs,
    fitted_cells,
    gathered,
    is_fitted,
    published,
    series,
    simulate,
)

from marlin_bench.plots.canvas import save, themed  # noqa: E402
from marlin_bench.plots.theme import INK  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "noise_fit.svg"
BETWEEN = "between two runs, at one clock"
SHARES = {"elasticity", "correlation of neighbouring clocks"}


def simulated_changes(rng, count=600):
    """Changes between two simulated runs of a cell."""
    cells = fitted_cells()
    found = []
    for number in rng.choice(len(cells), count):
        cell = cells[number]
        old, new = (simulate(rng, cell, 40, *another_run(rng, cell)) for _ in range(2))
        found.append(change_at_one_clock(old, new)[1])
    return np.array(found)


def curve(ax, values, *, is_real):
    """The share of cells below a value."""
    style = {"color": INK, "linewidth": 1.8} if is_real else {"color": "#d55e00", "linestyle": "--", "linewidth": 1.4}
    label = "H200, published samples" if is_real else "simulated"
    ax.plot(np.sort(values), np.linspace(0, 1, len(values)), label=label, **style)


rng = np.random.default_rng(1)
real = gathered(series(record) for record in published(FITTED_RUN).records if is_fitted(record))
simulated = gathered(simulate(rng, cell, 40) for cell in fitted_cells())
real[BETWEEN], simulated[BETWEEN] = changes_between_runs()[:, 1], simulated_changes(rng)
with themed():
    figure = Figure(figsize=(8.3, 5.2), layout="constrained")
    for ax, name in zip(figure.subplots(2, 3, sharey=True).flat, real, strict=True):
        scale = 1 if name in SHARES else 100
        curve(ax, scale * real[name], is_real=True)
        curve(ax, scale * simulated[name], is_real=False)
        ax.set_title(name, fontsize=8.5)
        if scale > 1:
            ax.set_xscale("log")
            ax.set_xlim(0.01, 40)
            ax.xaxis.set_major_formatter("{x:g}%")
    figure.axes[0].legend(loc="lower right", fontsize=7.5)
    figure.supylabel("share of cells below", fontsize=9)
save(figure, [PICTURE])
print(PICTURE.relative_to(ROOT))
