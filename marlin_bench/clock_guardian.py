"""The process that sets the clocks and gives them back: `python -m marlin_bench.clock_guardian '{"device_uuid": …}'`.

It does both, so that one place decides, and outlives its parent: in a session of its own, deaf to Ctrl-C, hang-ups and
SIGTERM, it waits for the end of its stdin (the run let go, or is gone, whatever ended it), resets once, removes the
journal and ends. Replies are JSON lines on stdout.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

from marlin_bench.clock_journal import HeldError, HeldFile, hold_file, new_journal
from marlin_bench.nvml import Device, NotPermittedError, NvmlError, open_device

_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LOOK_SECONDS = 0.5
_RESET_ATTEMPTS = 5
_RESET_PAUSE_SECONDS = 0.2

Outcome = Literal["locked", "held", "not_permitted", "failed", "released", "not_released"]


@dataclass(frozen=True)
class Order:
    """What to lock, in MHz (BASE_CLOCK for the base clock, None to leave a clock alone), and for whom."""

    device_uuid: str
    run: str
    pid: int
    sm_mhz: int | None
    memory_mhz: int | None

    def to_json(self) -> str:
        """As the guardian's argument."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Reply:
    """What became of the lock, or of the reset."""

    outcome: Outcome
    reason: str = ""


def _say(outcome: Outcome, reason: str = "") -> None:
    line = json.dumps(asdict(Reply(outcome, reason))) + "\n"
    with suppress(BrokenPipeError):  # the parent is gone and will not miss it
        os.write(sys.stdout.fileno(), line.encode())


def reset(device: Device, *, sm: bool, memory: bool) -> None:
    """Let go what was set; NvmlError after some attempts that failed."""
    actions: list[Callable[[], None]] = ([device.reset_sm] if sm else []) + ([device.reset_memory] if memory else [])
    for action in actions:
        for attempt in range(1, _RESET_ATTEMPTS + 1):
            try:
                action()
                break
            except NvmlError:
                if attempt == _RESET_ATTEMPTS:
                    raise
                time.sleep(_RESET_PAUSE_SECONDS)


def _wait_for_end(parent: int) -> None:
    """Return at the end of stdin, or when the parent is gone though some heir of it keeps the pipe open."""
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _LOOK_SECONDS)
        if readable:
            return


def _lock(device: Device, order: Order, file: HeldFile) -> None:
    """Set what is ordered; NvmlError leaves nothing set and no journal."""
    file.write(
        new_journal(
            order.device_uuid,
            order.run,
            order.pid,
            sm=order.sm_mhz is not None,
            memory=order.memory_mhz is not None,
        )
    )
    if order.sm_mhz is not None:
        try:
            device.lock_sm(order.sm_mhz)
        except NvmlError:
            file.remove()
            raise
    if order.memory_mhz is not None:
        try:
            device.lock_memory(order.memory_mhz)
        except NvmlError:
            reset(device, sm=order.sm_mhz is not None, memory=False)
            file.remove()
            raise


def main(arguments: list[str]) -> int:
    """Lock, wait, reset; 0 when nothing is left set."""
    for deaf in _DEAF_TO:
        signal.signal(deaf, signal.SIG_IGN)
    order = Order(**json.loads(arguments[0]))
    locked = False
    try:
        with open_device(order.device_uuid) as device, hold_file(order.device_uuid) as file:
            if file.left is not None:
                raise HeldError(f"{file.left} left the clocks locked")
            _lock(device, order, file)
            locked = True
            _say("locked")
            _wait_for_end(order.pid)
            reset(device, sm=order.sm_mhz is not None, memory=order.memory_mhz is not None)
            file.remove()
    except HeldError as error:
        _say("held", str(error))
    except NotPermittedError as error:
        _say("not_released" if locked else "not_permitted", str(error))
    except (NvmlError, OSError) as error:
        _say("not_released" if locked else "failed", str(error))
    else:
        _say("released")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
