"""ExLlamaV2's kernel on GPTQ weights, through its compiled extension alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

_DENSE_VALUES = 1 << 29  # of weights dequantised at a time for large M: the library's default


class _Matrix:
    """A matrix of the extension, freed with its last user; the tensors are its memory."""

    def __init__(self, extension: Any, words: Tensor, zeros: Tensor, scales: Tensor, dense: Tensor, rows: int) -> None:
        none = torch.empty((1, 1), device="meta")
        self._extension = extension
        self._alive = words, zeros, scales, dense
        order = (none,) * 6  # no EXL2 tensors, no activation order
        self.handle: int = extension.make_q_matrix(words, *order, zeros, scales, none, none, dense, rows)

    def __del__(self) -> None:
        self._extension.free_q_matrix(self.handle)


class Exllamav2(Peer):
    """gemm_half_q_half of ExLlamaV2 (turboderp-org/exllamav2), MIT, on GPTQ weights rather than its own EXL2.

    Weights: 4 + 16/128 + 4/128 bits (a zero point a group). Meant for M = 1; from M = 33 on it dequantises and calls
    cuBLAS, which the record's choice tells. FP16 sums, atomic additions: results differ from run to run and with M
    (turboderp-org/exllamav2#232). The package on PyPI compiles its extension at
    first import, for minutes; installing from the repository compiles it once. `gptq_exllama` is vLLM's form of it.
    """

    name = "exllamav2"
    summary = "ExLlamaV2 on GPTQ weights (FP16 sums)"
    project = "https://github.com/turboderp-org/exllamav2"
    license = "MIT"
    meant_for = "M = 1"
    extra = ""  # none can bring a compiled extension
    packages = (Package("exllamav2", "exllamav2_ext", at_least="0.3.2"),)
    most_fused_rows = 32  # MAX_Q_GEMM_ROWS of its q_gemm.cuh
    tolerance = 0.015  # FP16 sums, as in gptq_exllama

    def __init__(self) -> None:
        self._dense: Tensor | None = None

    def remedy(self) -> str:
        """An installation that compiles the extension."""
        return "pip install --no-build-isolation git+https://github.com/turboderp-org/exllamav2@v0.3.2"

    def load(self) -> None:
        """The extension."""
        import exllamav2_ext  # noqa: F401

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Groups of 128, N in multiples of 32."""
        return packing.unsupported(problem, multiple_n=32)

    def format(self, problem: Problem) -> Format:
        """4-bit codes and zero points, FP16 scales."""
        return int4(problem.group_size, zero_points=True)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """GPTQ words, shuffled in place by the extension; one dense buffer serves all matrices, as in a model."""
        import exllamav2_ext

        words = packing.words_along_k(packing.symmetric(weights).codes)
        scales = weights.scales.clone()
        zeros = packing.words_along_n(torch.full_like(scales, SYMMETRIC_ZERO - 1, dtype=torch.uint8))
        rows = min(weights.K, _DENSE_VALUES // weights.N)
        if self._dense is None or self._dense.numel() < rows * weights.N or self._dense.device != words.device:
            self._dense = torch.empty(rows * weights.N, dtype=torch.float16, device=words.device)
        matrix = _Matrix(exllamav2_ext, words, zeros, scales, self._dense, rows)
        tensors = {"codes": words, "scales": scales, "zeros": zeros}
        return Packed(tensors, extra={"matrix": matrix}, remake=lambda: self.pack(weights))

    def candidates(self, problem: Problem, device: DeviceTraits, effort: str) -> Sequence[Choice]:
        """The path that the extension takes for this M."""
        return [{"path": "dequantise" if self.most_fused_rows < problem.M else "fused"}]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """gemm_half_q_half into `output`."""
        import exllamav2_ext

        matrix: Any = packed.extra["matrix"]

        def multiply() -> None:
            exllamav2_ext.gemm_half_q_half(activations, matrix.handle, output, False)

        return multiply
