"""NVML, typed and in SI units: which device, what it reads, and the two locks that may be set.

Every reading is None where the device or the driver does not offer it; only trouble with the device itself raises
NvmlError. pynvml is imported on first use: it is large, and most commands need no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

MEGA = 1_000_000
BASE_CLOCK: Final = 0xFFFFFF01
"""NVML's symbolic TDP clock for both bounds of a lock: the card's own base clock."""

REASONS: Final = {
    0x1: "gpu_idle",
    0x2: "clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Clock event reasons by bit (nvml.h, nvmlClocksEventReason*)."""

_THROTTLE_FIELDS = {
    74: "sw_power_cap",
    76: "sync_boost",
    77: "board_limit",
    79: "reliability",
    269: "sw_thermal",
    270: "hw_thermal",
    271: "hw_power_brake",
}
"""Field ids of the cumulative counters; in nanoseconds (seen on an H200: 100 ms a 100 ms under the power limit)."""

_INSTANT_POWER_FIELD = 186
_GRAPHICS_CLOCK, _SM_CLOCK, _MEMORY_CLOCK = 0, 1, 2
_GPU_SENSOR = 0
_UNSIGNED_INT = 1
_NOT_SUPPORTED, _NO_PERMISSION = 3, 4
_ABSENT = {2, 3, 4, 13, 25}  # invalid argument, not supported, no permission, no such function, other version


class NvmlError(RuntimeError):
    """No driver, no such device, or a device in trouble; one sentence."""


class NotPermittedError(NvmlError):
    """The driver wants rights that this process does not have."""


class NotSupportedError(NvmlError):
    """The device or its driver cannot do it."""


@dataclass(frozen=True)
class Facts:
    """What does not change while a run lasts; None where the driver does not tell."""

    name: str | None = None
    driver: str | None = None
    max_sm_clock_hz: float | None = None
    max_memory_clock_hz: float | None = None
    application_clock_hz: float | None = None
    memory_bandwidth: float | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    power_limit_w: float | None = None


@dataclass(frozen=True)
class Instant:
    """The quick sensors. `reasons` are names of REASONS."""

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counters:
    """What the driver adds up, in steps of about 100 ms, and the distance to thermal throttling.

    `throttle_s` holds seconds since the driver was loaded by name of the reason.
    """

    energy_j: float | None = None
    temperature_margin_c: float | None = None
    throttle_s: dict[str, float] = field(default_factory=dict)


def _call(name: str, *arguments: object) -> Any:
    """Call pynvml's `name`; what goes wrong becomes an NvmlError."""
    import pynvml

    function = getattr(pynvml, name, None)
    if function is None:
        raise NotSupportedError(f"{name} is not known to this nvidia-ml-py")
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        sentence = f"{name}: {error}"
        if error.value == _NO_PERMISSION:
            raise NotPermittedError(sentence) from error
        if error.value in _ABSENT:
            raise NotSupportedError(sentence) from error
        raise NvmlError(sentence) from error


def _read(name: str, *arguments: object) -> Any:
    """As `_call`, None where there is nothing to read."""
    try:
        return _call(name, *arguments)
    except (NotPermittedError, NotSupportedError):
        return None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _current(pair: Sequence[int] | None) -> bool | None:
    """The present one of NVML's pairs (current mode, mode after a reboot)."""
    return None if pair is None else bool(pair[0])


