"""SparseMarlinLinear: MarlinLinear with 2:4-sparse 4-bit weights.

layer = SparseMarlinLinear.from_linear(linear)                # prunes by magnitude, then quantises what is kept
layer = SparseMarlinLinear.from_linear(linear, mask=mask)     # prunes by a mask, as SparseGPT or Wanda give one
"""

from __future__ import annotations

import torch
from torch import Tensor

from marlin_bench.linear import MarlinLinear
from marlin_bench.pruning import largest_two_of_four, require_two_of_four
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights, quantize


class SparseMarlinLinear(MarlinLinear):
    """y[…, N] = x[…, K] @ W[K, N] (+ bias[N]), two of every four weights along K kept, in 4 bits each."""

    @classmethod
    def from_linear(  # type: ignore[override]  # sparse weights have a mask and no zero points
        cls, linear: torch.nn.Linear, group_size: int | None = 128, *, mask: Tensor | None = None
    ) -> SparseMarlinLinear:
        """Prunes a dense layer (by `mask`, bool [N, K] as the weight lies, or by magnitude) and quantises the rest.

        PruningError when the mask keeps more than two of four along K.
        """
        weights = linear.weight.detach().t()
        if mask is None:
            kept = largest_two_of_four(weights.abs())
        else:
            kept = mask.t().contiguous()
            require_two_of_four(kept)
        return cls(quantize(weights, group_size, mask=kept), linear.bias, dtype=linear.weight.dtype)

    @classmethod
    def from_codes(  # type: ignore[override]
        cls,
        codes: Tensor,
        scales: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        *,
        group_size: int | None = 128,
        dtype: torch.dtype = torch.float16,
    ) -> SparseMarlinLinear:
        """From a quantiser's result: uint8 codes [K, N], bool mask [K, N], FP16 scales [groups, N]."""
        require_two_of_four(mask)
        kept = codes.masked_fill(~mask, SYMMETRIC_ZERO)
        return cls(QuantizedWeights(kept, scales, mask=mask, group_size=group_size), bias, dtype=dtype)
