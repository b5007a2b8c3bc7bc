"""Canonical 4-bit weights ↔ the order in which kernels/marlin.cu reads them.

Codes [K, N] become gapless 64×64 blocks of 2 KiB, int32 [K/64, N/64, 512]: four 16×64 strips, each 32 lanes of one
16-byte vector, each vector four words of eight codes.

        64 columns                      lane = 4g + t           word j              nibble p = 4e + 2q + h
      +------------+                 +----------------+      +---+---+---+---+
      | strip k 0  |   strip 16×64   | lane 0 … 3     |      | 0 | 1 | 2 | 3 |    k = 2t + 8q + e
    6 | strip k 16 |   = 512 bytes   | lane 4 … 7     |      +---+---+---+---+    column = 32 (j / 2) + 8 (g / 2)
    4 | strip k 32 |   = 32 lanes    |   …            |      16-byte vector                + 2 (2 (j % 2) + h) + g % 2
      | strip k 48 |   × 16 bytes    | lane 28 … 31   |
      +------------+                 +----------------+

Each word is then rotated left by two bits. So one 128-bit load gives a lane the tensor-core operands of its 16×64
strip, in the nibble order that makes two codes a masked word (paper section 3.4, "Dequantization and Tensor Cores"),
and the masked word two FP16 subnormals, code · 2^-22 or code · 2^-18 (kernels/codes.cuh). The columns are dealt so
that two lanes have the even and the odd ones of eight neighbours of a row of C (kernels/fragments.cuh). Scales and zero
points follow the same deal: lane group g of strip n reads the eight of b = 2j + h in one load. Scales make up for the
powers of two: see `kernel_scales`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 64
"""Rows and columns of a packed block: K and N are multiples of it."""

WORDS_PER_BLOCK = BLOCK * BLOCK // 8
_POWERS = (2.0**22, 2.0**18)
_CHUNK_CODES = 1 << 27
"""Codes packed at a time, which bounds the temporary memory to a few times this many bytes."""


class LayoutError(ValueError):
    """A matrix that has no packed form."""


def strip_positions() -> NDArray[np.int64]:
    """Which weight of a 16×64 strip each nibble holds: int64 [32 lanes, 4 words, 8 nibbles, 2], the pair (k, column).

    Nibbles count from bit 2 of the word, round its end.
    The definition of the layout, written as the kernel reads it; `pack_codes` is the fast form of the same thing.
    """
    lane, j, nibble = np.ogrid[:32, :4, :8]
    g, t = lane // 4, lane % 4
    e, q, h = nibble // 4, nibble // 2 % 2, nibble % 2
    k = 2 * t + 8 * q + e + 0 * j
    column = 32 * (j // 2) + 8 * (g // 2) + 2 * (2 * (j % 2) + h) + g % 2
    return np.stack(np.broadcast_arrays(k, column), axis=-1).astype(np.int64)


def group_columns() -> NDArray[np.int64]:
    """Which column of a strip stands at [lane group g, product b] of the packed scales: int64 [8, 8]."""
    g, b = np.ogrid[:8, :8]
    column: NDArray[np.int64] = 32 * (b // 4) + 8 * (g // 2) + 2 * (b % 4) + g % 2
    return column


def _require_blocks(K: int, N: int) -> None:
    for name, size in (("K", K), ("N", N)):
        if size % BLOCK:
            raise LayoutError(f"{name} {size} is not a multiple of {BLOCK}")


def _row_blocks_a_chunk(N: int) -> int:
    return max(1, _CHUNK_CODES // (BLOCK * N))


def pack_codes(codes: Tensor) -> Tensor:
    """uint8 [K, N] of codes 0..15 → int32 [K/64, N/64, 512], on the same device."""
    K, N = codes.shape
    _require_blocks(K, N)
    packed = torch.empty(K // BLOCK, N // BLOCK, WORDS_PER_BLOCK * 4, dtype=torch.uint8, device=codes.device)
    rows = _row_blocks_a_chunk(N)
    for first in range(0, K // BLOCK, rows):
        part = codes[first * BLOCK : (first + rows) * BLOCK]
        #            blocks, strip, q, t, e, blocks, j / 2, g / 2, j % 2, h, g % 2
        view = part.reshape(-1, 4, 2, 4, 2, N // BLOCK, 2, 4, 2, 2, 2)
        both = view[..., 0, :] | (view[..., 1, :] << 4)  # h = 0 and 1 are the two nibbles of a byte
        #  from   blocks 0, strip 1, q 2, t 3, e 4, blocks 5, j / 2 6, g / 2 7, j % 2 8, g % 2 9
        ordered = both.permute(0, 5, 1, 7, 9, 3, 6, 8, 4, 2)
        bytes_ = packed[first : first + rows]
        bytes_.view(ordered.shape).copy_(ordered)
        words = bytes_.view(torch.int32)
        words.copy_(words << 2 | words >> 30 & 3)
    return packed.view(torch.int32)


def unpack_codes(packed: Tensor) -> Tensor:
    """int32 [K/64, N/64, 512] → uint8 [K, N]: the inverse of `pack_codes`."""
    blocks_k, blocks_n, _ = packed.shape
    N = blocks_n * BLOCK
    codes = torch.empty(blocks_k * BLOCK, N, dtype=torch.uint8, device=packed.device)
    rows = _row_blocks_a_chunk(N)
    for first in range(0, blocks_k, rows):
        words = packed[first : first + rows]
        part = (words >> 2 & 0x3FFFFFFF | words << 30).contiguous().view(torch.uint8)
        #  blocks, blocks, strip, g / 2, g % 2, t, j / 2, j % 2, e, q
        ordered = part.view(-1, blocks_n, 4, 4, 2, 4, 2, 2, 2, 2).permute(0, 2, 9, 5, 8, 1, 6, 3, 7, 4)
        view = codes[first * BLOCK : (first + rows) * BLOCK].view(-1, 4, 2, 4, 2, blocks_n, 2, 4, 2, 2, 2)
        view[..., 0, :] = ordered & 15
        view[..., 1, :] = ordered >> 4
    return codes


def pack_scales(scales: Tensor) -> Tensor:
    """[groups, N] → [groups, N/64, 8, 8]: for each strip and lane group g, the scales of its eight products."""
    groups, N = scales.shape
    _require_blocks(0, N)
    dealt = scales.view(groups, N // BLOCK, 2, 4, 4, 2).permute(0, 1, 3, 5, 2, 4)
    return dealt.reshape(groups, N // BLOCK, 8, 8).contiguous()


def kernel_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Packed scales as the kernels multiply with them, and their unit, FP32 [1]: a power of two, 1 for common layers.

    FP16: scale · 2^22 / unit for b even and scale · 2^18 / unit for b odd, where codes are FP16 subnormals. The unit
    keeps them finite: without it (1) a scale may be 2^-6. BF16: scale / 4, for codes put together four times as large.
    """
    if packed.dtype is torch.bfloat16:
        return packed / 4, torch.ones(1, device=packed.device)
    largest = packed.abs().amax().float() * _POWERS[0]
    unit = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(torch.float16).max)).clamp(min=0)).reshape(1)
    powers = torch.tensor(_POWERS, device=packed.device).repeat(4)
    return (packed.float() * (powers / unit)).half(), unit


