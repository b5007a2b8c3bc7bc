"""marlin_hopper on a Hopper GPU: right on all weights and batches, repeatable, and safe to run beside others."""

import json

import pytest
import torch

from marlin_bench.backends.marlin_hopper import HopperProduct, MarlinHopper, MarlinHopperBf16, Workspace
from marlin_bench.check import check_output, fault
from marlin_bench.layouts.marlin_hopper import pack
from marlin_bench.marlin_hopper_choice import BATCH_TILES, TABLE, Plan, choose, reachable_builds
from marlin_bench.marlin_hopper_config import WeightKind
from marlin_bench.marlin_hopper_kinds import rounds_weights
from marlin_bench.quantize import QuantizedWeights, quantize

pytestmark = pytest.mark.gpu

KINDS = [(group_size, zero_points) for group_size in (64, 128, None) for zero_points in (False, True)]
RAGGED_M = sorted(
    {*range(1, 18), *(M for tile in BATCH_TILES for M in (tile - 1, tile, tile + 1))}
    | {160, 161, 192, 224, 255, 257, 272, 273, 304, 305, 1000, 1025, 2048, 4097}
)


@pytest.fixture(autouse=True)
def needs_hopper():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper GPU")


@pytest.fixture
def generator():
    return torch.Generator(device="cuda").manual_seed(7)


def make_weights(K, N, group_size=128, zero_points=False, seed=1):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    dense = torch.randn((K, N), device="cuda", generator=generator) * 0.02
    return quantize(dense, group_size, zero_points=zero_points)


def sm_count():
    return torch.cuda.get_device_properties(0).multi_processor_count


def multiply(weights, activations, plan=None, bias=None, dependent=True, workspace=None):
    """The product, its output filled with NaN before."""
    M, K = activations.shape
    N = weights.N
    packed = weights if not isinstance(weights, QuantizedWeights) else pack(weights)
    output = torch.full((M, N), float("nan"), dtype=activations.dtype, device="cuda")
    kind = WeightKind(packed.group_size, packed.zero_points, activations.dtype is torch.bfloat16)
    plan = plan or choose(M, N, K, sm_count(), kind)
    workspace = workspace or Workspace(activations.device)
    HopperProduct(packed, activations, output, plan, workspace, bias=bias, dependent=dependent)()
    return output


def expected(weights, activations, bias=None, plan=None):
    """float64 product with the dequantised weights, in BF16 where the plan (by default the chosen one) rounds to it."""
    M, K = activations.shape
    kind = WeightKind(weights.group_size, weights.zeros is not None, activations.dtype is torch.bfloat16)
    plan = plan or choose(M, weights.N, K, sm_count(), kind)
    dtype = torch.bfloat16 if rounds_weights(plan.tiling, kind) else torch.float16
    columns = [slice(n, n + 2048) for n in range(0, weights.N, 2048)]
    blocks = [activations.double() @ weights.dequantized(c, dtype).double() for c in columns]
    product = torch.cat(blocks, dim=1)
    return product if bias is None else product + bias.double()


def assert_close(output, reference):
    reason = fault(check_output(output, reference, MarlinHopper.tolerance, "before"))
    assert reason is None, reason
    assert (output.double() - reference).abs().max() < 0.02 * reference.abs().max()


@pytest.mark.parametrize("M", RAGGED_M)
@pytest.mark.parametrize(("K", "N"), [(1024, 1088), (4096, 4096)])
def test_every_batch_is_right(K, N, M, generator):
    weights = make_weights(K, N)
    activations = torch.randn((M, K), device="cuda", generator=generator).half()
    assert_close(multiply(weights, activations), expected(weights, activations))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("group_size", "zero_points"), KINDS)
@pytest.mark.parametrize("M", [1, 17, 33, 100, 300])
def test_every_kind_of_weights_is_right_in_both_types(M, group_size, zero_points, dtype, generator):
    weights = make_weights(2048, 832, group_size, zero_points)
    activations = torch.randn((M, 2048), device="cuda", generator=generator).to(dtype)
    assert_close(multiply(weights, activations), expected(weights, activations))


@pytest.mark.parametrize(
    ("K", "N"), [(64, 64), (64, 128), (128, 64), (192, 320), (448, 64), (11008, 4096), (4096, 11008)]
)
@pytest.mark.parametrize("M", [1, 16, 40, 130])
def test_small_and_odd_layers_are_right(K, N, M, generator):
    weights = make_weights(K, N, 64)
    activations = torch.randn((M, K), device="cuda", generator=generator).half()
    assert_close(multiply(weights, activations), expected(weights, activations))


def table_plans(kind):
    """Every plan of the table, cut down to every narrower batch tile as the chooser does."""
    layers = json.loads(TABLE.read_text(encoding="utf-8"))["layers"]
    sizes = [*BATCH_TILES, *(2 * tile for tile in BATCH_TILES if tile > 64), 513, 1025, 5000]
    return sorted({choose(M, layer["N"], layer["K"], 132, kind).name for layer in layers for M in sizes})


