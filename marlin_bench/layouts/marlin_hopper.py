"""Canonical 4-bit weights in the order of kernels/marlin_hopper.cu, and back.

    packed  uint8 [strips, k_tiles, 2, block bytes]      a strip is 128 columns of W, a K tile 128 of its rows
    block   64 columns of one K tile:  4096 bytes of codes │ scales │ zero points
    codes   u32 [2 (64 of K)] [4 warps] [8 g] [4 q] [4 (16 of K)]: thread 4·g + q of a warp reads its four words at once
    word    columns c = 16·warp + g and c + 8, rows k = 2q, 2q+1, 2q+8, 2q+9 of the 16, rotated left by two bits:

            bit    31 … 16 (odd k)                          15 … 0 (even k)
            before c+8 2q+9 │ c 2q+9 │ c+8 2q+1 │ c 2q+1    c+8 2q+8 │ c 2q+8 │ c+8 2q │ c 2q

    scales  half [groups in the tile] [4 warps] [8 g] [c, c + 8], each column's times a power of two such that its
            largest is in [16, 32); `column_factors` (float32 [N]) undoes it. One scale a column: none here, the factor
            is the scale.
    zeros   uint8, like the scales

Columns are padded to whole strips and rows to whole pairs of K tiles; padding has scale 0 and is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

TILE_K = 128
BLOCK_COLUMNS = 64
STRIP_COLUMNS = 2 * BLOCK_COLUMNS
K_MULTIPLE = 2 * TILE_K
CODE_BYTES = BLOCK_COLUMNS * TILE_K // 2
_ROTATION = 2
_LARGEST_SCALE_EXPONENT = 5
_CHUNK_STRIPS = 8


def groups_per_tile(group_size: int | None) -> int:
    """Rows of scales in a K tile: 0 with one scale a column."""
    return 0 if group_size is None else TILE_K // group_size


def block_bytes(group_size: int | None, zero_points: bool) -> int:
    """Bytes of a packed block of 64 columns x 128 rows."""
    groups = groups_per_tile(group_size)
    return CODE_BYTES + groups * BLOCK_COLUMNS * 2 + (max(groups, 1) * BLOCK_COLUMNS if zero_points else 0)


@dataclass(frozen=True)
class HopperWeights:
    """One layer as the kernel reads it; K and N are the canonical ones, without padding."""

    packed: Tensor
    column_factors: Tensor
    K: int
    N: int
    group_size: int | None
    zero_points: bool


def _column_exponents(scales: Tensor) -> Tensor:
    """int32 [N]: the power of two that brings each column's largest scale into [16, 32)."""
    exponents = torch.frexp(scales.float().abs().amax(dim=0)).exponent
    return (_LARGEST_SCALE_EXPONENT - exponents).to(torch.int32)


def _pad_columns(tensor: Tensor, columns: int, value: int) -> Tensor:
    missing = columns - tensor.shape[1]
    return tensor if missing == 0 else torch.nn.functional.pad(tensor, (0, missing), value=value)


