"""Rows from records: pairing, ideals, flags, crossovers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic_run import H200_CEILINGS, h200_records, make_record, published_record

from marlin_bench.record import Flag, Status
from marlin_bench.roofline import Roofs, roofs_from_ceilings
from marlin_bench.speedup import curves, rows

ROOFS = roofs_from_ceilings(H200_CEILINGS)
LAYER = {"layer": "72k_x_18k", "N": 18432, "K": 73728}


def row_of(backend, made):
    return next(row for row in made if row.record.backend == backend)


def test_speedup_is_the_baseline_s_time_over_the_backend_s():
    made = rows([make_record("cublas_fp16", 1, 604e-6, noise=0), make_record("marlin", 1, 241e-6, noise=0)], None)
    row = row_of("marlin", made)
    assert row.speedup.value == pytest.approx(604 / 241)
    assert row.baseline == "cublas_fp16"
    assert row_of("cublas_fp16", made).speedup.value == 1


def test_a_clock_that_wanders_over_the_blocks_cancels():
    drift = np.linspace(1, 1.5, 30)
    made = rows(
        [
            make_record("cublas_fp16", 1, 600e-6, noise=0, drift=drift),
            make_record("marlin", 1, 200e-6, noise=0, drift=drift),
        ],
        None,
    )
    row = row_of("marlin", made)
    assert row.speedup.relative_width < 1e-9
    assert row.time.relative_width > 0.1


def test_only_blocks_that_both_finished_are_paired():
    drift = np.where(np.arange(30) < 10, 1.0, 2.0)  # the clock halves after block 10, where the backend stopped
    made = rows(
        [
            make_record("cublas_fp16", 1, 600e-6, noise=0, drift=drift),
            make_record("marlin", 1, 200e-6, noise=0, blocks=10),
        ],
        None,
    )
    assert row_of("marlin", made).speedup.value == pytest.approx(3)
    assert row_of("marlin", made).headline.paired_blocks == 10


def test_blocks_that_never_met_give_no_speedup():
    made = rows(
        [make_record("cublas_fp16", 1, 6e-4), make_record("marlin", 1, 2e-4, first_block=100)],
        ROOFS,
    )
    assert row_of("marlin", made).speedup is None
    assert row_of("marlin", made).time is not None


@pytest.mark.parametrize("change", [{"device": "NVIDIA A10"}, {"timer": "cold"}, {"isolated": True}, {"layer": "else"}])
def test_a_ratio_never_crosses_devices_timers_processes_or_cells(change):
    made = rows([make_record("cublas_fp16", 1, 6e-4), make_record("marlin", 1, 2e-4, **change)], ROOFS)
    assert row_of("marlin", made).speedup is None


def test_an_isolated_backend_meets_the_baseline_of_its_own_process():
    made = rows(
        [
            make_record("cublas_fp16", 1, 600e-6, noise=0),
            make_record("cublas_fp16", 1, 500e-6, noise=0, isolated=True),
            make_record("marlin", 1, 250e-6, noise=0, isolated=True),
        ],
        None,
    )
    assert row_of("marlin", made).speedup.value == pytest.approx(2)


def test_a_baseline_that_is_not_ok_compares_with_nobody():
    wrong = make_record("cublas_fp16", 1, 0, status=Status.WRONG, reason="NaN")
    made = rows([wrong, make_record("marlin", 1, 2e-4)], ROOFS)
    assert row_of("marlin", made).speedup is None
    assert row_of("cublas_fp16", made).speedup is None
    assert row_of("cublas_fp16", made).time is None


def test_a_bf16_backend_is_compared_with_both_baselines():
    made = rows(
        [
            make_record("cublas_bf16", 1, 500e-6, noise=0),
            make_record("cublas_fp16", 1, 600e-6, noise=0),
            make_record("tinygemm", 1, 250e-6, noise=0),
        ],
        ROOFS,
    )
    row = row_of("tinygemm", made)
    assert {c.baseline: round(c.speedup.value, 6) for c in row.comparisons} == {"cublas_fp16": 2.4, "cublas_bf16": 2.0}
    assert row.baseline == "cublas_fp16"


def cpu_rows(fp32_s, bf16_s):
    return rows(
        [
            make_record("dense_fp32", 1, fp32_s, noise=0, device="cpu", timer="host"),
            make_record("dense_bf16", 1, bf16_s, noise=0, device="cpu", timer="host"),
            make_record("tinygemm_cpu", 1, 1e-3, noise=0, device="cpu", timer="host"),
        ],
        Roofs(memory=2e10, compute={"fp32": 1e12, "bf16": 2e12}),
    )


def test_on_a_cpu_the_faster_baseline_heads_the_row():
    row = row_of("tinygemm_cpu", cpu_rows(4e-3, 2e-3))
    assert row.baseline == "dense_bf16"
    assert row.speedup.value == pytest.approx(2)
    against_fp32 = row.comparisons[1]
    assert against_fp32.baseline == "dense_fp32"
    assert against_fp32.ideal_speedup == pytest.approx(2 * row.ideal_speedup, rel=0.01)  # twice the bytes
    assert row_of("tinygemm_cpu", cpu_rows(3e-3, 8e-3)).baseline == "dense_fp32"


def test_a_baseline_beside_a_faster_one_has_a_speedup_and_no_ideal():
    row = row_of("dense_fp32", cpu_rows(4e-3, 2e-3))
    assert row.speedup.value == pytest.approx(0.5)
    assert row.fraction_of_ideal is None
    assert Flag.ABOVE_IDEAL not in row.flags


def test_a_baseline_has_no_crossover_where_another_overtakes_it():
    records = []
    for M, bf16_s in ((1, 1e-3), (16, 9e-3)):
        records += [make_record("dense_fp32", M, 3e-3, noise=0), make_record("dense_bf16", M, bf16_s, noise=0)]
    assert [curve.crossover for curve in curves(rows(records, None))] == [None, None]


def test_the_ideal_is_taken_at_the_clock_that_was_held():
    # FP16 at M=48 is bound by memory, INT4 by the tensor cores: half the clock halves the ideal
    slow, fast = (
        row_of(
            "marlin",
            rows(
                [
                    make_record("cublas_fp16", 48, 6e-4, clock_hz=clock, **LAYER),
                    make_record("marlin", 48, 3e-4, clock_hz=clock, **LAYER),
                ],
                ROOFS,
            ),
        ).ideal_speedup
        for clock in (500e6, 1000e6)
    )
    assert fast == pytest.approx(2 * slow)


def test_derived_numbers_follow_from_the_median_time():
    row = rows([make_record("marlin", 16, 20e-6, noise=0, clock_hz=1500e6)], ROOFS)[0]
    flop = 2 * 16 * 8192 * 8192
    data = 8192 * 8192 * 4.125 / 8 + 2 * 16 * (8192 + 8192)
    assert row.achieved_flops == pytest.approx(flop / 20e-6)
    assert row.achieved_bandwidth == pytest.approx(data / 20e-6)
    assert row.arithmetic_intensity == pytest.approx(flop / data)
    assert row.cycles == pytest.approx(30000)
    assert row.fraction_of_memory_roof == pytest.approx(data / 20e-6 / 4.31e12)
    assert row.fraction_of_roof == pytest.approx(data / 4.31e12 / 20e-6)


def test_a_block_of_many_samples_counts_once():
    record = make_record("marlin", 1, 1e-5, blocks=5, noise=0)
    many = [replace(block, times=[1e-5] * 100) for block in record.blocks]
    row = rows([record.model_copy(update={"blocks": many})], None)[0]
    assert row.time.high == math.inf  # five blocks bound nothing at 95 %, however often each was sampled


def test_above_a_measured_roof_is_a_flag_and_the_number_stays():
    floor = 8192 * 8192 * 4.125 / 8 / 4.31e12
    made = rows(
        [make_record("cublas_fp16", 1, 4e-5, noise=0), make_record("marlin", 1, 0.9 * floor, noise=0)],
        ROOFS,
    )
    row = row_of("marlin", made)
    assert row.flags == [Flag.ABOVE_IDEAL, Flag.ABOVE_MEASURED_ROOF]
    assert row.fraction_of_roof > 1.1
    assert row.fraction_of_ideal > 1
    assert row.record.flags == []


def test_an_interval_that_reaches_below_the_roof_raises_no_flag():
    floor = 8192 * 8192 * 4.125 / 8 / 4.31e12
    row = rows([make_record("marlin", 1, 0.995 * floor, noise=0.1)], ROOFS)[0]
    assert row.time.low < floor * 1.0003 < row.time.high
    assert row.flags == []


def test_the_baseline_has_no_ideal_to_reach():
    row = row_of("cublas_fp16", rows(h200_records(layers=("square_8k",)), ROOFS))
    assert row.fraction_of_ideal is None
    assert row.ideal_speedup == pytest.approx(1)


def test_a_published_record_gives_the_value_it_quotes():
    row = rows([published_record(speedup=3.87)], Roofs(memory=600e9, compute={"fp16": 125e12}))[0]
    assert row.speedup.value == 3.87
    assert (row.speedup.low, row.speedup.high) == (-math.inf, math.inf)
    assert row.ideal_speedup == pytest.approx(3.87, abs=0.01)
    assert row.fraction_of_ideal == pytest.approx(1, abs=0.01)
    assert row.time is None
    assert rows([published_record(time_s=1e-3)], None)[0].time.value == 1e-3


def test_without_ceilings_there_is_a_speedup_and_no_ideal():
    row = row_of("marlin", rows(h200_records(layers=("square_8k",)), None))
    assert row.speedup.value > 2
    assert row.ideal_speedup is None
    assert row.fraction_of_ideal is None
    assert row.fraction_of_roof is None


def test_curves_run_by_rising_batch_and_find_the_crossover():
    found = {(c.layer, c.backend): c for c in curves(reversed(rows(h200_records(), ROOFS)))}
    curve = found["72k_x_18k", "marlin"]
    assert [row.record.M for row in curve.points] == [1, 16, 32, 64, 128, 256, 512, 1024]
    # 696/449 = 1.550 at 64, 654/905 = 0.7227 at 128
    expected = 64 * 2 ** (0.550 / (1.550 - 0.7227))
    assert curve.crossover == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ([3, 2, 1.1], None),  # never loses
        ([0.9, 0.8, 0.7], None),  # never won
        ([2, 0.5, 2, 0.5], 4 * 2 ** (2 / 3)),  # the last fall counts: between 4 and 8
        ([2, 0.5, 2], None),  # a dip that it recovers from
        ([2, 1.0], None),
    ],
)
def test_the_crossover_is_where_the_speedup_falls_below_one_for_good(speedups, expected):
    records = []
    for position, speedup in enumerate(speedups):
        M = 2**position
        records += [make_record("cublas_fp16", M, 1e-3, noise=0), make_record("marlin", M, 1e-3 / speedup, noise=0)]
    curve = next(c for c in curves(rows(records, None)) if c.backend == "marlin")
    assert curve.crossover == (None if expected is None else pytest.approx(expected))
