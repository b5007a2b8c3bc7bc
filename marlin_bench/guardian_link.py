"""The run's side of the pipe to its clock guardian."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from marlin_bench.clock_guardian import Order, Reply

_REPLY_SECONDS = 20.0


class GuardianLink:
    """A guardian that was started and told what to lock.

    Only this process holds the other end of its stdin: when the process ends, however it does, the guardian resets.
    """

    def __init__(self, order: Order) -> None:
        environment = dict(os.environ)
        package_parent = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, environment.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "marlin_bench.clock_guardian", order.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # out of reach of the terminal's Ctrl-C and of signals to the run's process group
        )
        self._received = b""

    def reply(self) -> Reply:
        """The guardian's next word; `failed` when it died or says nothing."""
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("the guardian has no pipes")
        deadline = time.monotonic() + _REPLY_SECONDS
        while b"\n" not in self._received:
            readable, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                return Reply("failed", f"the clock guardian said nothing for {_REPLY_SECONDS:.0f} s")
            data = os.read(stdout.fileno(), 4096)
            if not data:
                return Reply("failed", f"the clock guardian ended with exit code {self._process.wait()}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return Reply(**json.loads(line))

    def release(self) -> Reply:
        """Ask for the reset and wait for it; `failed` when the guardian is no more."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        reply = self.reply()
        self.close()
        return reply

    def close(self) -> None:
        """Let go of a guardian that has said its last word."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):  # stuck in the driver: it still resets once it gets out
            self._process.wait(timeout=_REPLY_SECONDS)
