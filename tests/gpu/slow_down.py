"""What `compare` must see, and what it must not: three runs of one code, the last with a real slow-down of 2 %.

python tests/gpu/slow_down.py RESULTS

`marlin_spun` is marlin with a kernel behind it that spins for a number of SM cycles: none in the first two runs (A/A),
2 % of the cycles that each cell took in the first run in the third. Nothing else differs, so that cuBLAS and marlin are
A/A in every pair of runs. Prints what `compare` says of each pair. The spin is in the record, as a part of `choice`.
"""

import json
import os
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import cupy
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from marlin_bench import worker
from marlin_bench.backends import register
from marlin_bench.backends.marlin import Marlin
from marlin_bench.compare import compare
from marlin_bench.cuda_stream import on_torch_stream
from marlin_bench.executor import LocalExecutor, LocalSession
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.plan import Selection
from marlin_bench.run import run_suite
from marlin_bench.store import read_run
from marlin_bench.suite import load_suite

SLOWER = 0.02
CYCLES_VARIABLE = "SPUN_CYCLES"  # a JSON file: {"M N K": cycles}
LEAST_SECONDS = 20e-6
SUITE = Path(__file__).with_suffix(".yaml")
SOURCE = """
extern "C" __global__ void spin_cycles(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}
"""


@cache
def spin_kernel():
    return cupy.RawKernel(SOURCE, "spin_cycles")


@cache
def spin_table():
    path = os.environ.get(CYCLES_VARIABLE)
    return json.loads(Path(path).read_text()) if path else {}


@register
class MarlinSpun(Marlin):
    """marlin, then one thread that spins."""

    name = "marlin_spun"
    summary = "marlin with a spin of known cycles behind it"

    def tune(self, packed, activations, outputs, effort):
        M, K = activations[0].shape
        cycles = spin_table().get(f"{M} {outputs[0].shape[1]} {K}", 0)
        return {**super().tune(packed, activations, outputs, effort), "spin_cycles": str(cycles)}

    def launch(self, packed, activations, output, choice):
        multiply, spin = super().launch(packed, activations, output, choice), spin_kernel()
        arguments = (np.int64(int(choice["spin_cycles"])),)

        def both():
            multiply()
            with on_torch_stream():
                spin((1,), (1,), arguments)

        return both


class Session(LocalSession):
    """A worker without ceilings: nothing here is held against a roof."""

    def ceilings(self):
        return []


class Executor(LocalExecutor):
    """Workers that know `marlin_spun`."""

    def open(self, device):
        return Session(device, [sys.executable, __file__, "--worker"])


class Progress:
    """A line a cell."""

    def started(self, cells_total, cells_done):
        pass

    def cell_started(self, cell):
        pass

    def backend_progress(self, cell, backend, phase):
        pass

    def record_done(self, record):
        if record.status != "ok":
            self.note(f"{record.cell} {record.backend}: {record.status} {record.reason}")

    def cell_done(self, cell, seconds):
        self.note(f"{cell.id} {seconds:.2f} s")

    def note(self, sentence):
        print(sentence, file=sys.stderr, flush=True)


def measure(results):
    outcome = run_suite(
        load_suite(str(SUITE)),
        selection=Selection(),
        results=results,
        devices=None,
        budget_s=None,
        progress=Progress(),
        executor=Executor(),
    )
    print(outcome.folder, f"{outcome.wall_s:.1f} s", flush=True)
    return read_run(outcome.folder)


def two_percent(run):
    """SM cycles to spin in each cell."""
    return {
        f"{record.M} {record.N} {record.K}": round(SLOWER * float(np.median(record.times)) * record.sm_clock_hz)
        for record in run.records
        if record.backend == MarlinSpun.name and record.blocks
    }


def verdicts(old, new):
    """How often each verdict falls, for marlin_spun and for the others, in cells of 20 microseconds and more."""
    found = {True: Counter(), False: Counter()}
    for change in compare(old.records, new.records, RelativeRule(rule="relative")):
        if change.old and change.old.blocks and np.median(change.old.times) >= LEAST_SECONDS:
            found[change.backend == MarlinSpun.name][change.judgement.value] += 1
    return f"marlin_spun {dict(found[True])}, the others {dict(found[False])}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        code = worker.main()
        sys.stderr.flush()
        os._exit(code)
    results = Path(sys.argv[1])
    first, second = measure(results), measure(results)
    cycles = results / "spun_cycles.json"
    cycles.write_text(json.dumps(two_percent(first), indent=1) + "\n")
    os.environ[CYCLES_VARIABLE] = str(cycles.resolve())
    third = measure(results)
    for name, old, new in (
        ("first, second", first, second),
        ("first, third", first, third),
        ("second, third", second, third),
    ):
        print(f"{name}: {verdicts(old, new)}")
