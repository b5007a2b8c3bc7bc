"""Stands in for `marlin-bench run` in a bisection: invented times, which a file of the tree makes slower.

The tree's `kernel.txt` holds `slower = 0.05` (of time), `status = wrong`, or `slower = noisy`; `machine.txt` beside the
results folder may say that the machine no longer shows any difference, that Ctrl-C
is pressed, and worse.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import numpy as np
from synthetic_run import RunSpec, make_record

from marlin_bench.record import Status
from marlin_bench.suite import load_suite

TIMES = {"cublas_fp16": 3e-4, "marlin": 1e-4}

parser = argparse.ArgumentParser()
parser.add_argument("suite")
parser.add_argument("--results", type=Path, required=True)
parser.add_argument("--backend", required=True)
parser.add_argument("--only", action="append", required=True)
options = parser.parse_args()

tree, suite = Path.cwd(), load_suite(options.suite)
kernel = dict(line.split(" = ") for line in (tree / "kernel.txt").read_text().splitlines())
machine = Path(os.environ["STAND_IN_MACHINE"]).read_text() if "STAND_IN_MACHINE" in os.environ else ""
# which tree this is may be known here, for the machine to change between ends and steps, and nowhere else
step = options.results.parent.name
with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
    log.write(f"{step} {options.results.name} {os.environ['MARLIN_BENCH_COMMIT'][:10]} {' '.join(options.only)}\n")
if machine in {"SIGINT", "SIGTERM"} and step != "ends":
    os.kill(os.getppid(), signal.Signals[machine])
    signal.pause()
if machine == "no device" and step != "ends":
    print("marlin-bench: the GPU has fallen off the bus", file=sys.stderr)
    sys.exit(6)
if machine == "lost good" and step != "ends" and options.results.name == "good":
    print("marlin-bench: the disk is full", file=sys.stderr)
    sys.exit(2)
slower = kernel.get("slower", "0")
share = 0.0 if machine == "moved" and step != "ends" else 0.015 if slower == "noisy" else float(slower)
noise = 0.2 if slower == "noisy" else 0.001
status = Status(kernel.get("status", "ok"))
records = []
for cell in options.only:
    M = int(cell.rpartition("/M")[2])
    for backend in options.backend.split(","):
        is_kernel = backend == "marlin"
        time = TIMES[backend] * (1 + share * (is_kernel and M == 16))
        drift = np.exp(np.random.default_rng(len(str(options.results))).normal(0, noise, 30)) if is_kernel else None
        state = status if is_kernel else Status.OK
        records.append(make_record(backend, M, time, noise=0.0005, drift=drift, status=state, run=str(options.results)))
run = RunSpec(records, name="20261121T080000Z_h200_abc").write(options.results)
print(run.folder)
