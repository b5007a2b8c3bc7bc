"""marlin_hopper where a tile ends: a striped last round that all its CTAs join, and tiles that leave by bulk copies."""

from dataclasses import replace

import pytest
import torch
from gpu.test_marlin_hopper import SPIN, assert_close, expected, make_weights, multiply

from marlin_bench.backends.marlin_hopper import Workspace
from marlin_bench.layouts.marlin_hopper import pack
from marlin_bench.marlin_hopper_choice import Plan

pytestmark = pytest.mark.gpu

# M, plan: a tile of the last round has so many parts: 4 to 7, 26 of which 16 finish it.
SHARED = [
    (1000, "b128_w2_m2_t2_x2_early_regs:ctas=42:rest"),
    (300, "b128_w2_m1_t1_early_regs:raster=4:ctas=100:rest"),
    (400, "b80_w2_m2_t1_early_regs:ctas=26:rest"),
    (1000, "b128_w2_m2_t2_early_regs_bulk:ctas=40:rest"),
    (300, "b136_w2_m1_t1_early_regs:ctas=56:rest"),
]
BULK = [
    "b128_w2_m2_t2_early_regs_bulk:ctas=20:none",
    "b128_w2_m2_t2_x2_early_regs_bulk:ctas=20",
    "b128_w2_m1_t1_x2_early_regs_bulk:none",
    "b80_w2_m2_t2_early_regs_bulk:raster=4:none",
    "b64_w2_m1_t1_early_regs_bulk",
]
K, N = 4096, 5184


@pytest.fixture(autouse=True)
def needs_hopper():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper GPU")


def operands(M):
    generator = torch.Generator(device="cuda").manual_seed(7)
    return make_weights(K, N), torch.randn((M, K), device="cuda", generator=generator).half()


@pytest.mark.parametrize(("M", "name"), SHARED)
def test_a_shared_last_round_gives_the_same_bits_and_leaves_the_counts_at_zero(M, name):
    weights, activations = operands(M)
    plan, workspace = Plan.parse(name), Workspace(activations.device)
    assert plan.schedule(M, N, K, 132).shared_ends
    packed = pack(weights)
    first = multiply(packed, activations, plan, workspace=workspace)
    assert_close(first, expected(weights, activations))
    for _ in range(100):
        assert torch.equal(multiply(packed, activations, plan, workspace=workspace), first)
    assert not workspace.arrivals.any()


@pytest.mark.parametrize("busy", [40, 120, 131])
@pytest.mark.parametrize(("M", "name"), SHARED)
def test_a_shared_last_round_is_finished_when_some_come_late(M, name, busy):
    """With SMs taken away some CTAs look for the others' sums before these have started."""
    import cupy
    import numpy as np

    spin = cupy.RawKernel(SPIN, "spin")
    spin.max_dynamic_shared_size_bytes = 200 * 1024
    weights, activations = operands(M)
    packed, workspace = pack(weights), Workspace(activations.device)
    free = multiply(packed, activations, Plan.parse(name))
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    with cupy.cuda.ExternalStream(other.cuda_stream):
        spin((busy,), (32,), (np.uint64(20_000_000),), shared_mem=200 * 1024)
    crowded = multiply(packed, activations, Plan.parse(name), workspace=workspace)
    torch.cuda.synchronize()
    assert torch.equal(crowded, free)
    assert not workspace.arrivals.any()


@pytest.mark.parametrize("name", BULK)
@pytest.mark.parametrize("M", [1, 128, 333, 1000])
def test_bulk_stores_give_the_bits_of_plain_ones_and_write_nothing_beside(M, name):
    weights, activations = operands(M)
    plan, packed = Plan.parse(name), pack(weights)
    bias = torch.randn(N, device="cuda").half()
    assert plan.tiling.bulk_store
    stored = multiply(packed, activations, plan, bias=bias)
    assert_close(stored, expected(weights, activations, bias))
    plain = replace(plan, tiling=replace(plan.tiling, bulk_store=False))
    assert torch.equal(stored, multiply(packed, activations, plain, bias=bias))
