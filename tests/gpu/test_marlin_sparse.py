"""Sparse-MARLIN on a GPU: right for every shape, tile and mask it claims, repeatable, and safe next to other work."""

import subprocess
import sys
from itertools import combinations

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
from gpu_product import SparseCase as Case
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin_bench.backends.cusparselt import CusparseltFp16
from marlin_bench.backends.marlin_sparse import MarlinSparse, MarlinSparseBf16
from marlin_bench.marlin_sparse_config import TILES, ConfigError, tile_named
from marlin_bench.pruning import largest_two_of_four
from marlin_bench.quantize import QuantizedWeights, quantize
from marlin_bench.sparse_linear import SparseMarlinLinear

pytestmark = pytest.mark.gpu

TOLERANCE = 0.002  # mean|Δ| / mean|reference|
LLAMA_LAYERS = [(4096, 12288), (10752, 4096), (5120, 15360), (13568, 5120), (6656, 35328), (8192, 24576), (21760, 8192)]


def random_mask(K, N, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return largest_two_of_four(torch.rand(K, N, device="cuda", generator=generator))


def layer(K, N, group_size=128, *, seed=0):
    weights = random(K, N, seed=seed, scale=K**-0.5)
    return quantize(weights, group_size, mask=largest_two_of_four(weights.abs()))


def skip_unless_it_runs(tile):
    if tile.needs_sm90a and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("made for sm_90a only")


# The cases of the original's tests, and what they lacked.


@pytest.mark.parametrize(("N", "M", "K", "group_size"), [(256, 16, 256, None), (21504, 16, 4096, 128)])
def test_correctness_cases_of_the_original(N, M, K, group_size):
    Case(M, layer(K, N, group_size)).check()


@pytest.mark.parametrize("M", [1, 2, 4, 8, 12, 16, 32, 64])
def test_tiles_of_the_originals_tests(M):
    Case(M, layer(1024, 512, None)).check()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("M", [1, 16, 23, 70])
def test_every_tile_serves_every_row_count(tile, M):
    skip_unless_it_runs(tile)
    Case(M, layer(1024, 512), choice={"tile": str(tile)}).check()


@pytest.mark.parametrize("M", [*range(1, 26), 31, 32, 33, 48, 49, 63, 64, 65, 97, 127, 128, 129, 255, 256])
def test_ragged_row_counts(M):
    Case(M, layer(1024, 768)).check()


@pytest.mark.parametrize("M", [257, 300, 513, 1000, 1025, 2048, 4097])
def test_batches_past_256(M):
    Case(M, layer(1024, 768)).check()


@pytest.mark.parametrize("K", [64, 128, 192, 768, 832, 896])
@pytest.mark.parametrize("N", [512, 768])
@pytest.mark.parametrize("M", [16, 40])
def test_few_steps_and_steps_that_stages_do_not_divide(K, N, M):
    Case(M, layer(K, N, None)).check()


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_any_number_of_stages(stages):
    Case(16, layer(2048, 512), choice={"stages": str(stages)}).check()


@pytest.mark.parametrize(("N", "K"), [(256, 512), (256, 1024), (32768, 1024), (64, 512), (192, 512), (59136, 256)])
@pytest.mark.parametrize("M", [16, 100])
def test_layer_widths(N, K, M):
    Case(M, layer(K, N)).check()


@pytest.mark.parametrize("group_size", [64, 128, None])
@pytest.mark.parametrize("backend", [MarlinSparse, MarlinSparseBf16])
@pytest.mark.parametrize("M", [5, 16, 24, 40, 64, 90, 200])
def test_formats(group_size, backend, M):
    Case(M, layer(1024, 384, group_size), backend=backend(), bias=M % 2 == 0).check()


@pytest.mark.parametrize(("K", "N"), LLAMA_LAYERS)
@pytest.mark.parametrize("M", [1, 16])
def test_llama_layers(K, N, M):
    Case(M, layer(K, N)).check()


# Masks, positions and codes.


@pytest.mark.parametrize("group_size", [64, 128, None])
@pytest.mark.parametrize("backend", [MarlinSparse, MarlinSparseBf16])
def test_identity_activations_give_the_pruned_weights_bit_for_bit(group_size, backend):
    case = Case(512, layer(512, 320, group_size), backend=backend(), activations=torch.eye(512, device="cuda"))
    case.launch()
    assert torch.equal(case.C.double(), case.dense())


@pytest.mark.parametrize("pair", list(combinations(range(4), 2)), ids=str)
def test_every_legal_pair_of_positions_with_every_code(pair):
    K, N = 256, 128
    mask = torch.zeros(K // 4, 4, N, dtype=torch.bool, device="cuda")
    mask[:, list(pair)] = True
    codes = (torch.arange(K * N, device="cuda") % 16).to(torch.uint8).view(K, N)
    scales = torch.ones(1, N, dtype=torch.float16, device="cuda")
    weights = QuantizedWeights(codes, scales, mask=mask.view(K, N), group_size=None)
    case = Case(K, weights, activations=torch.eye(K, device="cuda"))
    case.launch()
    assert torch.equal(case.C.double(), torch.where(weights.mask, codes.double() - 8, 0))


@pytest.mark.parametrize("seed", range(4))
def test_random_masks_with_all_four_positions_and_fewer_than_two_kept(seed):
    weights = layer(512, 256)
    mask = random_mask(512, 256, seed)
    if seed % 2:
        mask &= random(512, 256, seed=seed) > 0
    case = Case(512, QuantizedWeights(weights.codes, weights.scales, mask=mask), activations=torch.eye(512).cuda())
    case.launch()
    assert torch.equal(case.C != 0, mask & (weights.codes != 8))
    assert torch.equal(case.C.double(), case.dense())


LEGAL_QUADS = [kept for count in range(3) for kept in combinations(range(4), count)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(LEGAL_QUADS), min_size=1, max_size=64),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([MarlinSparse, MarlinSparseBf16]),
)
def test_any_mask_gives_the_pruned_weights_bit_for_bit(quads, blocks_k, blocks_n, backend):
    """The drawn quads follow one another down K and along N."""
    K, N = 64 * blocks_k, 64 * blocks_n
    drawn = torch.tensor([[position in kept for position in range(4)] for kept in quads], device="cuda")
    order = torch.arange(K // 4 * N, device="cuda").view(K // 4, N) % len(quads)
    mask = drawn[order].permute(0, 2, 1).reshape(K, N)
    codes = torch.randint(0, 16, (K, N), dtype=torch.uint8, device="cuda")
    scales = (random(1, N).abs() + 0.5).half()
    weights = QuantizedWeights(codes, scales, mask=mask, group_size=None)
    case = Case(K, weights, backend=backend(), activations=torch.eye(K, device="cuda"))
    case.launch()
    assert torch.equal(case.C.double(), case.dense())
    assert torch.equal(case.C != 0, mask & (codes != 8))


def test_a_layer_of_nothing_but_minus_eights():
    codes = torch.zeros(512, 256, dtype=torch.uint8, device="cuda")
    weights = QuantizedWeights(codes, torch.full((4, 256), 0.01).half().cuda(), mask=random_mask(512, 256))
    case = Case(16, weights)
    case.check()
    assert bool((case.dense()[weights.mask] < -0.07).all())


def test_dense_weights_are_pruned_by_magnitude_when_packed():
    weights = quantize(random(512, 256), 128)
    case = Case(16, weights)
    case.check()
    full = weights.dequantized()
    kept = largest_two_of_four(full.abs())
    assert torch.equal(case.dense(), full.masked_fill(~kept, 0).double())


# Sums, grids and neighbours.


def test_outliers_in_a_long_sum_neither_overflow_nor_lose_precision():
    activations = random(16, 73728)
    activations[:, ::997] *= 300
    case = Case(16, layer(73728, 512, None), activations=activations)
    case.check()
    cublas = case.A @ case.dense().half()
    allowed = 1.05 * relative_error(cublas, case.expected())
    # Sums are scaled, so weights are never rounded to FP16, which the reference does.
    weights = torch.where(case.weights.mask, case.weights.codes.double() - 8, 0) * case.weights.scales.double()
    assert relative_error(case.C, case.A.double() @ weights) <= allowed


@pytest.mark.parametrize("ctas", [1, 7, 72, 84, 108, 132, 1000])
@pytest.mark.parametrize("M", [8, 16, 64, 300])
def test_any_grid_gives_the_product_and_the_same_bits_each_time(ctas, M):
    Case(M, layer(2048, 1024), choice={"ctas": str(ctas)}).check_again_and_again(5)


@pytest.mark.parametrize("tile", [tile for tile in TILES if tile.cluster > 1], ids=str)
@pytest.mark.parametrize(
    ("M", "K", "N"), [(5, 1536, 320), (23, 2048, 192), (24, 8192, 1088), (40, 1024, 4096), (130, 2560, 64)]
)
def test_clusters_give_the_product_and_the_same_bits_each_time(tile, M, K, N):
    """Slices of unequal length, channels beyond N, several clusters a tile, more clusters than fit at once."""
    skip_unless_it_runs(tile)
    Case(M, layer(K, N), choice={"tile": str(tile)}, bias=True).check_again_and_again(20)


@pytest.mark.parametrize("M", [1, 16, 64, 128])
def test_200_calls_without_resetting_anything(M):
    Case(M, layer(4096, 4096)).check_again_and_again(200)


@pytest.mark.parametrize(
    ("tile", "K", "N", "ctas"),
    [("16x128x256", 2048, 8192, 128), ("16x128x256", 4096, 4096, 128), ("16x512x128c2", 4096, 4096, 128)],
)
def test_what_a_dead_launch_left_in_the_workspace_changes_nothing(tile, K, N, ctas):
    skip_unless_it_runs(tile_named(tile))
    Case(16, layer(K, N), choice={"tile": tile, "ctas": str(ctas)}).check_on_any_workspace(1, -1)


@pytest.mark.parametrize("M", [1, 64])
def test_graph_replays_give_the_same_bits(M):
    Case(M, layer(4096, 4096)).check_replayed()


def test_two_streams_at_once():
    check_on_two_streams(*(Case(16, layer(4096, 4096, seed=seed)) for seed in range(2)))


@pytest.mark.parametrize(("tile", "free"), [("16x128x256", 3), ("16x64x512c2", 12)])
def test_fewer_resident_ctas_than_launched_neither_hang_nor_change_a_bit(tile, free):
    """A cluster needs two SMs of one GPC: of twelve some are."""
    skip_unless_it_runs(tile_named(tile))
    Case(16, layer(4096, 4096), choice={"tile": tile}).check_beside_a_neighbour(free)


@pytest.mark.parametrize("seed", range(12))
def test_shapes_drawn_at_random(seed):
    draw = Draw(seed)
    K, N, M = 128 * draw.between(1, 24), 64 * draw.between(1, 24), draw.between(1, 400)
    weights = layer(K, N, draw.pick(64, 128, None))
    Case(M, weights, backend=draw.pick(MarlinSparse, MarlinSparseBf16)(), bias=draw.pick(False, True)).check()


def test_an_impossible_tile_is_named():
    with pytest.raises(ConfigError, match="16x512x128"):
        Case(16, layer(192, 512, None), choice={"tile": "16x512x128"})


# The layer and the library it is compared with.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_multiplies_by_its_pruned_weights(dtype):
    linear = torch.nn.Linear(1024, 768, dtype=dtype, device="cuda")
    mask = random_mask(1024, 768).t()
    x = random(3, 5, 1024).to(dtype)
    made = SparseMarlinLinear.from_linear(linear, mask=mask)
    assert made.kernel == "marlin_sparse"
    weights = quantize(linear.weight.detach().t(), 128, mask=mask.t().contiguous())
    expected = x.double() @ weights.dequantized().double() + linear.bias.double()
    assert relative_error(made(x), expected) < (0.005 if dtype is torch.bfloat16 else TOLERANCE)


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def sparse_layer(request):
    linear = torch.nn.Linear(512, 320, dtype=request.param, device="cuda")
    made = SparseMarlinLinear.from_linear(linear, mask=random_mask(512, 320).t())
    assert made.kernel == "marlin_sparse"
    return made


def test_a_layer_works_compiled(sparse_layer):
    check_layer_compiled(sparse_layer, *(random(M, 512).to(sparse_layer.dtype) for M in (1, 9, 70)))


def test_a_layer_works_in_a_graph(sparse_layer):
    check_layer_in_a_graph(sparse_layer, random(9, 512).to(sparse_layer.dtype))


CUSPARSELT = """
import torch
from marlin_bench.backends.cusparselt import CusparseltFp16
from marlin_bench.quantize import quantize
backend = CusparseltFp16()
packed = backend.pack(quantize(torch.randn(1024, 512, device="cuda") * 1024**-0.5, 128))
for M in (1, 8, 20, 64, 200, 1024):
    A = torch.randn(M, 1024, device="cuda").half()
    C = torch.empty(M, 512, device="cuda", dtype=torch.float16)
    launch = backend.launch(packed, A, C, backend.tune([packed], [A], [C], "quick"))
    expected = A.double() @ packed.reference(slice(None)).double()
    assert (launch().double() - expected).abs().mean() < 0.002 * expected.abs().mean()
    A.copy_(A.flip(0))
    assert (launch().double() - expected.flip(0)).abs().mean() < 0.002 * expected.abs().mean()
"""


@pytest.mark.skipif(CusparseltFp16().missing() is not None, reason="this torch has no cuSPARSELt")
def test_cusparselt_multiplies_by_the_same_pruned_weights():
    """In a process of its own, because a failure would take the CUDA context with it."""
    subprocess.run([sys.executable, "-c", CUSPARSELT], check=True, timeout=60)
