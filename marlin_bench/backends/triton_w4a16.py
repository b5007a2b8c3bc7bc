"""A short 4-bit product in Triton: what an afternoon's work gets, beside kernels that took months."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from marlin_bench.backends.naive_w4a16 import pack_words
from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Effort, Launch, Missing, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

_LEAST_DEPTH = 32
_MOST_DEPTH = 128
_TILES = {  # rows: (columns, warps, stages), the likeliest first
    16: ((64, 4, 4), (32, 4, 5), (128, 4, 4)),
    32: ((64, 4, 4), (128, 4, 4)),
    64: ((128, 4, 4), (64, 4, 4)),
    128: ((128, 8, 3), (256, 8, 3), (64, 4, 4)),
}


def _depth(problem: Problem) -> int:
    """Inputs of a step: as many as share a scale, within what tiles can hold; 0 where no power of two fits."""
    rows = problem.group_size or problem.K
    depth = _MOST_DEPTH
    while depth >= _LEAST_DEPTH:
        if rows % depth == 0:
            return depth
        depth //= 2
    return 0


class TritonW4A16(Backend):
    """A tile of the output for each program, codes expanded in registers, one `tl.dot` a step.

    This project's own (Apache-2.0); no split of K, so that small M leaves SMs idle on narrow layers. Holds the
    canonical codes, eight in a word, and FP16 scales: 4 + 16/g bits a weight. Meant for M up to 64.
    """

    name = "triton_w4a16"
    summary = "an afternoon's 4-bit product in Triton, tile sizes tuned"
    meant_for = "M up to 64"

    def missing(self) -> Missing | None:
        """Triton comes with torch for CUDA."""
        if find_spec("triton") is not None:
            return None
        return Missing("triton is not installed", "pip install triton")

    def version(self) -> str:
        """Of Triton."""
        from importlib.metadata import version

        return f"triton {version('triton')}" if find_spec("triton") is not None else "missing"

    def kernel_digest(self) -> str:
        """Digest of triton_kernels.py."""
        source = Path(__file__).with_name("triton_kernels.py").read_bytes()
        return hashlib.sha256(source).hexdigest()[:12]

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """GPUs before sm_80, and groups that no step fits."""
        if device.capability is not None and device.capability < (8, 0):
            return f"compute capability {'.'.join(map(str, device.capability))} is below 8.0"
        if not _depth(problem):
            return f"a group of {problem.group_size or problem.K} rows is not a multiple of {_LEAST_DEPTH}"
        return None

    def format(self, problem: Problem) -> Format:
        """4-bit codes and FP16 scales."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Words of eight codes along K, scales as they are."""
        tensors = {"words": pack_words(weights.codes), "scales": weights.scales.contiguous()}
        problem = Problem(1, weights.N, weights.K, weights.group_size)
        return Packed(tensors, extra={"group_rows": weights.group_rows, "depth": _depth(problem)})

    def candidates(self, problem: Problem, device: DeviceTraits, effort: Effort) -> Sequence[Choice]:
        """Tiles as high as M, the next ones too when there is time."""
        heights = [rows for rows in _TILES if rows >= min(problem.M, max(_TILES))]
        chosen = heights[:1] if effort == "quick" else heights[:2]
        return [
            {"rows": str(rows), "columns": str(columns), "warps": str(warps), "stages": str(stages)}
            for rows in chosen
            for columns, warps, stages in _TILES[rows]
        ]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One launch of the kernel."""
        from triton.runtime.errors import OutOfResources

        from marlin_bench.backends.triton_kernels import w4a16_product

        M, K = activations.shape
        N = output.shape[1]
        rows, columns, warps, stages = (int(choice[name]) for name in ("rows", "columns", "warps", "stages"))
        words, scales = packed.tensors["words"], packed.tensors["scales"]
        group_rows, depth = packed.extra["group_rows"], packed.extra["depth"]
        grid = (-(-N // columns), -(-M // rows))

        def multiply() -> None:
            try:
                w4a16_product[grid](
                    activations, words, scales, output, M, N, K, group_rows,
                    ROWS=rows, COLUMNS=columns, DEPTH=depth, num_warps=warps, num_stages=stages,
                )  # fmt: skip
            except OutOfResources as error:  # no RuntimeError, which is what a search takes for a tile that cannot run
                raise RuntimeError(str(error)) from error

        return multiply
