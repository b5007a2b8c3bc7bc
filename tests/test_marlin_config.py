"""The partition, the pipeline depth and the tile choice of kernels/marlin.cu, without a GPU."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marlin_bench.backends.marlin import Marlin
from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.marlin_choice import Machine, choose_build, estimated_cycles, suitable_ctas, suits
from marlin_bench.marlin_config import (
    TILES,
    ConfigError,
    Operands,
    Stripes,
    build_for,
    plan_for,
    stage_bytes,
    tile_named,
)
from marlin_bench.problem import Problem

AMPERE = Machine(84, 99 * 1024)
HOPPER = Machine(132, 227 * 1024, (9, 0))
GPU = DeviceTraits("cuda", "a GPU", capability=(8, 0))


def slices_of(stripes):
    """(tile, first k, end k, slice, slices, place) of every striped segment, as stripes.cuh walks them."""
    for cta in range(stripes.ctas):
        step, end = stripes.first_step(cta), stripes.first_step(cta + 1)
        while step < end:
            tile = step // stripes.k_tiles
            first = stripes.owner(tile * stripes.k_tiles)
            last = stripes.owner((tile + 1) * stripes.k_tiles - 1)
            k_end = min(stripes.k_tiles, end - tile * stripes.k_tiles)
            k_begin = step - tile * stripes.k_tiles
            yield tile, k_begin, k_end, cta - first, last - first + 1, stripes.place(tile, cta)
            step += k_end - k_begin


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_every_step_is_computed_once_and_slices_are_numbered_down_k(k_tiles, tiles, ctas):
    stripes = Stripes(k_tiles, tiles, min(ctas, tiles * k_tiles))
    assert stripes.whole_tiles + stripes.striped_tiles == tiles
    by_tile = {}
    for tile, k_begin, k_end, number, count, _ in slices_of(stripes):
        by_tile.setdefault(tile, []).append((k_begin, k_end, number, count))
    assert len(by_tile) == stripes.striped_tiles
    for parts in by_tile.values():
        assert [number for _, _, number, _ in parts] == list(range(len(parts)))
        assert {count for *_, count in parts} == {len(parts)}
        edges = [edge for k_begin, k_end, *_ in parts for edge in (k_begin, k_end)]
        assert edges == sorted(edges)
        assert edges[0] == 0
        assert edges[-1] == k_tiles
        assert edges[1:-1:2] == edges[2::2]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_every_slice_has_a_place_of_its_own_inside_the_workspace(k_tiles, tiles, ctas):
    stripes = Stripes(k_tiles, tiles, min(ctas, tiles * k_tiles))
    places = [place for *_, place in slices_of(stripes)]
    assert len(set(places)) == len(places)
    assert all(0 <= place < stripes.places for place in places)


def test_stripes_differ_by_at_most_one_step():
    stripes = Stripes(k_tiles=576, tiles=72, ctas=264)
    lengths = {stripes.first_step(cta + 1) - stripes.first_step(cta) for cta in range(264)}
    assert max(lengths) - min(lengths) <= 1


LAYERS = [
    (N, K, group_size)
    for N, K in [(64, 128), (4096, 4096), (4096, 192), (18432, 73728)]
    for group_size in (32, 64, 128, None)
    if not group_size or K % group_size == 0
]


@pytest.mark.parametrize("machine", [AMPERE, HOPPER])
@pytest.mark.parametrize("M", [1, 16, 17, 33, 64, 65, 97, 300, 65536])
@pytest.mark.parametrize(("N", "K", "group_size"), LAYERS)
def test_every_supported_problem_has_a_build(machine, group_size, M, N, K):
    build = choose_build(Operands(group_size, zero_points=True), M, N, K, machine)
    plan = plan_for(build, M, N, K, machine.sm_count * build.tile.ctas_per_sm)
    assert build.stages >= 3
    assert build.shared_bytes * build.tile.ctas_per_sm <= machine.shared_per_block
    assert 1 <= plan.ctas <= machine.sm_count * build.tile.ctas_per_sm


@pytest.mark.parametrize(
    ("M", "rows"),
    [
        *((1, 8), (8, 8), (9, 16), (16, 16), (17, 24), (25, 32), (33, 40), (49, 56), (64, 64), (65, 72), (73, 80)),
        *((81, 96), (97, 112), (128, 128), (129, 144), (144, 144), (145, 160), (193, 224), (1000, 1024)),
    ],
)
def test_ragged_rows_cost_at_most_their_padding(M, rows):
    tile = choose_build(Operands(), M, 18432, 73728, HOPPER).tile
    assert -(-M // tile.rows) * tile.rows <= rows


@pytest.mark.parametrize(("N", "ctas"), [(4096, 128), (8192, 128), (18432, 132), (64 * 131, 132)])
def test_tiles_are_cut_evenly_when_that_leaves_few_sms_idle(N, ctas):
    assert suitable_ctas(tile_named("16x256x128"), 16, N, 132) == ctas


@pytest.mark.parametrize(
    ("M", "N", "K", "tile"),
    [
        *((64, 28672, 8192, "64x512x128rc2"), (128, 8192, 8192, "128x128x128rc2"), (65, 4096, 4096, "40x128x128rc2")),
        *((129, 4096, 4096, "72x128x128rc2"), (64, 18432, 73728, "64x512x128r"), (128, 28672, 8192, "128x256x128r")),
    ],
)
def test_halves_of_tiles_are_chosen_where_they_fill_an_h200(M, N, K, tile):
    build = choose_build(Operands(), M, N, K, HOPPER)
    assert str(build.tile) == tile
    plan = plan_for(build, M, N, K, suitable_ctas(build.tile, M, N, HOPPER.sm_count))
    assert (plan.ctas == 2 * -(-M // build.tile.rows) * -(-N // build.tile.columns)) == (build.tile.cluster == 2)


def test_a_cluster_is_two_ctas_a_tile_and_its_exchange_lies_in_shared_memory():
    tile = tile_named("64x256x128rc2")
    build = build_for(tile, Operands(), HOPPER.shared_per_block)
    alone = build_for(tile_named("64x256x128r"), Operands(), HOPPER.shared_per_block)
    assert build.shared_bytes == alone.shared_bytes + 64 * 256 * 4 // 2
    assert plan_for(build, 100, 4096, 1024, 7).ctas == 2 * 2 * 16
    assert plan_for(build, 100, 4096, 1024, 7).sum_bytes == 0
    with pytest.raises(ConfigError, match="tile 64x256x128rc2 needs a K of at least 256, not 128"):
        plan_for(build, 64, 256, 128, 7)
    assert choose_build(Operands(), 64, 8192, 128, HOPPER).tile.cluster == 1


@pytest.mark.parametrize(
    ("M", "N", "K", "tile", "ctas"),
    [
        *((1, 28672, 8192, "8x512x128rsc2", 112), (8, 4096, 4096, "8x128x256rsc2", 64)),
        *((2, 15360, 5120, "8x256x256rsc2", 120), (16, 4096, 14336, "16x256x256rsc2", 128)),
        *((17, 4096, 4096, "24x128x256rc2", 128), (32, 8192, 8192, "32x128x256rc2", 128)),
        *((24, 8192, 8192, "24x256x128rc2", 128), (25, 28672, 8192, "32x512x128rc2", 112)),
        *((1, 10240, 8192, "8x512x128rsc2", 120), (16, 4096, 11008, "16x256x256rsc2", 128)),
        # too few SMs, or too many tiles, for clusters
        *((8, 4096, 11008, "8x128x256r", 128), (16, 18432, 73728, "16x256x256rs", 132)),
        *((16, 512, 73728, "16x128x256r", 132), (32, 6144, 16384, "32x256x128r", 120)),
        # where the sparse kernel is to stay ahead
        *((1, 8192, 8192, "8x256x128rs", 128), (16, 8192, 8192, "16x128x256r", 128)),
        *((16, 10240, 8192, "16x128x256r", 132), (16, 8192, 28672, "16x256x256rs", 128)),
        *((32, 22016, 4096, "32x512x128r", 129), (17, 14848, 74240, "24x512x128r", 132)),
    ],
)
def test_few_rows_are_shared_by_clusters_where_they_fill_an_h200(M, N, K, tile, ctas):
    build = choose_build(Operands(), M, N, K, HOPPER)
    assert str(build.tile) == tile
    assert plan_for(build, M, N, K, suitable_ctas(build.tile, M, N, HOPPER.sm_count)).ctas == ctas
    assert choose_build(Operands(), M, N, K, AMPERE).tile.cluster == 1


@pytest.mark.parametrize(
    ("tile", "K", "ctas", "clusters"),
    [
        *(("16x256x256rsc2", 4096, 132, 2), ("16x256x256rsc2", 4096, 127, 1), ("16x256x256rsc2", 512, 400, 1)),
        *(("16x256x256rsc2", 11008, 400, 6), ("64x256x128rc2", 4096, 400, 1)),
    ],
)
def test_several_clusters_share_a_tile_of_few_rows_where_there_are_ctas_and_k_enough(tile, K, ctas, clusters):
    plan = plan_for(build_for(tile_named(tile), Operands(), HOPPER.shared_per_block), 16, 8192, K, ctas)
    assert plan.ctas == 32 * 2 * clusters
    assert plan.counters == (0 if clusters == 1 else 2 * 32)  # each half of a tile is added up by itself
    assert plan.sum_bytes == 0 if clusters == 1 else plan.sum_bytes >= 32 * clusters * 16 * 256 * 4


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 5))
def test_the_ctas_of_a_cluster_are_neighbouring_slices_of_one_tile(k_tiles, tiles, clusters):
    clusters = min(clusters, k_tiles // 2)
    if clusters == 0:
        return
    stripes = Stripes(k_tiles, tiles, 2 * tiles * clusters)
    slices = list(slices_of(stripes))
    assert len(slices) == stripes.ctas
    for cta, (tile, begin, end, number, count, _) in enumerate(slices):
        assert (tile, number, count) == (cta // (2 * clusters), cta % (2 * clusters), 2 * clusters)
        assert begin < end


def test_clusters_that_would_not_all_run_at_once_are_not_chosen():
    tile = tile_named("64x128x128rc2")
    assert estimated_cycles(tile, 64, 8192, 8192, 128) < estimated_cycles(tile, 64, 8192, 8192, 127) == math.inf


def test_stages_begin_where_their_copies_are_fast():
    zeros = Operands(32, zero_points=True)
    for tile in TILES:
        assert stage_bytes(tile, zeros) % (1024 if tile.by_map else 128) == 0


def test_sms_share_shared_memory_between_the_ctas_a_tile_asks_for():
    build = build_for(tile_named("16x256x128x2"), Operands(), HOPPER.shared_per_block)
    assert 2 * (build.shared_bytes + 1024) <= 228 * 1024


def test_a_tile_that_does_not_fit_says_so():
    with pytest.raises(ConfigError, match="tile 128x256x64 needs more than the 49152 bytes"):
        build_for(TILES[-1], Operands(), 48 * 1024)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(1, 96, 128), "N 96 is not a multiple of 64"),
        (Problem(1, 64, 96, 32), "K 96 is not a multiple of 64"),
        (Problem(1, 64, 256, 256), "group size 256 is not one of 32, 64, 128 or one group a column"),
        (Problem(65537, 64, 128), "M 65537 is not between 1 and 65536"),
        (Problem(65536, 64, 128, None), None),
    ],
)
def test_what_is_not_supported_is_said_in_one_sentence(problem, reason):
    assert Marlin().unsupported(problem, GPU) == reason


@pytest.mark.parametrize(
    ("M", "N", "tile"), [(256, 4096, "64x128x128r"), (512, 4096, "128x256x128rc2"), (1024, 4096, "128x256x128r")]
)
def test_a_tile_an_sm_leaves_nothing_to_add_up_across_ctas(M, N, tile):
    build = choose_build(Operands(), M, N, 4096, HOPPER)
    assert str(build.tile) == tile
    ctas = suitable_ctas(build.tile, M, N, HOPPER.sm_count)
    assert plan_for(build, M, N, 4096, ctas).sum_bytes == 0


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
@pytest.mark.parametrize("M", [1, 16, 64, 300])
def test_a_tile_is_chosen_that_the_gpu_has_instructions_for(capability, M):
    machine = Machine(132, 99 * 1024, capability)
    for N, K in ((4096, 4096), (8192, 8192), (18432, 73728)):
        assert choose_build(Operands(), M, N, K, machine).tile.runs_on(capability)
    assert not tile_named("8x128x256r").runs_on((8, 9))
    assert tile_named("8x128x256r").runs_on((12, 0))
    assert not tile_named("64x128x128r").runs_on((12, 0))  # registers change hands on sm_90a alone


def test_bf16_weights_are_rounded_as_the_reference_is():
    for M in (1, 16):
        for N, K in ((4096, 4096), (8192, 8192), (18432, 73728)):
            assert not choose_build(Operands(bf16=True), M, N, K, HOPPER).tile.scale_sums


def test_tiles_whose_builds_would_spill_are_passed_over():
    wide = tile_named("8x512x128rw16")
    assert suits(wide, Operands(64))
    assert not suits(wide, Operands(32))


def test_gpus_before_ampere_are_refused():
    turing = DeviceTraits("cuda", "T4", capability=(7, 5))
    assert "7.5 is below 8.0" in str(Marlin().unsupported(Problem(1, 64, 128), turing))
