"""What 8 bits buy on the same tensor cores: FP8 and INT8 products of torch, weights and activations quantised.

For context beside the 4-bit kernels: these read twice their weights and multiply twice as fast.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends import eight_bit
from marlin_bench.backends.protocol import (
    Choice,
    DeviceTraits,
    Dtype,
    EightBit,
    EightBitActivations,
    EightBitBackend,
    Launch,
    Missing,
    Packed,
)
from marlin_bench.problem import FP8, FP8_TENSOR, INT8, Format, Problem
from marlin_bench.quantize import QuantizedWeights

_ROWS_AT_ONCE = 1 << 27  # weights in FP32 while a matrix is quantised


def quantized_weights(weights: QuantizedWeights, dtype: torch.dtype, *, a_column: bool) -> tuple[Tensor, Tensor]:
    """Codes [N,K] of the dequantised weights, and FP32 scales [1,N], or [1,1] for one scale in all."""
    K, N = weights.K, weights.N
    codes = torch.empty(N, K, dtype=dtype, device=weights.codes.device)
    scales = torch.empty(1, N, dtype=torch.float32, device=weights.codes.device)
    step = max(1, _ROWS_AT_ONCE // K)
    blocks = [slice(start, min(N, start + step)) for start in range(0, N, step)]
    for columns in blocks:
        scales[0, columns] = weights.dequantized(columns).float().abs().amax(0) / eight_bit.LARGEST[dtype]
    scales.clamp_min_(1e-12)
    if not a_column:
        scales = scales.amax(1, keepdim=True)
    for columns in blocks:
        scale = scales[:, columns] if a_column else scales
        codes[columns] = eight_bit.as_codes(weights.dequantized(columns).float() / scale, dtype).t()
    return codes, scales


def _packed(weights: QuantizedWeights, dtype: torch.dtype, *, a_column: bool) -> Packed:
    codes, scales = quantized_weights(weights, dtype, a_column=a_column)

    def held(columns: slice) -> Tensor:
        return codes[columns].t().float() * (scales[:, columns] if a_column else scales)

    return Packed({"codes": codes, "scales": scales}, reference=held)


class _CublasEightBit(EightBitBackend):
    """What the three share: torch's version, the shapes of its operators."""

    project = "https://github.com/pytorch/pytorch"
    license = "BSD-3-Clause"
    least_capability: ClassVar[tuple[int, int]]

    def missing(self) -> Missing | None:
        """Triton, whose kernels quantise the activations here."""
        if find_spec("triton") is not None:
            return None
        return Missing("triton is not installed", "pip install triton")

    def version(self) -> str:
        """Torch carries the kernels."""
        return f"torch {torch.__version__} cuda {torch.version.cuda}"

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """GPUs without these tensor cores, K and N off the operators' grid."""
        if device.capability is not None and device.capability < self.least_capability:
            least, has = (".".join(map(str, one)) for one in (self.least_capability, device.capability))
            return f"compute capability {has} is below {least}"
        for name, size in (("K", problem.K), ("N", problem.N)):
            if size % 16:
                return f"{name} {size} is not a multiple of 16"
        return None


