"""Roofs against the paper's own numbers and hand calculations."""

import math

import pytest

from marlin_bench.datasheet import datasheets, find_datasheet
from marlin_bench.problem import BF16, FP16, FP32, Problem, int4
from marlin_bench.record import Ceiling
from marlin_bench.roofline import (
    Roofs,
    attainable_flops,
    attainable_time,
    ideal_speedup,
    knee_batch,
    roofs_from_ceilings,
)

A10 = Roofs(memory=600e9, compute={"fp16": 125e12}, sm_clock_hz=1695e6)
K_72, N_18 = 73728, 18432


def test_time_is_the_slower_of_memory_and_tensor_cores():
    problem = Problem(1, 1024, 1024)
    data = 2 * 1024 + 2 * 1024 * 1024 + 2 * 1024
    slow_memory = Roofs(memory=1e9, compute={"fp16": 1e15})
    slow_cores = Roofs(memory=1e15, compute={"fp16": 1e9})
    assert attainable_time(problem, FP16, slow_memory) == pytest.approx(data / 1e9)
    assert attainable_time(problem, FP16, slow_cores) == pytest.approx(2 * 1024 * 1024 / 1e9)


@pytest.mark.parametrize(
    ("M", "boost", "base"),
    [(1, 3.88, 3.88), (8, 3.87, 3.87), (16, 3.87, 3.87), (32, 3.85, 3.41), (64, 3.27, 1.71), (128, 1.64, 1.00)],
)
def test_the_ideal_on_an_a10_is_the_paper_s_line_at_boost_and_at_base_clock(M, boost, base):
    problem = Problem(M, N_18, K_72)
    at_base = Roofs(memory=600e9, compute={"fp16": 125e12 * 885 / 1695})
    assert ideal_speedup(problem, int4(128), A10) == pytest.approx(boost, abs=0.006)
    assert ideal_speedup(problem, int4(128), at_base) == pytest.approx(base, abs=0.006)


@pytest.mark.parametrize(("M", "expected"), [(1, 5.12), (16, 5.10), (32, 5.07), (64, 5.03), (128, 3.28)])
def test_the_sparse_ideal_counts_its_metadata_and_half_the_products(M, expected):
    assert ideal_speedup(Problem(M, N_18, K_72), int4(128, sparse=True), A10) == pytest.approx(expected, abs=0.006)


def test_a_sparse_ceiling_replaces_twice_the_dense_one():
    measured = Roofs(memory=600e9, compute={"fp16": 125e12}, sparse_compute=170e12)
    sparse = int4(128, sparse=True)
    assert A10.compute_rate(sparse) == 250e12
    assert measured.compute_rate(sparse) == 170e12
    assert measured.compute_rate(FP16) == 125e12


def test_the_tensor_roof_follows_the_clock_and_memory_does_not():
    roofs = find_datasheet("a10").roofs().at_clock(885e6)
    assert roofs.compute["fp16"] == pytest.approx(65.27e12, rel=1e-3)
    assert roofs.memory == 600e9
    assert roofs.knee() == pytest.approx(108.8, abs=0.05)
    assert roofs.sm_clock_hz == 885e6


def test_each_roof_scales_from_the_clock_it_was_seen_at():
    roofs = roofs_from_ceilings(
        [
            Ceiling(name="hbm_read", value=4.3e12, sm_clock_hz=1980e6),
            Ceiling(name="fp16_tensor", value=700e12, sm_clock_hz=1400e6),
            Ceiling(name="sparse_tensor", value=1000e12, sm_clock_hz=1000e6),
        ]
    )
    held = roofs.at_clock(700e6)
    assert held.compute["fp16"] == pytest.approx(350e12)
    assert held.sparse_compute == pytest.approx(700e12)
    assert held.at_clock(1400e6).compute["fp16"] == pytest.approx(700e12)


def test_an_unknown_clock_leaves_the_roofs_as_they_were_measured():
    known = find_datasheet("a10").roofs()
    assert known.at_clock(None) is known
    unclocked = roofs_from_ceilings([Ceiling(name="ram_triad", value=2e10), Ceiling(name="dense_fp32", value=1e11)])
    assert unclocked.at_clock(1e9) is unclocked


