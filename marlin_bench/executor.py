"""Where cells run: `LocalExecutor` gives each device a worker process of its own.

An executor opens devices and sends requests; it knows nothing of suites, results or retries. Another one (a cluster
engine) has to bring only `open(device) -> Session`.
"""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO, Protocol

from pydantic import BaseModel, ValidationError

from marlin_bench.messages import (
    REPLY,
    CeilingsDone,
    CellDone,
    ClockMeasured,
    Failed,
    Finish,
    MeasureCeilings,
    MeasureClock,
    Open,
    Ready,
    Reply,
)
from marlin_bench.record import Ceiling, Status

_START_SECONDS = 300.0
_CEILING_SECONDS = 300.0
_END_SECONDS = 5.0
_SHOWN_STDERR_LINES = 40


class WorkerLostError(RuntimeError):
    """The worker died, hung, or gave up: with the status and the reason a record gets."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Session(Protocol):
    """An open device."""

    @property
    def ready(self) -> Ready:
        """What the device is."""

    def ceilings(self) -> list[Ceiling]:
        """Measure the roofs; WorkerLostError when that fails."""

    def clock(self) -> float | None:
        """The SM clock under load, in Hz; WorkerLostError when that fails."""

    def ask(self, request: BaseModel, timeout_s: float) -> Iterator[Reply]:
        """Replies to a request until it is done; `timeout_s` of silence raises WorkerLostError, as a death does."""

    def finish(self) -> None:
        """Ask the cell in progress to end after its present block."""

    def close(self) -> None:
        """End the worker, hung or not."""


class Executor(Protocol):
    """A place to run cells."""

    def open(self, device: str) -> Session:
        """Start on a device (`cpu`, `cuda:0`, `cuda:GPU-…`); WorkerLostError when it cannot be opened."""


def visible_device(device: str, shown: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for `device` alone, an index among those that `shown` (the caller's own) leaves, or a UUID.

    A job scheduler hands out GPUs by that variable: device 0 is the first of the job's, not of the host.
    WorkerLostError when it shows fewer.
    """
    if shown is None or not device.isdigit():
        return device
    names = [name.strip() for name in shown.split(",")]
    usable = list(
        itertools.takewhile(lambda name: name and not name.startswith("-"), names)
    )  # CUDA stops there as well
    if int(device) >= len(usable):
        count = f"{len(usable)} device{'' if len(usable) == 1 else 's'}"
        raise WorkerLostError(
            Status.MISSING, f"CUDA_VISIBLE_DEVICES='{shown}' leaves {count}, counted from 0: no {device}"
        )
    return usable[int(device)]


class LocalSession:
    """One worker process on this host."""

    def __init__(self, device: str, command: Sequence[str]) -> None:
        kind, _, index = device.partition(":")
        environment = dict(os.environ)
        package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, environment.get("PYTHONPATH"))))
        if index:
            environment["CUDA_VISIBLE_DEVICES"] = visible_device(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._complaints: list[str] = []
        if self._process.stdout is None or self._process.stderr is None:
            raise RuntimeError("the worker has no pipes")
        threading.Thread(target=self._read_replies, args=(self._process.stdout,), daemon=True).start()
        self._stderr_reader = threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True)
        self._stderr_reader.start()
        try:
            for reply in self.ask(Open(device="cpu" if kind == "cpu" else "cuda"), _START_SECONDS):
                if isinstance(reply, Ready):
                    self.ready = reply
        except WorkerLostError:
            self.close()
            raise

    def _read_replies(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                self._replies.put(REPLY.validate_json(line))
            except ValidationError:
                self._complaints.append(line.rstrip())
        self._replies.put(None)

    def _read_stderr(self, stream: IO[str]) -> None:
        for line in stream:
            self._complaints.append(line.rstrip())
            del self._complaints[:-_SHOWN_STDERR_LINES]

    def _send(self, request: BaseModel) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the worker has no stdin")
        try:
            self._process.stdin.write(request.model_dump_json() + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._death() from error

    def _death(self) -> WorkerLostError:
        """The worker is gone: with its signal or exit code and the last thing it complained about."""
        code = self._process.wait()
        self._stderr_reader.join(timeout=1.0)
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = next((line for line in reversed(self._complaints) if line.strip()), "")
        return WorkerLostError(Status.CRASHED, f"the worker was {how}" + (f": {said}" if said else ""))

    def ask(self, request: BaseModel, timeout_s: float) -> Iterator[Reply]:
        """See Session."""
        self._send(request)
        while True:
            try:
                reply = self._replies.get(timeout=timeout_s)
            except queue.Empty:
                self.close()
                raise WorkerLostError(Status.TIMEOUT, f"no answer within {timeout_s:g} s") from None
            if reply is None:
                raise self._death()
            if isinstance(reply, Failed):
                self.close()
                raise WorkerLostError(reply.status, reply.reason)
            yield reply
            if isinstance(reply, Ready | CeilingsDone | ClockMeasured | CellDone):
                return

    def ceilings(self) -> list[Ceiling]:
        """See Session."""
        found: list[Ceiling] = []
        for reply in self.ask(MeasureCeilings(), _CEILING_SECONDS):
            if isinstance(reply, CeilingsDone):
                found = reply.ceilings
        return found

    def clock(self) -> float | None:
        """See Session."""
        (reply,) = self.ask(MeasureClock(), _CEILING_SECONDS)
        return reply.hertz if isinstance(reply, ClockMeasured) else None

    def finish(self) -> None:
        """See Session."""
        self._send(Finish())

    def close(self) -> None:
        """Close its stdin, which ends it; kill it when that is not enough."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


WORKER_COMMAND = (sys.executable, "-m", "marlin_bench.worker")


class LocalExecutor:
    """Worker processes on this host; tests pass the command of a simulated worker."""

    def __init__(self, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._command = tuple(command)

    def open(self, device: str) -> Session:
        """Start a worker for `device`."""
        return LocalSession(device, self._command)
