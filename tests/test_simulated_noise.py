"""The simulated noise is that of a real H200: the fit holds, and comparisons do on it what they must."""

from collections import Counter

import numpy as np
import pytest
from simulated_gate import meta_of, simulated_records
from simulated_noise import (
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

from marlin_bench.compare import compare
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.judgement import Judgement
from marlin_bench.noise import PROCESS_NOISE_COMPUTING, PROCESS_NOISE_WAITING, noise_map
from marlin_bench.store import Run

POLICY = RelativeRule(rule="relative")
QUARTILES = (25, 50, 75)
CLOSE = {  # relative, and absolute for what is a share
    "spread of the times": (0.25, 0.0),
    "correlation of neighbouring clocks": (0.0, 0.1),
    "elasticity": (0.0, 0.08),
    "jitter at one clock": (0.15, 0.0),
    "largest deviation": (0.3, 0.0),
}


@pytest.fixture(scope="module")
def both():
    """The measures of the published series and of as many simulated ones."""
    real = gathered(series(record) for record in published(FITTED_RUN).records if is_fitted(record))
    rng = np.random.default_rng(1)
    return real, gathered(simulate(rng, cell, 40) for cell in fitted_cells())


@pytest.mark.parametrize("name", CLOSE)
@pytest.mark.parametrize("quartile", QUARTILES)
def test_simulated_blocks_spread_as_published_ones_do(both, name, quartile):
    real, simulated = (np.percentile(side[name], quartile) for side in both)
    relative, absolute = CLOSE[name]
    assert simulated == pytest.approx(real, rel=relative, abs=absolute)


def test_the_fit_stands_on_many_cells(both):
    assert len(both[0]["elasticity"]) > 1000


def test_the_noise_from_process_to_process_is_that_of_runs_of_one_code():
    found = changes_between_runs()
    waiting = found[found[:, 0] < 0.6][:, 1]
    computing = found[found[:, 0] >= 0.6][:, 1]
    assert min(len(waiting), len(computing)) > 30
    # at a mean elasticity of 0.3 and 0.9
    assert 1.4826 * np.median(waiting) == pytest.approx(
        0.7 * PROCESS_NOISE_WAITING + 0.3 * PROCESS_NOISE_COMPUTING, rel=0.3
    )
    assert 1.4826 * np.median(computing) == pytest.approx(
        0.1 * PROCESS_NOISE_WAITING + 0.9 * PROCESS_NOISE_COMPUTING, rel=0.6
    )


def test_simulated_runs_differ_as_real_ones_of_one_code_do():
    rng = np.random.default_rng(2)
    cells = fitted_cells()
    simulated = []
    for number in rng.choice(len(cells), 400):
        two = [simulate(rng, cells[number], 40, *another_run(rng, cells[number])) for _ in range(2)]
        simulated.append(change_at_one_clock(*two)[1])
    real = changes_between_runs()[:, 1]
    for percent in (25, 50, 75, 90):
        assert 0.5 <= np.percentile(simulated, percent) / np.percentile(real, percent) <= 2


def counted(slower, noise=None, runs=12, cells=40):
    rng = np.random.default_rng(3)
    return Counter(
        one.judgement
        for _ in range(runs)
        for one in compare(
            simulated_records(rng, "h200_fit", cells=cells),
            simulated_records(rng, "h200_fit", cells=cells, slower=slower),
            POLICY,
            noise=noise,
            chosen=lambda one: one.backend == "marlin",
        )
    )


def test_on_the_noise_of_an_h200_the_same_code_is_hardly_ever_worse(tmp_path):
    found = counted(0.0)
    assert found[Judgement.WORSE] <= 0.01 * found.total()
    assert found[Judgement.AMBIGUOUS] <= 0.05 * found.total()
    rng, meta = np.random.default_rng(4), meta_of(tmp_path)
    runs = [Run(tmp_path, meta, simulated_records(rng, "h200_fit", cells=40)) for _ in range(4)]
    map_of_them = noise_map(runs)
    assert map_of_them.typical < 0.005  # at one clock: the clock itself moves by some percent
    found = counted(0.0, map_of_them)
    assert found[Judgement.WORSE] <= 0.01 * found.total()


def test_on_the_noise_of_an_h200_two_percent_are_seen():
    found = counted(0.02)
    assert found[Judgement.WORSE] >= 0.85 * found.total()
    assert found[Judgement.BETTER] <= 0.01 * found.total()
