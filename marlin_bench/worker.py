"""The process that touches the device: opens it, measures cells, and is allowed to die.

Requests come as JSON lines on stdin, replies go to the real stdout; whatever libraries print goes to stderr. When the
parent is gone (end of stdin) the worker ends at once, even inside a hung kernel. This module holds the one boundary
where any exception is caught: it becomes the reason in a record.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import IO

import torch
from pydantic import BaseModel

from marlin_bench.device import DeviceError
from marlin_bench.entrant import Job, LayerCache
from marlin_bench.machine import Machine, open_machine
from marlin_bench.measure import measure_cell
from marlin_bench.messages import (
    REQUEST,
    BlockDone,
    CeilingsDone,
    CellDone,
    ClockMeasured,
    Failed,
    Finish,
    MeasureCeilings,
    MeasureCell,
    MeasureClock,
    Open,
    PhaseEntered,
    Ready,
    RecordDone,
    Request,
    Verified,
)
from marlin_bench.plan import Cell
from marlin_bench.record import Block, Check, Record, Status, TimerName

_LONGEST_REASON = 500


class _Replies:
    """The emitter of a cell that is measured, writing messages."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def send(self, message: BaseModel) -> None:
        self._stream.write(message.model_dump_json() + "\n")
        self._stream.flush()

    def phase(self, backend: str, phase: str) -> None:
        self.send(PhaseEntered(backend=backend, phase=phase))

    def block(self, timer: TimerName, backend: str, block: Block) -> None:
        self.send(BlockDone(timer=timer, backend=backend, block=block))

    def verified(self, backend: str, check: Check) -> None:
        self.send(Verified(backend=backend, check=check))

    def record(self, record: Record) -> None:
        # cell_records.py builds records piece by piece without validation: here they are validated as a whole
        self.send(RecordDone(record=Record.model_validate(record.model_dump())))


def _job(request: MeasureCell, finish: threading.Event) -> Job:
    cell = Cell(
        id=request.cell,
        suite=request.suite,
        layer=request.layer,
        M=request.M,
        N=request.N,
        K=request.K,
        group_size=request.group_size,
        backends=request.backends,
        seed=request.seed,
        timers=request.timers,
    )
    return Job(
        cell=cell,
        backends=request.backends,
        baselines=request.baselines,
        sampling=request.sampling,
        run=request.run,
        device=request.device,
        clocks_locked=request.clocks.locked,
        profile=request.clocks.profile,
        isolated=request.isolated,
        effort=request.effort,
        first_block=request.first_block,
        clock_origin=request.clock_origin,
        energy_seconds=request.energy_seconds,
        verify_only=request.verify_only,
        finish=finish.is_set,
    )


class Worker:
    """One device, one request at a time."""

    def __init__(self, open_device: Callable[[str], Machine], replies: _Replies) -> None:
        self._open_device = open_device
        self._replies = replies
        self._machine: Machine | None = None
        self._cache = LayerCache()
        self.finish = threading.Event()

    def handle(self, request: Request) -> None:
        """Answer one request."""
        if isinstance(request, Open):
            self._machine = self._open_device(request.device)
            environment = self._machine.environment()
            self._replies.send(Ready(environment=environment, device_uuid=self._machine.uuid))
        elif self._machine is None:
            raise RuntimeError("no device is open")
        elif isinstance(request, MeasureCeilings):
            self._replies.send(CeilingsDone(ceilings=self._machine.measure_ceilings()))
        elif isinstance(request, MeasureClock):
            self._replies.send(ClockMeasured(hertz=self._machine.clock_under_load()))
        elif isinstance(request, MeasureCell):
            self.finish.clear()
            timed_s = measure_cell(_job(request, self.finish), self._machine, self._cache, self._replies)
            self._replies.send(CellDone(timed_s=timed_s))


def _read_requests(stream: IO[str], inbox: queue.SimpleQueue[Request], finish: threading.Event) -> None:
    for line in stream:
        request = REQUEST.validate_json(line)
        if isinstance(request, Finish):
            finish.set()
        else:
            inbox.put(request)
    os._exit(1)  # the parent is gone: nobody is left to report to, and a hung kernel must not keep this process


def describe(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, DeviceError):  # already a sentence for the user
        return text
    return f"{type(error).__name__}: {text}"[:_LONGEST_REASON]


def serve(open_device: Callable[[str], Machine], requests: IO[str], replies: IO[str]) -> int:
    """Answer requests until stdin ends or something breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    outbox = _Replies(replies)
    worker = Worker(open_device, outbox)
    inbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests, inbox, worker.finish), daemon=True).start()
    while True:
        request = inbox.get()
        try:
            worker.handle(request)
        except Exception as error:  # noqa: BLE001  the one boundary: a backend's failure becomes a reason
            status = Status.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else Status.CRASHED
            outbox.send(Failed(status=status, reason=describe(error)))
            return 1


def main() -> int:
    """Entry of `python -m marlin_bench.worker`."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like a reply
    return serve(open_machine, sys.stdin, replies)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a broken CUDA context can hang interpreter shutdown
