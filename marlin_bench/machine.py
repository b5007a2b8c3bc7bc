"""What a worker measures on: timers, memory, and the physical limits nothing can be faster than.

`CpuMachine` and `CudaMachine` are real; tests drive the same pipeline with a simulated one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.device import DeviceError
from marlin_bench.record import Ceiling, EnergyUse, Environment, Telemetry, TimerName
from marlin_bench.timer import CallTimer, Stopwatch, Timer

if TYPE_CHECKING:
    from marlin_bench.clock_probe import ClockProbe

_DEFAULT_CACHE_BYTES = 32 << 20
_LOAD_SECONDS = 0.1

TENSOR_FLOP_PER_CLOCK = {
    # Dense FP16 tensor-core flop a clock and SM by compute capability: NVIDIA's architecture white papers (the
    # published peak over SM count and boost clock, e.g. GA100 312e12 / 108 / 1410e6, GH100 989e12 / 132 / 1830e6).
    (7, 0): 1024,
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 1024,
}


@dataclass(frozen=True)
class PhysicalLimits:
    """What a sample is impossible beyond: datasheet bandwidth (bytes/s), tensor flop per clock over all SMs.

    None where the machine does not tell; `highest_clock_hz` stands in for blocks that carry no clock.
    """

    memory_bandwidth: float | None = None
    flop_per_clock: float | None = None
    highest_clock_hz: float | None = None

    def floor_seconds(self, compulsory_bytes: float, executed_flop: float, clock_hz: float | None) -> float:
        """The least time physics allows; 0 where nothing is known."""
        floor = compulsory_bytes / self.memory_bandwidth if self.memory_bandwidth else 0.0
        clock = clock_hz or self.highest_clock_hz
        if self.flop_per_clock and clock:
            floor = max(floor, executed_flop / (self.flop_per_clock * clock))
        return floor


TelemetryWindow = Callable[[float, float], Telemetry]
"""What the sensors said between two readings of time.monotonic."""


class Machine(Protocol):
    """One device of this process."""

    @property
    def traits(self) -> DeviceTraits:
        """What backends may ask about."""

    @property
    def torch_device(self) -> str:
        """Where operands live."""

    @property
    def uuid(self) -> str | None:
        """What NVML calls the device; None for a CPU."""

    @property
    def timers(self) -> Mapping[TimerName, Timer]:
        """The timers this device has."""

    @property
    def limits(self) -> PhysicalLimits:
        """What is impossible here."""

    @property
    def memory_bytes(self) -> int:
        """Memory for operands, in all."""

    def environment(self) -> Environment:
        """Everything recorded about the device and the software."""

    def synchronize(self) -> None:
        """Wait until all queued work is done."""

    def release_memory(self) -> None:
        """Give memory of dropped tensors back to the device."""

    def measure_ceilings(self) -> list[Ceiling]:
        """Measured roofs."""

    def energy(self, stopwatch: Stopwatch, seconds: float) -> EnergyUse | None:
        """What `stopwatch` draws while it keeps the device busy; None where no counter tells."""

    def clock_under_load(self) -> float | None:
        """The SM clock in Hz while all SMs are busy; None where nothing can measure it."""

    def sensors(self) -> AbstractContextManager[TelemetryWindow | None]:
        """Telemetry while the context is open; None where the device has no sensors."""


def last_level_cache_bytes() -> int:
    """Size of the CPU's last-level cache, from sysfs; 32 MiB where that is silent."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * (1024 if text.endswith("K") else 1024**2))
    return max(sizes, default=_DEFAULT_CACHE_BYTES)


class CpuMachine:
    """The processor torch computes on."""

    torch_device = "cpu"
    uuid = None
    limits = PhysicalLimits()

    def __init__(self) -> None:
        from marlin_bench.environment import cpu_model

        self.traits = DeviceTraits("cpu", cpu_model(), l2_bytes=last_level_cache_bytes())
        self.timers: dict[TimerName, Timer] = {"kernel": CallTimer()}

    @property
    def memory_bytes(self) -> int:
        """Physical memory."""
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def environment(self) -> Environment:
        """The host alone."""
        from marlin_bench.environment import cpu_environment

        return cpu_environment()

    def synchronize(self) -> None:
        """CPU calls have returned when they are done."""

    def release_memory(self) -> None:
        """Collect what reference cycles still hold."""
        gc.collect()

    def measure_ceilings(self) -> list[Ceiling]:
        """Triad bandwidth and dense GEMM peaks."""
        from marlin_bench.ceilings import cpu_ceilings

        return cpu_ceilings()

    def energy(self, stopwatch: Stopwatch, seconds: float) -> EnergyUse | None:
        """No counter."""
        return None

    def clock_under_load(self) -> float | None:
        """Nothing measures a CPU's clock here."""
        return None

    def sensors(self) -> AbstractContextManager[TelemetryWindow | None]:
        """No sensors."""
        return nullcontext(None)


