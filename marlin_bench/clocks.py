"""Hold the clocks while a run lasts, and give them back whatever happens.

A guardian process sets and resets (clock_guardian.py); this side decides what to ask for, refuses to touch a lock that
is somebody else's, and looks whether the clock really moved. Under `observe` nothing is ever set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from marlin_bench.clock_guardian import Order, Reply, reset
from marlin_bench.clock_journal import HeldError, Holder, find_holder, hold_file
from marlin_bench.guardian_link import GuardianLink
from marlin_bench.nvml import BASE_CLOCK, MEGA, Device, Facts, NvmlError, open_device

ClockPolicy = Literal["observe", "lock", "require"]
Profile = Literal["burst", "sustained"]
MeasureClock = Callable[[], float | None]
"""Puts load on the SMs and measures their clock in Hz; None where it cannot."""

_SAME_CLOCK = 0.02
_FREE_SHARE = 0.9
_SLOWED = {"sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"}


class ClockError(RuntimeError):
    """The clocks are required and cannot be had (exit 6): what is missing and what an administrator would run."""


class _RefusalError(RuntimeError):
    """Why the clocks were not locked, one sentence with the remedy."""


@dataclass(frozen=True)
class ClockRequest:
    """The `clocks:` of a suite: `sm_mhz` None means the SM clock is left alone, `base` the card's own base clock."""

    policy: ClockPolicy
    sm_mhz: int | Literal["base", "max"] | None = "base"
    memory_mhz: int | None = None


@dataclass(frozen=True)
class ClockState:
    """What is held: clocks in Hz (None: free, or the base clock before anybody measured it).

    `profile` is `sustained` for a clock locked below the card's highest one, which it can keep up, else `burst`.
    """

    locked: bool
    sm_hz: float | None = None
    memory_hz: float | None = None
    warning: str | None = None
    profile: Profile = "burst"


def nearest(mhz: int, supported: list[int]) -> int:
    """The supported clock closest to `mhz`, the lower one of two as close; `mhz` itself where none are listed."""
    return min(supported, key=lambda clock: (abs(clock - mhz), clock), default=mhz)


def _target(device: Device, request: ClockRequest) -> tuple[int | None, int | None]:
    """MHz to lock the SM and the memory clock at."""
    sm: int | None
    if request.sm_mhz == "base":
        sm = BASE_CLOCK
    elif request.sm_mhz == "max":
        highest = device.facts().max_sm_clock_hz
        listed = device.supported_sm_mhz()
        if highest is None and not listed:
            raise _RefusalError("the highest SM clock cannot be read: give sm_mhz as a number")
        sm = listed[0] if listed else round((highest or 0) / MEGA)
    else:
        sm = None if request.sm_mhz is None else nearest(request.sm_mhz, device.supported_sm_mhz())
    memory = request.memory_mhz
    return sm, None if memory is None else nearest(memory, device.supported_memory_mhz())


def _admin_command(uuid: str, sm: int | None, memory: int | None) -> str:
    """What an administrator types to set the same by hand."""
    clock = "tdp" if sm == BASE_CLOCK else str(sm)
    options = ([f"-lgc {clock},{clock}"] if sm is not None else []) + ([f"-lmc {memory},{memory}"] if memory else [])
    return f"sudo nvidia-smi -i {uuid} {' '.join(options)}"


def describe(holder: Holder, uuid: str) -> str:
    """Who holds or held the clocks, and what to do about it."""
    if holder.alive:
        return f"the clocks of {uuid} are held by {holder.journal}: wait for it to end"
    if holder.rebooted:
        return f"{holder.journal} had locked the clocks; the restart of the machine let them go"
    return f"{holder.journal} died and left the clocks locked: give them back with `marlin-bench clocks reset`"


def foreign_lock(device: Device, facts: Facts) -> str | None:
    """Why the clocks look locked by somebody else; None when they look free.

    A lock cannot be read back. The event reason `clocks_setting` shows one, unless application clocks below the
    highest clock explain it.
    """
    if "clocks_setting" not in device.reasons():
        return None
    application, highest = facts.application_clock_hz, facts.max_sm_clock_hz
    if application is not None and highest is not None and application < highest:
        return None
    return (
        f"the clocks of {device.uuid} are locked by somebody else (event reason clocks_setting): ask them, or reset"
        f" with `sudo nvidia-smi -i {device.uuid} -rgc`"
    )


