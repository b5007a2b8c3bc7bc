"""Operand sets: seeded Gaussian activations and weights, the same on every machine, and the answers they must give.

Random bits come from a counter (splitmix64 of seed and position), so that a CPU and a GPU draw the same numbers in any
chunking; a table of 65,536 Gaussian quantiles turns 16 bits into a value. Weights have variance 1/K, hence outputs
variance 1, and are really quantised: zeros would draw less power and hide errors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from marlin_bench.quantize import QuantizedWeights, quantize

_CHUNK = 1 << 25  # values drawn at a time: bounds the memory of the 64-bit intermediates
_COLUMN_BLOCK_BYTES = 1 << 30  # float64 weights held at a time while an expected answer is computed
_TABLE_BITS = 16

WeightColumns = Callable[[slice], Tensor]
"""Gives the weights [K, columns] of some columns."""


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer torch wants."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed for one tensor, from the suite's seed and what the tensor is."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _random_int16(seed: int, start: int, count: int, device: str) -> Tensor:
    """16-bit patterns number start … start + count of a stream; `start` is a multiple of 4 (four to a 64-bit word)."""
    words = -(-count // 4)
    first = start // 4
    state = torch.arange(first + 1, first + 1 + words, dtype=torch.int64, device=device)
    state.mul_(_GOLDEN).add_(seed)
    state.bitwise_xor_(_shift_right(state, 30)).mul_(_MIX_1)
    state.bitwise_xor_(_shift_right(state, 27)).mul_(_MIX_2)
    state.bitwise_xor_(_shift_right(state, 31))
    return state.view(torch.int16)[:count]


@cache
def _quantile_table(device: str, dtype: torch.dtype) -> Tensor:
    """Standard normal quantiles at the midpoints of 65,536 equal parts, in the order of the signed 16-bit index."""
    normal = NormalDist()
    size = 1 << _TABLE_BITS
    upper = [normal.inv_cdf(0.5 + (index + 0.5) / size) for index in range(size // 2)]
    values = [-value for value in reversed(upper)] + upper
    return torch.tensor(values, dtype=torch.float64).to(dtype).to(device)


def gaussian(seed: int, shape: tuple[int, ...], dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    """Gaussian values of standard deviation `scale`, bit for bit the same on every device."""
    count = math.prod(shape)
    table = (_quantile_table(device, torch.float32) * scale).to(dtype)
    values = torch.empty(count, dtype=dtype, device=device)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        index = _random_int16(seed, start, size, device).to(torch.int32).add_(1 << (_TABLE_BITS - 1))
        torch.index_select(table, 0, index, out=values[start : start + size])
    return values.view(shape)


@dataclass(frozen=True)
class LayerKey:
    """What decides a layer's weights."""

    K: int
    N: int
    group_size: int | None
    seed: int


def make_weights(key: LayerKey, index: int, device: str) -> QuantizedWeights:
    """Operand set number `index` of a layer, quantised in column blocks so that the float copy stays small."""
    seed = stream_seed("weights", key.seed, key.K, key.N, index)
    group_rows = key.K if key.group_size is None else key.group_size
    rows_at_once = max(group_rows, _CHUNK // key.N // group_rows * group_rows)
    codes = torch.empty((key.K, key.N), dtype=torch.uint8, device=device)
    scales = torch.empty((key.K // group_rows, key.N), dtype=torch.float16, device=device)
    for row in range(0, key.K, rows_at_once):
        end = min(key.K, row + rows_at_once)
        block_seed = stream_seed(seed, row)
        part = quantize(
            gaussian(block_seed, (end - row, key.N), torch.float32, device, key.K**-0.5), group_size=group_rows
        )
        codes[row:end] = part.codes
        scales[row // group_rows : end // group_rows] = part.scales
    return QuantizedWeights(codes=codes, scales=scales, group_size=key.group_size)


def make_activations(seed: int, M: int, K: int, index: int, dtype: torch.dtype, device: str) -> Tensor:
    """Activations [M, K] of operand set `index`; the first rows of a larger M are those of a smaller one."""
    return gaussian(stream_seed("activations", seed, K, index), (M, K), dtype, device)


def column_blocks(K: int, N: int) -> list[slice]:
    """Slices of the columns whose float64 weights [K, block] fit the working memory."""
    width = max(1, min(N, _COLUMN_BLOCK_BYTES // (8 * K)))
    return [slice(start, min(N, start + width)) for start in range(0, N, width)]


@dataclass(frozen=True)
class WeightSource:
    """The weights an output is judged against: the canonical ones, or what a backend really holds."""

    weights: QuantizedWeights
    own: WeightColumns | None = None

    @property
    def K(self) -> int:
        """Input features."""
        return self.weights.K

    @property
    def N(self) -> int:
        """Output features."""
        return self.weights.N

    def columns(self, columns: slice) -> Tensor:
        """Weights [K, columns]."""
        return self.weights.dequantized(columns) if self.own is None else self.own(columns)


def expected_product(activations: Tensor, weights_of: WeightSource) -> Tensor:
    """activations [M, K] @ weights [K, N] in float64, computed in column blocks.

    `weights_of.columns(slice)` gives the weights of some columns in their stored precision.
    """
    exact = activations.double()
    expected = torch.empty((activations.shape[0], weights_of.N), dtype=torch.float64, device=activations.device)
    for columns in column_blocks(weights_of.K, weights_of.N):
        expected[:, columns] = exact @ weights_of.columns(columns).double()
    return expected