def name_of(kind):
    dtype, group = "bf16" if kind.bf16 else "fp16", kind.group_size or "column"
    return f"{dtype}-{group}" + ("-zeros" if kind.zero_points else "")


EVERY_KIND = [WeightKind(*kind, bf16) for kind in KINDS for bf16 in (False, True)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(kind, name, id=f"{name_of(kind)}-{name}") for kind in EVERY_KIND for name in table_plans(kind)],
)
def test_every_plan_of_the_table_is_right_at_ragged_batches(kind, name, generator):
    plan = Plan.parse(name)
    tile = plan.tiling.batch_tile
    weights = make_weights(4096, 1600, kind.group_size, kind.zero_points)
    packed = pack(weights)
    dtype = torch.bfloat16 if kind.bf16 else torch.float16
    for M in (1, tile - 1, tile, tile + 1, 3 * tile + 5):
        activations = torch.randn((M, 4096), device="cuda", generator=generator).to(dtype)
        assert_close(multiply(packed, activations, plan), expected(weights, activations, plan=plan))


@pytest.mark.parametrize("kind", EVERY_KIND, ids=name_of)
def test_every_reachable_build_is_right(kind, generator):
    """With the table's plans above, those of the rule for any other layer."""
    weights = make_weights(8192, 832, kind.group_size, kind.zero_points)
    packed = pack(weights)
    dtype = torch.bfloat16 if kind.bf16 else torch.float16
    largest = torch.randn((400, 8192), device="cuda", generator=generator).to(dtype)
    for tiling in (tiling for tiling, its_kind in reachable_builds(sm_count()) if its_kind == kind):
        plan = Plan(tiling)
        activations = largest[: 2 * tiling.batch_tile - 3]
        output, reference = multiply(packed, activations, plan), expected(weights, activations, plan=plan)
        reason = fault(check_output(output, reference, MarlinHopper.tolerance, "before"))
        assert reason is None, f"{tiling.name}: {reason}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("group_size", "zero_points"), KINDS)
def test_identity_activations_give_the_dequantised_weights_bit_for_bit(group_size, zero_points, dtype):
    weights = make_weights(1024, 512, group_size, zero_points)
    identity = torch.eye(1024, device="cuda", dtype=dtype)
    for M in (8, 32, 64, 1024):
        output = multiply(weights, identity[:M])
        assert torch.equal(output, weights.dequantized(dtype=dtype)[:M])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("group_size", [64, 128])
def test_scales_of_every_significand_give_the_dequantised_weights_bit_for_bit(group_size, zero_points, dtype):
    """All 1024 significands in each of the eight binades that a column's scales may span, all codes and zero points."""
    K, N = 8 * group_size, 1024
    rows, columns = torch.arange(K, device="cuda"), torch.arange(N, device="cuda")
    codes = ((rows[:, None] + columns) % 16).to(torch.uint8)
    groups = torch.arange(8, device="cuda")[:, None]
    scales = ((1 + columns / 1024) * 2.0 ** -((groups + columns) % 8)).half()
    zeros = ((groups * 5 + columns) % 16).to(torch.uint8) if zero_points else None
    weights = QuantizedWeights(codes, scales, zeros, group_size=group_size)
    identity = torch.eye(K, device="cuda", dtype=dtype)
    for M in (8, 64, K):
        assert torch.equal(multiply(weights, identity[:M]), weights.dequantized(dtype=dtype)[:M])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("M", [1, 33, 200])
def test_a_bias_is_added_once(M, dtype, generator):
    weights = make_weights(4096, 1024)
    activations = torch.randn((M, 4096), device="cuda", generator=generator).to(dtype)
    bias = torch.randn(1024, device="cuda", generator=generator).to(dtype) * 4
    assert_close(multiply(weights, activations, bias=bias), expected(weights, activations, bias))


@pytest.mark.parametrize("M", [1, 16, 64, 500])
def test_200_calls_give_the_same_bits(M, generator):
    weights = pack(make_weights(4096, 3200))
    activations = torch.randn((M, 4096), device="cuda", generator=generator).half()
    workspace = Workspace(activations.device)
    first = multiply(weights, activations, workspace=workspace)
    for _ in range(200):
        assert torch.equal(multiply(weights, activations, workspace=workspace), first)


