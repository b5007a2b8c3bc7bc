"""The packed order of marlin_hopper: round trips, and a NumPy model of what each thread of the kernel reads."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin_bench.backends.marlin_hopper import MarlinHopperBf16
from marlin_bench.backends.protocol import Packed
from marlin_bench.layouts.marlin_hopper import CODE_BYTES, HopperWeights, block_bytes, pack, unpack
from marlin_bench.marlin_hopper_choice import (
    BATCH_TILES,
    Plan,
    choose,
    fits,
    rule,
    smallest_batch_tile,
    tightest_batch_tile,
)
from marlin_bench.marlin_hopper_config import SHARED_BYTES_PER_CTA, Stripes, Tiling, WeightKind, schedule
from marlin_bench.quantize import QuantizedWeights, quantize


def random_weights(K, N, group_size, zero_points, seed=0):
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size is None else K // group_size
    codes = torch.randint(0, 16, (K, N), generator=generator, dtype=torch.uint8)
    scales = (torch.rand((groups, N), generator=generator) + 0.5).half()
    zeros = torch.randint(0, 16, (groups, N), generator=generator, dtype=torch.uint8) if zero_points else None
    return QuantizedWeights(codes, scales, zeros, None, group_size)


def assert_same(found, expected):
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)
    assert (found.zeros is None) == (expected.zeros is None)
    assert expected.zeros is None or torch.equal(found.zeros, expected.zeros)


@settings(max_examples=25, deadline=None)
@given(
    k_blocks=st.integers(1, 6),
    n_blocks=st.integers(1, 5),
    group_size=st.sampled_from([64, 128, None]),
    zero_points=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_unpacking_gives_back_what_was_packed(k_blocks, n_blocks, group_size, zero_points, seed):
    K = k_blocks * (group_size or 64)
    weights = random_weights(K, n_blocks * 64, group_size, zero_points, seed)
    assert_same(unpack(pack(weights)), weights)


def test_scales_that_differ_widely_within_a_column_survive():
    weights = random_weights(512, 64, 128, zero_points=False)
    weights.scales[:, :] = torch.tensor([2.0**-14, 1.0, 2.0**-10, 3.0]).half()[:, None]
    assert_same(unpack(pack(weights)), weights)


def test_the_largest_scale_of_a_column_is_stored_between_16_and_32():
    weights = random_weights(512, 64, 128, zero_points=False)
    packed = pack(weights)
    scales = packed.packed[..., CODE_BYTES:].contiguous().view(torch.float16).float()
    by_column = scales.view(1, 4, 2, 4, 8, 2)[:, :, 0].amax(dim=(0, 1))
    assert ((by_column >= 16) & (by_column < 32)).all()


def model_of_a_thread(packed: HopperWeights, strip, tile, block, half, warp, g, q, k16):
    """Dequantise one word as the kernel does: rotate, mask, read FP16 subnormals; element → (k, column, code)."""
    codes = packed.packed[strip, tile, block, :CODE_BYTES].numpy().view(np.uint32).reshape(2, 128, 4)
    word = int(codes[half, warp * 32 + 4 * g + q, k16])
    rotated = (word >> 8 | word << 24) & 0xFFFFFFFF
    found = []
    for source, offset in ((word, 0), (rotated, 8)):
        for mask, unit, column in ((0x003C003C, 2.0**-22, g), (0x03C003C0, 2.0**-18, g + 8)):
            pair = np.array([source & mask], dtype=np.uint32).view(np.float16)
            for odd in range(2):
                k = tile * 128 + half * 64 + k16 * 16 + 2 * q + offset + odd
                code = float(np.float64(pair[odd]) / unit)
                found.append((k, strip * 128 + block * 64 + warp * 16 + column, code))
    return found


def test_each_thread_finds_its_wgmma_fragment_in_its_words():
    weights = random_weights(256, 256, 128, zero_points=False)
    packed = pack(weights)
    seen = set()
    for place in np.ndindex(2, 2, 2, 2, 4, 8, 4, 4):
        for k, column, code in model_of_a_thread(packed, *place):
            assert code == weights.codes[k, column]
            seen.add((k, column))
    assert len(seen) == 256 * 256


def bf16(values):
    """Rounded to BF16, as float64."""
    return values.to(torch.bfloat16).double()


def read_as_bf16(half):
    """What the bits of an FP16 number are in BF16, as a float."""
    return float(torch.tensor(np.float16(half).view(np.int16)).view(torch.bfloat16))


def integers_in_bf16(code, zero):
    """(code - zero) · 4 · 2^-133 for rows g and g + 8, made in FP16 as `weights_bf16` does before scaling."""
    minus_zero = -np.uint16(zero << 2).view(np.float16)
    low = np.uint16(code << 2).view(np.float16) + minus_zero
    high = np.uint16(code << 6).view(np.float16) * np.float16(2.0**-4) + minus_zero
    return read_as_bf16(low), read_as_bf16(high)


def test_bf16_operations_round_every_scaled_weight_once():
    """All FP16 scales below 32, codes and zero points: hopper_dequantize.cuh computes the canonical BF16 weight."""
    scales = torch.arange(0, 2**15, dtype=torch.int16).view(torch.float16)
    scales = torch.cat([scales, -scales])
    scales = scales[scales.abs() < 32].double()
    raised = scales * 2.0**122
    rounded = bf16(raised)
    rest = raised - rounded
    assert torch.equal(bf16(rest), rest)
    of_difference = {}
    for code, zero in np.ndindex(16, 16):
        low, high = integers_in_bf16(code, zero)
        assert low == high == (code - zero) * 2.0**-131
        of_difference[code - zero] = low, (code, zero)
    for integer, (code, zero) in of_difference.values():
        assert torch.equal(bf16(integer * rest), integer * rest)
        weights = bf16(integer * rounded + integer * rest) * 512  # exact in float64 until it is rounded
        shape = (1, len(scales))
        canonical = QuantizedWeights(
            torch.full(shape, code, dtype=torch.uint8),
            scales.half()[None],
            torch.full(shape, zero, dtype=torch.uint8),
            group_size=1,
        )
        assert torch.equal(weights, canonical.dequantized(dtype=torch.bfloat16)[0].double())


def test_bf16_integers_are_exact():
    """Those that go to the tensor cores unscaled: 128 + 4 · code less 128 + 4 · zero, and the same at 2^33 and 2^28."""
    for code, zero in np.ndindex(16, 16):
        half = np.uint16(code << 6).view(np.float16) * np.float16(2.0**15) + np.float16(32)
        for raised, unit, offset in ((128.0 + 4 * code, 4.0, 128.0), (read_as_bf16(half), 2.0**28, 2.0**33)):
            taken_off = offset + unit * zero
            assert raised == offset + unit * code
            for value in (raised, taken_off, raised - taken_off):
                assert float(bf16(torch.tensor(value, dtype=torch.float64))) == value


@pytest.mark.parametrize(
    ("plan", "group_size", "rounds"),
    [
        ("b64_w2_m2_t2_p4_x2_regs", 128, True),
        ("b32_w2_m2_t2_p4_acc_regs", 128, False),
        ("b64_w2_m2_t2_p4_x2_regs", None, False),
    ],
)
def test_bf16_is_judged_by_rounded_weights_where_the_plan_rounds_them(plan, group_size, rounds):
    weights = random_weights(256, 128, group_size, zero_points=True)
    blobs = pack(weights)
    packed = Packed(
        {"packed": blobs.packed, "column_factors": blobs.column_factors},
        reference=weights.dequantized,
        extra={"K": 256, "N": 128, "group_size": group_size, "zero_points": True},
    )
    held = MarlinHopperBf16().held_weights(packed, {"plan": plan, "pdl": "1"})
    assert (held is not None) == rounds


def test_scales_and_zeros_lie_by_row_pairs_of_a_warp():
    weights = random_weights(128, 128, 64, zero_points=True)
    packed = pack(weights)
    block = packed.packed[0, 0, 1].numpy()
    scales = block[CODE_BYTES : CODE_BYTES + 256].view(np.float16).reshape(2, 4, 8, 2)
    zeros = block[CODE_BYTES + 256 :].reshape(2, 4, 8, 2)
    for group, warp, g, high in np.ndindex(2, 4, 8, 2):
        column = 64 + 16 * warp + g + 8 * high
        stored = float(scales[group, warp, g, high]) * float(packed.column_factors[column])
        assert stored == float(weights.scales[group, column])
        assert zeros[group, warp, g, high] == weights.zeros[group, column]


@pytest.mark.parametrize(
    ("group_size", "zero_points", "size"),
    [
        (128, False, 4224),
        (64, False, 4352),
        (None, False, 4096),
        (128, True, 4288),
        (64, True, 4480),
        (None, True, 4160),
    ],
)
def test_a_block_holds_its_codes_scales_and_zeros_in_whole_16_bytes(group_size, zero_points, size):
    assert block_bytes(group_size, zero_points) == size
    assert size % 16 == 0


def test_shapes_off_the_grid_are_refused_with_the_value():
    with pytest.raises(ValueError, match="N 96"):
        pack(random_weights(128, 96, 128, zero_points=False))
    with pytest.raises(ValueError, match="group size 32"):
        pack(quantize(torch.randn(128, 64), 32))


ALL_TILINGS = [
    Tiling(8),
    Tiling(32, warpgroups=4, split=2, stage_tiles=2, cluster=2, scale_accumulators=True),
    Tiling(64, warpgroups=3, blocks=2, cluster=2, multicast=True, reallocate=True, in_flight=2),
    Tiling(16, blocks=2, stages=5, ctas_per_sm=2, early_trigger=True),
    Tiling(8, cluster=2, scale_accumulators=True, ctas_per_sm=2, warp_products=True),
]


@pytest.mark.parametrize("tiling", ALL_TILINGS, ids=lambda tiling: tiling.name)
def test_the_name_of_a_tiling_reads_back(tiling):
    assert Tiling.parse(tiling.name) == tiling


def test_the_name_of_a_plan_reads_back():
    plan = Plan(ALL_TILINGS[1], raster=2, ctas=128, stripes=Stripes.NONE)
    assert Plan.parse(plan.name) == plan
    with pytest.raises(ValueError, match="not the name"):
        Plan.parse("b8")


@settings(max_examples=200, deadline=None)
@given(
    M=st.integers(1, 5000),
    N=st.integers(1, 500).map(lambda n: n * 64),
    K=st.integers(1, 1200).map(lambda k: k * 64),
    group_size=st.sampled_from([64, 128, None]),
    bf16=st.booleans(),
)
def test_every_choice_covers_the_product_and_fits_the_device(M, N, K, group_size, bf16):
    kind = WeightKind(group_size, False, bf16)
    for plan in (choose(M, N, K, 132, kind), rule(M, N, K, 132, kind)):
        assert fits(plan, K, kind)
        tiling = plan.tiling
        assert tiling.shared_bytes(kind) <= SHARED_BYTES_PER_CTA
        found = plan.schedule(M, N, K, 132)
        assert found.row_tiles * tiling.tile_columns * tiling.team >= N
        assert found.batch_tiles * tiling.batch_tile >= M
        assert found.units_per_tile * tiling.stage_tiles * 128 >= K
        assert found.grid % tiling.cluster == 0
        assert 0 <= found.stream_tiles <= found.row_tiles * found.batch_tiles


@pytest.mark.parametrize(("M", "tile"), [(1, 8), (8, 8), (9, 16), (33, 48), (65, 72), (129, 136), (153, 128)])
def test_the_batch_tile_is_the_narrowest_that_holds_the_batch(M, tile):
    assert smallest_batch_tile(M) == tile


@pytest.mark.parametrize(
    ("M", "widest", "tile"),
    [
        (1, 128, 8),
        (40, 128, 48),
        (65, 64, 64),
        (65, 128, 72),
        (129, 128, 72),
        (129, 152, 136),
        (136, 152, 136),
        (161, 152, 96),
        (256, 128, 128),
        (256, 152, 128),
        (300, 152, 152),
        (1024, 152, 128),
        (5, 64, 8),
    ],
)
def test_a_ragged_batch_is_padded_as_little_as_the_tiles_allow(M, widest, tile):
    assert tightest_batch_tile(M, widest) == tile


@given(M=st.integers(65, 5000))
def test_no_batch_above_64_is_padded_by_more_than_a_fifth(M):
    """With the tiles of 64, 96 and 128 alone a batch of 129 was padded by half."""
    tile = tightest_batch_tile(M, BATCH_TILES[-1])
    assert -(-M // tile) * tile <= 1.2 * M


@pytest.mark.parametrize(("N", "tile"), [(4096, 72), (8192, 136), (28672, 136)])
def test_a_batch_of_129_takes_two_narrow_tiles_only_where_they_fill_the_device(N, tile):
    assert rule(129, N, 8192, 132, WeightKind()).tiling.batch_tile == tile


def test_striped_tiles_give_every_team_the_same_work_within_one_unit():
    tiling = Tiling(32, blocks=2)
    found = schedule(tiling, 32, 18432, 73728, 132)
    total = found.stream_tiles * found.units_per_tile
    ends = [total * team // 132 for team in range(133)]
    pieces = [end - begin for begin, end in pairwise(ends)]
    assert found.stream_tiles == 72
    assert max(pieces) - min(pieces) <= 1


def test_a_last_round_is_shared_where_whole_tiles_follow():
    found = Plan.parse("b128_w2_m2_t2_x2_early_regs:rest").schedule(256, 18432, 73728, 132)
    assert (found.stream_tiles, found.tiles, found.shared_ends) == (6, 72, True)
    assert not Plan.parse("b128_w2_m2_t2_early_regs:rest").schedule(128, 18432, 73728, 132).shared_ends
    assert not Plan.parse("b128_w2_m2_t2_early_regs").schedule(256, 18432, 73728, 132).shared_ends


def test_a_last_round_of_fewer_units_than_ctas_is_striped_with_another_one():
    """Otherwise CTAs without a unit would be waited for."""
    found = Plan.parse("b128_w2_m2_t2_early_regs:rest").schedule(1100, 5120, 256, 132)
    assert not found.shared_ends
    assert found.stream_tiles * found.units_per_tile >= found.grid
