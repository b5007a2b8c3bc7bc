"""cuBLAS through torch: the FP16 and BF16 baselines, and dequantise-then-multiply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, Dtype, Effort, Launch, Packed
from marlin_bench.problem import BF16, FP16, Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

KN, NK = "KN", "NK"


class CublasFp16(Backend):
    """The FP16 baseline: torch.mm on dense weights, in whichever storage order is faster for this problem.

    KN holds W row-major, NK its transpose (torch.nn.Linear's order). Which one cuBLAS likes better changes with the
    shape, so both are tried for every problem and the record says which one won.
    """

    name = "cublas_fp16"
    summary = "cuBLAS FP16 through torch.mm, the faster of both weight layouts"
    is_baseline = True
    dtype = torch.float16
    stored: ClassVar[Format] = FP16

    def version(self) -> str:
        """cuBLAS is named by the torch build that carries it."""
        return f"torch {torch.__version__} cuda {torch.version.cuda}"

    def format(self, problem: Problem) -> Format:
        """Dense 16-bit weights."""
        return self.stored

    def pack(self, weights: QuantizedWeights) -> Packed:
        """The dequantised weights in row-major order; the transposed copy is made when an M is first tuned."""
        dense = weights.dequantized().to(self.dtype)
        rounded = None if self.dtype is torch.float16 else (lambda columns: dense[:, columns])
        return Packed({"weights": dense}, reference=rounded, extra={"transposed": []})

    def _matrix(self, packed: Packed, layout: str) -> Tensor:
        """The [K, N] view of the weights stored in `layout`."""
        dense = packed.tensors["weights"]
        if layout == KN:
            return dense
        kept = packed.extra["transposed"]
        if not isinstance(kept, list):
            raise TypeError("packed by another backend")
        if not kept:
            kept.append(dense.t().contiguous())
        transposed: Tensor = kept[0]
        return transposed.t()

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """Time both layouts over the rotated sets, each under load."""
        from marlin_bench.cuda_timer import fastest

        operands = list(zip(packed, activations, outputs, strict=True))
        contestants = {
            layout: [self.launch(*operand, {"layout": layout}) for operand in operands] for layout in (KN, NK)
        }
        return {"layout": fastest(contestants)}

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One torch.mm into `output`."""
        weights = self._matrix(packed, choice["layout"])

        def multiply() -> None:
            torch.mm(activations, weights, out=output)

        return multiply


class CublasBf16(CublasFp16):
    """The BF16 baseline, for backends that compute in BF16."""

    name = "cublas_bf16"
    summary = "cuBLAS BF16 through torch.mm, the faster of both weight layouts"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    dtype = torch.bfloat16
    stored: ClassVar[Format] = BF16


def _dequantizer(codes: Tensor, scales: Tensor, dense: Tensor) -> Callable[[], None]:
    """Unpack two codes a byte into `dense` [K, N] and scale them; rows k and k + K/2 of a group share a byte."""
    groups, half_rows, columns = codes.shape
    grouped = dense.view(groups, 2 * half_rows, columns)

    def dequantize() -> None:
        grouped[:, :half_rows].copy_(codes & 0xF)
        grouped[:, half_rows:].copy_(codes >> 4)
        grouped.sub_(SYMMETRIC_ZERO).mul_(scales[:, None])

    return dequantize


class DequantizeCublas(Backend):
    """Unpack to FP16 in memory, then cuBLAS: what one gets without a fused kernel.

    One dense buffer serves all operand sets, as it would in a model; the traffic of writing and reading it back is the
    price of not fusing, so the compulsory bytes stay those of the 4-bit format.
    """

    name = "dequantize_cublas"
    summary = "unpack to FP16 in memory (torch), then cuBLAS"
    meant_for = "a yardstick"

    def __init__(self) -> None:
        self._dense: Tensor | None = None

    def version(self) -> str:
        """Torch does both steps."""
        return f"torch {torch.__version__} cuda {torch.version.cuda}"

    def format(self, problem: Problem) -> Format:
        """4-bit codes and FP16 scales."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Two codes a byte, [groups, rows / 2, N]."""
        grouped = weights.codes.view(-1, weights.group_rows, weights.N)
        half = weights.group_rows // 2
        codes = grouped[:, :half] | (grouped[:, half:] << 4)
        return Packed({"codes": codes, "scales": weights.scales.clone()}, extra={"shape": (weights.K, weights.N)})

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """Dequantise into the shared buffer, then one torch.mm."""
        shape = packed.extra["shape"]
        if self._dense is None or self._dense.shape != shape or self._dense.device != activations.device:
            self._dense = None  # free the last layer's buffer before the next one is made
            K, N = activations.shape[1], output.shape[1]
            self._dense = torch.empty((K, N), dtype=torch.float16, device=activations.device)
        dense = self._dense
        dequantize = _dequantizer(packed.tensors["codes"], packed.tensors["scales"], dense)

        def multiply() -> None:
            dequantize()
            torch.mm(activations, dense, out=output)

        return multiply
