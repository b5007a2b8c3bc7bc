"""Prints the table of docs/measurement.md: three timers of this suite beside triton.testing.do_bench.

    marlin-bench run crosscheck && python docs/crosscheck.py results/<device>/<run>

The records give `kernel`, `cold` and `host`; do_bench (median, its own 256 MB L2 flush before every call) is measured
here, in a fresh process, on the first operand set of each cell. Needs a GPU and triton.
"""

import sys
from pathlib import Path
from statistics import median

import torch
import triton.testing

from marlin_bench.backends import load_backend
from marlin_bench.environment import pin_cuda_math
from marlin_bench.operands import LayerKey, make_activations, make_weights
from marlin_bench.record import Status
from marlin_bench.store import read_run

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def do_bench_seconds(record):
    """Median seconds of one call by triton.testing.do_bench."""
    backend = load_backend(record.backend)
    weights = make_weights(LayerKey(record.K, record.N, record.group_size, record.seed), 0, "cuda")
    packed = backend.pack(weights)
    dtype = DTYPES[record.activation_dtype]
    activations = make_activations(record.seed, record.M, record.K, 0, dtype, "cuda")
    output = torch.empty(record.M, record.N, dtype=DTYPES[backend.output_dtype], device="cuda")
    launch = backend.launch(packed, activations, output, record.choice)
    return triton.testing.do_bench(launch, warmup=50, rep=200, return_mode="median") * 1e-3


def main(folder):
    """Print the table."""
    pin_cuda_math()
    cells = {}
    for record in read_run(folder).records:
        if record.status is Status.OK:
            cells.setdefault((record.cell, record.backend), {})[record.timer] = record
    print("| cell | backend | kernel µs | MHz | cold µs | MHz | cold / kernel | in cycles | do_bench µs | host µs |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (cell, name), found in cells.items():
        times = {timer: median(record.times) for timer, record in found.items()}
        clocks = {timer: record.sm_clock_hz or float("nan") for timer, record in found.items()}
        ratio = times["cold"] / times["kernel"]
        in_cycles = ratio * clocks["cold"] / clocks["kernel"]
        microseconds = {timer: f"{seconds * 1e6:.2f}" for timer, seconds in times.items()}
        megahertz = {timer: f"{clock / 1e6:.0f}" for timer, clock in clocks.items()}
        row = [cell, name, microseconds["kernel"], megahertz["kernel"], microseconds["cold"], megahertz["cold"]]
        row += [
            f"{ratio:.3f}",
            f"{in_cycles:.3f}",
            f"{do_bench_seconds(found['kernel']) * 1e6:.2f}",
            microseconds["host"],
        ]
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
