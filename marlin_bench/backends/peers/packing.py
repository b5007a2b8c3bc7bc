"""Canonical codes in the word orders that other libraries start from; their own repacking follows on the GPU.

All take codes uint8 [K, N], 0..15, and work on the device that the codes are on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from marlin_bench.problem import Problem
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

GROUP_SIZE = 128
CODES_A_WORD = 8
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of an AWQ word holds the column AWQ_ORDER[i] of its eight."""
_TILE = 64  # rows and inputs of QuACK's blob


def unsupported(problem: Problem, *, multiple_n: int, multiple_k: int = GROUP_SIZE) -> str | None:
    """One sentence why a layer cannot be packed: group size, N, K."""
    if problem.group_size != GROUP_SIZE:
        return f"group size {problem.group_size or 'column'}: it is measured with groups of {GROUP_SIZE} here"
    if problem.K % multiple_k:
        return f"K {problem.K} is not a multiple of {multiple_k}"
    if problem.N % multiple_n:
        return f"N {problem.N} is not a multiple of {multiple_n}"
    return None


def symmetric(weights: QuantizedWeights) -> QuantizedWeights:
    """The weights, which must have no zero points: every peer is measured on symmetric codes."""
    if weights.zeros is not None:
        raise ValueError("weights with zero points: peers are packed from symmetric codes")
    return weights


def _words(nibbles: Sequence[Tensor]) -> Tensor:
    """Eight codes to an int32, the first in the lowest nibble."""
    word = nibbles[0].to(torch.int32)
    for index, nibble in enumerate(nibbles[1:], start=1):
        word |= nibble.to(torch.int32) << (4 * index)
    return word


def words_along_k(codes: Tensor) -> Tensor:
    """int32 [K / 8, N]: eight successive inputs a word, as GPTQ stores them."""
    K, N = codes.shape
    grouped = codes.view(K // CODES_A_WORD, CODES_A_WORD, N)
    return _words([grouped[:, index] for index in range(CODES_A_WORD)])


def words_along_n(codes: Tensor, order: Sequence[int] = range(CODES_A_WORD)) -> Tensor:
    """int32 [K, N / 8]: eight successive outputs a word, nibble i holding column order[i]; AWQ has its own order."""
    K, N = codes.shape
    grouped = codes.view(K, N // CODES_A_WORD, CODES_A_WORD)
    return _words([grouped[:, :, index] for index in order])


def bytes_along_k(codes: Tensor) -> Tensor:
    """uint8 [N, K / 2]: two successive inputs a byte, the even one in the low nibble."""
    K, N = codes.shape
    pairs = codes.view(K // 2, 2, N)
    return (pairs[:, 0] | (pairs[:, 1] << 4)).t().contiguous()


def signed_bytes_along_k(codes: Tensor) -> Tensor:
    """int8 [N, K / 2]: the same with code - 8 as a two's complement nibble."""
    return bytes_along_k(codes ^ SYMMETRIC_ZERO).view(torch.int8)


def scales_as_marlin(scales: Tensor, *, grouped: bool) -> Tensor:
    """Scales [groups, N] with columns in the order in which Marlin's threads read them: 64 at a time, or 32."""
    if grouped:
        order = [row + 8 * column for row in range(8) for column in range(8)]
    else:
        order = [2 * row + column for row in range(4) for column in (0, 1, 8, 9, 16, 17, 24, 25)]
    shape = scales.shape
    return scales.reshape(-1, len(order))[:, order].reshape(shape).contiguous()


def quack_blob(codes: Tensor) -> Tensor:
    """uint8 [N / 64, K / 64, 128, 16]: for each thread of a warpgroup its 32 codes of a 64 x 64 tile.

    A thread's 16 bytes are four words, one for each 16 inputs. A word holds the four register pairs of a wgmma A
    fragment: rows r and r + 8, inputs c and c + 8; first the even codes of all pairs, then the odd ones.
    """
    K, N = codes.shape
    thread, byte = torch.arange(128, device=codes.device), torch.arange(16, device=codes.device)
    block, pair = byte >> 2, byte & 3
    row = (16 * (thread >> 5) + ((thread & 31) >> 2))[:, None] + 8 * (pair & 1)
    column = (8 * block + 4 * (pair >> 1)) + (thread & 3)[:, None]
    source = (row * (_TILE // 2) + column).view(-1)
    tiles = bytes_along_k(codes).view(N // _TILE, _TILE, K // _TILE, _TILE // 2)
    blob = torch.empty((N // _TILE, K // _TILE, 128, 16), dtype=torch.uint8, device=codes.device)
    for strip in range(N // _TILE):  # a strip at a time: gathering is eight times larger than the codes
        words = tiles[strip].permute(1, 0, 2).reshape(K // _TILE, -1)[:, source].view(K // _TILE, 128, 4, 4)
        even, odd = words & 0xF, words >> 4
        halves = [nibbles[..., i] | (nibbles[..., i + 1] << 4) for nibbles in (even, odd) for i in (0, 2)]
        blob[strip] = torch.stack(halves, dim=-1).view(K // _TILE, 128, 16)
    return blob


def quack_scales(scales: Tensor, K: int) -> Tensor:
    """bf16 [N / 64, K / 64, 32, 2]: the scales of rows r and r + 8 for each such pair, repeated every 64 inputs."""
    strips = scales.shape[1] // _TILE
    slot = torch.arange(32, device=scales.device)
    first = 16 * (slot >> 3) + (slot & 7)
    rows = torch.stack((first, first + 8), dim=-1)
    groups = torch.arange(K // _TILE, device=scales.device) * _TILE // GROUP_SIZE
    by_row = scales.bfloat16().t().reshape(strips, _TILE, -1)
    return by_row[:, :, groups].permute(0, 2, 1)[:, :, rows].contiguous()


def held_in_bf16(weights: QuantizedWeights) -> Callable[[slice], Tensor]:
    """The weights of a library that stores scales, and multiplies, in BF16: what its outputs are judged against."""
    held = QuantizedWeights(weights.codes, weights.scales.bfloat16(), group_size=weights.group_size)
    return lambda columns: held.dequantized(columns, torch.bfloat16)
