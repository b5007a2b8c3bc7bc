"""bitsandbytes: NF4 and FP4, which quantise for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Launch, Packed
from marlin_bench.problem import Format, Problem, fp4, nf4
from marlin_bench.quantize import QuantizedWeights

_BLOCK = packing.GROUP_SIZE


class BitsandbytesNf4(Peer):
    """gemm_4bit of bitsandbytes (bitsandbytes-foundation/bitsandbytes), MIT, with NF4 codes in blocks of 128.

    Weights: 4 + 32/128 bits (an FP32 maximum a block; nested statistics are off). Meant for QLoRA and for M = 1. The
    library takes a fused kernel for small M (bitsandbytes-foundation/bitsandbytes#1949), which is a GEMV on CUDA cores
    below M = 8, and dequantises for torch's linear above; the record's choice says which, `show` repeats it. On Hopper
    it leaves the fused kernel early: 0.3 times FP16 in between.
    It quantises the same FP16 weights for itself and is judged against what that gives.
    """

    name = "bitsandbytes_nf4"
    summary = "bitsandbytes NF4 (own codebook, FP16)"
    project = "https://github.com/bitsandbytes-foundation/bitsandbytes"
    license = "MIT"
    meant_for = "M = 1, training adapters"
    extra = "bitsandbytes"
    packages = (Package("bitsandbytes", "bitsandbytes", at_least="0.50.0"),)
    codebook: ClassVar[str] = "nf4"

    def load(self) -> None:
        """The package, which registers its operators."""
        import bitsandbytes  # noqa: F401

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Blocks of 128 along K."""
        return packing.unsupported(problem, multiple_n=8)

    def format(self, problem: Problem) -> Format:
        """4-bit codes, an FP32 maximum a block."""
        return nf4(_BLOCK)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Its own quantiser on the FP16 weights [N, K]."""
        from bitsandbytes.functional import quantize_4bit

        dense = packing.symmetric(weights).dequantized().t().contiguous()
        codes, state = quantize_4bit(dense, blocksize=_BLOCK, quant_type=self.codebook)
        K, N = weights.K, weights.N
        operators = torch.ops.bitsandbytes

        def held(part: slice) -> Tensor:
            rows = codes.view(N, K // 2)[part].contiguous().view(-1, 1)
            largest = state.absmax.view(N, K // _BLOCK)[part].contiguous().view(-1)
            shape = (rows.numel() * 2 // K, K)
            values: Tensor = operators.dequantize_4bit(rows, largest, _BLOCK, self.codebook, shape, torch.float16)
            return values.t()

        return Packed({"codes": codes, "largest": state.absmax}, reference=held, extra={"shape": (N, K)})

    def candidates(self, problem: Problem, device: DeviceTraits, effort: str) -> Sequence[Choice]:
        """The path of the library's own dispatch."""
        from bitsandbytes.backends.cuda import ops

        decide: Any = getattr(ops, "_gemm_4bit_use_custom_fn", None)
        most: int = getattr(ops, "_gemm_4bit_custom_max_m", 0)
        if decide is None:
            return [{"path": "its own dispatch"}]
        shape = (problem.M, problem.N, problem.K)
        fused = most >= problem.M and decide(torch.cuda.current_device(), torch.float16, *shape)
        return [{"path": "fused" if fused else "dequantise"}]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """gemm_4bit, which makes its own result."""
        codes, largest = packed.tensors["codes"].view(-1, 1), packed.tensors["largest"]
        shape = packed.extra["shape"]
        gemm_4bit = torch.ops.bitsandbytes.gemm_4bit.default

        def multiply() -> Tensor:
            product: Tensor = gemm_4bit(activations, codes, shape, largest, _BLOCK, self.codebook)
            return product

        return multiply


class BitsandbytesFp4(BitsandbytesNf4):
    """The same kernels (bitsandbytes-foundation/bitsandbytes, MIT) with its FP4 codebook, not the FP4 of Blackwell.

    Weights: 4 + 32/128 bits (an FP32 maximum a block). Meant for QLoRA and for M = 1. Takes the same two paths as NF4
    (bitsandbytes-foundation/bitsandbytes#1949), at the same speed; its codes lie further from Gaussian weights.
    """

    name = "bitsandbytes_fp4"
    summary = "bitsandbytes FP4 (own codebook, FP16)"
    codebook = "fp4"

    def format(self, problem: Problem) -> Format:
        """4-bit codes, an FP32 maximum a block."""
        return fp4(_BLOCK)