class Device:
    """One GPU; take it from `open_device`."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self._is_slice = uuid.startswith("MIG-")
        handle = _call("nvmlDeviceGetHandleByUUID", uuid)
        # Sensors and clocks belong to the whole GPU.
        self._handle = _call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) if self._is_slice else handle

    def facts(self) -> Facts:
        """Name, driver, limits and modes."""
        width = _read("nvmlDeviceGetMemoryBusWidth", self._handle)
        memory_hz = _scaled(_read("nvmlDeviceGetMaxClockInfo", self._handle, _MEMORY_CLOCK), MEGA)
        persistence = _read("nvmlDeviceGetPersistenceMode", self._handle)
        return Facts(
            name=_read("nvmlDeviceGetName", self._handle),
            driver=_read("nvmlSystemGetDriverVersion"),
            max_sm_clock_hz=_scaled(_read("nvmlDeviceGetMaxClockInfo", self._handle, _SM_CLOCK), MEGA),
            max_memory_clock_hz=memory_hz,
            application_clock_hz=_scaled(_read("nvmlDeviceGetApplicationsClock", self._handle, _SM_CLOCK), MEGA),
            memory_bandwidth=2 * memory_hz * width / 8 if memory_hz and width else None,  # double data rate
            ecc=_current(_read("nvmlDeviceGetEccMode", self._handle)),
            mig=True if self._is_slice else _current(_read("nvmlDeviceGetMigMode", self._handle)),
            persistence=None if persistence is None else bool(persistence),
            power_limit_w=_scaled(_read("nvmlDeviceGetPowerManagementLimit", self._handle), 1e-3),
        )

    def supported_memory_mhz(self) -> list[int]:
        """Memory clocks that can be set, highest first; empty where the device does not list them."""
        return sorted(_read("nvmlDeviceGetSupportedMemoryClocks", self._handle) or [], reverse=True)

    def supported_sm_mhz(self) -> list[int]:
        """SM clocks that can be set at the highest memory clock, highest first; empty where not listed."""
        memory = self.supported_memory_mhz()
        if not memory:
            return []
        return sorted(_read("nvmlDeviceGetSupportedGraphicsClocks", self._handle, memory[0]) or [], reverse=True)

    def reasons(self) -> tuple[str, ...]:
        """Why the clocks are what they are right now; older drivers know the call by its older name."""
        mask = _read("nvmlDeviceGetCurrentClocksEventReasons", self._handle)
        if mask is None:
            mask = _read("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle) or 0
        return tuple(name for bit, name in REASONS.items() if mask & bit)

    def instant(self) -> Instant:
        """The quick sensors; the driver refreshes them by itself some tens of times a second."""
        return Instant(
            sm_clock_hz=_scaled(_read("nvmlDeviceGetClockInfo", self._handle, _SM_CLOCK), MEGA),
            memory_clock_hz=_scaled(_read("nvmlDeviceGetClockInfo", self._handle, _MEMORY_CLOCK), MEGA),
            power_w=self._power(),
            temperature_c=_read("nvmlDeviceGetTemperature", self._handle, _GPU_SENSOR),
            reasons=self.reasons(),
        )

    def counters(self) -> Counters:
        """The slow sensors: several milliseconds a call on a Hopper."""
        nanoseconds = self._fields(tuple(_THROTTLE_FIELDS))
        return Counters(
            energy_j=self.energy_j(),
            temperature_margin_c=_read("nvmlDeviceGetMarginTemperature", self._handle),
            throttle_s={_THROTTLE_FIELDS[identity]: value * 1e-9 for identity, value in nanoseconds.items()},
        )

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded."""
        return _scaled(_read("nvmlDeviceGetTotalEnergyConsumption", self._handle), 1e-3)

    def _power(self) -> float | None:
        """Watts now; the mean of a second (Ampere and later) where the device has no instant reading."""
        instant = self._fields((_INSTANT_POWER_FIELD,)).get(_INSTANT_POWER_FIELD)
        return _scaled(instant if instant is not None else _read("nvmlDeviceGetPowerUsage", self._handle), 1e-3)

    def _fields(self, identities: tuple[int, ...]) -> dict[int, int]:
        """Field values that this device has."""
        values = _read("nvmlDeviceGetFieldValues", self._handle, list(identities)) or ()
        return {
            value.fieldId: value.value.uiVal if value.valueType == _UNSIGNED_INT else value.value.ullVal
            for value in values
            if value.nvmlReturn == 0
        }

    def lock_sm(self, mhz: int) -> None:
        """Hold the SM clock at `mhz`, or at the base clock for BASE_CLOCK."""
        _call("nvmlDeviceSetGpuLockedClocks", self._handle, mhz, mhz)

    def reset_sm(self) -> None:
        """Let the SM clock go, whoever locked it."""
        _call("nvmlDeviceResetGpuLockedClocks", self._handle)

    def lock_memory(self, mhz: int) -> None:
        """Hold the memory clock at `mhz` (Ampere and later)."""
        _call("nvmlDeviceSetMemoryLockedClocks", self._handle, mhz, mhz)

    def reset_memory(self) -> None:
        """Let the memory clock go, whoever locked it."""
        _call("nvmlDeviceResetMemoryLockedClocks", self._handle)


@contextmanager
def open_device(uuid: str) -> Iterator[Device]:
    """The GPU with this UUID, whatever CUDA or the PCI bus number it; NvmlError when it is not there."""
    _call("nvmlInit")
    try:
        yield Device(uuid)
    finally:
        _call("nvmlShutdown")


def device_uuids() -> list[str]:
    """UUIDs of all GPUs in the order of nvidia-smi; NvmlError when there is no driver."""
    _call("nvmlInit")
    try:
        handles = [_call("nvmlDeviceGetHandleByIndex", index) for index in range(_call("nvmlDeviceGetCount"))]
        return [str(_call("nvmlDeviceGetUUID", handle)) for handle in handles]
    finally:
        _call("nvmlShutdown")


def read_facts(uuid: str) -> Facts:
    """Facts of a GPU; all None where NVML cannot be asked."""
    try:
        with open_device(uuid) as device:
            return device.facts()
    except NvmlError:
        return Facts()
