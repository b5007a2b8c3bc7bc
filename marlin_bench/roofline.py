"""What a machine allows: the attainable time of a product on its roofs, the ideal speed-up, the knee.

The model is the roofline (Williams, Waterman and Patterson 2009) as the MARLIN paper uses it (arXiv 2408.11743,
section 3.4): time = max(compulsory bytes / memory rate, flop / tensor rate). The tensor rate scales with the SM clock,
the memory rate does not. Counting is problem.py's business; this module only divides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from marlin_bench.problem import DTYPE_BITS, FP16, Format, Problem
from marlin_bench.record import Ceiling, CeilingName

_MEMORY: tuple[CeilingName, ...] = ("hbm_read", "ram_triad", "hbm_copy")
_COMPUTE: dict[str, tuple[CeilingName, ...]] = {
    # activation dtype -> the ceilings that may bound it; the highest does. Tensor cores run fp16 and bf16 at one rate,
    # and a CPU kernel for bf16 may compute in fp32 where that is faster.
    "fp16": ("fp16_tensor", "bf16_tensor"),
    "bf16": ("bf16_tensor", "fp16_tensor", "dense_bf16", "dense_fp32"),
    "fp32": ("dense_fp32",),
}


@dataclass(frozen=True, slots=True)
class Roofs:
    """The limits of one machine at one SM clock.

    `memory` and `l2` are bytes/s; `compute` is flop/s by activation dtype; `sparse_compute` is dense-equivalent flop/s
    (as vendors quote 2:4); `launch` is seconds. `sm_clock_hz` is the clock at which the compute roofs hold.
    """

    memory: float
    compute: Mapping[str, float]
    sparse_compute: float | None = None
    l2: float | None = None
    launch: float | None = None
    sm_clock_hz: float | None = None
    source: str = "measured"
    _clocks: Mapping[str, float] = field(default_factory=dict)

    def at_clock(self, sm_clock_hz: float | None) -> Roofs:
        """The same machine with its SMs at another clock; unchanged where either clock is unknown."""
        if sm_clock_hz is None or not self._clocks:
            return self
        scaled = {
            dtype: rate * sm_clock_hz / self._clocks[dtype] if dtype in self._clocks else rate
            for dtype, rate in self.compute.items()
        }
        sparse_clock = self._clocks.get("sparse")
        sparse = self.sparse_compute
        if sparse is not None and sparse_clock is not None:
            sparse *= sm_clock_hz / sparse_clock
        return replace(
            self,
            compute=scaled,
            sparse_compute=sparse,
            sm_clock_hz=sm_clock_hz,
            _clocks=dict.fromkeys(self._clocks, sm_clock_hz),
        )

    def compute_rate(self, fmt: Format, activation_dtype: str = "fp16") -> float | None:
        """Dense-equivalent flop/s that bounds weights in `fmt`; None where this dtype has no roof.

        Without a sparse ceiling 2:4 weights halve the work of the dense tensor cores.
        """
        if fmt.is_sparse and self.sparse_compute is not None:
            return self.sparse_compute
        dense = self.compute.get(activation_dtype)
        return None if dense is None else dense / float(fmt.kept)

    def knee(self, fmt: Format = FP16, activation_dtype: str = "fp16") -> float | None:
        """Flop per byte at which the memory slope meets the compute roof."""
        rate = self.compute_rate(fmt, activation_dtype)
        return None if rate is None else rate / self.memory


def roofs_from_ceilings(ceilings: Sequence[Ceiling]) -> Roofs | None:
    """The roofs that `ceilings` hold, or None where no memory rate was measured."""
    by_name = {ceiling.name: ceiling for ceiling in ceilings}

    memory = next((by_name[name] for name in _MEMORY if name in by_name), None)
    if memory is None:
        return None
    chosen: dict[str, Ceiling] = {}
    for dtype, names in _COMPUTE.items():
        known = [by_name[name] for name in names if name in by_name]
        if known:
            chosen[dtype] = max(known, key=lambda ceiling: ceiling.value)
    sparse = by_name.get("sparse_tensor")
    clocks = {dtype: ceiling.sm_clock_hz for dtype, ceiling in chosen.items() if ceiling.sm_clock_hz is not None}
    if sparse is not None and sparse.sm_clock_hz is not None:
        clocks["sparse"] = sparse.sm_clock_hz
    l2, launch = by_name.get("l2_read"), by_name.get("launch")
    return Roofs(
        memory=memory.value,
        compute={dtype: ceiling.value for dtype, ceiling in chosen.items()},
        sparse_compute=None if sparse is None else sparse.value,
        l2=None if l2 is None else l2.value,
        launch=None if launch is None else launch.value,
        sm_clock_hz=clocks.get("fp16", clocks.get("bf16")),
        _clocks=clocks,
    )


@lru_cache(maxsize=8192)
def compulsory_bytes(problem: Problem, fmt: Format, activation_bits: int, output_bits: int | None = None) -> float:
    """All bytes of `problem.traffic`, kept: a table of thousands of records asks for each several times."""
    return problem.traffic(fmt, activation_bits, output_bits).total


def memory_time(problem: Problem, fmt: Format, roofs: Roofs, activation_dtype: str = "fp16") -> float:
    """Seconds that the compulsory bytes take at the memory rate."""
    return compulsory_bytes(problem, fmt, DTYPE_BITS[activation_dtype]) / roofs.memory


def attainable_time(
    problem: Problem, fmt: Format, roofs: Roofs, activation_dtype: str = "fp16", *, with_launch: bool = False
) -> float | None:
    """The least seconds `problem` can take with weights in `fmt`; None where the dtype has no compute roof.

    With `with_launch` nothing is faster than an empty launch.
    """
    rate = roofs.compute_rate(fmt, activation_dtype)
    if rate is None:
        return None
    floor = roofs.launch if with_launch and roofs.launch is not None else 0.0
    return max(memory_time(problem, fmt, roofs, activation_dtype), problem.flop / rate, floor)


def attainable_flops(intensity: float, slope: float, rate: float) -> float:
    """Flop/s at `intensity` flop per byte under a memory slope (bytes/s) and a compute roof (flop/s)."""
    return min(intensity * slope, rate)


def ideal_speedup(
    problem: Problem,
    fmt: Format,
    roofs: Roofs,
    activation_dtype: str = "fp16",
    *,
    baseline: Format = FP16,
    baseline_dtype: str = "fp16",
) -> float | None:
    """Attainable time of the baseline over attainable time of `fmt`, both on `roofs` (DESIGN section 1)."""
    slow = attainable_time(problem, baseline, roofs, baseline_dtype)
    fast = attainable_time(problem, fmt, roofs, activation_dtype)
    return None if slow is None or fast is None else slow / fast


def knee_batch(
    N: int, K: int, fmt: Format, roofs: Roofs, *, group_size: int | None = 128, activation_dtype: str = "fp16"
) -> float | None:
    """The M, not rounded, at which a perfect kernel leaves the memory roof on a K x N layer.

    Bytes grow with M as weights + M·(K+N)·activation, flop as 2·M·N·K: the two times are equal at one M. None where
    the dtype has no compute roof; infinite where activations alone keep the memory busy longer than the tensor cores.
    """
    rate = roofs.compute_rate(fmt, activation_dtype)
    if rate is None:
        return None
    one_row = Problem(1, N, K, group_size)
    traffic = one_row.traffic(fmt, DTYPE_BITS[activation_dtype])
    compute_a_row = one_row.flop / rate
    memory_a_row = (traffic.activations + traffic.outputs) / roofs.memory
    if compute_a_row <= memory_a_row:
        return math.inf
    return traffic.stored_weights / roofs.memory / (compute_a_row - memory_a_row)
