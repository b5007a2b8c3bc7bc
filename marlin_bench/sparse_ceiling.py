"""The measured roof of sparse tensor cores: a loop of bare mma.sp products, the best of several grids.

It is the roof of kernels that use `mma.sp`; a warpgroup's sparse products may go higher. cuSPARSELt is not asked: on an
H200 with torch 2.11 it ends in an illegal instruction.

Values are dense-equivalent flop/s: a 2:4 product of M, N, K counts 2·M·N·K though half of it is carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from marlin_bench.record import Ceiling

Stopwatch = Callable[[Callable[[], None], int], tuple[float, float | None]]
"""Times an enqueued action so many times: (median seconds, SM clock in hertz or None)."""

_PRODUCTS = 10
_LOOP_CTAS = (1, 2, 4)
_LOOP_REPEATS = 20_000
_LOOP_THREADS = 256
_LOOP_PRODUCTS = 8
_LOOP_FLOP = 2 * 16 * 8 * 32


def measure_sparse_tensor(seconds: Stopwatch, sm_count: int) -> Ceiling | None:
    """The `sparse_tensor` ceiling of the CUDA device in hand; None before sm_80, which has no sparse tensor cores."""
    if torch.cuda.get_device_capability() < (8, 0):
        return None
    return max(_loops(seconds, sm_count), key=lambda ceiling: ceiling.value)


def _ceiling(flop: float, timed: tuple[float, float | None], detail: str) -> Ceiling:
    return Ceiling(name="sparse_tensor", value=flop / timed[0], sm_clock_hz=timed[1], detail=detail)


def _loops(seconds: Stopwatch, sm_count: int) -> list[Ceiling]:
    """kernels/sparse_ceiling.cu on random operands, over several grid sizes."""
    import numpy as np

    from marlin_bench.cuda_source import load_module
    from marlin_bench.cuda_stream import on_torch_stream

    kernel = load_module("sparse_ceiling").get_function("mma_sp_loop")
    operands = torch.randn(2 * _LOOP_THREADS * 8, dtype=torch.float16, device="cuda")
    sink = torch.zeros(1, device="cuda")

    def loop(ctas: int) -> None:
        arguments = (np.uint64(operands.data_ptr()), np.int32(_LOOP_REPEATS), np.uint64(sink.data_ptr()))
        with on_torch_stream():
            kernel((ctas * sm_count,), (_LOOP_THREADS,), arguments)

    found = []
    for ctas in _LOOP_CTAS:
        flop = _LOOP_FLOP * _LOOP_PRODUCTS * _LOOP_REPEATS * (ctas * sm_count * _LOOP_THREADS / 32)
        found.append(_ceiling(flop, seconds(partial(loop, ctas), _PRODUCTS), f"mma.sp loop, {ctas} CTAs an SM"))
    return found