class CudaMachine:
    """The one CUDA device this process sees (the parent sets CUDA_VISIBLE_DEVICES)."""

    torch_device = "cuda"

    def __init__(self) -> None:
        import torch

        from marlin_bench.clock_probe import ClockProbe
        from marlin_bench.cuda_timer import ColdTimer, GraphTimer
        from marlin_bench.environment import cuda_environment, device_uuid, pin_cuda_math

        pin_cuda_math()
        self.uuid: str | None = device_uuid()
        properties = torch.cuda.get_device_properties(0)
        self.traits = DeviceTraits(
            kind="cuda",
            name=properties.name,
            capability=(properties.major, properties.minor),
            sm_count=properties.multi_processor_count,
            shared_memory_per_block=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
            l2_bytes=properties.L2_cache_size,
        )
        self.probe: ClockProbe = ClockProbe()
        self.timers: dict[TimerName, Timer] = {
            "kernel": GraphTimer(self.probe),
            "cold": ColdTimer(properties.L2_cache_size),
            "host": CallTimer("host", self.synchronize),
        }
        self.memory_bytes: int = properties.total_memory
        self._environment = cuda_environment(self.traits)
        self._open_sensors = ExitStack()
        self._sensors: TelemetryWindow | None = None
        flop_per_clock = TENSOR_FLOP_PER_CLOCK.get((properties.major, properties.minor))
        self.limits = PhysicalLimits(
            memory_bandwidth=self._environment.memory_bandwidth,
            flop_per_clock=flop_per_clock * properties.multi_processor_count if flop_per_clock else None,
            highest_clock_hz=self._environment.max_sm_clock_hz,
        )

    def environment(self) -> Environment:
        """Device, driver and host."""
        return self._environment

    def synchronize(self) -> None:
        """Wait for the device; raises what a kernel did wrong."""
        import torch

        torch.cuda.synchronize()

    def release_memory(self) -> None:
        """Return cached blocks to the driver."""
        import torch

        gc.collect()
        torch.cuda.empty_cache()

    def measure_ceilings(self) -> list[Ceiling]:
        """HBM, L2, tensor and launch roofs."""
        from marlin_bench.ceilings import cuda_ceilings

        return cuda_ceilings(self.traits, self.probe)

    def energy(self, stopwatch: Stopwatch, seconds: float) -> EnergyUse | None:
        """The board's total-energy counter over the busy time."""
        from marlin_bench.energy import measure_energy
        from marlin_bench.nvml import NvmlError, open_device

        if self.uuid is None:
            return None
        try:
            with open_device(self.uuid) as device:
                found = measure_energy(stopwatch.keep_busy, device.energy_j, seconds)
        except NvmlError:
            return None
        return None if found is None else EnergyUse(calls=found.calls, seconds=found.seconds, power_w=found.power_w)

    def clock_under_load(self) -> float | None:
        """The clock during a tenth of a second of large products."""
        import torch

        left = torch.randn(4096, 4096, dtype=torch.float16, device="cuda")
        out = torch.empty_like(left)
        torch.mm(left, left, out=out)
        began = time.monotonic()
        self.probe.mark(0)
        while time.monotonic() - began < _LOAD_SECONDS:
            torch.mm(left, left, out=out)
            torch.cuda.synchronize()
        self.probe.mark(1)
        torch.cuda.synchronize()
        return self.probe.hertz(0, 1)

    def sensors(self) -> AbstractContextManager[TelemetryWindow | None]:
        """The NVML sidecar of this device: started once, it samples as long as the process lives."""
        from marlin_bench.environment import cuda_sensors

        if self._sensors is None:
            self._sensors = self._open_sensors.enter_context(cuda_sensors())
        return nullcontext(self._sensors)


def open_machine(device: str) -> Machine:
    """The machine called `cpu` or `cuda`."""
    if device == "cpu":
        return CpuMachine()
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("this machine has no CUDA device that torch can open")
    return CudaMachine()
