"""Canonical 2:4-sparse 4-bit weights ↔ the order in which kernels/marlin_sparse.cu reads them.

Weights [K, N] become gapless 64×64 blocks of 1.5 KiB, int32 [K/64, N/64, 384]: the kept codes of two units of 32 k,
then their positions. A lane (g = lane / 4, t = lane % 4) of the warp that owns a block's 64 channels reads one 16-byte
vector of codes and one 8-byte vector of positions a unit.

      64 channels
     +------------+       codes  512 B | codes  512 B | positions 256 B | positions 256 B
   6 | unit 0: 32 |       unit 0         unit 1         unit 0            unit 1
   4 |    k       |
     | unit 1: 32 |       word j (of 4), nibble p = 4e + 2h + q:  channel 8g + 2j + h, kept number 2t + e + 8q of its 16
     +------------+       half r (of 2): product j = 2r + t / 2, k 16 (t % 2) … + 15 of the unit; 16 bits of channel
                          8g + 2j, then 16 of channel 8g + 2j + 1; 4 bits a quad of k: first kept | second kept << 2

The nibble order makes two codes a masked word (kernels/dequantise.cuh, as for dense weights), and one register of
positions feeds two products (paper section 4, figures 7 and 8; kernels/sparse_fragments.cuh). Scales need no new order:
lane group g reads its eight channels 8g … 8g+7 of [groups, N].

Positions are made from the mask alone. In the original they came from `code != 0`, so that a kept code 0 (a weight of
-8 scales) was lost.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marlin_bench.layouts.marlin import BLOCK, LayoutError
from marlin_bench.pruning import completed
from marlin_bench.quantize import SYMMETRIC_ZERO

UNIT = 32
"""Dense k of one sparse product."""

CODE_BYTES = BLOCK * BLOCK // 4
POSITION_BYTES = BLOCK * BLOCK // 8
WORDS_PER_BLOCK = (CODE_BYTES + POSITION_BYTES) // 4
LEGAL_NIBBLES = (0x4, 0x8, 0x9, 0xC, 0xD, 0xE)
"""Positions of two kept weights of four, in ascending order: first | second << 2."""

_CHUNK_CODES = 1 << 26
"""Dense weights packed at a time, which bounds the temporary memory to some ten times this many bytes."""


def unit_positions() -> NDArray[np.int64]:
    """Which kept weight of a unit each nibble holds: int64 [32 lanes, 4 words, 8 nibbles, 2], (kept number, channel).

    The definition of the layout, written as the kernel reads it; `pack` is the fast form of the same thing.
    """
    lane, j, nibble = np.ogrid[:32, :4, :8]
    g, t = lane // 4, lane % 4
    e, h, q = nibble // 4, nibble // 2 % 2, nibble % 2
    kept = 2 * t + e + 8 * q + 0 * j
    channel = 8 * g + 2 * j + h
    return np.stack(np.broadcast_arrays(kept, channel), axis=-1).astype(np.int64)


def quad_positions() -> NDArray[np.int64]:
    """Which quad of a unit each nibble of positions is: int64 [32 lanes, 2 words, 8 nibbles, 2], (quad, channel)."""
    lane, r, nibble = np.ogrid[:32, :2, :8]
    g, t = lane // 4, lane % 4
    quad = 4 * (t % 2) + nibble % 4 + 0 * r
    channel = 8 * g + 2 * (2 * r + t // 2) + nibble // 4
    return np.stack(np.broadcast_arrays(quad, channel), axis=-1).astype(np.int64)


def _require_blocks(K: int, N: int) -> None:
    for name, size in (("K", K), ("N", N)):
        if size % BLOCK:
            raise LayoutError(f"{name} {size} is not a multiple of {BLOCK}")


def compress(codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [K, N], a mask that keeps exactly two of four → kept codes uint8 [K/2, N], nibbles uint8 [K/4, N]."""
    K, N = codes.shape
    quads, kept = codes.view(K // 4, 4, N), mask.view(K // 4, 4, N)
    second = (
        (kept[:, 3].to(torch.uint8) * 3)
        .masked_fill_(~kept[:, 3] & kept[:, 2], 2)
        .masked_fill_(~kept[:, 3] & ~kept[:, 2], 1)
    )
    first = torch.full_like(second, 2).masked_fill_(kept[:, 1], 1).masked_fill_(kept[:, 0], 0)
    values = torch.empty(K // 4, 2, N, dtype=torch.uint8, device=codes.device)
    values[:, 0] = torch.where(kept[:, 0], quads[:, 0], torch.where(kept[:, 1], quads[:, 1], quads[:, 2]))
    values[:, 1] = torch.where(kept[:, 3], quads[:, 3], torch.where(kept[:, 2], quads[:, 2], quads[:, 1]))
    return values.view(K // 2, N), first | (second << 2)


def expand(values: Tensor, nibbles: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `compress`: codes uint8 [K, N], pruned ones 8 (nought), and the mask bool [K, N]."""
    quads, N = nibbles.shape
    index = torch.stack((nibbles & 3, nibbles >> 2), dim=1).long()
    codes = torch.full((quads, 4, N), SYMMETRIC_ZERO, dtype=torch.uint8, device=values.device)
    codes.scatter_(1, index, values.view(quads, 2, N))
    mask = torch.zeros(quads, 4, N, dtype=torch.bool, device=values.device)
    mask.scatter_(1, index, torch.ones_like(index, dtype=torch.bool))
    return codes.view(-1, N), mask.view(-1, N)


def _ordered_codes(values: Tensor) -> Tensor:
    """Kept codes uint8 [K/2, N] → bytes [K/64, N/64, 2 units, 8 g, 4 t, 4 j, 2 e, 2 h], two codes (q = 0, 1) each."""
    N = values.shape[1]
    #                blocks, unit, q, t, e, blocks, g, j, h
    view = values.view(-1, 2, 2, 4, 2, N // BLOCK, 8, 4, 2)
    both = view[:, :, 0] | (view[:, :, 1] << 4)
    #   from blocks 0, unit 1, t 2, e 3, blocks 4, g 5, j 6, h 7
    return both.permute(0, 4, 1, 5, 2, 6, 3, 7)


def _ordered_positions(nibbles: Tensor) -> Tensor:
    """Nibbles uint8 [K/4, N] → bytes [K/64, N/64, 2 units, 8 g, 2 t / 2, 2 t % 2, 2 r, 2 h, 2], two quads each."""
    N = nibbles.shape[1]
    #            blocks, unit, t % 2, byte, quad of a byte, blocks, g, r, t / 2, h
    view = nibbles.view(-1, 2, 2, 2, 2, N // BLOCK, 8, 2, 2, 2)
    both = view[:, :, :, :, 0] | (view[:, :, :, :, 1] << 4)
    #   from blocks 0, unit 1, t % 2 2, byte 3, blocks 4, g 5, r 6, t / 2 7, h 8
    return both.permute(0, 4, 1, 5, 7, 2, 6, 8, 3)


def pack(codes: Tensor, mask: Tensor) -> Tensor:
    """uint8 codes [K, N] and bool mask [K, N], at most two of four → int32 [K/64, N/64, 384], on the same device.

    Fours that keep fewer than two are filled up with weights of nought. PruningError when one keeps more.
    """
    K, N = codes.shape
    _require_blocks(K, N)
    packed = torch.empty(K // BLOCK, N // BLOCK, WORDS_PER_BLOCK * 4, dtype=torch.uint8, device=codes.device)
    rows = max(1, _CHUNK_CODES // (BLOCK * N))
    for first in range(0, K // BLOCK, rows):
        part = slice(first * BLOCK, (first + rows) * BLOCK)
        full = completed(mask[part])
        values, nibbles = compress(codes[part].masked_fill(~mask[part], SYMMETRIC_ZERO), full)
        blocks = packed[first : first + rows]
        for target, ordered in (
            (blocks[..., :CODE_BYTES], _ordered_codes(values)),
            (blocks[..., CODE_BYTES:], _ordered_positions(nibbles)),
        ):
            torch.unflatten(target, -1, ordered.shape[2:]).copy_(ordered)
    return packed.view(torch.int32)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """int32 [K/64, N/64, 384] → codes uint8 [K, N], pruned ones 8, and the mask bool [K, N] of what is stored."""
    blocks_k, blocks_n, _ = packed.shape
    N = blocks_n * BLOCK
    blocks = packed.contiguous().view(torch.uint8)
    #  blocks, blocks, unit, g, t, j, e, h → blocks, unit, t, e, blocks, g, j, h
    codes = blocks[..., :CODE_BYTES].reshape(blocks_k, blocks_n, 2, 8, 4, 4, 2, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
    values = torch.stack((codes & 15, codes >> 4), dim=2).reshape(-1, N)
    #  blocks, blocks, unit, g, t / 2, t % 2, r, h, byte → blocks, unit, t % 2, byte, blocks, g, r, t / 2, h
    positions = blocks[..., CODE_BYTES:].reshape(blocks_k, blocks_n, 2, 8, 2, 2, 2, 2, 2)
    positions = positions.permute(0, 2, 5, 8, 1, 3, 6, 4, 7)
    nibbles = torch.stack((positions & 15, positions >> 4), dim=4).reshape(-1, N)
    return expand(values, nibbles)
