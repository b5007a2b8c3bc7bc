"""The packed order of kernels/marlin_sparse.cu: round trips, the kernel's steps in NumPy, the original's defects."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin_bench.layouts import marlin_sparse as layout
from marlin_bench.layouts.marlin import LayoutError
from marlin_bench.pruning import PruningError, completed, largest_two_of_four
from marlin_bench.quantize import QuantizedWeights, quantize

BLOCKS = st.integers(1, 3)
PAIRS = list(combinations(range(4), 2))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_codes(K: int, N: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 16, (K, N), dtype=torch.uint8, generator=generator(seed))


def random_mask(K: int, N: int, seed: int = 0) -> torch.Tensor:
    """Exactly two of every four, each of the six pairs equally likely."""
    return largest_two_of_four(torch.rand(K, N, generator=generator(seed)))


def pruned(codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, codes, torch.full_like(codes, 8))


@settings(max_examples=15, deadline=None)
@given(BLOCKS, BLOCKS, st.integers(0, 2**31))
def test_unpacking_gives_back_the_kept_codes_and_the_mask(blocks_k, blocks_n, seed):
    codes, mask = random_codes(64 * blocks_k, 64 * blocks_n, seed), random_mask(64 * blocks_k, 64 * blocks_n, seed)
    found, stored = layout.unpack(layout.pack(codes, mask))
    assert torch.equal(stored, mask)
    assert torch.equal(found, pruned(codes, mask))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_masks_that_keep_fewer_than_two_store_nought_beside_them(seed, share):
    codes, mask = random_codes(64, 64, seed), random_mask(64, 64, seed)
    mask &= torch.rand(64, 64, generator=generator(seed + 1)) < share
    found, stored = layout.unpack(layout.pack(codes, mask))
    assert torch.equal(found, pruned(codes, mask))
    assert bool((stored | ~mask).all())
    assert bool(stored.view(16, 4, 64).sum(dim=1).eq(2).all())


def test_every_legal_nibble_stands_for_its_pair_of_positions():
    mask = torch.zeros(24, 1, dtype=torch.bool)
    for quad, pair in enumerate(PAIRS):
        mask[[4 * quad + position for position in pair]] = True
    codes = torch.arange(24, dtype=torch.uint8)[:, None] % 16
    values, nibbles = layout.compress(codes, mask)
    assert nibbles[:, 0].tolist() == [first | second << 2 for first, second in PAIRS]
    assert set(nibbles[:, 0].tolist()) == set(layout.LEGAL_NIBBLES)
    assert values[:, 0].tolist() == [(4 * quad + p) % 16 for quad, pair in enumerate(PAIRS) for p in pair]
    back, kept = layout.expand(values, nibbles)
    assert torch.equal(kept, mask)
    assert torch.equal(back, pruned(codes, mask))


def test_only_legal_nibbles_are_ever_stored():
    blocks = layout.pack(random_codes(128, 128), random_mask(128, 128)).view(torch.uint8)
    positions = blocks[..., layout.CODE_BYTES :]
    nibbles = torch.cat(((positions & 15).flatten(), (positions >> 4).flatten()))
    assert set(nibbles.tolist()) == set(layout.LEGAL_NIBBLES)


def test_packing_in_chunks_changes_nothing(monkeypatch):
    codes, mask = random_codes(448, 128), random_mask(448, 128)
    whole = layout.pack(codes, mask)
    monkeypatch.setattr(layout, "_CHUNK_CODES", 3 * 64 * 128)
    assert torch.equal(layout.pack(codes, mask), whole)


def test_each_kept_weight_and_each_quad_of_a_unit_is_held_exactly_once():
    kept = layout.unit_positions().reshape(-1, 2)
    assert len({(int(k), int(channel)) for k, channel in kept}) == 16 * 64
    quads = layout.quad_positions().reshape(-1, 2)
    assert len({(int(k), int(channel)) for k, channel in quads}) == 8 * 64


def words_of(codes: torch.Tensor, mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint32 [blocks, blocks, unit, lane, word] and positions uint32 [blocks, blocks, unit, lane, half]."""
    packed = layout.pack(codes, mask).numpy().view(np.uint32)
    head = packed.shape[:2]
    return packed[..., :256].reshape(*head, 2, 32, 4), packed[..., 256:].reshape(*head, 2, 32, 2)


