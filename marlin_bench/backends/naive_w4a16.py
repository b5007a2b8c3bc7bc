"""The naive 4-bit product (kernels/naive_w4a16.cu): the first kernel to read, and a floor for the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from marlin_bench.backends.cuda_kernel import CudaKernel
from marlin_bench.backends.protocol import Choice, DeviceTraits, Launch, Packed
from marlin_bench.cuda_source import load_module, source_digest
from marlin_bench.cuda_stream import on_torch_stream
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

LARGEST_M = 64
_CODES_PER_WORD = 8
_COLUMNS = 64  # columns and rows of a CTA, as in the kernel
_ROWS = 8


def pack_words(codes: Tensor) -> Tensor:
    """uint8 [K, N] → int32 [K/8, N]: eight codes of a column in a word, the smallest k in its lowest bits."""
    K, N = codes.shape
    bytes_of_k = codes.view(K // 2, 2, N)
    pairs = bytes_of_k[:, 0] | (bytes_of_k[:, 1] << 4)
    return pairs.view(K // _CODES_PER_WORD, 4, N).permute(0, 2, 1).contiguous().view(torch.int32).squeeze(-1)


class NaiveW4A16(CudaKernel):
    """One thread a column, no tensor cores, no pipeline."""

    name = "naive_w4a16"
    summary = "the 4-bit product as one would first write it: one thread a column"
    meant_for = "a yardstick, M up to 64"

    def version(self) -> str:
        """The digest of the kernel's source."""
        return f"naive_w4a16 {source_digest('naive_w4a16')}"

    def kernel_digest(self) -> str:
        """Digest of kernels/naive_w4a16.cu."""
        return source_digest("naive_w4a16")

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Large M, which would only take long, and groups that share a word."""
        if problem.M > LARGEST_M:
            return f"M {problem.M} is above {LARGEST_M}, where this kernel is only slow"
        if (problem.group_size or problem.K) % _CODES_PER_WORD:
            return f"a group of {problem.group_size or problem.K} rows is not a multiple of {_CODES_PER_WORD}"
        return None

    def format(self, problem: Problem) -> Format:
        """4-bit codes with FP16 scales and a byte for each zero point."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Words of eight codes; scales as they are; a zero point for every scale, 8 where there is none."""
        zeros = weights.zeros
        if zeros is None:
            zeros = torch.full(weights.scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=weights.scales.device)
        return Packed(
            {"codes": pack_words(weights.codes), "scales": weights.scales.contiguous(), "zeros": zeros.contiguous()},
            extra={"group_rows": weights.group_rows},
        )

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One launch of the kernel."""
        group_rows = packed.extra["group_rows"]
        if not isinstance(group_rows, int):
            raise TypeError("packed by another backend")
        M, K = activations.shape
        N = output.shape[1]
        kernel = load_module("naive_w4a16").get_function("naive_w4a16")
        operands = (activations, *(packed.tensors[name] for name in ("codes", "scales", "zeros")), output)
        sizes = (np.int32(M), np.int32(N), np.int32(K), np.int32(group_rows))
        arguments = (*(np.uint64(tensor.data_ptr()) for tensor in operands), *sizes)
        grid = (-(-N // _COLUMNS), -(-M // _ROWS))

        def launch() -> None:
            with on_torch_stream():
                kernel(grid, (_COLUMNS,), arguments)

        return launch
