"""What Sparse-MARLIN decides without a GPU: pruning, packing, tiles, formats, and what a layer is made of."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from marlin_bench import sparse_ceiling
from marlin_bench.backends.cusparselt import CusparseltFp16
from marlin_bench.backends.marlin_sparse import LINEAR_KERNEL, MarlinSparse, MarlinSparseBf16
from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.ceiling_table import ceiling_table
from marlin_bench.cuda_source import compile_cubin
from marlin_bench.layouts import marlin_sparse as layout
from marlin_bench.linear import LinearError, linear_kernel
from marlin_bench.marlin_config import ConfigError, Operands
from marlin_bench.marlin_sparse_choice import SparseMachine, choose_build, suitable_grid
from marlin_bench.marlin_sparse_config import TILES, build_for, plan_for, tile_named
from marlin_bench.problem import FP16_2OF4, Problem, parse_format
from marlin_bench.pruning import largest_two_of_four
from marlin_bench.quantize import QuantizedWeights, quantize
from marlin_bench.record import Ceiling

A100 = SparseMachine(108, 163 * 1024, False)
RTX_3090 = SparseMachine(82, 99 * 1024, False)
H200 = SparseMachine(132, 227 * 1024, True)
AMPERE = DeviceTraits("cuda", "A100", (8, 0))


def layer(K: int, N: int, group_size: int | None = 128) -> QuantizedWeights:
    return quantize(torch.randn(K, N, generator=torch.Generator().manual_seed(K)), group_size)


def test_packing_dense_weights_keeps_the_two_largest_of_four_with_their_codes_and_scales():
    weights = layer(256, 128, 64)
    packed = MarlinSparse().pack(weights)
    codes, mask = layout.unpack(packed.tensors["blocks"])
    assert torch.equal(mask, largest_two_of_four(weights.dequantized().abs()))
    assert torch.equal(codes[mask], weights.codes[mask])
    assert torch.equal(packed.tensors["scales"], weights.scales)


def test_the_reference_is_what_the_packed_tensors_stand_for():
    weights = layer(256, 128)
    for backend in (MarlinSparse(), MarlinSparseBf16()):
        packed = backend.pack(weights)
        codes, _ = layout.unpack(packed.tensors["blocks"])
        held = QuantizedWeights(codes, packed.tensors["scales"], group_size=128)
        assert packed.reference is not None
        for columns in (slice(None), slice(64, 100)):
            assert torch.equal(packed.reference(columns), held.dequantized(columns, backend.dtype))


def test_a_given_mask_wins_over_magnitudes():
    weights = layer(128, 64)
    mask = torch.tensor([True, False, False, True]).repeat(32)[:, None].expand(128, 64)
    packed = MarlinSparse().pack(QuantizedWeights(weights.codes, weights.scales, mask=mask))
    assert torch.equal(layout.unpack(packed.tensors["blocks"])[1], mask)


def test_zero_points_are_refused():
    weights = quantize(torch.randn(128, 64), 128, zero_points=True)
    with pytest.raises(ValueError, match="symmetric"):
        MarlinSparse().pack(weights)


def test_stored_bytes_are_those_of_the_format():
    problem = Problem(1, 256, 512)
    backend = MarlinSparse()
    assert backend.pack(layer(512, 256)).nbytes == problem.traffic(backend.format(problem)).stored_weights
    assert backend.format(problem).bits_per_weight(512) == 3.125


def test_sparse_fp16_is_a_format_of_nine_bits():
    assert parse_format("fp16_2of4") is FP16_2OF4
    assert FP16_2OF4.bits_per_weight(4096) == 9
    assert FP16_2OF4.kept == Fraction(1, 2)


@pytest.mark.parametrize(
    ("M", "N", "K", "group_size", "words"),
    [
        (16, 96, 512, 128, "N 96 is not a multiple of 64"),
        (16, 64, 96, None, "K 96 is not a multiple of 64"),
        (16, 64, 512, 32, "group size 32"),
        (70000, 64, 512, 128, "M 70000"),
    ],
)
def test_shapes_without_an_instance_are_refused_by_name(M, N, K, group_size, words):
    assert words in (MarlinSparse().unsupported(Problem(M, N, K, group_size), AMPERE) or "")


@pytest.mark.parametrize(("M", "padded"), [(1, 8), (8, 8), (20, 24)])
def test_cusparselt_is_given_a_multiple_of_eight_rows_and_gives_back_those_asked_for(monkeypatch, M, padded):
    seen = []

    def product(compressed, dense, alg_id):
        seen.append((tuple(dense.shape), alg_id))
        return compressed.float() @ dense.float()

    monkeypatch.setattr(torch, "_cslt_compress", lambda weights: weights)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    backend = CusparseltFp16()
    packed = backend.pack(layer(128, 64))
    A = torch.randn(M, 128).half()
    launch = backend.launch(packed, A, torch.empty(M, 64), {"algorithm": "7"})
    for _ in range(2):
        expected = A.float() @ packed.reference(slice(None)).float()
        torch.testing.assert_close(launch(), expected)
        A.copy_(A.flip(1))
    assert seen == [((128, padded), 7)] * 2


def test_cusparselt_searches_for_itself_unless_there_is_time_to_try_everything():
    problem = Problem(16, 512, 512)
    assert CusparseltFp16().candidates(problem, AMPERE, "quick") == ()
    assert {"algorithm": "26"} in CusparseltFp16().candidates(problem, AMPERE, "full")


def test_gpus_before_ampere_are_refused():
    problem = Problem(16, 512, 512)
    turing = DeviceTraits("cuda", "T4", (7, 5))
    for backend in (MarlinSparse(), CusparseltFp16()):
        assert "7.5" in (backend.unsupported(problem, turing) or "")
        assert backend.unsupported(problem, AMPERE) is None


@pytest.mark.parametrize("machine", [A100, RTX_3090, H200])
@pytest.mark.parametrize("M", [1, 8, 9, 16, 17, 24, 25, 33, 64, 65, 100, 1000, 65536])
@pytest.mark.parametrize(("N", "K"), [(64, 64), (512, 192), (4096, 4096), (8192, 28672), (28672, 8192), (18432, 73728)])
def test_every_supported_shape_has_a_build_that_fits(machine, M, N, K):
    build = choose_build(Operands(None), M, N, K, machine)
    assert build.shared_bytes + 1024 <= machine.shared_per_block
    assert machine.is_sm90a or not build.tile.needs_sm90a
    plan = plan_for(build, M, N, K, machine.sm_count)
    assert 1 <= plan.ctas <= machine.sm_count


@pytest.mark.parametrize(
    ("M", "N", "K", "tile"),
    [
        (1, 8192, 8192, "8x128x256c2"),
        (8, 8192, 2048, "8x128x256c2"),
        (16, 8192, 8192, "16x128x256c2"),
        (17, 8192, 8192, "24x256x256gc2"),
        (24, 8192, 8192, "24x256x256gc2"),
        (25, 8192, 8192, "32x256x256gc2"),
        (1, 4096, 4096, "8x128x256c2"),
        (16, 4096, 4096, "16x64x512c2"),
        (16, 4096, 4352, "16x128x256"),  # K is no multiple of twice 512
        (20, 4096, 4096, "24x64x512c2"),
        (1, 8192, 28672, "8x256x256c2"),  # two clusters a tile
        (16, 16384, 8192, "16x256x256c2"),
        (20, 8192, 28672, "24x256x256gc2"),
        (32, 8192, 28672, "32x256x256gc2"),
        (1, 18432, 73728, "8x256x256"),
        (1, 18432, 73664, "8x512x64"),  # K is a multiple of 64 alone
        (16, 18432, 73728, "16x512x128"),
        (24, 18432, 73728, "24x512x128g"),
        (24, 18432, 73664, "24x512x64"),
        (1, 28672, 8192, "8x256x256"),
        (16, 28672, 8192, "16x512x128c2"),
        (24, 28672, 8192, "24x512x128gc2"),
        (32, 28672, 8192, "32x512x128gc2"),
        (1, 57344, 8192, "8x512x128"),  # a tile each, and every row of activations for 512 columns at a time
        (24, 57344, 8192, "24x512x128g"),
        (32, 57344, 8192, "32x512x128g"),
        (24, 10240, 8192, "24x256x256g"),
        (32, 10240, 8192, "32x256x256g"),  # 80 pairs fill too few SMs: three equal slices
        (64, 10240, 8192, "64x256x256g"),
        (64, 8192, 8192, "32x256x256gc2"),  # twice 32 rows: 64 tiles, each one pair's
        (56, 8192, 8192, "56x256x128gc2"),
        (64, 28672, 8192, "64x256x256g"),
        (56, 28672, 8192, "56x512x128gc2"),
        (128, 28672, 8192, "64x512x128g"),  # 112 whole tiles
        (1000, 28672, 8192, "64x512x128g"),
        (128, 8192, 8192, "64x256x128gc2"),
        (256, 8192, 8192, "64x256x256g"),
        (64, 18432, 73728, "64x512x128g"),
        (64, 4096, 4096, "32x128x256c2"),
        (40, 4096, 4096, "24x128x256c2"),
        (64, 5120, 5120, "32x256x256gc2"),
        (64, 8192, 28672, "64x256x128gc2"),
        (128, 4096, 4096, "64x256x128gc2"),
        (16, 12288, 4096, "16x256x256c2"),  # 96 CTAs, but a tile is one cluster's
        (24, 4096, 11008, "24x256x256gc2"),
        (64, 18432, 73664, "64x256x64"),
        (8, 15360, 5120, "8x256x256c2"),
        (32, 22016, 4096, "32x256x256g"),
        (16, 5120, 13824, "16x256x256c2"),
        (1, 1024, 4096, "8x128x256"),  # clusters would leave most SMs idle
    ],
)
def test_tiles_and_clusters_are_chosen_as_they_fill_an_h200(M, N, K, tile):
    assert str(choose_build(Operands(128), M, N, K, H200).tile) == tile
    assert not choose_build(Operands(128), M, N, K, A100).tile.needs_sm90a


@pytest.mark.parametrize(
    ("tile", "M", "N", "ctas"),
    [
        ("8x256x256", 1, 28672, 112),  # a tile each: nothing to add up
        ("8x256x256", 1, 27648, 108),
        ("8x256x256", 1, 22016, 86),
        ("8x256x256", 1, 21504, 132),  # 84 tiles would leave more than a third of the SMs idle
        ("8x256x256", 1, 10240, 120),  # three equal slices of 40 tiles
        ("8x256x256", 1, 18432, 132),
        ("64x256x64", 64, 28672, 132),
        ("8x512x128", 1, 57344, 112),
        ("8x128x256c2", 1, 4096, 64),  # narrow tiles: one cluster each
        ("8x256x256c2", 1, 8192, 128),
        ("64x512x128g", 128, 28672, 112),
        ("64x512x128g", 256, 28672, 112),  # two waves of whole tiles
        ("64x512x128g", 512, 28672, 132),  # 3.4 of them
        ("64x512x128g", 1024, 28672, 128),
        ("64x512x128g", 1024, 8192, 128),
        ("64x256x64", 128, 14336, 132),
    ],
)
def test_whole_tiles_on_most_sms_beat_slices_on_all_of_them(tile, M, N, ctas):
    assert suitable_grid(tile_named(tile), M, N, 132) == ctas


@pytest.mark.parametrize("M", [1, 16, 24, 32])
@pytest.mark.parametrize(("N", "K"), [(4096, 4096), (8192, 8192), (28672, 8192), (57344, 8192), (18432, 73728)])
def test_a_short_ring_leaves_no_room_for_the_next_launch(M, N, K):
    build = choose_build(Operands(128), M, N, K, H200)
    assert build.stages >= 3
    assert 2 * build.shared_bytes > H200.shared_per_block
    most = 174 if build.tile.warpgroups else 150
    assert build.stages * build.tile.stage_bytes(build.operands) <= most * 1024


@pytest.mark.parametrize("M", [17, 32, 33, 48, 56, 64, 65, 128, 1024])
@pytest.mark.parametrize(
    "operands", [Operands(128), Operands(64, bf16=True), Operands(None)], ids=["fp16", "bf16", "gK"]
)
@pytest.mark.parametrize(
    ("N", "K"), [(8192, 8192), (28672, 8192), (8192, 28672), (57344, 8192), (10240, 8192), (22016, 4096), (5120, 13824)]
)
def test_products_of_warpgroups_have_three_stages_at_least(M, operands, N, K):
    build = choose_build(operands, M, N, K, H200)
    assert build.tile.warpgroups
    assert build.stages >= 3


def test_sums_are_scaled_for_few_rows_in_fp16_only():
    def scales_sums(tile: str, bf16: bool) -> bool:
        return bool(build_for(tile_named(tile), Operands(128, bf16=bf16), H200.shared_per_block).defines["SCALE_SUMS"])

    assert scales_sums("8x256x256", bf16=False)
    assert scales_sums("16x256x256", bf16=False)
    assert not scales_sums("16x256x256", bf16=True)
    assert not scales_sums("32x256x128", bf16=False)


def test_a_cluster_is_two_ctas_a_tile_and_its_exchange_lies_in_shared_memory():
    build = choose_build(Operands(128), 16, 8192, 8192, H200)
    plan = plan_for(build, 16, 8192, 8192, 132)
    assert (plan.ctas, plan.sum_bytes, plan.counters) == (2 * 8192 // 128, 0, 0)
    apart = replace(build, tile=tile_named("16x128x256"))
    assert build.shared_bytes - apart.shared_bytes == 16 * 128 * 4 // 2
    with pytest.raises(ConfigError, match="at least 512"):
        plan_for(build, 16, 8192, 256, 132)


@pytest.mark.parametrize(
    ("K", "ctas", "clusters"),
    [(28672, 128, 2), (28672, 132, 2), (28672, 64, 1), (28672, 2, 1), (1024, 1000, 2)],  # 1024: four k tiles
)
def test_several_clusters_share_a_tile_where_there_are_ctas_and_k_enough(K, ctas, clusters):
    build = choose_build(Operands(128), 16, 8192, 28672, H200)
    plan = plan_for(build, 16, 8192, K, ctas)
    assert plan.ctas == 32 * 2 * clusters
    assert plan.build.defines["SEVERAL_CLUSTERS"] == int(clusters > 1)
    assert plan.counters == (0 if clusters == 1 else 2 * 32)  # each half of a tile is added up by itself
    # every slice has a place, and a place holds a whole tile
    assert plan.sum_bytes == 0 if clusters == 1 else plan.sum_bytes >= 32 * clusters * 16 * 256 * 4


def test_tile_names_are_unique_and_unknown_ones_are_refused():
    assert all(tile_named(str(tile)) is tile for tile in TILES)
    assert len({str(tile) for tile in TILES}) == len(TILES)
    with pytest.raises(ConfigError, match="16x77x128"):
        tile_named("16x77x128")


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp16", "bf16"])
def test_the_kernel_compiles_without_spills(arch, bf16):
    build = build_for(tile_named("32x512x128"), Operands(64, bf16=bf16), H200.shared_per_block)
    assert compile_cubin("marlin_sparse", arch, build.defines).resources[0].spill_bytes == 0


@pytest.mark.parametrize("several_clusters", [False, True])
@pytest.mark.parametrize("tile", ["56x512x128gc2", "64x256x128gc2"])
def test_warps_of_many_rows_have_registers_enough(tile, several_clusters):
    build = build_for(tile_named(tile), Operands(64, bf16=True), H200.shared_per_block)
    defines = replace(build, several_clusters=several_clusters).defines
    assert compile_cubin("marlin_sparse", "sm_90a", defines).resources[0].spill_bytes == 0
    assert build.tile.needs_sm90a


def test_a_layer_with_a_mask_goes_to_the_sparse_kernel_and_one_without_does_not():
    dense = layer(128, 64)
    sparse = QuantizedWeights(dense.codes, dense.scales, mask=largest_two_of_four(dense.codes))
    assert linear_kernel((8, 0), sparse) is LINEAR_KERNEL
    assert linear_kernel((8, 0), dense).name == "marlin"
    with pytest.raises(LinearError):
        linear_kernel((7, 5), sparse)


def test_there_is_no_sparse_ceiling_without_sparse_tensor_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))

    def never(action, repeats):
        raise AssertionError

    assert sparse_ceiling.measure_sparse_tensor(never, 40) is None


@pytest.mark.parametrize(
    ("capability", "wgmma_seconds", "winner", "flop_rate"),
    [
        # a launch on two SMs counts 2·M·N·K of its instruction, products, repeats, warps or warpgroups, CTAs
        ((8, 0), 0.5, "mma.sp m16n8k32 loop, 3 CTAs an SM", 2 * 16 * 8 * 32 * 8 * 20_000 * 8 * 6),
        ((9, 0), 0.5, "wgmma.sp m64n256k32 loop, 1 CTA an SM", 2 * 64 * 256 * 32 * 8 * 1000 * 2 * 2 / 0.5),
        ((9, 0), 3.0, "mma.sp m16n8k32 loop, 3 CTAs an SM", 2 * 16 * 8 * 32 * 8 * 20_000 * 8 * 6),
    ],
)
def test_the_sparse_ceiling_is_the_best_loop_in_dense_equivalent_flop(
    monkeypatch, capability, wgmma_seconds, winner, flop_rate
):
    launched = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(sparse_ceiling, "_launcher", lambda loop: lambda ctas: launched.append(loop.kernel))

    def stopwatch(action, runs):
        action()
        return {"mma_sp_loop": 1.0, "wgmma_sp_loop": wgmma_seconds}[launched[-1]], 1.5e9

    found = sparse_ceiling.measure_sparse_tensor(stopwatch, 2)
    assert (found.name, found.detail, found.sm_clock_hz) == ("sparse_tensor", winner, 1.5e9)
    assert found.value == flop_rate


def test_the_sparse_ceiling_is_printed_beside_twice_the_dense_promise():
    measured = Ceiling(name="sparse_tensor", value=1651e12, sm_clock_hz=1578e6, detail="wgmma.sp loop")
    (line,) = ceiling_table("NVIDIA H200", [measured]).lines
    assert line.cells[:2] == ("sparse_tensor", "1.65 PFLOP/s")
    assert line.cells[3] == "1.98 PFLOP/s"
    assert line.cells[5] == "83%"
