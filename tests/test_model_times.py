"""Models summed from layers, traffic, dispatch tables."""

import json

import pytest
from synthetic_run import make_record, published_record

from marlin_bench.model_times import (
    NoAnswerError,
    common_group_size,
    layer_times,
    model_batches,
    model_time,
    traffic_gain,
)
from marlin_bench.models import Model, ModelLayer
from marlin_bench.recommend import dispatch_json, recommend
from marlin_bench.speedup import rows

MODEL = Model("toy", 2, (ModelLayer("wide", 1024, 4096), ModelLayer("tall", 4096, 1024, per_block=3)))
US = {  # layer -> backend -> M -> microseconds
    (1024, 4096): {"cublas_fp16": {1: 40, 16: 40, 64: 42}, "marlin": {1: 10, 16: 11, 64: 50}},
    (4096, 1024): {"cublas_fp16": {1: 30, 16: 30, 64: 30}, "marlin": {1: 10, 16: 10, 64: 20}},
}


def records(**changes):
    return [
        make_record(backend, M, us * 1e-6, layer=f"{K}x{N}", K=K, N=N, noise=0, **changes)
        for (K, N), backends in US.items()
        for backend, times in backends.items()
        for M, us in times.items()
    ]


@pytest.fixture(scope="module")
def times():
    return layer_times(rows(records(), None), 128)


def test_a_model_s_speedup_is_the_ratio_of_summed_times_as_in_figure_9(times):
    found = model_time(MODEL, times, "marlin", 1)
    assert found.time_s == pytest.approx(2 * (10 + 3 * 10) * 1e-6)
    assert found.baseline_s == pytest.approx(2 * (40 + 3 * 30) * 1e-6)
    assert found.speedup == pytest.approx(130 / 40)
    assert model_batches(MODEL, times) == [1, 16, 64]


def test_between_two_batches_a_time_is_read_off_and_beyond_them_nothing_is_said(times):
    middle = times.time((1024, 4096), "marlin", 32)
    assert middle.value == pytest.approx((11e-6 * 50e-6) ** 0.5)
    assert times.time((1024, 4096), "marlin", 128) is None
    assert model_time(MODEL, times, "marlin", 128) is None


def test_a_missing_layer_is_named(times):
    other = Model("other", 1, (*MODEL.layers, ModelLayer("head", 777, 10)))
    with pytest.raises(NoAnswerError, match="head 777x10"):
        model_batches(other, times)
    assert model_time(other, times, "marlin", 1) is None


def test_traffic_weighs_steps_not_speedups(times):
    gain = traffic_gain(MODEL, times, "marlin", {1: 3, 64: 1})
    own = (3 * 2 * 40 + 2 * (50 + 60)) / 4
    theirs = (3 * 2 * 130 + 2 * (42 + 90)) / 4
    assert gain.speedup == pytest.approx(theirs / own)
    for traffic in ({}, {1: 0.0}, {4096: 1.0}):
        with pytest.raises(NoAnswerError):
            traffic_gain(MODEL, times, "marlin", traffic)


def test_the_best_backend_for_each_layer_and_the_regret_of_one(times):
    found = recommend(MODEL, times, [1, 16, 64])
    assert [(c.layer, c.M, c.backend) for c in found.choices if c.M == 64] == [
        ("wide", 64, "cublas_fp16"),
        ("tall", 64, "marlin"),
    ]
    assert found.single.backend == "marlin"
    best = 42 + 3 * 20
    assert found.single.worst_M == 64
    assert found.single.worst_regret == pytest.approx((50 + 3 * 20) / best - 1)
    assert found.single.regret == pytest.approx(((50 + 3 * 20) / best - 1) / 3)
    wide = next(c for c in found.choices if (c.layer, c.M) == ("wide", 64))
    assert wide.regret == pytest.approx(50 / 42 - 1)


def test_the_dispatch_table_has_ranges_without_gaps(times):
    table = json.loads(dispatch_json(recommend(MODEL, times, [1, 16, 64]), "NVIDIA H200", "run"))
    assert table["layers"][0]["ranges"] == [
        {"M_from": 1, "M_to": 63, "backend": "marlin"},
        {"M_from": 64, "M_to": 64, "backend": "cublas_fp16"},
    ]
    assert table["layers"][1]["ranges"] == [{"M_from": 1, "M_to": 64, "backend": "marlin"}]


def test_published_values_and_companions_never_enter_an_answer():
    quoted = rows([published_record(time_s=1e-9, M=1)], None)
    assert layer_times(quoted, 128).backends == []
    slow_twin = make_record("cublas_fp16", 1, 9e-5, layer="1024x4096", K=1024, N=4096, noise=0, isolated=True)
    found = layer_times(rows([*records(), slow_twin], None), 128)
    assert found.time((1024, 4096), "cublas_fp16", 1).value == pytest.approx(40e-6)


def test_without_cublas_fp16_the_fastest_baseline_of_each_cell_counts():
    shape = {"layer": "1024x4096", "K": 1024, "N": 4096, "noise": 0}
    cpu = [make_record("dense_fp32", 1, 9e-5, **shape), make_record("dense_bf16", 1, 5e-5, **shape)]
    found = layer_times(rows(cpu, None), 128)
    assert found.baseline == "dense_fp32 / dense_bf16"
    assert found.baseline_time((1024, 4096), 1).value == pytest.approx(5e-5)


def test_a_backend_that_was_not_timed_everywhere_is_no_single_answer():
    partly = [r for r in records() if not (r.backend == "marlin" and r.M == 64)]
    found = recommend(MODEL, layer_times(rows(partly, None), 128), [1, 64])
    assert found.single.backend == "cublas_fp16"


def test_the_common_group_size_is_what_most_records_have():
    assert common_group_size(rows(records(), None)) == 128
    assert common_group_size(rows(records(group_size=None), None)) is None
    with pytest.raises(NoAnswerError):
        common_group_size([])
