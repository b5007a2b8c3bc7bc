"""Measured roofs: each the best of several shapes and kernels, with the SM clock it was seen at.

CUDA: HBM read (16-byte streaming loads, and a cuBLAS matrix-vector product), HBM copy, L2 read, FP16 and BF16 tensor
peak (large cuBLAS products on random data, in a burst and sustained), sparse tensor peak (sparse_ceiling.py), launch
floor (an empty node of a graph).
CPU: triad bandwidth and dense GEMM peaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from marlin_bench.record import Ceiling, CeilingName
from marlin_bench.sparse_ceiling import measure_sparse_tensor

if TYPE_CHECKING:
    from marlin_bench.backends.protocol import DeviceTraits
    from marlin_bench.clock_probe import ClockProbe

_STREAM_BYTES = 4 << 30
_REPEATS = 7
_SUSTAINED_SECONDS = 0.25
_REST_SECONDS = 0.25
_BURST_PRODUCTS = 10
_TENSOR_SHAPES = ((8192, 8192, 8192), (4096, 16384, 8192), (16384, 16384, 4096))
_EMPTY_NODES = 1000
_CPU_TRIAD_BYTES = 256 << 20
_CPU_GEMM = 2048


@dataclass(frozen=True)
class _Attempt:
    value: float
    clock_hz: float | None
    detail: str

    def ceiling(self, name: CeilingName) -> Ceiling:
        return Ceiling(name=name, value=self.value, sm_clock_hz=self.clock_hz, detail=self.detail)


class _CudaStopwatch:
    """Median seconds of an enqueued action, and the clock it ran at."""

    def __init__(self, probe: ClockProbe) -> None:
        self.probe = probe

    def seconds(self, action: Callable[[], None], repeats: int = _REPEATS) -> tuple[float, float | None]:
        action()
        torch.cuda.synchronize()
        times, clocks = [], []
        for _ in range(repeats):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.probe.mark(0)
            start.record()
            action()
            stop.record()
            self.probe.mark(1)
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) * 1e-3)
            clock = self.probe.hertz(0, 1)
            if clock is not None:
                clocks.append(clock)
        return median(times), median(clocks) if clocks else None


def _read_streams(watch: _CudaStopwatch, traits: DeviceTraits) -> tuple[_Attempt, _Attempt]:
    """HBM read and L2 read by the streaming kernel, over several grid sizes."""
    import numpy as np

    from marlin_bench.cuda_source import load_module
    from marlin_bench.cuda_stream import on_torch_stream

    kernel = load_module("ceilings").get_function("read_stream")
    free, _ = torch.cuda.mem_get_info()
    size = min(_STREAM_BYTES, free // 4) // 16 * 16
    data = torch.randint(-(2**62), 2**62, (size // 8,), dtype=torch.int64, device="cuda")
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")

    def attempt(read_bytes: int, repeats: int, ctas: int) -> _Attempt:
        def read() -> None:
            with on_torch_stream():
                arguments = (np.uint64(data.data_ptr()), np.uint64(read_bytes // 16), np.int32(repeats))
                kernel((ctas * (traits.sm_count or 1),), (512,), (*arguments, np.uint64(sink.data_ptr())))

        seconds, clock = watch.seconds(read)
        return _Attempt(read_bytes * repeats / seconds, clock, f"read_stream, {ctas} CTAs an SM")

    hbm = max((attempt(size, 1, ctas) for ctas in (1, 2, 4)), key=lambda found: found.value)
    resident = traits.l2_bytes // 3 // 16 * 16  # well inside the L2, whatever part of it one half of the chip reaches
    l2 = max((attempt(resident, 200, ctas) for ctas in (1, 2, 4)), key=lambda found: found.value)
    return hbm, l2


def _gemv(watch: _CudaStopwatch) -> _Attempt:
    """HBM read by cuBLAS: a matrix-vector product over a matrix far larger than the L2."""
    free, _ = torch.cuda.mem_get_info()
    columns = 16384
    rows = int(min(_STREAM_BYTES, free // 4) // (2 * columns))
    matrix = torch.randn(rows, columns, dtype=torch.float16, device="cuda")
    vector = torch.randn(1, columns, dtype=torch.float16, device="cuda")
    out = torch.empty(1, rows, dtype=torch.float16, device="cuda")
    seconds, clock = watch.seconds(partial(_multiply, vector, matrix.t(), out))
    return _Attempt((matrix.numel() + vector.numel() + out.numel()) * 2 / seconds, clock, "cuBLAS FP16, M=1")


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(left, right, out=out)


def _copy(watch: _CudaStopwatch) -> _Attempt:
    """HBM copy, bytes read plus bytes written."""
    free, _ = torch.cuda.mem_get_info()
    size = min(_STREAM_BYTES // 2, free // 8)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, clock = watch.seconds(partial(_copy_into, target, source))
    return _Attempt(2 * size / seconds, clock, "torch copy")


def _copy_into(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _tensor_peak(watch: _CudaStopwatch, dtype: torch.dtype) -> _Attempt:
    """The best product on Gaussian data: a burst on a rested card, and back to back for a quarter of a second.

    Under the power limit the clock falls within milliseconds, so the two differ; readers scale the roof with the clock.
    """
    found: list[_Attempt] = []
    for M, N, K in _TENSOR_SHAPES:
        left = torch.randn(M, K, dtype=dtype, device="cuda")
        right = torch.randn(K, N, dtype=dtype, device="cuda") * K**-0.5
        out = torch.empty(M, N, dtype=dtype, device="cuda")
        for layout, weights in (("KN", right), ("NK", right.t().contiguous().t())):
            multiply = partial(_multiply, left, weights, out)
            seconds, _ = watch.seconds(multiply, 1)
            for kind, repeats in (("burst", _BURST_PRODUCTS), ("sustained", round(_SUSTAINED_SECONDS / seconds))):
                time.sleep(_REST_SECONDS if kind == "burst" else 0.0)
                seconds, clock = watch.seconds(multiply, max(_BURST_PRODUCTS, repeats))
                found.append(_Attempt(2 * M * N * K / seconds, clock, f"cuBLAS {M}x{N}x{K} {layout}, {kind}"))
    return max(found, key=lambda attempt: attempt.value)


def _sparse_tensor(watch: _CudaStopwatch, traits: DeviceTraits) -> list[Ceiling]:
    """The sparse tensor peak on a rested card; nothing where there are no sparse tensor cores."""
    time.sleep(_REST_SECONDS)
    found = measure_sparse_tensor(watch.seconds, traits.sm_count or 1)
    return [] if found is None else [found]


def _launch_floor(watch: _CudaStopwatch) -> _Attempt:
    """Seconds of one empty node in a graph of a thousand."""
    from marlin_bench.cuda_source import load_module
    from marlin_bench.cuda_stream import on_torch_stream
    from marlin_bench.cuda_timer import capture

    kernel = load_module("ceilings").get_function("empty")

    def launch() -> None:
        with on_torch_stream():
            kernel((1,), (32,), ())

    launch()
    graph = capture([launch], _EMPTY_NODES)
    seconds, clock = watch.seconds(graph.replay)
    return _Attempt(seconds / _EMPTY_NODES, clock, f"graph of {_EMPTY_NODES} empty kernels")


def cuda_ceilings(traits: DeviceTraits, probe: ClockProbe) -> list[Ceiling]:
    """The roofs of the CUDA device in hand, in a few seconds."""
    watch = _CudaStopwatch(probe)
    stream, l2 = _read_streams(watch, traits)
    torch.cuda.empty_cache()
    hbm = max(stream, _gemv(watch), key=lambda found: found.value)
    found = [
        hbm.ceiling("hbm_read"),
        _copy(watch).ceiling("hbm_copy"),
        l2.ceiling("l2_read"),
        _tensor_peak(watch, torch.float16).ceiling("fp16_tensor"),
        _tensor_peak(watch, torch.bfloat16).ceiling("bf16_tensor"),
        *_sparse_tensor(watch, traits),
        _launch_floor(watch).ceiling("launch"),
    ]
    torch.cuda.empty_cache()
    return found


def _best_seconds(action: Callable[[], None], repeats: int = _REPEATS) -> float:
    action()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return best


def cpu_ceilings() -> list[Ceiling]:
    """Triad bandwidth (a = b + s·c: two reads, a write) and dense GEMM peaks of the host, best of a few."""
    count = _CPU_TRIAD_BYTES // 4
    b, c = torch.rand(count), torch.rand(count)
    a = torch.empty(count)
    triad = _best_seconds(partial(_triad, a, b, c))
    found = [Ceiling(name="ram_triad", value=3 * _CPU_TRIAD_BYTES / triad, detail="torch triad, 256 MiB arrays")]
    names: tuple[tuple[CeilingName, torch.dtype], ...] = (
        ("dense_fp32", torch.float32),
        ("dense_bf16", torch.bfloat16),
    )
    for name, dtype in names:
        left = torch.randn(_CPU_GEMM, _CPU_GEMM).to(dtype)
        right = torch.randn(_CPU_GEMM, _CPU_GEMM).to(dtype)
        out = torch.empty(_CPU_GEMM, _CPU_GEMM, dtype=dtype)
        seconds = _best_seconds(partial(_multiply, left, right, out), 3)
        found.append(Ceiling(name=name, value=2 * _CPU_GEMM**3 / seconds, detail=f"torch.mm {_CPU_GEMM}³"))
    return found


def _triad(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    torch.add(b, c, alpha=3.0, out=a)