def test_ceilings_of_a_cpu_become_its_roofs():
    roofs = roofs_from_ceilings(
        [
            Ceiling(name="ram_triad", value=20e9),
            Ceiling(name="dense_fp32", value=200e9),
            Ceiling(name="dense_bf16", value=400e9),
        ]
    )
    problem = Problem(1, 4096, 4096)
    assert roofs.memory == 20e9
    # fp32 moves twice the bytes of bf16
    ideal = ideal_speedup(problem, BF16, roofs, "bf16", baseline=FP32, baseline_dtype="fp32")
    assert ideal == pytest.approx(2.0)


def test_a_bf16_kernel_on_a_cpu_may_compute_in_fp32_where_that_is_faster():
    slow_bf16 = [Ceiling(name="ram_triad", value=2e10), Ceiling(name="dense_fp32", value=1e11)]
    roofs = roofs_from_ceilings([*slow_bf16, Ceiling(name="dense_bf16", value=3e10)])
    assert roofs.compute == {"fp32": 1e11, "bf16": 1e11}


def test_without_a_memory_rate_there_are_no_roofs():
    assert roofs_from_ceilings([Ceiling(name="fp16_tensor", value=1e15)]) is None
    assert roofs_from_ceilings([]) is None


def test_a_dtype_without_a_roof_has_no_ideal():
    assert attainable_time(Problem(1, 128, 128), FP16, A10, "fp8") is None
    assert ideal_speedup(Problem(1, 128, 128), FP16, A10, "fp8") is None


def test_bf16_without_a_ceiling_of_its_own_takes_that_of_fp16():
    roofs = roofs_from_ceilings([Ceiling(name="hbm_read", value=1e12), Ceiling(name="fp16_tensor", value=1e14)])
    assert roofs.compute["bf16"] == 1e14


def test_nothing_beats_an_empty_launch_where_it_is_asked_for():
    roofs = Roofs(memory=4e12, compute={"fp16": 8e14}, launch=2e-6)
    tiny = Problem(1, 256, 256)
    assert attainable_time(tiny, FP16, roofs) < 1e-6
    assert attainable_time(tiny, FP16, roofs, with_launch=True) == 2e-6


def test_the_roofline_bends_at_its_knee():
    assert A10.knee() == pytest.approx(208.3, abs=0.05)
    assert attainable_flops(100, A10.memory, 125e12) == 60e12
    assert attainable_flops(300, A10.memory, 125e12) == 125e12


@pytest.mark.parametrize(("clock", "expected"), [(1695e6, 53.7), (885e6, 28.0)])
def test_the_knee_batch_of_an_a10_is_the_paper_s_about_50_tokens(clock, expected):
    # the reference counts weights alone; activations of 72k x 18k move it by a percent
    roofs = find_datasheet("a10").roofs().at_clock(clock)
    assert knee_batch(N_18, K_72, int4(128), roofs) == pytest.approx(expected, rel=0.02)


def test_at_the_knee_batch_both_times_are_equal():
    M = knee_batch(4096, 4096, int4(128), A10)
    below, above = Problem(math.floor(M), 4096, 4096), Problem(math.ceil(M), 4096, 4096)
    assert attainable_time(below, int4(128), A10) > below.flop / 125e12
    assert attainable_time(above, int4(128), A10) == above.flop / 125e12


def test_a_layer_whose_activations_outweigh_its_products_never_leaves_the_memory_roof():
    assert knee_batch(128, 128, FP16, A10) == math.inf
    assert knee_batch(128, 128, FP16, A10, activation_dtype="fp8") is None


@pytest.mark.parametrize("sheet", datasheets(), ids=lambda sheet: sheet.key)
def test_every_datasheet_peak_is_its_cores_times_its_clock(sheet):
    assert sheet.sm_count * sheet.flop_per_sm_clock * sheet.clock_hz == pytest.approx(sheet.fp16_tensor, rel=0.005)
    assert math.log2(sheet.flop_per_sm_clock).is_integer()


def test_datasheets_are_found_by_key_and_by_the_driver_s_name():
    assert find_datasheet("H200") is find_datasheet("NVIDIA H200")
    assert find_datasheet("NVIDIA A100-SXM4-80GB").memory_bandwidth == 2039e9
    assert find_datasheet("GeForce 256") is None
    assert find_datasheet("h200").roofs().source == "datasheet"
