"""The Triton kernels of this project; imported only where Triton is (it comes with torch for CUDA)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def w4a16_product(
    activations, words, scales, output, M, N, K, group_rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Output tile [ROWS, COLUMNS] of activations[M,K] @ W[K,N], DEPTH inputs at a time.

    words: int32 [K/8, N], eight codes of a column in a word, the smallest k in its lowest bits; scales: fp16
    [K / group_rows, N]; DEPTH divides group_rows, so that one row of scales serves a step.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    depth, word_row = tl.arange(0, DEPTH), tl.arange(0, DEPTH // 8)
    row_there, column_there = row[:, None] < M, column[None, :] < N
    shift = (tl.arange(0, 8) * 4)[None, :, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, K, DEPTH):
        k = start + depth
        # rows far into activations and words lie beyond 2^31 elements
        left = tl.load(activations + row[:, None].to(tl.int64) * K + k[None, :], mask=row_there, other=0.0)
        eight = (start // 8 + word_row)[:, None].to(tl.int64)
        word = tl.load(words + eight * N + column[None, :], mask=column_there, other=0)
        scale = tl.load(scales + (start // group_rows) * N + column[None, :], mask=column_there, other=0.0)
        code = ((word[:, None, :] >> shift) & 0xF).reshape(DEPTH, COLUMNS)
        right = (code - 8).to(tl.float16) * scale
        total = tl.dot(left, right, total)
    there = row_there & column_there
    tl.store(output + row[:, None].to(tl.int64) * N + column[None, :], total.to(tl.float16), mask=there)


@triton.jit
def quantize_rows(values, codes, scales, K, LARGEST: tl.constexpr, INTEGER: tl.constexpr, WIDTH: tl.constexpr):
    """One row of [M,K] into 8 bits: scale = max|row| / LARGEST (FP32), codes = row / scale, rounded or cast to E4M3."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    largest = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, K, WIDTH):
        there = start + lane < K
        value = tl.load(values + row * K + start + lane, mask=there, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
    scale = tl.maximum(tl.max(largest, axis=0), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    for start in range(0, K, WIDTH):
        there = start + lane < K
        value = tl.load(values + row * K + start + lane, mask=there, other=0.0).to(tl.float32) / scale
        if INTEGER:
            value = tl.floor(value + 0.5)
        value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
        tl.store(codes + row * K + start + lane, value.to(codes.dtype.element_ty), mask=there)


@triton.jit
def scale_sums(sums, row_scales, column_scales, output, N, WIDTH: tl.constexpr):
    """output[m,n] = sums[m,n] · row_scales[m] · column_scales[n]: int32 sums of 8-bit products into FP16."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    there = column < N
    total = tl.load(sums + row * N + column, mask=there, other=0).to(tl.float32)
    scaled = total * tl.load(row_scales + row) * tl.load(column_scales + column, mask=there, other=0.0)
    tl.store(output + row * N + column, scaled.to(output.dtype.element_ty), mask=there)
