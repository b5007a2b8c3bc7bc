"""Bad neighbours on a real GPU: what goes wrong in their captured launches costs them alone.

The stand-ins are right when they are checked and bad in the graph that is timed. They live in a real worker process.
"""

import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from marlin_bench.backends import register  # noqa: E402
from marlin_bench.backends.cublas import CublasFp16, DequantizeCublas  # noqa: E402
from marlin_bench.cell_runner import DeviceRunner  # noqa: E402
from marlin_bench.errand import Listener, RunContext  # noqa: E402
from marlin_bench.executor import LocalExecutor  # noqa: E402
from marlin_bench.plan import Cell  # noqa: E402
from marlin_bench.record import Flag, Status  # noqa: E402
from marlin_bench.suite_format import Sampling  # noqa: E402
from marlin_bench.sweep import backend_facts  # noqa: E402

pytestmark = pytest.mark.gpu
_packed = {}
FOREVER = 10**13
"""Clock cycles, more than an hour."""


class Remembered:
    """Keeps the tensors that it packed where a neighbour finds them."""

    def pack(self, weights):
        packed = super().pack(weights)
        _packed.setdefault(self.name, []).extend(packed.tensors.values())
        return packed


@register
class Base(Remembered, CublasFp16):
    name = "gpu_base"

    def tune(self, packed, activations, outputs, effort):
        return {"layout": "KN"}


@register
class Neighbour(Remembered, DequantizeCublas):
    name = "gpu_neighbour"


class Bad(DequantizeCublas):
    """Goes bad in the graph."""

    def go_bad(self):
        raise NotImplementedError

    def launch(self, packed, activations, output, choice):
        work = super().launch(packed, activations, output, choice)

        def multiply():
            work()
            if torch.cuda.is_current_stream_capturing():
                self.go_bad()

        return multiply


@register
class ReadsWildly(Bad):
    name = "gpu_reads_wildly"

    def load(self):
        self.table, self.index = torch.zeros(4, device="cuda"), torch.full((1,), 1 << 40, device="cuda")

    def go_bad(self):
        torch.take(self.table, self.index)


@register
class Hangs(Bad):
    name = "gpu_hangs"

    def go_bad(self):
        torch.cuda._sleep(FOREVER)


@register
class SetsFlags(Bad):
    name = "gpu_sets_flags"

    def load(self):
        torch.backends.cuda.matmul.allow_fp16_accumulation = True

    def go_bad(self):
        torch.backends.cuda.matmul.allow_tf32 = not torch.backends.cuda.matmul.allow_tf32


class Scribbles(Bad):
    victim = ""

    def go_bad(self):
        for tensor in _packed.get(self.victim, []):
            tensor.zero_()


@register
class ScribblesOverNeighbour(Scribbles):
    name = "gpu_scribbles_over_neighbour"
    victim = "gpu_neighbour"


@register
class ScribblesOverBase(Scribbles):
    name = "gpu_scribbles_over_base"
    victim = "gpu_base"


WORKER = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
import os, test_isolation
from marlin_bench.worker import main
os._exit(main())
"""


def measure(*backends, timeout_seconds=60.0):
    """The records of one small cell, measured in worker processes."""
    cell = Cell("1024x1024/g128/M16", "isolation", "1024x1024", 16, 1024, 1024, 128, backends, 3, ("kernel",))
    sampling = Sampling(
        min_blocks=6, max_blocks=6, block_seconds=0.001, cell_seconds=0.2, timeout_seconds=timeout_seconds
    )
    records = []
    listener = Listener(lambda backend, phase: None, records.append, lambda backend, check: None)
    runner = DeviceRunner(LocalExecutor([sys.executable, "-c", WORKER]), "cuda:0")
    try:
        runner.run(cell, backend_facts(cell), RunContext("run", "gpu", sampling, time.monotonic()), listener)
    finally:
        runner.close()
    return {record.backend: record for record in records if not (record.isolated and record.baseline)}, records


def test_a_wild_read_costs_whoever_does_it():
    found, _ = measure("gpu_base", "gpu_reads_wildly", "gpu_neighbour")
    assert found["gpu_reads_wildly"].status is Status.CRASHED
    assert found["gpu_base"].status is found["gpu_neighbour"].status is Status.OK
    assert not found["gpu_neighbour"].isolated


def test_a_kernel_that_hangs_is_ended():
    found, _ = measure("gpu_base", "gpu_hangs", "gpu_neighbour", timeout_seconds=25.0)
    assert found["gpu_hangs"].status is Status.TIMEOUT
    assert found["gpu_base"].status is found["gpu_neighbour"].status is Status.OK


def test_flags_are_put_back():
    found, _ = measure("gpu_base", "gpu_sets_flags", "gpu_neighbour")
    assert {record.status for record in found.values()} == {Status.OK}
    assert [name for name, record in found.items() if Flag.CHANGED_SETTINGS in record.flags] == ["gpu_sets_flags"]


def test_weights_that_a_neighbour_wrote_over_are_measured_again():
    found, records = measure("gpu_base", "gpu_scribbles_over_neighbour", "gpu_neighbour")
    assert {record.status for record in records} == {Status.OK}
    assert found["gpu_neighbour"].isolated
    assert not found["gpu_scribbles_over_neighbour"].isolated


def test_who_writes_over_the_baseline_is_found():
    found, records = measure("gpu_base", "gpu_scribbles_over_base", "gpu_neighbour")
    assert found["gpu_scribbles_over_base"].status is Status.WRONG
    assert "it spoils what runs beside it: gpu_base" in found["gpu_scribbles_over_base"].reason
    assert found["gpu_base"].status is found["gpu_neighbour"].status is Status.OK
    assert all(record.status is Status.OK for record in records if record.baseline)
