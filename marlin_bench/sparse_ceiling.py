"""The measured roof of sparse tensor cores: loops of bare 2:4-sparse products, the best of several grids.

`mma.sp` is what kernels for sm_80 and up can use; on sm_90 a warpgroup's `wgmma.sp` goes higher and is the roof, also
of kernels that use `mma.sp`: a ceiling says what the machine can do. `detail` names the loop that won.

Values are dense-equivalent flop/s: a 2:4 product of M, N, K counts 2·M·N·K though half of it is carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from marlin_bench.record import Ceiling

Stopwatch = Callable[[Callable[[], None], int], tuple[float, float | None]]
"""Times an enqueued action so many times: (median seconds, SM clock in hertz or None)."""

FEWEST_CAPABILITY = (8, 0)
_RUNS = 10
_THREADS = 256
_PRODUCTS = 8
_OPERAND_VALUES = 8 * (256 * 64 // 8 + 2 * _THREADS)


@dataclass(frozen=True, slots=True)
class _Loop:
    """A kernel of kernels/sparse_ceiling.cu: `teams` of a CTA each take a product of `shape` (M, N, K) at a time."""

    kernel: str
    instruction: str
    shape: tuple[int, int, int]
    teams: int
    repeats: int
    ctas: tuple[int, ...]

    def flop(self, ctas: int) -> float:
        """Dense-equivalent flop of a launch of so many CTAs."""
        M, N, K = self.shape
        return 2.0 * M * N * K * _PRODUCTS * self.repeats * self.teams * ctas


_WARPS = _Loop("mma_sp_loop", "mma.sp", (16, 8, 32), _THREADS // 32, 20_000, (1, 2, 3))
_WARPGROUPS = _Loop("wgmma_sp_loop", "wgmma.sp", (64, 256, 32), _THREADS // 128, 1000, (1,))


def measure_sparse_tensor(seconds: Stopwatch, sm_count: int) -> Ceiling | None:
    """The `sparse_tensor` ceiling of the CUDA device in hand; None before sm_80, which has no sparse tensor cores."""
    capability = torch.cuda.get_device_capability()
    if capability < FEWEST_CAPABILITY:
        return None
    loops = (_WARPS, _WARPGROUPS) if capability == (9, 0) else (_WARPS,)
    found = (_measured(loop, ctas, seconds, sm_count) for loop in loops for ctas in loop.ctas)
    return max(found, key=lambda ceiling: ceiling.value)


def _measured(loop: _Loop, ctas: int, seconds: Stopwatch, sm_count: int) -> Ceiling:
    """One loop on Gaussian operands, `ctas` CTAs an SM."""
    taken, clock = seconds(partial(_launcher(loop), ctas * sm_count), _RUNS)
    shape = "m{}n{}k{}".format(*loop.shape)
    detail = f"{loop.instruction} {shape} loop, {ctas} CTA{'s' if ctas > 1 else ''} an SM"
    return Ceiling(name="sparse_tensor", value=loop.flop(ctas * sm_count) / taken, sm_clock_hz=clock, detail=detail)


def _launcher(loop: _Loop) -> Callable[[int], None]:
    import numpy as np

    from marlin_bench.cuda_source import load_module
    from marlin_bench.cuda_stream import on_torch_stream

    kernel = load_module("sparse_ceiling").get_function(loop.kernel)
    operands = torch.randn(_OPERAND_VALUES, dtype=torch.float16, device="cuda")
    sink = torch.zeros(1, device="cuda")

    def launch(ctas: int) -> None:
        arguments = (np.uint64(operands.data_ptr()), np.int32(loop.repeats), np.uint64(sink.data_ptr()))
        with on_torch_stream():
            kernel((ctas,), (_THREADS,), arguments)

    return launch
