"""Suites, progress and executors for tests on the simulated device."""

import sys
from io import StringIO
from pathlib import Path

import simulated  # registers the simulated backends

from marlin_bench.executor import LocalExecutor
from marlin_bench.messages import MeasureCeilings, Open
from marlin_bench.suite import parse_suite
from marlin_bench.worker import Worker, _Replies

WORKER = str(Path(__file__).parent / "simulated_worker.py")


def simulated_suite(backends, M=(1, 4), layers=((256, 128),), timeout=20.0, extra="", **sampling):
    """A suite on small layers; `sampling` overrides the quick defaults."""
    settings = {"min_blocks": 6, "max_blocks": 12, "block_seconds": 0.001, "timeout_seconds": timeout, **sampling}
    lines = ["device: {kind: cpu}", f"M: {list(M)}", f"backends: {list(backends)}", "seed: 7", "layers:"]
    lines += [f"  - {{K: {K}, N: {N}}}" for K, N in layers]
    lines += ["sampling:", *(f"  {key}: {value}" for key, value in settings.items())]
    return parse_suite("\n".join([*lines, extra]) + "\n", source="simulated.yaml", name="simulated")


def simulated_executor(*arguments):
    """Worker processes of the simulated device."""
    return LocalExecutor([sys.executable, WORKER, *arguments])


class InlineSession:
    """A worker without a process: the same messages, handled here; for tests in which nothing dies."""

    def __init__(self, name):
        self.sent = []
        outbox = _Replies(StringIO())
        outbox.send = self.sent.append
        self.worker = Worker(lambda _device: simulated.SimulatedMachine(**({"name": name} if name else {})), outbox)
        (self.ready,) = self.ask(Open(device="cpu"), 1.0)

    def ask(self, request, timeout_s):
        self.sent.clear()
        self.worker.handle(request)
        return list(self.sent)

    def ceilings(self):
        return self.ask(MeasureCeilings(), 1.0)[0].ceilings

    def clock(self):
        return None

    def finish(self):
        self.worker.finish.set()

    def close(self):
        pass


class InlineExecutor:
    """Opens inline sessions, one device name after the other."""

    def __init__(self, *names):
        self.names = iter(names)

    def open(self, device):
        return InlineSession(next(self.names, None))


class QuietProgress:
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.records, self.cells, self.begun = [], [], [], None
        self.on_record = lambda record: None
        self.on_phase = lambda cell, backend, phase: None

    def started(self, cells_total, cells_done):
        self.begun = (cells_total, cells_done)

    def cell_started(self, cell):
        pass

    def backend_progress(self, cell, backend, phase):
        self.on_phase(cell, backend, phase)

    def record_done(self, record):
        self.records.append(record)
        self.on_record(record)

    def cell_done(self, cell, seconds):
        self.cells.append(cell.id)

    def note(self, sentence):
        self.notes.append(sentence)