def test_every_lane_loads_the_codes_and_positions_the_model_says():
    codes, mask = random_codes(128, 192), random_mask(128, 192)
    values, nibbles = (part.numpy() for part in layout.compress(codes, mask))
    words, halves = words_of(codes, mask)
    shifts = 4 * np.arange(8, dtype=np.uint32)
    kept, channel = np.moveaxis(layout.unit_positions(), -1, 0)
    quad, quad_channel = np.moveaxis(layout.quad_positions(), -1, 0)
    for block_k, block_n, unit in np.ndindex(2, 3, 2):
        place = block_k, block_n, unit
        rows = 32 * block_k + 16 * unit
        assert np.array_equal((words[place][..., None] >> shifts) & 15, values[rows + kept, 64 * block_n + channel])
        rows //= 2
        found = (halves[place][..., None] >> shifts) & 15
        assert np.array_equal(found, nibbles[rows + quad, 64 * block_n + quad_channel])


def sparse_product(operands: np.ndarray, positions: np.ndarray, selector: int, B: np.ndarray) -> np.ndarray:
    """mma.sp.m16n8k32 as the PTX manual defines it.

    operands [32 lanes, a0 … a3, low/high], positions uint32 [32 lanes], B [32 k, 8] → the product [16, 8].
    """
    stored = np.empty((16, 16))
    for lane in range(32):
        g, t = divmod(lane, 4)
        for a in range(4):
            stored[g + 8 * (a % 2), [2 * t + 8 * (a // 2), 2 * t + 8 * (a // 2) + 1]] = operands[lane, a]
    A = np.zeros((16, 32))
    for row in range(16):
        for half in range(2):
            lane = 4 * (row % 8) + 2 * selector + half
            bits = int(positions[lane]) >> (16 * (row // 8)) & 0xFFFF
            for quad in range(4):
                nibble = bits >> (4 * quad) & 15
                first, second = nibble & 3, nibble >> 2
                assert first < second, "::ordered_metadata wants ascending positions"
                k = 16 * half + 4 * quad
                A[row, k + first], A[row, k + second] = stored[row, k // 2 : k // 2 + 2]
    return A @ B


def test_the_kernels_steps_in_numpy_give_the_product():
    """Load, mask as dequantise.cuh does, scale, multiply, store as marlin_sparse.cu does: C = A · W on one block."""
    rng = np.random.default_rng(0)
    codes, mask = random_codes(64, 64), random_mask(64, 64)
    scales = torch.from_numpy(rng.uniform(0.5, 2, (1, 64))).half()
    A = rng.standard_normal((8, 64))
    words, halves = words_of(codes, mask)
    lane_scales = scales.numpy().reshape(8, 8)
    sums = np.zeros((4, 16, 8))
    for unit, j in np.ndindex(2, 4):
        operands = np.empty((32, 4, 2))
        for lane, h in np.ndindex(32, 2):
            word = int(words[0, 0, unit, lane, j]) >> (8 * h)
            low, high = word & 0x000F000F, word & 0x00F000F0
            pairs = [(low & 0xFFFF, low >> 16), ((high & 0xFFFF) / 16, (high >> 16) / 16)]
            operands[lane, [h, h + 2]] = (np.array(pairs) - 8) * float(lane_scales[lane // 4, 2 * j + h])
        B = A[:, 32 * unit : 32 * unit + 32].T
        sums[j] += sparse_product(operands, halves[0, 0, unit, :, j // 2], j % 2, B)
    C = np.empty((8, 64))
    for lane, e in np.ndindex(32, 2):  # an output vector: eight consecutive channels of batch row 2t + e
        g, t = divmod(lane, 4)
        for j, h in np.ndindex(4, 2):
            C[2 * t + e, 8 * g + 2 * j + h] = sums[j, g + 8 * h, 2 * t + e]
    weights = np.where(mask.numpy(), codes.numpy().astype(float) - 8, 0) * scales.numpy().astype(float)
    np.testing.assert_allclose(C, A @ weights, rtol=1e-10, atol=1e-10)


# The original's defects, one test each.


def test_the_most_negative_weights_are_not_the_first_to_go():
    weights = torch.tensor([-8.0, -7.0, 1.0, 2.0])[:, None]
    assert largest_two_of_four(weights.abs())[:, 0].tolist() == [True, True, False, False]


def test_a_kept_code_of_minus_eight_survives():
    codes = torch.zeros(64, 64, dtype=torch.uint8)  # every weight is -8 scales
    mask = random_mask(64, 64)
    found, stored = layout.unpack(layout.pack(codes, mask))
    assert torch.equal(stored, mask)
    assert torch.equal(found, pruned(codes, mask))
    dense = QuantizedWeights(codes, torch.ones(1, 64).half(), mask=mask, group_size=None).dequantized()
    assert torch.equal(dense, torch.where(mask, -8.0, 0.0).half())


def test_positions_do_not_depend_on_the_codes():
    mask = random_mask(64, 128)
    stored = [layout.pack(random_codes(64, 128, seed), mask).view(torch.uint8) for seed in (0, 1)]
    assert torch.equal(*(blocks[..., layout.CODE_BYTES :] for blocks in stored))
    assert not torch.equal(*(blocks[..., : layout.CODE_BYTES] for blocks in stored))


def test_a_packed_matrix_takes_three_bits_a_weight_and_no_more():
    packed = layout.pack(random_codes(192, 128), random_mask(192, 128))
    assert packed.numel() * packed.element_size() * 8 == 3 * 192 * 128


def test_packing_twice_gives_the_same_and_leaves_its_arguments_alone():
    codes, mask = random_codes(64, 64), random_mask(64, 64)
    before = codes.clone(), mask.clone()
    assert torch.equal(layout.pack(codes, mask), layout.pack(codes, mask))
    assert torch.equal(codes, before[0])
    assert torch.equal(mask, before[1])


@pytest.mark.parametrize(("K", "N", "name"), [(96, 64, "K 96"), (64, 96, "N 96"), (64, 59136 - 32, "N 59104")])
def test_a_matrix_without_whole_blocks_is_refused_by_name(K, N, name):
    with pytest.raises(LayoutError, match=name):
        layout.pack(torch.zeros(K, N, dtype=torch.uint8), torch.zeros(K, N, dtype=torch.bool))


# Pruning.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_the_two_largest_are_kept_and_ties_go_to_the_lower_k(magnitudes):
    order = sorted(range(4), key=lambda k: (-magnitudes[k], k))
    mask = largest_two_of_four(torch.tensor(magnitudes)[:, None])
    assert set(mask[:, 0].nonzero()[:, 0].tolist()) == set(order[:2])


def test_a_mask_that_keeps_three_of_four_is_refused():
    mask = torch.zeros(8, 2, dtype=torch.bool)
    mask[4:7, 1] = True
    with pytest.raises(PruningError, match="3 of four"):
        completed(mask)


def test_quantising_prunes_first_so_that_scales_fit_what_is_kept():
    weights = torch.tensor([7.5, 7.5, 0.75, 0.75] * 16)[:, None]
    mask = torch.tensor([False, False, True, True] * 16)[:, None]
    made = quantize(weights, None, mask=mask)
    assert made.scales.item() == pytest.approx(0.1, rel=1e-3)
    assert made.mask is not None
    assert torch.equal(made.dequantized() != 0, mask)
