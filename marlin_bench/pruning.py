"""2:4 sparsity along K: of every four weights of a column at most two are kept.

Which two is decided by magnitude, never by codes: the original Sparse-MARLIN ranked unsigned codes 0..15 and so dropped
the most negative weights. The mask is the only place that says what is kept; a code of 0 is an ordinary weight of -8
scales. Shapes are [K, N] and K is a multiple of 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 4
KEPT = 2


class PruningError(ValueError):
    """A matrix or mask that is not 2:4."""


def _quads(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four [K / 4, N] slices of a matrix [K, N]."""
    K, N = matrix.shape
    if K % GROUP:
        raise PruningError(f"K {K} is not a multiple of {GROUP}")
    first, second, third, fourth = matrix.view(K // GROUP, GROUP, N).unbind(1)
    return first, second, third, fourth


def largest_two_of_four(magnitudes: Tensor) -> Tensor:
    """bool [K, N]: exactly the two largest of every four along K; of equal ones those with the lower k."""
    quads = _quads(magnitudes)
    mask = torch.empty(magnitudes.shape, dtype=torch.bool, device=magnitudes.device)
    beaten = [torch.zeros(quads[0].shape, dtype=torch.uint8, device=magnitudes.device) for _ in range(GROUP)]
    for i in range(GROUP):
        for j in range(i + 1, GROUP):
            first_wins = quads[i] >= quads[j]
            beaten[j] += first_wins
            beaten[i] += ~first_wins
    kept = mask.view(-1, GROUP, magnitudes.shape[1])
    for i in range(GROUP):
        torch.lt(beaten[i], KEPT, out=kept[:, i])
    return mask


def require_two_of_four(mask: Tensor) -> None:
    """Raises PruningError when some four of a bool mask [K, N] keep more than two."""
    first, second, third, fourth = (part.to(torch.uint8) for part in _quads(mask))
    most = int((first + second + third + fourth).max())
    if most > KEPT:
        raise PruningError(f"the mask keeps {most} of four weights: 2:4 allows {KEPT}")


def completed(mask: Tensor) -> Tensor:
    """A mask that keeps exactly two of every four: where fewer are kept, the lowest other k join them.

    What joins is stored as a weight of nought. PruningError when more than two of some four are kept.
    """
    require_two_of_four(mask)
    return largest_two_of_four(mask.to(torch.uint8))