class CublasFp8(_CublasEightBit):
    """torch._scaled_mm (BSD-3-Clause) on E4M3 operands, a scale a row of activations and a column of weights.

    Weights: E4M3 of the canonical 4-bit weights, 8 + 32/K bits each. Meant for M from 128 up, where the product is
    bound by the tensor cores. Accumulates the fast way (`use_fast_accum`), as inference does: Hopper's FP8 tensor
    cores then keep about 14 bits of a partial sum. On an H200 that is a mean error of 0.0014 at K=8192 and 0.0056 at
    K=73728, beside the 0.04 of quantising, and the tolerance allows for it. Row scales are slower than one scale in all
    (pytorch/pytorch#147971); on sm_89 torch before 2.12 launches them on a stream of its own choice (#177651).
    """

    name = "cublas_fp8"
    summary = "torch._scaled_mm, FP8 weights and activations, row scales"
    meant_for = "M from 128"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    compute_dtype: ClassVar[EightBit] = "fp8"
    least_capability = (8, 9)
    tolerance = 0.008

    def format(self, problem: Problem) -> Format:
        """8-bit codes, FP32 scales a column."""
        return FP8

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Codes [N,K] and scales [1,N]."""
        return _packed(weights, torch.float8_e4m3fn, a_column=True)

    def quantize(self, activations: Tensor) -> EightBitActivations:
        """A scale a row."""
        return eight_bit.row_quantization(activations, torch.float8_e4m3fn)

    def multiply(self, packed: Packed, given: EightBitActivations, output: Tensor, choice: Choice) -> Launch:
        """One torch._scaled_mm into `output`."""
        codes, scales = given.tensors["codes"], given.tensors["scales"]
        weights, weight_scales = packed.tensors["codes"].t(), packed.tensors["scales"]

        def product() -> None:
            torch._scaled_mm(
                codes, weights, scales, weight_scales, out_dtype=output.dtype, use_fast_accum=True, out=output
            )

        return product


class CublasFp8Tensor(CublasFp8):
    """torch._scaled_mm (BSD-3-Clause) on E4M3 operands with one scale each: the coarsest FP8.

    Weights: E4M3 of the canonical 4-bit weights, 8 bits each. Meant for M from 128 up. Sums and tolerance as with row
    scales; what it is faster by is pytorch/pytorch#147971.
    """

    name = "cublas_fp8_tensor"
    summary = "torch._scaled_mm, FP8 weights and activations, one scale each"

    def format(self, problem: Problem) -> Format:
        """8-bit codes, one scale."""
        return FP8_TENSOR

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Codes [N,K] and one scale."""
        return _packed(weights, torch.float8_e4m3fn, a_column=False)

    def quantize(self, activations: Tensor) -> EightBitActivations:
        """One scale."""
        return eight_bit.tensor_quantization(activations, torch.float8_e4m3fn)


class CublasInt8(_CublasEightBit):
    """torch._int_mm (BSD-3-Clause), then one kernel that scales its int32 sums into FP16; both are timed.

    Weights: 8-bit integers of the canonical 4-bit weights, 8 + 32/K bits each. Meant for M from 128 up; the operator
    refuses M up to 16 (pytorch/pytorch#178469).
    """

    name = "cublas_int8"
    summary = "torch._int_mm, INT8 weights and activations, row scales"
    meant_for = "M from 128"
    compute_dtype: ClassVar[EightBit] = "int8"
    least_capability = (8, 0)
    _LEAST_M = 17
    _WIDTH = 1024

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """M that the operator refuses, and what all three do."""
        if problem.M < self._LEAST_M:
            return f"M {problem.M} is below {self._LEAST_M}, the least that torch._int_mm takes"
        return super().unsupported(problem, device)

    def format(self, problem: Problem) -> Format:
        """8-bit codes, FP32 scales a column."""
        return INT8

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Codes [N,K] and scales [1,N]."""
        return _packed(weights, torch.int8, a_column=True)

    def quantize(self, activations: Tensor) -> EightBitActivations:
        """A scale a row."""
        return eight_bit.row_quantization(activations, torch.int8)

    def multiply(self, packed: Packed, given: EightBitActivations, output: Tensor, choice: Choice) -> Launch:
        """Sums in int32, scaled into `output`."""
        codes, scales = given.tensors["codes"], given.tensors["scales"]
        weights, weight_scales = packed.tensors["codes"].t(), packed.tensors["scales"]
        M, N = output.shape
        sums = torch.empty(M, N, dtype=torch.int32, device=output.device)

        def product() -> None:
            torch._int_mm(codes, weights, out=sums)
            if not output.is_cuda:
                output.copy_(sums * scales * weight_scales)
                return
            from marlin_bench.backends.triton_kernels import scale_sums

            grid = (-(-N // self._WIDTH), M)
            scale_sums[grid](sums, scales, weight_scales, output, N, WIDTH=self._WIDTH)

        return product
