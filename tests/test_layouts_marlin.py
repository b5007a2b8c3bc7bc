"""The packed order of kernels/marlin.cu: round trips, and the same thing as the kernel's own index arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin_bench.layouts import marlin as layout

BLOCKS = st.integers(1, 3)


def random_codes(K: int, N: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 16, (K, N), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(BLOCKS, BLOCKS, st.integers(0, 2**31))
def test_unpacking_gives_back_the_codes(blocks_k, blocks_n, seed):
    codes = random_codes(64 * blocks_k, 64 * blocks_n, seed)
    assert torch.equal(layout.unpack_codes(layout.pack_codes(codes)), codes)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), BLOCKS, st.integers(0, 2**31))
def test_unpacking_gives_back_scales_and_zero_points(groups, blocks_n, seed):
    scales = torch.randn(groups, 64 * blocks_n, generator=torch.Generator().manual_seed(seed)).half()
    assert torch.equal(layout.unpack_scales(layout.pack_scales(scales)), scales)
    zeros = random_codes(groups, 64 * blocks_n, seed)
    assert torch.equal(layout.unpack_zeros(layout.pack_zeros(zeros)), zeros)


def test_packing_in_chunks_changes_nothing(monkeypatch):
    codes = random_codes(448, 128)
    whole = layout.pack_codes(codes)
    monkeypatch.setattr(layout, "_CHUNK_CODES", 3 * 64 * 128)
    assert torch.equal(layout.pack_codes(codes), whole)
    assert torch.equal(layout.unpack_codes(whole), codes)


def test_each_weight_of_a_strip_is_held_exactly_once():
    positions = layout.strip_positions().reshape(-1, 2)
    assert len({(int(k), int(column)) for k, column in positions}) == 16 * 64
    assert sorted(layout.group_columns().ravel().tolist()) == list(range(64))


def test_every_lane_loads_the_weights_the_model_says():
    codes = random_codes(128, 192)
    vectors = layout.pack_codes(codes).numpy().view(np.uint32).reshape(2, 3, 4, 32, 4)
    words = vectors >> 2 | vectors << 30
    nibbles = (words[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    k, column = np.moveaxis(layout.strip_positions(), -1, 0)
    expected = codes.numpy()
    for block_k, block_n, strip in np.ndindex(2, 3, 4):
        got = nibbles[block_k, block_n, strip]
        assert np.array_equal(got, expected[64 * block_k + 16 * strip + k, 64 * block_n + column])


def tensor_core_product(fragments: np.ndarray, B: np.ndarray) -> np.ndarray:
    """mma.m16n8k16 as the PTX manual defines it: fragments [32 lanes, a0 … a3, low/high], B [16, 8] → [16, 8]."""
    A = np.empty((16, 16))
    for lane in range(32):
        g, t = divmod(lane, 4)
        for register, e in np.ndindex(4, 2):
            A[g + 8 * (register % 2), 2 * t + 8 * (register // 2) + e] = fragments[lane, register, e]
    return A @ B


def settled(sums: np.ndarray) -> np.ndarray:
    """The exchange of sums.cuh: [4 words, 16, 8] → for each lane [4 words, 2 halves, low/high], of one batch row."""
    lanes = np.empty((32, 4, 2, 2))
    for lane, j, h in np.ndindex(32, 4, 2):
        g, t = divmod(lane, 4)
        kept, given = (sums[j, of + 8 * h, 2 * t + g % 2] for of in (g, g ^ 1))
        lanes[lane, j, h] = (given, kept) if g % 2 else (kept, given)
    return lanes


def test_the_kernels_steps_in_numpy_give_the_product():
    """Load, mask as codes.cuh does, scale, multiply, exchange, store as marlin.cu does: C = A · W on one strip."""
    rng = np.random.default_rng(0)
    codes = random_codes(64, 64)
    zeros = random_codes(1, 64, 1)
    scales = torch.from_numpy(rng.uniform(0.5, 2, (1, 64))).half()
    A = rng.standard_normal((8, 64))
    words = layout.pack_codes(codes).numpy().view(np.uint32).reshape(4, 32, 4)
    stored, unit = layout.kernel_scales(layout.pack_scales(scales))
    lane_scales = stored.numpy()[0, 0].astype(float)
    lane_zeros = layout.pack_zeros(zeros).numpy().view(np.uint32)[0, 0]
    sums = np.zeros((4, 16, 8))
    for strip, j in np.ndindex(4, 4):
        fragments = np.empty((32, 4, 2))
        for lane, h in np.ndindex(32, 2):
            g = lane // 4
            zero_pair = (lane_zeros[g] >> np.uint32(4 * j)) & 0x000F000F
            zero = zero_pair & 15 if h == 0 else zero_pair >> 16
            word = words[strip, lane, j]
            turned = np.array([word, word >> np.uint32(8) | word << np.uint32(24)])  # k 2t and 2t + 8
            masked = turned & np.uint32(0x003C003C if h == 0 else 0x03C003C0)
            subnormals = masked.view(np.float16).reshape(2, 2).astype(float)
            offset = float(zero) * 2.0 ** (-22 if h == 0 else -18)
            fragments[lane, [h, h + 2]] = (subnormals - offset) * lane_scales[g, 2 * j + h] * unit.item()
        sums[j] += tensor_core_product(fragments, A[:, 16 * strip : 16 * strip + 16].T)
    lanes, C = settled(sums), np.full((8, 64), np.nan)
    for lane, c in np.ndindex(32, 2):
        g, t = divmod(lane, 4)
        column = 32 * c + 8 * (g // 2)  # an output vector: eight consecutive columns
        C[2 * t + g % 2, column : column + 8] = lanes[lane, 2 * c : 2 * c + 2].ravel()
    weights = (codes.numpy().astype(float) - zeros.numpy()) * scales.numpy().astype(float)
    np.testing.assert_allclose(C, A @ weights, rtol=1e-10, atol=1e-10)


def test_scales_of_a_common_layer_are_only_shifted():
    scales = torch.tensor([2.0**-24, 1e-4, 0.0151]).half().repeat(64)[None, :128].contiguous()
    stored, unit = layout.kernel_scales(layout.pack_scales(scales))
    assert unit.tolist() == [1]
    powers = torch.tensor([2.0**-22, 2.0**-18]).repeat(4)
    assert torch.equal(layout.unpack_scales(stored.float() * powers), scales.float())


@pytest.mark.parametrize("largest", [0.0157, 0.3, 1.0, 1000.0, 65504.0])
def test_large_scales_are_kept_to_their_last_bit_over_a_unit(largest):
    scales = torch.linspace(largest / 64, largest, 128).half()[None]
    stored, unit = layout.kernel_scales(layout.pack_scales(scales))
    assert stored.isfinite().all()
    assert unit.item() > 1
    powers = torch.tensor([2.0**-22, 2.0**-18]).repeat(4) * unit
    assert torch.equal(layout.unpack_scales(stored.float() * powers), scales.float())


def test_a_layer_of_nothing_has_scales():
    stored, unit = layout.kernel_scales(layout.pack_scales(torch.zeros(1, 64).half()))
    assert unit.item() == 1
    assert not stored.any()


@pytest.mark.parametrize(("K", "N", "name"), [(96, 64, "K 96"), (64, 96, "N 96")])
def test_a_matrix_without_whole_blocks_is_refused_by_name(K, N, name):
    with pytest.raises(layout.LayoutError, match=name):
        layout.pack_codes(torch.zeros(K, N, dtype=torch.uint8))