def _pack_codes(codes: Tensor) -> Tensor:
    """uint8 [K, S·128] (padded) → int32 [S, K tiles, 2 blocks, 2, 4, 8, 4, 4]: the words of each block."""
    K, columns = codes.shape
    view = codes.view(K // TILE_K, 2, 4, 2, 4, 2, columns // STRIP_COLUMNS, 2, 4, 2, 8)  # t h j kh q e s b w ch g
    words: Tensor | None = None
    for odd in range(2):
        for k_half in range(2):
            for column_half in range(2):
                nibble = view[:, :, :, k_half, :, odd, :, :, :, column_half, :].to(torch.int32)
                placed = nibble << (16 * odd + 8 * k_half + 4 * column_half)
                words = placed if words is None else words.bitwise_or_(placed)
    assert words is not None
    rotated = (words << _ROTATION) | ((words >> (32 - _ROTATION)) & (2**_ROTATION - 1))
    packed: Tensor = rotated.permute(4, 0, 5, 1, 6, 7, 3, 2).contiguous()  # s t b h w g q j
    return packed


def _unpack_codes(words: Tensor) -> Tensor:
    """The inverse of `_pack_codes`."""
    S, tiles = words.shape[:2]
    words = ((words >> _ROTATION) & (2 ** (32 - _ROTATION) - 1)) | (words << (32 - _ROTATION))
    words = words.permute(1, 3, 7, 6, 0, 2, 4, 5)  # t h j q s b w g
    view = torch.empty((tiles, 2, 4, 2, 4, 2, S, 2, 4, 2, 8), dtype=torch.uint8, device=words.device)
    for odd in range(2):
        for k_half in range(2):
            for column_half in range(2):
                shift = 16 * odd + 8 * k_half + 4 * column_half
                view[:, :, :, k_half, :, odd, :, :, :, column_half, :] = ((words >> shift) & 15).to(torch.uint8)
    return view.reshape(tiles * TILE_K, S * STRIP_COLUMNS)


def _pack_groups(values: Tensor, tiles: int) -> Tensor:
    """[groups, S·128] of any dtype → [S, tiles, 2 blocks, groups in the tile · 64]: scales or zeros of each block."""
    groups, columns = values.shape
    view = values.view(tiles, groups // tiles, columns // STRIP_COLUMNS, 2, 4, 2, 8)  # t r s b w ch g
    return view.permute(2, 0, 3, 1, 4, 6, 5).reshape(columns // STRIP_COLUMNS, tiles, 2, -1)


def _unpack_groups(values: Tensor, rows: int) -> Tensor:
    """The inverse of `_pack_groups` for `rows` groups in a tile."""
    S, tiles = values.shape[:2]
    view = values.reshape(S, tiles, 2, rows, 4, 8, 2)  # s t b r w g ch
    return view.permute(1, 3, 0, 2, 4, 6, 5).reshape(tiles * rows, S * STRIP_COLUMNS)


def pack(weights: QuantizedWeights) -> HopperWeights:
    """Canonical weights in the kernel's order, on their own device."""
    K, N = weights.K, weights.N
    if K % BLOCK_COLUMNS or N % BLOCK_COLUMNS:
        raise ValueError(f"K {K} and N {N} must be multiples of {BLOCK_COLUMNS}")
    if weights.group_size not in (None, 64, 128):
        raise ValueError(f"group size {weights.group_size} is not 64, 128 or a whole column")
    padded_k = -(-K // K_MULTIPLE) * K_MULTIPLE
    strips = -(-N // STRIP_COLUMNS)
    tiles = padded_k // TILE_K
    rows = groups_per_tile(weights.group_size)
    zero_points = weights.zeros is not None
    size = block_bytes(weights.group_size, zero_points)
    packed = torch.empty((strips, tiles, 2, size), dtype=torch.uint8, device=weights.codes.device)
    if rows:
        exponents = _column_exponents(weights.scales)
        column_factors = torch.ldexp(torch.ones(N, device=packed.device), -exponents)
    else:
        column_factors = weights.scales[0].float().clone()
    for first in range(0, strips, _CHUNK_STRIPS):
        last = min(first + _CHUNK_STRIPS, strips)
        columns = slice(first * STRIP_COLUMNS, min(last * STRIP_COLUMNS, N))
        width = (last - first) * STRIP_COLUMNS
        codes = _pad_columns(weights.codes[:, columns], width, SYMMETRIC_ZERO)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, padded_k - K), value=SYMMETRIC_ZERO)
        words = _pack_codes(codes.contiguous())
        chunk = packed[first:last]
        chunk[..., :CODE_BYTES] = words.view(last - first, tiles, 2, -1).view(torch.uint8)
        at = CODE_BYTES
        if rows:
            scales = torch.ldexp(weights.scales[:, columns].float(), exponents[columns]).half()
            scales = torch.nn.functional.pad(scales, (0, width - scales.shape[1], 0, tiles * rows - scales.shape[0]))
            end = at + rows * BLOCK_COLUMNS * 2
            chunk[..., at:end] = _pack_groups(scales, tiles).contiguous().view(torch.uint8)
            at = end
        if weights.zeros is not None:
            zeros = weights.zeros[:, columns]
            if not rows:
                zeros = zeros.expand(tiles, -1)
            missing = tiles * max(rows, 1) - zeros.shape[0]
            zeros = torch.nn.functional.pad(zeros, (0, width - zeros.shape[1], 0, missing))
            chunk[..., at:] = _pack_groups(zeros.contiguous(), tiles)
    return HopperWeights(packed, column_factors, K, N, weights.group_size, zero_points)


def unpack(weights: HopperWeights) -> QuantizedWeights:
    """The canonical weights again, bit for bit (scales that differ by more than 2^18 in a column lose last bits)."""
    strips, tiles = weights.packed.shape[:2]
    rows = groups_per_tile(weights.group_size)
    K, N = weights.K, weights.N
    words = weights.packed[..., :CODE_BYTES].contiguous().view(torch.int32).view(strips, tiles, 2, 2, 4, 8, 4, 4)
    codes = _unpack_codes(words)[:K, :N].contiguous()
    at = CODE_BYTES
    if rows:
        end = at + rows * BLOCK_COLUMNS * 2
        stored = _unpack_groups(weights.packed[..., at:end].contiguous().view(torch.float16), rows)
        groups = K // (TILE_K // rows)
        scales = (stored[:groups, :N].float() * weights.column_factors).half()
        at = end
    else:
        groups = 1
        scales = weights.column_factors.half()[None]
    zeros = None
    if weights.zero_points:
        zeros = _unpack_groups(weights.packed[..., at:], max(rows, 1))[:groups, :N].contiguous()
    return QuantizedWeights(codes=codes, scales=scales, zeros=zeros, group_size=weights.group_size)
