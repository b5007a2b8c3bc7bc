"""marlin_hopper with tails: right and the same bits whoever computes a piece, alone, crowded and on two streams."""

import pytest
import torch
from gpu.test_marlin_hopper import SPIN, assert_close, expected, make_weights, multiply

from marlin_bench.backends.marlin_hopper import HopperProduct, Workspace
from marlin_bench.layouts.marlin_hopper import pack
from marlin_bench.marlin_hopper_choice import Plan

pytestmark = pytest.mark.gpu

PLANS = [
    (1, "b8_w2_m2_t2_s4_p4_early_regs_tail:tail=2.2.1.1"),
    (16, "b16_w2_m2_t2_p4_acc_regs_tail:tail=3.2.1"),
    (32, "b32_w2_m2_t2_p4_early_regs_tail:tail=4.2.1.1"),
    (5, "b8_w2_m1_t2_early_tail:tail=1.1.1.1.1.1.1.1"),
]
K, N = 4096, 3200


@pytest.fixture(autouse=True)
def needs_hopper():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper GPU")


def operands(M, K=K, N=N):
    generator = torch.Generator(device="cuda").manual_seed(7)
    weights = make_weights(K, N)
    return weights, torch.randn((M, K), device="cuda", generator=generator).half()


@pytest.mark.parametrize(("rows", "name"), PLANS)
@pytest.mark.parametrize(("K", "N"), [(256, 64), (1024, 320), (4096, 1600), (11008, 4096)])
def test_ragged_batches_and_layers_are_right(rows, name, K, N):
    plan = Plan.parse(name)
    weights, activations = operands(3 * plan.tiling.batch_tile + 5, K, N)
    packed, reference = pack(weights), expected(weights, activations)
    workspace = Workspace(activations.device)
    for M in (rows, plan.tiling.batch_tile + 1, len(activations)):
        output = multiply(packed, activations[:M].contiguous(), plan, workspace=workspace)
        assert_close(output, reference[:M])


@pytest.mark.parametrize(("M", "name"), PLANS)
def test_200_calls_give_the_same_bits_and_leave_the_counts_at_zero(M, name):
    weights, activations = operands(M)
    packed, workspace = pack(weights), Workspace(activations.device)
    first = multiply(packed, activations, Plan.parse(name), workspace=workspace)
    assert_close(first, expected(weights, activations))
    for _ in range(200):
        assert torch.equal(multiply(packed, activations, Plan.parse(name), workspace=workspace), first)
    assert not workspace.arrivals.any()


@pytest.mark.parametrize("busy", [40, 120, 131])
@pytest.mark.parametrize(("M", "name"), PLANS)
def test_it_finishes_and_gives_the_same_bits_when_most_sms_are_taken(M, name, busy):
    import cupy
    import numpy as np

    spin = cupy.RawKernel(SPIN, "spin")
    spin.max_dynamic_shared_size_bytes = 200 * 1024
    weights, activations = operands(M)
    packed = pack(weights)
    free = multiply(packed, activations, Plan.parse(name))
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    with cupy.cuda.ExternalStream(other.cuda_stream):
        spin((busy,), (32,), (np.uint64(20_000_000),), shared_mem=200 * 1024)
    crowded = multiply(packed, activations, Plan.parse(name))
    torch.cuda.synchronize()
    assert torch.equal(crowded, free)


@pytest.mark.parametrize(("M", "name"), PLANS)
def test_dependent_launches_in_graphs_on_two_streams_keep_their_bits(M, name):
    """One workspace a stream, many launches in flight: no launch meets the counts of the one before."""
    weights, activations = operands(M)
    packed = pack(weights)
    alone = multiply(packed, activations, Plan.parse(name), dependent=False)
    torch.cuda.synchronize()
    runs = []
    for _ in range(2):
        stream, workspace = torch.cuda.Stream(), Workspace(activations.device)
        outputs = [torch.empty_like(alone) for _ in range(8)]
        products = [HopperProduct(packed, activations, y, Plan.parse(name), workspace) for y in outputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for product in products:
                product()
        runs.append((stream, graph, outputs, products))
    for _ in range(20):
        for stream, graph, outputs, _ in runs:
            with torch.cuda.stream(stream):
                for output in outputs:
                    output.fill_(float("nan"))
                graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(output, alone) for _, _, outputs, _ in runs for output in outputs)
