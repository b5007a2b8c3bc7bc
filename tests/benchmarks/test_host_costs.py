"""What the suite itself costs on the host, as ratios to a reference operation of the same run: never seconds.

The reference is JSON of a fixed size, read and written by the standard library: it moves with the machine as Python and
memory do. Packing is held against transposing the same codes, which moves with memory and threads. Each bound is about
five times what was seen, so that only a change of kind (a quadratic loop, an import in a loop) breaks it.
"""

import json
import time

import numpy as np
import pytest
import torch
from synthetic_run import RunSpec, h200_records

from marlin_bench.layouts import marlin, marlin_hopper, marlin_sparse
from marlin_bench.plan import plan
from marlin_bench.quantize import quantize
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import rows
from marlin_bench.statistics import paired_ratio
from marlin_bench.store import read_run
from marlin_bench.suite import load_suite

_REFERENCE = [{"index": index, "time": index * 1e-6, "name": f"cell {index}"} for index in range(2000)]


def _best(operation, rounds=5):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        operation()
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.fixture
def cost(benchmark):
    """Time an operation with pytest-benchmark; gives its best time over the best of the reference."""

    def read_and_write_json():
        return json.loads(json.dumps(_REFERENCE))

    def measure(operation, reference=read_and_write_json):
        before = _best(reference)
        benchmark.pedantic(operation, rounds=5, iterations=1, warmup_rounds=1)
        ratio = benchmark.stats.stats.min / min(before, _best(reference))
        benchmark.extra_info["over_reference"] = ratio
        return ratio

    return measure


def test_planning_the_largest_suite(cost):
    suite = load_suite("h200")
    assert cost(lambda: plan(suite)) < 1


def test_the_interval_that_the_measuring_loop_asks_for(cost):
    rng = np.random.default_rng(0)
    baseline, candidate = rng.lognormal(size=(2, 100))
    assert cost(lambda: [paired_ratio(baseline, candidate) for _ in range(10)]) < 0.3


def test_reading_a_run_and_making_its_rows(cost, tmp_path):
    run = RunSpec(h200_records()).write(tmp_path)
    roofs = roofs_from_ceilings(run.meta.ceilings)
    assert cost(lambda: rows(read_run(run.folder).records, roofs)) < 50


@pytest.mark.parametrize(("kernel", "most"), [("marlin", 40), ("marlin_hopper", 40), ("marlin_sparse", 250)])
def test_packing_a_layer(cost, kernel, most):
    weights = quantize(torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)) / 45, group_size=128)
    mask = (torch.arange(2048) % 4 < 2)[:, None].expand(2048, 2048)
    pack = {
        "marlin": lambda: marlin.pack_codes(weights.codes),
        "marlin_hopper": lambda: marlin_hopper.pack(weights),
        "marlin_sparse": lambda: marlin_sparse.pack(weights.codes, mask),
    }[kernel]
    assert cost(pack, lambda: weights.codes.t().contiguous()) < most
