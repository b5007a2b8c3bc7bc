"""The intervals on data with known answers, and their coverage on simulated noise."""

import math
import subprocess
import sys

import numpy as np
import pytest

from marlin_bench.statistics import Interval, block_medians, median_interval, paired_ratio

SIMULATIONS = 1000


def test_the_median_of_an_odd_and_an_even_number_of_samples():
    assert median_interval([3.0, 1.0, 2.0]).value == 2.0
    assert median_interval([4.0, 1.0, 3.0, 2.0]).value == 2.5


def test_bounds_agree_with_a_hand_calculation_at_ten_samples():
    # n=10: ranks 2..9 cover 1 - 22/1024 = 97.85 %, ranks 3..8 cover 1 - 112/1024 = 89.06 %.
    # share = (0.978516 - 0.95) / (0.978516 - 0.890625) = 0.324444; weight = 8*share / (2 + 6*share) = 0.657658
    interval = median_interval([float(i) for i in range(1, 11)])
    assert interval.low == pytest.approx(2.657658, abs=1e-5)
    assert interval.high == pytest.approx(8.342342, abs=1e-5)


def test_six_samples_are_the_fewest_with_bounds_at_95_percent():
    five, six = median_interval([1.0] * 5), median_interval([1.0] * 6)
    assert (five.low, five.high) == (-math.inf, math.inf)
    assert (six.low, six.high) == (1.0, 1.0)


def test_no_limit_can_pass_on_an_interval_without_bounds():
    assert not paired_ratio([1.0] * 3, [1.0] * 3).relative_width <= 1e9
    assert not median_interval([2.0]).relative_width <= 1e9


def test_equal_samples_have_an_interval_of_no_width():
    interval = median_interval([5e-6] * 40)
    assert interval == Interval(5e-6, 5e-6, 5e-6)
    assert interval.relative_width == 0


def test_margin_is_the_larger_side_of_the_interval():
    assert Interval(10.0, 9.0, 13.0).margin == pytest.approx(0.3)
    assert Interval(10.0, 9.0, 13.0).relative_width == pytest.approx(0.4)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [1.0, math.inf]])
def test_no_samples_or_samples_that_are_not_finite_are_refused(samples):
    with pytest.raises(ValueError):
        median_interval(samples)


def test_a_block_of_several_samples_counts_as_its_median():
    assert block_medians([[1.0, 9.0, 2.0], [4.0]]).tolist() == [2.0, 4.0]
    assert block_medians([2.0, 4.0]).tolist() == [2.0, 4.0]


def test_the_paired_ratio_is_exact_when_both_drift_together():
    drift = np.linspace(1, 2, 30)
    interval = paired_ratio((3.88 * drift).tolist(), drift.tolist())
    assert interval.value == pytest.approx(3.88)
    assert interval.relative_width < 1e-12


def test_exchanging_the_sides_gives_the_reciprocal():
    rng = np.random.default_rng(1)
    a, b = rng.lognormal(0, 0.1, 24).tolist(), rng.lognormal(1, 0.1, 24).tolist()
    forward, backward = paired_ratio(a, b), paired_ratio(b, a)
    assert forward.value == pytest.approx(1 / backward.value)
    assert forward.low == pytest.approx(1 / backward.high)


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([math.nan], [1.0]), ([[1.0, math.nan, 2.0]], [1.0])]
)
def test_blocks_that_do_not_pair_up_or_times_that_are_not_positive_are_refused(a, b):
    with pytest.raises(ValueError):
        paired_ratio(a, b)


def _coverage(draw, truth, interval, n):
    rng = np.random.default_rng(20260)
    return np.mean([interval(draw(rng, n)).contains(truth) for _ in range(SIMULATIONS)])


@pytest.mark.parametrize("n", [8, 12, 30, 31, 100, 1000])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: rng.normal(5, 1, n), 5.0),
        (lambda rng, n: rng.lognormal(0, 1, n), 1.0),  # a long tail, as host timers have
        (lambda rng, n: rng.exponential(1, n), math.log(2)),  # all noise on one side, as interference is
    ],
    ids=["normal", "lognormal", "exponential"],
)
def test_the_median_interval_covers_the_truth_in_93_to_97_percent(draw, truth, n):
    assert 0.93 <= _coverage(draw, truth, median_interval, n) <= 0.97


@pytest.mark.parametrize("n", [10, 30, 100])
def test_the_paired_ratio_covers_the_truth_under_shared_drift(n):
    def draw(rng, n):
        drift = np.exp(np.cumsum(rng.normal(0, 0.02, n)))  # the clock wanders, both sides see it
        baseline = 2.5 * drift * rng.lognormal(0, 0.01, n)
        candidate = drift * rng.lognormal(0, 0.03, n)
        return baseline.tolist(), candidate.tolist()

    coverage = _coverage(draw, 2.5, lambda pair: paired_ratio(*pair), n)
    assert 0.93 <= coverage <= 0.97


def test_neither_scipy_nor_torch_is_imported():
    code = "import sys, marlin_bench.statistics; sys.exit(bool({'scipy', 'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
