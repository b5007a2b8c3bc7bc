"""Conch's mixed-precision GEMM (conch-triton-kernels)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights


class Conch(Peer):
    """mixed_precision_gemm of Conch (stackav-oss/conch), Apache-2.0: Triton, portable to GPUs of any maker.

    Weights: 4 + 16/128 bits. Meant for GPUs without a CUDA kernel, where vLLM takes it (vllm-project/vllm#19818, which
    finds it slower than Machete on an H100), at middle M; tiles are fixed. Each call clears its result first, which is
    timed as users have it.
    """

    name = "conch"
    summary = "Conch mixed_precision_gemm (Triton, FP16)"
    project = "https://github.com/stackav-oss/conch"
    license = "Apache-2.0"
    meant_for = "GPUs without a CUDA kernel, middle M"
    extra = "conch"
    packages = (Package("conch-triton-kernels", "conch", at_least="1.3"),)
    activation_dtype: ClassVar[Dtype] = "fp16"

    def load(self) -> None:
        """Its GEMM."""
        from conch.ops.quantization import gemm  # noqa: F401

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Groups of 128, N in multiples of 8."""
        return packing.unsupported(problem, multiple_n=8)

    def format(self, problem: Problem) -> Format:
        """4-bit codes, FP16 scales."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """GPTQ words and the canonical scales."""
        words = packing.words_along_k(packing.symmetric(weights).codes)
        return Packed({"codes": words, "scales": weights.scales.clone()})

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """mixed_precision_gemm, which makes its own result; the first call compiles."""
        from conch.ops.quantization.gemm import mixed_precision_gemm

        codes, scales = packed.tensors["codes"], packed.tensors["scales"]

        def multiply() -> Tensor:
            product: Tensor = mixed_precision_gemm(
                x=activations,
                w_q_packed=codes,
                w_s=scales,
                w_zp=None,
                weight_size_bits=4,
                weight_bias=SYMMETRIC_ZERO,
                group_size=packing.GROUP_SIZE,
            )
            return product

        return multiply
