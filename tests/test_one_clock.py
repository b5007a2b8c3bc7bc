"""Times at one clock: the slope is found, what is not known stays open, and real runs are told apart by it."""

from itertools import combinations

import numpy as np
import pytest
from simulated_gate import record

from marlin_bench.bootstrap import RESAMPLES, Level
from marlin_bench.compare import compare
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.judgement import Judgement, change
from marlin_bench.one_clock import Blocks, at_one_clock, elasticity
from marlin_bench.statistics import block_medians
from marlin_bench.store import find_runs, published_folder, read_meta, read_run

POLICY = RelativeRule(rule="relative")
RUNS = [read_run(folder) for folder in sorted((published_folder() / "h200").glob("*_slow_down_*"))]


def blocks(rng, e, clock, n=60, wander=0.04, slower=0.0, noise=0.002, stream=1):
    """A kernel of elasticity `e` at a clock that wanders around `clock` (logarithms)."""
    clocks = clock + rng.normal(0, wander, n) if wander else np.full(n, clock)
    return Blocks(slower - e * clocks + rng.normal(0, noise, n), clocks, stream)


def change_at_one_clock(old, new):
    found = at_one_clock(old, new)
    return change(*(Level(side.times, stream, (side.doubt,)) for side, stream in ((found.old, 1), (found.new, 2))))


@pytest.mark.parametrize("e", [0.0, 0.4, 1.0])
def test_the_slope_of_the_blocks_is_found(e):
    rng = np.random.default_rng(1)
    old, new = blocks(rng, e, 0.0), blocks(rng, e, 0.1, stream=2)
    found = elasticity([(old.times, old.clocks, 1), (new.times, new.clocks, 2)])
    assert found.value == pytest.approx(e, abs=0.02)
    assert found.draws.shape == (RESAMPLES,)
    assert np.std(found.draws) < 0.02
    assert 0 <= found.draws.min() <= found.draws.max() <= 1


@pytest.mark.parametrize("e", [0.0, 0.5, 1.0])
def test_a_shift_of_the_clock_is_taken_out_and_a_slower_kernel_is_not(e):
    rng = np.random.default_rng(2)
    for slower in (0.0, 0.02):
        old, new = blocks(rng, e, 0.0), blocks(rng, e, 0.1, slower=slower, stream=2)
        seen = change_at_one_clock(old, new)
        assert seen.log == pytest.approx(slower, abs=0.003)
        assert seen.error < 0.003


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        old, new = (blocks(rng, 0.5, clock, n=40, wander=0.01, stream=s) for s, clock in ((1, 0.0), (2, 0.03)))
        seen = change_at_one_clock(old, new)
        covered += seen.low <= 0 <= seen.high
    assert 930 <= covered <= 970


def test_where_the_clock_never_moved_within_the_runs_nothing_between_time_and_cycles_is_ruled_out():
    rng = np.random.default_rng(4)
    old, new = blocks(rng, 1.0, 0.0, wander=0), blocks(rng, 1.0, 0.1, wander=0, stream=2)
    seen = change_at_one_clock(old, new)
    assert seen.low == pytest.approx(-0.1, abs=0.01)
    assert seen.high == pytest.approx(0.0, abs=0.01)


def test_a_block_without_a_clock_leaves_the_times_as_they_are():
    rng = np.random.default_rng(5)
    known = blocks(rng, 1.0, 0.0)
    assert at_one_clock(known, Blocks(known.times, None, 2)) is None


def test_a_kernel_that_follows_the_clock_is_the_same_at_another_clock_and_worse_when_it_is_slower():
    rng = np.random.default_rng(6)

    def run(clock, slower):
        clocks = clock * np.exp(rng.normal(0, 0.03, 40))
        computes = 1e-4 * (1 + slower) * (1.7e9 / clocks) * np.exp(rng.normal(0, 0.002, 40))
        waits = 3e-4 * np.exp(rng.normal(0, 0.002, 40))
        return [record("cublas_fp16", "c", waits, clocks), record("marlin", "c", computes, clocks)]

    def verdict(slower):
        found = compare(run(1.7e9, 0.0), run(1.5e9, slower), POLICY, chosen=lambda one: one.backend == "marlin")
        return found[0].judgement

    assert verdict(0.0) is Judgement.SAME
    assert verdict(0.02) is Judgement.WORSE
    assert verdict(-0.02) is Judgement.BETTER


def verdicts(old, new, *, spun):
    found = compare(RUNS[old].records, RUNS[new].records, POLICY)
    return [
        one.judgement
        for one in found
        if (one.backend == "marlin_spun") == spun
        and np.median(block_medians([b.times for b in one.old.blocks])) >= 2e-5
    ]


@pytest.mark.parametrize("old", [0, 1])
def test_a_real_kernel_that_lost_two_percent_is_worse_in_every_cell(old):
    # tests/gpu/slow_down.py on an H200 at free clocks: the third run spins for 2 % of the cycles behind marlin
    found = verdicts(old, 2, spun=True)
    assert len(found) == 13
    assert found.count(Judgement.WORSE) >= 0.95 * len(found)


def like_pairs():
    """Published H200 runs of one suite, code and card with as many cells: nothing but the process differs."""
    kinds = {}
    for folder in find_runs(published_folder() / "h200"):
        meta = read_meta(folder)
        machine = meta.environment
        kind = (meta.suite_digest, machine.code_digest, machine.device_uuid_hash, meta.cells)
        if "slow_down" not in folder.name:
            kinds.setdefault(kind, []).append(folder)
    return [pair for folders in kinds.values() for pair in combinations(folders, 2)]


@pytest.mark.parametrize("pair", like_pairs(), ids=lambda pair: f"{pair[0].name} {pair[1].name}")
def test_a_suite_measured_twice_is_the_same(pair):
    old, new = (read_run(folder, with_telemetry=False).records for folder in pair)
    found = [
        one.judgement
        for one in compare(old, new, POLICY)
        if one.evidence is not None and np.median(one.old.times) >= 2e-5
    ]
    assert len(found) >= 40
    assert found.count(Judgement.WORSE) <= 0.01 * len(found)
    assert found.count(Judgement.AMBIGUOUS) <= 0.05 * len(found)


def test_two_real_runs_of_one_code_are_the_same():
    found = verdicts(0, 1, spun=True) + verdicts(0, 1, spun=False)
    assert len(found) == 41
    assert Judgement.WORSE not in found
    assert found.count(Judgement.AMBIGUOUS) <= 0.05 * len(found)
