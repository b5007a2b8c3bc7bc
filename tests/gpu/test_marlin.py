"""MARLIN on a GPU: right for every shape, tile and format it claims, repeatable, and safe next to other work."""

import pytest
import torch
from gpu_product import (
    Draw,
    check_layer_compiled,
    check_layer_in_a_graph,
    check_on_two_streams,
    random,
    relative_error,
)
from gpu_product import MarlinCase as Case

from marlin_bench.backends.marlin import Marlin, MarlinBf16, make_plan, packed_operands
from marlin_bench.backends.naive_w4a16 import NaiveW4A16
from marlin_bench.kernel_launch import make_workspace
from marlin_bench.linear import MarlinLinear
from marlin_bench.marlin_config import TILES, ConfigError
from marlin_bench.quantize import QuantizedWeights, quantize

pytestmark = pytest.mark.gpu

TOLERANCE = 0.001  # mean|Δ| / mean|reference|
BF16_TOLERANCE = 0.003  # before rounding the reference to BF16
LLAMA_LAYERS = [
    *((4096, 12288), (4096, 4096), (4096, 21504), (10752, 4096)),
    *((5120, 15360), (5120, 5120), (5120, 27136), (13568, 5120)),
    *((6656, 19968), (6656, 6656), (6656, 35328), (17664, 6656)),
    *((8192, 24576), (8192, 8192), (8192, 43520), (21760, 8192)),
]


def layer(K, N, group_size=128, *, zero_points=False, seed=0):
    return quantize(random(K, N, seed=seed, scale=K**-0.5), group_size, zero_points=zero_points)


@pytest.mark.parametrize("M", [1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 118, 128, 152, 768, 1024])
def test_tiles_of_the_papers_tests(M):
    Case(M, layer(1024, 512, None)).check()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("M", [1, 16, 70])
def test_every_tile_serves_every_row_count(tile, M):
    if not tile.runs_on(torch.cuda.get_device_capability()):
        pytest.skip("made for sm_90 and later")
    Case(M, layer(1024, 512), choice={"tile": str(tile)}).check()


@pytest.mark.parametrize("M", [*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 1000, 1025, 2048, 4097])
def test_ragged_row_counts(M):
    Case(M, layer(1024, 768)).check()


@pytest.mark.parametrize("K", [64, 128, 192, 768, 832, 896])
@pytest.mark.parametrize("tile", ["16x256x64x2", None])
def test_few_steps_and_steps_that_stages_do_not_divide(K, tile):
    Case(16, layer(K, 512, None), choice={"tile": tile} if tile else None).check()


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
def test_any_number_of_stages(stages):
    Case(16, layer(1024, 512), choice={"stages": str(stages)}).check()


@pytest.mark.parametrize(("N", "K"), [(256, 512), (256, 1024), (32768, 1024), (64, 512), (192, 512), (320, 256)])
@pytest.mark.parametrize("M", [16, 100])
def test_layer_widths(N, K, M):
    Case(M, layer(K, N)).check()


@pytest.mark.parametrize("group_size", [32, 64, 128, None])
@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zero_points"])
@pytest.mark.parametrize("backend", [Marlin, MarlinBf16])
@pytest.mark.parametrize("M", [5, 24, 40, 64, 90, 200])
def test_formats(group_size, zero_points, backend, M):
    weights = layer(1024, 384, group_size, zero_points=zero_points)
    Case(M, weights, backend=backend(), bias=M % 2 == 0).check()


@pytest.mark.parametrize(("K", "N"), LLAMA_LAYERS)
@pytest.mark.parametrize("M", [1, 16])
def test_llama_layers(K, N, M):
    Case(M, layer(K, N)).check()


@pytest.mark.parametrize("group_size", [32, 128, None])
@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zero_points"])
@pytest.mark.parametrize("backend", [Marlin, MarlinBf16])
def test_identity_activations_give_the_dequantised_weights_bit_for_bit(group_size, zero_points, backend):
    weights = layer(512, 320, group_size, zero_points=zero_points)
    case = Case(512, weights, backend=backend(), activations=torch.eye(512, device="cuda"))
    case.launch()
    assert torch.equal(case.C.double(), case.dense())


def test_outliers_in_a_long_sum_neither_overflow_nor_lose_precision():
    K, N = 73728, 512
    activations = random(16, K)
    activations[:, ::997] *= 300
    case = Case(16, layer(K, N, None), activations=activations)
    case.check()
    cublas = case.A @ case.weights.dequantized()
    expected = case.expected()
    assert relative_error(case.C, expected) <= 1.05 * relative_error(cublas, expected)


@pytest.mark.parametrize("ctas", [1, 7, 72, 84, 108, 132, 264, 1000])
@pytest.mark.parametrize("M", [16, 64, 300])
def test_any_grid_gives_the_product_and_the_same_bits_each_time(ctas, M):
    Case(M, layer(2048, 1024), choice={"ctas": str(ctas)}).check_again_and_again(5)


@pytest.mark.parametrize("tile", [tile for tile in TILES if tile.cluster > 1], ids=str)
@pytest.mark.parametrize(("M", "k_tiles", "N"), [(5, 12, 320), (40, 8, 4096), (150, 21, 64), (19, 7, 512)])
def test_clusters_give_the_product_and_the_same_bits_each_time(tile, M, k_tiles, N):
    """Halves of unequal length, columns beyond N, more clusters than fit at once, and of few rows several a tile."""
    if not tile.runs_on(torch.cuda.get_device_capability()):
        pytest.skip("clusters and registers that change hands are sm_90a's")
    Case(M, layer(k_tiles * tile.depth, N), choice={"tile": str(tile)}, bias=True).check_again_and_again(20)


