"""What `doctor` and `clocks status` say about the clocks of a GPU. Reads only."""

from __future__ import annotations

import os
from pathlib import Path

from marlin_bench.clock_journal import find_holder
from marlin_bench.clocks import describe, foreign_lock
from marlin_bench.findings import Finding
from marlin_bench.nvml import MEGA, Device, Facts, NvmlError, open_device
from marlin_bench.units import format_clock

_SYS_ADMIN_BIT = 21
_SLOW = {"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"}
_LEAST_MARGIN_C = 20.0


def may_administrate() -> bool:
    """Whether this process is root with CAP_SYS_ADMIN, which the driver wants for setting clocks."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return os.geteuid() == 0 and bool(int(line.split()[1], 16) >> _SYS_ADMIN_BIT & 1)
    return os.geteuid() == 0


def clock_findings(device_uuid: str) -> list[Finding]:
    """Rights, present and supported clocks, locks of others and of dead runs, slow-downs and heat."""
    found = [_rights(), _holder(device_uuid)]
    try:
        with open_device(device_uuid) as device:
            facts = device.facts()
            return [*found, _present(device, facts), _supported(device), _foreign(device, facts), *_health(device)]
    except NvmlError as error:
        return [*found, Finding("clocks", "fail", f"cannot be read ({error})", "look at nvidia-smi")]


def _rights() -> Finding:
    if may_administrate():
        return Finding("clock rights", "ok", "root with CAP_SYS_ADMIN; whether the driver agrees shows when locking")
    return Finding(
        "clock rights",
        "warn",
        "not root with CAP_SYS_ADMIN: clocks can be watched, not locked",
        "use `clocks: observe`, or run as root (in a container with --cap-add SYS_ADMIN)",
    )


def _holder(uuid: str) -> Finding:
    holder = find_holder(uuid)
    if holder is None:
        return Finding("clock lock", "ok", "none of this program")
    if holder.alive:
        return Finding("clock lock", "warn", describe(holder, uuid))
    return Finding("clock lock", "warn", describe(holder, uuid), "marlin-bench clocks reset")


def _present(device: Device, facts: Facts) -> Finding:
    now = device.instant()
    return Finding(
        "clocks",
        "ok",
        f"SM {format_clock(now.sm_clock_hz)} of {format_clock(facts.max_sm_clock_hz)}, memory"
        f" {format_clock(now.memory_clock_hz)} of {format_clock(facts.max_memory_clock_hz)}",
    )


def _supported(device: Device) -> Finding:
    sm, memory = device.supported_sm_mhz(), device.supported_memory_mhz()
    if not sm:
        return Finding("supported clocks", "warn", "not listed by this GPU: a locked clock is taken as it is written")
    return Finding(
        "supported clocks",
        "ok",
        f"SM {format_clock(sm[-1] * MEGA)} to {format_clock(sm[0] * MEGA)} in {len(sm)} steps, memory"
        f" {', '.join(format_clock(mhz * MEGA) for mhz in memory)}",
    )


def _foreign(device: Device, facts: Facts) -> Finding:
    holder = find_holder(device.uuid)
    sentence = None if holder is not None and not holder.rebooted else foreign_lock(device, facts)
    if sentence is None:
        return Finding("foreign clock lock", "ok", "none to be seen")
    return Finding("foreign clock lock", "warn", sentence, f"sudo nvidia-smi -i {device.uuid} -rgc")


def _health(device: Device) -> list[Finding]:
    slow = sorted(_SLOW & set(device.reasons()))
    margin = device.counters().temperature_margin_c
    found = [
        Finding("slow-downs", "warn", ", ".join(slow), "let the GPU cool, look at its power supply and fans")
        if slow
        else Finding("slow-downs", "ok", "none now")
    ]
    if margin is not None:
        hot = margin < _LEAST_MARGIN_C
        found.append(
            Finding(
                "heat",
                "warn" if hot else "ok",
                f"{margin:.0f} °C below thermal throttling",
                "let the GPU cool before measuring" if hot else None,
            )
        )
    return found
