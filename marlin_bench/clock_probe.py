"""The SM clock that work on a stream really had, from stamps taken on the device (kernels/clock_probe.cu).

    probe.mark(0); work(); probe.mark(1); torch.cuda.synchronize(); probe.hertz(0, 1)

Marking and spinning only enqueue one launch each on torch's current stream, so they can be captured in a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import cupy

_LEAST_STEPS = 100
"""Timer steps an interval needs: its clock is then right to 1 %."""

Stamps = npt.NDArray[np.int64]
"""[SMs, 2]: nanoseconds of the shared timer and cycles of the SM's own counter; zeros where an SM left none."""


def clock_hertz(earlier: Stamps, later: Stamps, step_ns: int) -> float | None:
    """Median over the SMs of cycles a second between two marks.

    None when no SM has both stamps in this order, at least a hundred steps (`step_ns`) of the shared timer apart.
    """
    stamped = (earlier[:, 0] > 0) & (later[:, 0] > 0)
    nanoseconds, cycles = (later - earlier)[stamped].T
    usable = (nanoseconds >= _LEAST_STEPS * step_ns) & (cycles > 0)  # a counter that started anew runs backwards
    if not usable.any():
        return None
    return float(np.median(cycles[usable] / nanoseconds[usable])) * 1e9


class ClockProbe:
    """Stamps of the current CUDA device in `slots` places of a device buffer."""

    def __init__(self, slots: int = 2) -> None:
        import torch

        from marlin_bench.cuda_source import load_module

        self._sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        self._stamps = torch.zeros((slots, self._sms, 2), dtype=torch.int64, device="cuda")
        self._address = np.uint64(self._stamps.data_ptr())
        module = load_module("clock_probe")
        self._mark = module.get_function("mark")
        self._spin = module.get_function("spin")
        self._empty = module.get_function("empty")
        self.step_ns = self._measure_step(module)

    def _measure_step(self, module: cupy.RawModule) -> int:
        import torch

        step = torch.zeros(1, dtype=torch.int64, device="cuda")
        self._launch(module.get_function("timer_step"), 1, (np.uint64(step.data_ptr()),))
        return int(step.item())

    def _launch(self, kernel: Any, ctas: int, arguments: tuple[np.generic, ...]) -> None:
        from marlin_bench.cuda_stream import on_torch_stream

        with on_torch_stream():
            kernel((ctas,), (1,), arguments)

    def mark(self, slot: int) -> None:
        """Enqueue stamps into `slot`: they are taken when all work queued before is done."""
        if not 0 <= slot < len(self._stamps):
            raise IndexError(f"slot {slot} of a probe with {len(self._stamps)}")
        self._launch(self._mark, self._sms, (self._address, np.int32(slot), np.int32(self._sms)))

    def spin(self, nanoseconds: int) -> None:
        """Enqueue a kernel that holds the stream for `nanoseconds`."""
        self._launch(self._spin, 1, (np.uint64(nanoseconds),))

    def empty(self) -> None:
        """Enqueue a kernel that does nothing."""
        self._launch(self._empty, 1, ())

    def hertz(self, earlier: int, later: int) -> float | None:
        """SM clock between two slots, in Hz; call it after a synchronisation. None where `clock_hertz` says so."""
        return clock_hertz(self._stamps[earlier].cpu().numpy(), self._stamps[later].cpu().numpy(), self.step_ns)
