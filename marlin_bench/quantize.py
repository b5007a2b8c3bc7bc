"""Canonical 4-bit weights: what every backend packs from and is judged against.

    w[k,n] ≈ (code[k,n] - zero[k // g, n]) · scale[k // g, n]        codes 0..15, symmetric weights use zero = 8

`quantize` is the symmetric round-to-nearest quantiser of the MARLIN tests (scale = max|w| · 2/15 per group); the
zero-point variant spreads [min, max] over the 16 codes as AWQ does. Shapes are always [K, N], K the reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SYMMETRIC_ZERO = 8
LARGEST_CODE = 15


@dataclass(frozen=True)
class QuantizedWeights:
    """Canonical weights of one layer.

    codes:  uint8 [K, N], 0..15
    scales: fp16 [groups, N], groups = K / group_size, or 1 for one scale a column
    zeros:  uint8 [groups, N], 0..15, or None for symmetric weights (zero point 8)
    mask:   bool [K, N], True where a 2:4-pruned weight is kept, or None for dense weights
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    mask: Tensor | None = None
    group_size: int | None = 128

    @property
    def K(self) -> int:
        """Input features."""
        return self.codes.shape[0]

    @property
    def N(self) -> int:
        """Output features."""
        return self.codes.shape[1]

    @property
    def group_rows(self) -> int:
        """Rows that share a scale: the group size, K for one scale a column."""
        return self.K if self.group_size is None else self.group_size

    def dequantized(self, columns: slice = slice(None), dtype: torch.dtype = torch.float16) -> Tensor:
        """The weights [K, columns] that the codes stand for: round_to_dtype((code - zero) · scale), pruned ones 0.

        (code - zero) has at most 5 significant bits and the scale 11, so the product is exact in float32 and
        rounds once.
        """
        codes = self.codes[:, columns]
        rows = self.group_rows
        zeros: Tensor | int = SYMMETRIC_ZERO
        if self.zeros is not None:
            zeros = self.zeros[:, None, columns].float()
        grouped = codes.view(self.K // rows, rows, codes.shape[1]).float()
        weights = ((grouped - zeros) * self.scales[:, None, columns].float()).to(dtype).view(codes.shape)
        if self.mask is not None:
            weights = weights.masked_fill(~self.mask[:, columns], 0)
        return weights


def quantize(
    weights: Tensor, group_size: int | None, *, zero_points: bool = False, mask: Tensor | None = None
) -> QuantizedWeights:
    """Quantise weights [K, N] (floating point) to 4 bits with FP16 scales per `group_size` rows (None: per column).

    A `mask` (bool [K, N], True where a weight is kept; see pruning.py) prunes before quantising, so that the scales fit
    what is kept.

    Raises ValueError when K is not a multiple of the group size.
    """
    K, N = weights.shape
    rows = K if group_size is None else group_size
    if rows < 1 or K % rows:
        raise ValueError(f"K {K} is not divisible by the group size {rows}")
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    grouped = weights.float().view(K // rows, rows, N)
    tiny = torch.finfo(torch.float16).tiny
    if zero_points:
        low = grouped.amin(dim=1).clamp_max(0)
        high = grouped.amax(dim=1).clamp_min(0)
        scales = ((high - low) / LARGEST_CODE).clamp_min(tiny).half()
        zeros = torch.clamp(torch.round(-low / scales.float()), 0, LARGEST_CODE)
        codes = torch.clamp(torch.round(grouped / scales.float()[:, None]) + zeros[:, None], 0, LARGEST_CODE)
        stored_zeros = zeros.to(torch.uint8)
    else:
        scales = (grouped.abs().amax(dim=1) * (2 / LARGEST_CODE)).clamp_min(tiny).half()
        codes = torch.clamp(torch.round(grouped / scales.float()[:, None]) + SYMMETRIC_ZERO, 0, LARGEST_CODE)
        stored_zeros = None
    return QuantizedWeights(
        codes=codes.to(torch.uint8).view(K, N), scales=scales, zeros=stored_zeros, mask=mask, group_size=group_size
    )
