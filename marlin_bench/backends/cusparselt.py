"""cuSPARSELt through torch: FP16 weights, 2:4-sparse, so that sparsity without quantisation is on the plot too.

The library computes C^T = W^T · A^T, as 2:4 products must, and leaves it that way: [N, M] row major, of which the
result is a transposed view, as torch's own sparse linear layer gives it. Asking it to transpose (`transpose_result`) is
no option on an H200 with cuSPARSELt 0.8.0: algorithm 0 takes about ten times as long, and the search over the others
fails with an internal error or an illegal instruction, which takes the CUDA context with it. So the backend has a
process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from marlin_bench.backends.marlin_sparse import pruned_weights
from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Effort, Launch, Missing, Packed
from marlin_bench.problem import FP16_2OF4, Format, Problem
from marlin_bench.quantize import QuantizedWeights

_ROWS = 8  # cuSPARSELt wants a multiple of 8 dense rows for 16-bit types
_MULTIPLE = 16  # and of 16 on both sides of the sparse matrix
_MOST_ALGORITHMS = 40  # 27 in cuSPARSELt 0.8.0, 38 in 0.6.2; numbers beyond raise RuntimeError


def is_available() -> bool:
    """Whether this torch was built with cuSPARSELt and can load it."""
    return bool(torch.backends.cusparselt.is_available())


def compress(weights: Tensor) -> Tensor:
    """Weights [K, N], at most two of every four along K not nought → cuSPARSELt's compressed form of [N, K]."""
    compressed: Tensor = torch._cslt_compress(weights.t().contiguous())
    return compressed


def search(compressed: Tensor, activations: Tensor) -> int:
    """The number of the algorithm that cuSPARSELt's own search finds fastest for these operands."""
    return int(torch._cslt_sparse_mm_search(compressed, activations.t()))


def multiply(compressed: Tensor, activations: Tensor, algorithm: int) -> Tensor:
    """activations [M, K] @ W → [M, N], a view of a new [N, M]; M a multiple of 8."""
    product: Tensor = torch._cslt_sparse_mm(compressed, activations.t(), alg_id=algorithm)
    return product.t()


def _padded(activations: Tensor) -> Tensor:
    """Room for the activations and for rows of nought up to a multiple of 8."""
    M, K = activations.shape
    return torch.zeros(-(-M // _ROWS) * _ROWS, K, dtype=activations.dtype, device=activations.device)


class CusparseltFp16(Backend):
    """2:4-sparse FP16 weights, pruned as `marlin_sparse` prunes them; other M than multiples of 8 are padded, timed."""

    name = "cusparselt_fp16"
    summary = "cuSPARSELt FP16 through torch, weights 2:4-sparse and not quantised"
    tolerance = 0.002
    tune_is_kept = True  # its search takes up to 9 s on the largest layer
    isolation: ClassVar[Literal["shared", "own"]] = "own"

    def missing(self) -> Missing | None:
        """Torch without cuSPARSELt."""
        if is_available():
            return None
        return Missing("this torch has no cuSPARSELt", "install a CUDA build of torch 2.3 or later (Linux or Windows)")

    def version(self) -> str:
        """Of cuSPARSELt and of the torch that calls it."""
        return f"cusparselt {torch.backends.cusparselt.version()} torch {torch.__version__}"

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """GPUs without sparse tensor cores, and shapes off its grid."""
        if device.capability is not None and device.capability < (8, 0):
            return f"compute capability {'.'.join(map(str, device.capability))} is below 8.0"
        for name, size in (("K", problem.K), ("N", problem.N)):
            if size % _MULTIPLE:
                return f"{name} {size} is not a multiple of {_MULTIPLE}"
        return None

    def format(self, problem: Problem) -> Format:
        """Half the 16-bit weights and their positions."""
        return FP16_2OF4

    def pack(self, weights: QuantizedWeights) -> Packed:
        """The pruned, dequantised weights, compressed."""
        pruned = pruned_weights(weights, slice(None), torch.float16)
        return Packed(
            {"compressed": compress(pruned)},
            reference=lambda columns: pruned_weights(weights, columns, torch.float16),
        )

    def candidates(self, problem: Problem, device: DeviceTraits, effort: Effort) -> Sequence[Choice]:
        """Every algorithm, where there is time to try them; else cuSPARSELt's search decides."""
        if effort == "quick":
            return ()
        return [{"algorithm": str(number)} for number in range(_MOST_ALGORITHMS)]

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """Ask cuSPARSELt's search."""
        return {"algorithm": str(search(packed[0].tensors["compressed"], _padded(activations[0])))}

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One product; torch allocates its result."""
        compressed, algorithm = packed.tensors["compressed"], int(choice["algorithm"])
        M = activations.shape[0]
        padded = activations if M % _ROWS == 0 else _padded(activations)

        def product() -> Tensor:
            if padded is not activations:
                padded[:M].copy_(activations)
            return multiply(compressed, padded, algorithm)[:M]

        return product