@pytest.mark.parametrize("M", [1, 64, 300])
def test_a_graph_of_dependent_launches_replays_a_chain(M, generator):
    """Four layers in a row, each reading what the one before wrote, as in a decoder layer."""
    layers = [
        make_weights(K, N, seed=i) for i, (K, N) in enumerate([(2048, 4096), (4096, 2048), (2048, 8192), (8192, 512)])
    ]
    plans = [choose(M, w.N, w.K, sm_count(), WeightKind(128)) for w in layers]
    x = torch.randn((M, 2048), device="cuda", generator=generator).half()
    buffers = [x] + [torch.full((M, w.N), float("nan"), dtype=torch.float16, device="cuda") for w in layers]
    workspace = Workspace(x.device)
    products = [
        HopperProduct(pack(w), source, target, plan, workspace)
        for w, source, target, plan in zip(layers, buffers, buffers[1:], plans, strict=False)
    ]
    products[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for product in products:
            product()
    for _ in range(20):
        x.copy_(torch.randn((M, 2048), device="cuda", generator=generator))
        graph.replay()
        torch.cuda.synchronize()
        for source, target, weights in zip(buffers, buffers[1:], layers, strict=False):
            assert_close(target, expected(weights, source))


@pytest.mark.parametrize("M", [1, 40])
def test_two_streams_do_not_disturb_each_other(M, generator):
    backend = MarlinHopper()
    weights = make_weights(4096, 2176)
    packed = backend.pack(weights)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    inputs = [torch.randn((M, 4096), device="cuda", generator=generator).half() for _ in streams]
    outputs = [torch.empty((M, 2176), dtype=torch.float16, device="cuda") for _ in streams]
    choice = backend.tune([packed], inputs[:1], outputs[:1], "quick")
    torch.cuda.synchronize()
    launches = []
    for stream, x, y in zip(streams, inputs, outputs, strict=True):
        with torch.cuda.stream(stream):
            launches.append(backend.launch(packed, x, y, choice))
    for _ in range(50):
        for stream, launch in zip(streams, launches, strict=True):
            with torch.cuda.stream(stream):
                launch()
    torch.cuda.synchronize()
    for x, y in zip(inputs, outputs, strict=True):
        assert_close(y, expected(weights, x))


SPIN = r"""
extern "C" __global__ void spin(unsigned long long nanoseconds) {
  extern __shared__ char memory[];
  unsigned long long begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - begin < nanoseconds);
}
"""


@pytest.mark.parametrize("M", [1, 32, 64, 200])
@pytest.mark.parametrize("busy", [40, 120, 131])
def test_it_finishes_and_gives_the_same_bits_when_most_sms_are_taken(M, busy, generator):
    import cupy
    import numpy as np

    spin = cupy.RawKernel(SPIN, "spin")
    spin.max_dynamic_shared_size_bytes = 200 * 1024
    weights = pack(make_weights(4096, 3200))
    activations = torch.randn((M, 4096), device="cuda", generator=generator).half()
    free = multiply(weights, activations)
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    with cupy.cuda.ExternalStream(other.cuda_stream):
        spin((busy,), (32,), (np.uint64(20_000_000),), shared_mem=200 * 1024)
    crowded = multiply(weights, activations)
    torch.cuda.synchronize()
    assert torch.equal(crowded, free)


def test_outlier_activations_over_a_long_k_do_not_overflow(generator):
    weights = make_weights(73728, 256)
    activations = torch.randn((16, 73728), device="cuda", generator=generator).half()
    activations[:, ::4096] = 200
    assert_close(multiply(weights, activations), expected(weights, activations))


def test_scales_near_the_ends_of_fp16_are_exact(generator):
    weights = make_weights(1024, 128)
    weights.scales[:, :64] = 2.0**-14
    weights.scales[:, 64:] = 100.0
    identity = torch.eye(1024, device="cuda", dtype=torch.float16)
    for M in (16, 64, 1024):
        assert torch.equal(multiply(weights, identity[:M]), weights.dequantized()[:M])


def test_more_than_2_to_the_31_weights_are_addressed(generator):
    K, N = 135168, 33792
    codes = torch.randint(0, 16, (K, N), device="cuda", generator=generator, dtype=torch.uint8)
    scales = (torch.rand((K // 128, N), device="cuda", generator=generator) + 0.5).half() / 64
    weights = QuantizedWeights(codes, scales)
    packed = pack(weights)
    activations = torch.randn((5, K), device="cuda", generator=generator).half() / 16
    output = multiply(packed, activations)
    last = slice(N - 256, N)
    assert_close(output[:, last], activations.double() @ weights.dequantized(last).double())
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("backend", [MarlinHopper(), MarlinHopperBf16()], ids=lambda backend: backend.name)
def test_the_backend_computes_what_it_says_it_chose(backend, generator):
    weights = make_weights(4096, 4096)
    packed = backend.pack(weights)
    activations = torch.randn((24, 4096), device="cuda", generator=generator).to(backend.dtype)
    output = torch.full((24, 4096), float("nan"), dtype=backend.dtype, device="cuda")
    choice = backend.tune([packed], [activations], [output], "quick")
    backend.launch(packed, activations, output, choice)()
    assert_close(output, expected(weights, activations))
    assert packed.nbytes == 4096 * 4096 * 33 // 64 + 4096 * 4