def _stuck(device: Device, facts: Facts, measured_hz: float | None) -> str | None:
    """A clock far below the highest one under load, with no reason given: somebody holds it there."""
    highest = facts.max_sm_clock_hz
    if measured_hz is None or highest is None or measured_hz >= _FREE_SHARE * highest:
        return None
    if _SLOWED & set(device.reasons()) or (facts.application_clock_hz or highest) < highest:
        return None
    return (
        f"the SM clock of {device.uuid} stays at {measured_hz / MEGA:.0f} of {highest / MEGA:.0f} MHz under load with"
        f" no reason given: somebody else holds it; reset with `sudo nvidia-smi -i {device.uuid} -rgc`"
    )


def recover(device_uuid: str) -> Holder | None:
    """Reset what a dead guardian left locked and remove its journal; who it was, None when there was nothing.

    After a restart of the machine only the journal is removed. HeldError while a guardian lives, NvmlError when the
    reset fails (the journal stays).
    """
    holder = find_holder(device_uuid)
    if holder is None:
        return None
    with hold_file(device_uuid) as file:
        if file.left is None:
            file.remove()
            return None
        left = Holder(file.left, alive=False)
        if not left.rebooted:
            with open_device(device_uuid) as device:
                reset(device, sm=left.journal.sm, memory=left.journal.memory)
        file.remove()
        return left


def _observed(uuid: str) -> ClockState:
    """Reads only."""
    holder = find_holder(uuid)
    if holder is not None and not holder.rebooted:
        return ClockState(locked=False, warning=describe(holder, uuid))
    try:
        with open_device(uuid) as device:
            return ClockState(locked=False, warning=foreign_lock(device, device.facts()))
    except NvmlError as error:
        return ClockState(locked=False, warning=f"the clocks cannot be watched ({error})")


def _take_over(uuid: str) -> str | None:
    """Give back what a dead run left locked; says so. Refuses while another run lives."""
    try:
        left = recover(uuid)
    except HeldError as error:
        holder = find_holder(uuid)
        raise _RefusalError(describe(holder, uuid) if holder else str(error)) from error
    if left is None or left.rebooted:
        return None
    return f"{left.journal} died and had left the clocks locked; they were reset first"


def _refusal(order: Order, reply: Reply) -> _RefusalError:
    """What the guardian's answer means to the person who asked for the lock."""
    uuid = order.device_uuid
    if reply.outcome == "not_permitted":
        return _RefusalError(
            f"locking the clocks of {uuid} needs root with CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN): run the"
            " suite as root, or let an administrator lock them by hand with"
            f" `{_admin_command(uuid, order.sm_mhz, order.memory_mhz)}` and use `clocks: observe`"
        )
    if reply.outcome == "held":
        holder = find_holder(uuid)
        return _RefusalError(describe(holder, uuid) if holder else reply.reason)
    return _RefusalError(f"the clocks of {uuid} cannot be locked ({reply.reason})")


@contextmanager
def _guarded(order: Order) -> Iterator[None]:
    """A guardian holds the lock meanwhile; ClockError at the end when the clocks could not be given back."""
    link = GuardianLink(order)
    reply = link.reply()
    if reply.outcome != "locked":
        link.close()
        raise _refusal(order, reply)
    try:
        yield
    finally:
        reply = link.release()
        if reply.outcome != "released":
            _give_back(order.device_uuid, reply.reason)


def _give_back(uuid: str, reason: str) -> None:
    """Reset in place of a guardian that died or failed."""
    try:
        recover(uuid)
    except (NvmlError, HeldError) as error:
        raise ClockError(
            f"the clocks of {uuid} are still locked ({reason}; {error}): give them back with"
            " `marlin-bench clocks reset`"
        ) from error


