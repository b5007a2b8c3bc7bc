"""Prints the table of docs/measurement.md: three timers of this suite beside triton.testing.do_bench.

    marlin-bench run crosscheck && python docs/crosscheck.py results/<device>/<run>

The records give `kernel`, `cold` and `host`. Measured here, in a process of its own: do_bench (median, its own 256 MB
L2 flush before every call, first operand set), and `alone`: a graph whose launches are kept apart by an empty kernel,
less that kernel's own time, with the cold timer in turns beside it. Launches that may start before their predecessor
ends (programmatic dependent launch) overlap in the `kernel` graph; alone they cannot, and cold they never do. Needs a
GPU and triton.
"""

import sys
from pathlib import Path
from statistics import median

import torch
import triton.testing

from marlin_bench.backends import load_backend
from marlin_bench.cuda_timer import quick_seconds
from marlin_bench.entrant import DTYPES, LayerCache
from marlin_bench.machine import open_machine
from marlin_bench.operands import LayerKey, make_activations
from marlin_bench.record import Status
from marlin_bench.store import read_run

TURNS = 15
EMPTY_LAUNCHES = 200
BLOCK_SECONDS = 0.004


def measured_here(record, machine, cache):
    """Seconds a call by do_bench and in the graph that keeps launches apart; cold over that, in cycles too."""
    backend = load_backend(record.backend)
    cache.turn_to(LayerKey(record.K, record.N, record.group_size, record.seed), machine)
    packed_sets = cache.packed_sets(backend, machine)
    dtype = DTYPES[record.activation_dtype]
    activations = make_activations(record.seed, record.M, record.K, 0, dtype, "cuda")
    output = torch.empty(record.M, record.N, dtype=DTYPES[backend.output_dtype], device="cuda")
    launches = [backend.launch(packed, activations, output, record.choice) for packed in packed_sets]
    for launch in launches:
        launch()
    do_bench = triton.testing.do_bench(launches[0], warmup=50, rep=200, return_mode="median") * 1e-3

    empty = machine.probe.empty
    apart = [step for launch in launches for step in (launch, empty)]
    stopwatches = {
        "alone": machine.timers["kernel"].stopwatch(apart, BLOCK_SECONDS),
        "cold": machine.timers["cold"].stopwatch(launches, BLOCK_SECONDS),
    }
    floor = quick_seconds([empty] * EMPTY_LAUNCHES)
    seconds, cycles = {name: [] for name in stopwatches}, {name: [] for name in stopwatches}
    for _ in range(TURNS):
        for name, stopwatch in stopwatches.items():
            sample = stopwatch.sample()
            typical = median(sample.times)
            seconds[name].append(2 * typical - floor if name == "alone" else typical)
            cycles[name].append(seconds[name][-1] * (sample.sm_clock_hz or float("nan")))
    ratios = [median(found["cold"]) / median(found["alone"]) for found in (seconds, cycles)]
    return do_bench, median(seconds["alone"]), *ratios


def main(folder):
    """Print the table."""
    machine, cache = open_machine("cuda"), LayerCache()
    cells = {}
    for record in read_run(folder).records:
        if record.status is Status.OK:
            cells.setdefault((record.cell, record.backend), {})[record.timer] = record
    print(
        "| cell | backend | kernel µs | MHz | cold µs | MHz | cold / kernel | in cycles | alone µs | cold / alone"
        " | in cycles | do_bench µs | host µs |"
    )
    print("|---" * 13 + "|")
    for (cell, name), found in cells.items():
        times = {timer: median(record.times) for timer, record in found.items()}
        clocks = {timer: (record.sm_clock_hz or float("nan")) / 1e6 for timer, record in found.items()}
        do_bench, alone, to_alone, to_alone_cycles = measured_here(found["kernel"], machine, cache)
        row = [cell, name, f"{times['kernel'] * 1e6:.2f}", f"{clocks['kernel']:.0f}"]
        ratio = times["cold"] / times["kernel"]
        row += [f"{times['cold'] * 1e6:.2f}", f"{clocks['cold']:.0f}", f"{ratio:.3f}"]
        row += [f"{ratio * clocks['cold'] / clocks['kernel']:.3f}", f"{alone * 1e6:.2f}", f"{to_alone:.3f}"]
        row += [f"{to_alone_cycles:.3f}", f"{do_bench * 1e6:.2f}", f"{times['host'] * 1e6:.2f}"]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
