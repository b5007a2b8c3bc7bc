"""The noise of an H200 at free clocks, as its published runs have it: cells with the statistics of real ones.

A cell is four numbers, fitted to each published record of 20 us and more with a clock in every block:
- `clock_spread`, `clock_memory`: the logarithm of the SM clock wanders from block to block as a first-order
  autoregression of this standard deviation and this correlation between neighbours (what a short series shows too small
  is put back: Marriott and Pope 1954, "Bias in the estimation of autocorrelations", Biometrika 41, 390-402);
- `elasticity`: how far the time follows it (one_clock.py);
- `jitter`: what is left of the time at one clock, as the standard deviation of a normal variable of the same median
  absolute deviation; its tails are those of Student's t with 4 degrees of freedom.
From run to run a cell's own level moves by noise.process_noise (Student's t with 2 degrees of freedom: some cells get
slow addresses) and its clock by CLOCK_BETWEEN_RUNS, both fitted to pairs of runs of one code. `fitted_cells` makes the
table, `simulate` draws from it.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from marlin_bench.noise import process_noise
from marlin_bench.one_clock import Blocks, at_one_clock, elasticity
from marlin_bench.statistics import block_medians
from marlin_bench.store import published_folder, read_run

SAME_CODE = sorted(path.name for path in (published_folder() / "h200").glob("*_slow_down_*"))
FITTED_RUN = "20261121T111537Z_h200_ab3bb3f56432"
LEAST_SECONDS = 20e-6
LEAST_BLOCKS = 24
TAILS = 4  # degrees of freedom
_DIFFERENCE = 2.4  # of two such t: so that the medians of simulated and real changes are alike
_T_QUARTILE = 0.7407  # upper quartile of Student's t with 4 degrees of freedom
_NORMAL_QUARTILE = 0.6745
CLOCK_BETWEEN_RUNS = 0.9
"""Spread of the clock from run to run over its spread within a run."""


@dataclass(frozen=True)
class CellNoise:
    """See above; all relative."""

    clock_spread: float
    clock_memory: float
    elasticity: float
    jitter: float


def series(record):
    """Logarithms of a record's times and clocks, by block."""
    times = np.log(block_medians([block.times for block in record.blocks]))
    return times, np.log([block.sm_clock_hz for block in record.blocks])


def is_fitted(record):
    """Whether a record has what a fit needs."""
    return (
        record.timer == "kernel"
        and len(record.blocks) >= LEAST_BLOCKS
        and all(block.sm_clock_hz for block in record.blocks)
        and np.median(record.times) >= LEAST_SECONDS
    )


def neighbours(values):
    """Correlation between neighbouring values."""
    centred = values - values.mean()
    return float(centred[1:] @ centred[:-1] / (centred @ centred))


def fit(times, clocks):
    """The noise of one series of logarithms."""
    slope = elasticity([(times, clocks, 0)]).value
    memory = neighbours(clocks)
    memory += (1 + 3 * memory) / len(clocks)
    left = times + slope * (clocks - clocks.mean())
    deviation = float(np.median(np.abs(left - np.median(left))))
    return CellNoise(float(clocks.std(ddof=1)), memory, slope, deviation / _NORMAL_QUARTILE)


@cache
def published(name):
    """A published run of the H200."""
    return read_run(published_folder() / "h200" / name, with_telemetry=False)


@cache
def fitted_cells():
    """The noise of every record of the fitted run that can be fitted."""
    return [fit(*series(record)) for record in published(FITTED_RUN).records if is_fitted(record)]


def simulate(rng, cell, blocks, level=0.0, clock=0.0):
    """(log times, log clocks) [blocks] of one run of a cell around `level` and `clock`."""
    steps = rng.normal(0, 1, blocks)
    memory = min(0.98, max(0.0, cell.clock_memory))
    wander = np.empty(blocks)
    wander[0] = steps[0]
    for index in range(1, blocks):
        wander[index] = memory * wander[index - 1] + np.sqrt(1 - memory**2) * steps[index]
    wander -= wander.mean()  # where a whole run stands is `clock`
    clocks = clock + cell.clock_spread * wander / wander.std(ddof=1)
    jitter = cell.jitter * _NORMAL_QUARTILE / _T_QUARTILE * rng.standard_t(TAILS, blocks)
    return level - cell.elasticity * clocks + jitter, clocks


def another_run(rng, cell):
    """(level, clock) by which one run of a cell differs from the next."""
    scale = process_noise(cell.elasticity) / _DIFFERENCE
    return scale * rng.standard_t(2), CLOCK_BETWEEN_RUNS * cell.clock_spread * rng.normal()


def measures(times, clocks):
    """What simulated and published series are held against each other in; all relative but the second and third."""
    found = fit(times, clocks)
    return {
        "spread of the times": float(times.std(ddof=1)),
        "correlation of neighbouring clocks": neighbours(clocks),
        "elasticity": found.elasticity,
        "jitter at one clock": found.jitter,
        "largest deviation": float(np.max(np.abs(times - np.median(times)))),
    }


def gathered(several):
    """The measures of many series, by name."""
    found = [measures(*one) for one in several]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


@cache
def changes_between_runs():
    """Changes at one clock between published runs of one code: (elasticity, |change|) a cell."""
    found = []
    for old, new in combinations(SAME_CODE, 2):
        before = {(r.cell, r.backend): r for r in published(old).records if is_fitted(r)}
        for record in published(new).records:
            twin = before.get((record.cell, record.backend))
            if twin is not None and is_fitted(record) and record.backend != "marlin_spun":
                found.append(change_at_one_clock(series(twin), series(record)))
    return np.array(found)


def change_at_one_clock(old, new):
    """(elasticity, |change of the median|) between two series."""
    found = at_one_clock(Blocks(*old, 1), Blocks(*new, 2))
    return found.elasticity, abs(float(np.median(found.new.times) - np.median(found.old.times)))