def _verify(device: Device, target_hz: float | None, measure: MeasureClock | None) -> tuple[float | None, str | None]:
    """The SM clock held under load, and a warning where the power limit or heat pulls it below the lock.

    Raises _RefusalError for a clock that the lock did not move.
    """
    measured = measure() if measure else None
    if measured is None or target_hz is None or abs(measured - target_hz) <= _SAME_CLOCK * target_hz:
        return measured or target_hz, None
    slowed = _SLOWED & set(device.reasons())
    if measured < target_hz and slowed:
        return measured, (
            f"the SM clock is locked at {target_hz / MEGA:.0f} MHz but runs at {measured / MEGA:.0f} MHz under load"
            f" ({', '.join(sorted(slowed))})"
        )
    raise _RefusalError(
        f"the SM clock of {device.uuid} was locked at {target_hz / MEGA:.0f} MHz and runs at {measured / MEGA:.0f} MHz:"
        " somebody else holds it"
    )


def _rounding(asked: int | str | None, given: int | None, clock: str) -> str | None:
    if given is None or not isinstance(asked, int) or asked == given:
        return None
    return f"{clock} clock {asked} MHz is not supported; the nearest, {given} MHz, is held"


def _persistence(uuid: str, facts: Facts) -> str | None:
    if facts.persistence is not False:
        return None
    return f"persistence mode is off, so an unload of the driver drops the lock: `sudo nvidia-smi -i {uuid} -pm 1`"


def _refuse_if(sentence: str | None) -> None:
    if sentence is not None:
        raise _RefusalError(sentence)


@contextmanager
def _held(request: ClockRequest, uuid: str, run: str, measure: MeasureClock | None) -> Iterator[ClockState]:
    """Locked clocks; _RefusalError before the body runs where they cannot be had."""
    notes = [_take_over(uuid)]
    with open_device(uuid) as device:
        facts = device.facts()
        _refuse_if("the GPU is in MIG mode, where clocks cannot be locked" if facts.mig else None)
        _refuse_if(foreign_lock(device, facts))
        _refuse_if(_stuck(device, facts, measure() if measure else None))
        sm, memory = _target(device, request)
        if sm is None and memory is None:
            raise _RefusalError("no clock is named to lock: give sm_mhz or memory_mhz")
        with _guarded(Order(uuid, run, os.getpid(), sm, memory)):
            target_hz = None if sm is None or sm == BASE_CLOCK else float(sm * MEGA)
            sm_hz, slowed = _verify(device, target_hz, measure) if sm is not None else (None, None)
            notes += [slowed, _rounding(request.sm_mhz, sm, "SM"), _rounding(request.memory_mhz, memory, "memory")]
            notes.append(_persistence(uuid, facts))
            below_highest = sm is not None and (target_hz is None or target_hz < (facts.max_sm_clock_hz or target_hz))
            yield ClockState(
                locked=True,
                sm_hz=sm_hz,
                memory_hz=None if memory is None else float(memory * MEGA),
                warning="; ".join(filter(None, notes)) or None,
                profile="sustained" if below_highest else "burst",
            )


@contextmanager
def hold_clocks(
    request: ClockRequest, device_uuid: str, *, run: str = "a run", measure: MeasureClock | None = None
) -> Iterator[ClockState]:
    """Hold the clocks of a GPU as `request` says; they are given back however the body, or the process, ends.

    `run` is what a second run is told about the holder. `measure` is called before and after locking: with it a lock
    that did not move the clock is refused, and one that the power limit pulls down is reported. Under `require`
    ClockError (exit 6) says why the clocks cannot be had; under `lock` the same sentence is the state's warning.
    ClockError at the end means that the clocks could not be given back.
    """
    if request.policy == "observe":
        yield _observed(device_uuid)
        return
    with ExitStack() as stack:
        try:
            state = stack.enter_context(_held(request, device_uuid, run, measure))
        except (_RefusalError, NvmlError, OSError) as refusal:
            if request.policy == "require":
                raise ClockError(f"the suite requires locked clocks: {refusal}") from refusal
            state = ClockState(locked=False, warning=f"the clocks are not locked: {refusal}")
        yield state
