"""The CPU's backends: dense products and torch's int4 kernel, a whole roofline story without a GPU."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Dtype, Launch, Missing, Packed
from marlin_bench.problem import BF16, FP32, Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights


class DenseFp32(Backend):
    """torch.mm on FP32 weights: the CPU's full-precision baseline."""

    name = "dense_fp32"
    summary = "torch.mm, FP32 weights and activations (oneDNN or MKL)"
    device: ClassVar[Literal["cuda", "cpu"]] = "cpu"
    activation_dtype: ClassVar[Dtype] = "fp32"
    output_dtype: ClassVar[Dtype] = "fp32"
    is_baseline = True
    dtype = torch.float32
    stored: ClassVar[Format] = FP32

    def version(self) -> str:
        """Torch computes."""
        return f"torch {torch.__version__}"

    def format(self, problem: Problem) -> Format:
        """Plain floating-point weights."""
        return self.stored

    def pack(self, weights: QuantizedWeights) -> Packed:
        """The dequantised weights as a [K, N] matrix of this dtype."""
        dense = weights.dequantized().to(self.dtype)
        rounded = None if self.dtype is torch.float32 else (lambda columns: dense[:, columns])
        return Packed({"weights": dense}, reference=rounded)

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One torch.mm."""
        weights = packed.tensors["weights"]

        def multiply() -> None:
            torch.mm(activations, weights, out=output)

        return multiply


class DenseBf16(DenseFp32):
    """torch.mm on BF16 weights."""

    name = "dense_bf16"
    summary = "torch.mm, BF16 weights and activations (oneDNN)"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    dtype = torch.bfloat16
    stored: ClassVar[Format] = BF16


class TinygemmCpu(Backend):
    """torch's `_weight_int4pack_mm_for_cpu`: 4-bit codes, BF16 scales and zero points, AVX-512 or AVX2."""

    name = "tinygemm_cpu"
    summary = "torch _weight_int4pack_mm_for_cpu (int4, BF16 scales)"
    device: ClassVar[Literal["cuda", "cpu"]] = "cpu"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    group_sizes = (32, 64, 128, 256)
    row_multiple = 16  # output features the kernel handles together

    def missing(self) -> Missing | None:
        """The operator is private to torch and may go."""
        if hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
            return None
        return Missing("this torch has no _weight_int4pack_mm_for_cpu", "pip install 'torch>=2.6'")

    def version(self) -> str:
        """Torch computes."""
        return f"torch {torch.__version__}"

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Groups of 32 to 256 and whole rows of 16 outputs."""
        if problem.group_size not in self.group_sizes:
            return f"group size {problem.group_size or 'column'}: it takes 32, 64, 128 or 256"
        if problem.N % self.row_multiple:
            return f"N {problem.N} is not a multiple of {self.row_multiple}"
        return None

    def format(self, problem: Problem) -> Format:
        """4-bit codes with a 16-bit scale and a 16-bit zero a group, as its tensors really hold."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Codes in torch's block order; scales and (zero) offsets in BF16."""
        codes = weights.codes.t().contiguous().to(torch.int32)
        order = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = weights.scales.bfloat16()
        scales_and_zeros = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()
        held = QuantizedWeights(weights.codes, scales, group_size=weights.group_size)
        return Packed(
            {"codes": order, "scales_and_zeros": scales_and_zeros},
            reference=lambda columns: held.dequantized(columns, torch.float32),
            extra={"group_size": weights.group_rows},
        )

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One product, in memory that the operator allocates."""
        codes, scales = packed.tensors["codes"], packed.tensors["scales_and_zeros"]
        group_size = packed.extra["group_size"]

        def multiply() -> Tensor:
            result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(activations, codes, group_size, scales)
            return result

        return multiply