def unpack_scales(packed: Tensor) -> Tensor:
    """[groups, N/64, 8, 8] → [groups, N]: the inverse of `pack_scales`."""
    groups, strips = packed.shape[:2]
    dealt = packed.view(groups, strips, 4, 2, 2, 4).permute(0, 1, 4, 2, 5, 3)
    return dealt.reshape(groups, strips * BLOCK).contiguous()


def _zero_nibbles(device: torch.device) -> Tensor:
    """The shift of product b's zero point in its word: 4 · (4 (b % 2) + b / 2), int32 [8]."""
    b = torch.arange(8, device=device, dtype=torch.int32)
    return 4 * (4 * (b % 2) + b // 2)


def pack_zeros(zeros: Tensor) -> Tensor:
    """uint8 [groups, N] → int32 [groups, N/64, 8]: a word a lane group, product b at nibble 4 (b % 2) + b / 2."""
    dealt = pack_scales(zeros).long()
    words = (dealt << _zero_nibbles(zeros.device)).sum(dim=-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_zeros(packed: Tensor) -> Tensor:
    """int32 [groups, N/64, 8] → uint8 [groups, N]: the inverse of `pack_zeros`."""
    dealt = (packed[..., None] >> _zero_nibbles(packed.device)) & 15
    return unpack_scales(dealt.to(torch.uint8))