@pytest.mark.parametrize("M", [1, 16, 64, 128])
def test_200_calls_without_resetting_anything(M):
    Case(M, layer(4096, 4096)).check_again_and_again(200)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_dead_launch_left_in_the_workspace_changes_nothing(seed):
    Case(16, layer(4096, 4096)).check_on_any_workspace(seed + 1, -1)


def test_graph_replays_give_the_same_bits():
    Case(16, layer(4096, 4096)).check_replayed()


def test_two_streams_at_once():
    check_on_two_streams(*(Case(16, layer(4096, 4096, seed=seed)) for seed in range(2)))


def test_fewer_resident_ctas_than_launched_neither_hang_nor_change_a_bit():
    Case(16, layer(4096, 4096)).check_beside_a_neighbour(free=3)


@pytest.mark.parametrize("seed", range(12))
def test_shapes_drawn_at_random(seed):
    draw = Draw(seed)
    group_size = draw.pick(32, 64, 128, None)
    K, N, M = 128 * draw.between(1, 24), 64 * draw.between(1, 24), draw.between(1, 400)
    weights = layer(K, N, group_size, zero_points=draw.pick(False, True))
    Case(M, weights, backend=draw.pick(Marlin, MarlinBf16)(), bias=draw.pick(False, True)).check()


def test_an_impossible_tile_is_named():
    with pytest.raises(ConfigError, match=r"tile 16x128x128 does not divide K 192 by 128"):
        Case(16, layer(192, 256, None), choice={"tile": "16x128x128"})
    with pytest.raises(ConfigError, match="there is no tile '256x256x64'"):
        Case(16, layer(256, 256, None), choice={"tile": "256x256x64"})


def test_m_65536_in_one_launch():
    case = Case(65536, layer(256, 256))
    assert case.plan.ctas <= 2 * torch.cuda.get_device_properties(0).multi_processor_count
    case.check()


def test_packing_the_papers_layer_takes_less_than_two_seconds():
    K, N = 73728, 18432
    codes = torch.randint(0, 16, (K, N), dtype=torch.uint8, device="cuda")
    from marlin_bench.layouts import marlin as layout

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    packed = layout.pack_codes(codes)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) < 2000
    assert torch.equal(layout.unpack_codes(packed[:2]), codes[:128])


@pytest.mark.parametrize("M", [1, 7, 64])
@pytest.mark.parametrize("zero_points", [False, True])
def test_the_naive_kernel(M, zero_points):
    weights = layer(512, 192, 64, zero_points=zero_points)
    backend = NaiveW4A16()
    A, C = random(M, 512).half(), torch.full((M, 192), float("nan"), device="cuda", dtype=torch.float16)
    backend.launch(backend.pack(weights), A, C, {})()
    assert relative_error(C, A.double() @ weights.dequantized().double()) < TOLERANCE


class TestMarlinLinear:
    @pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    def dense(self, request):
        torch.manual_seed(0)
        return torch.nn.Linear(512, 320, device="cuda", dtype=request.param)

    def expected(self, dense, x, group_size=128, zero_points=False):
        weights = quantize(dense.weight.detach().t(), group_size, zero_points=zero_points)
        held = QuantizedWeights(weights.codes, weights.scales.to(dense.weight.dtype), weights.zeros, None, group_size)
        return x.double() @ held.dequantized(dtype=dense.weight.dtype).double() + dense.bias.double()

    @pytest.mark.parametrize("shape", [(1, 512), (3, 5, 512), (130, 512), (0, 512), (512,)])
    def test_gives_the_quantised_layers_output(self, dense, shape):
        x = random(*shape).to(dense.weight.dtype)
        y = MarlinLinear.from_linear(dense)(x)
        assert y.shape == (*shape[:-1], 320)
        if y.numel():
            assert relative_error(y, self.expected(dense, x)) < BF16_TOLERANCE

    def test_takes_activations_that_are_neither_contiguous_nor_aligned(self, dense):
        layer_ = MarlinLinear.from_linear(dense)
        x = random(513, 8).to(dense.weight.dtype).t()[:, 1:]
        assert torch.equal(layer_(x), layer_(x.contiguous()))
        odd = random(8 * 512 + 1).to(dense.weight.dtype)[1:].view(8, 512)
        assert torch.equal(layer_(odd), layer_(odd.clone()))

    def test_works_compiled(self, dense):
        check_layer_compiled(MarlinLinear.from_linear(dense), random(9, 512).to(dense.weight.dtype))

    def test_works_in_a_graph(self, dense):
        layer_ = MarlinLinear.from_linear(dense, 64, zero_points=True)
        check_layer_in_a_graph(layer_, random(9, 512).to(dense.weight.dtype))

    def test_survives_a_state_dict(self, dense):
        layer_ = MarlinLinear.from_linear(dense)
        other = MarlinLinear.from_linear(torch.nn.Linear(512, 320, device="cuda", dtype=dense.weight.dtype))
        other.load_state_dict(layer_.state_dict())
        x = random(2, 512).to(dense.weight.dtype)
        assert torch.equal(other(x), layer_(x))

    def test_passes_the_operator_checks(self, dense):
        layer_ = MarlinLinear.from_linear(dense)
        x = random(4, 512).to(dense.weight.dtype)
        tensors = [layer_.get_buffer(name) for name in layer_._names]
        from marlin_bench.linear import w4a16_linear

        torch.library.opcheck(w4a16_linear, (x, tensors, layer_.bias, layer_.kernel, 320, 128))


def test_workspaces_are_sized_by_the_plan():
    weights = layer(1024, 512)
    operands = packed_operands(Marlin().pack(weights))
    plan = make_plan(operands, 16, 512, 1024, torch.device("cuda:0"))
    assert make_workspace(plan, torch.device("cuda:0")).sums.numel() * 4 == plan.sum_bytes > 0
