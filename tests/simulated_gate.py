"""Pairs of simulated runs for comparisons: noise as GPUs make it, and a kernel that got slower by a known share."""

import math
from dataclasses import replace

import numpy as np
from simulated_noise import another_run, fitted_cells, simulate
from synthetic_run import RunSpec, make_record

from marlin_bench.gate import judge
from marlin_bench.gate_case import Case
from marlin_bench.gate_policy import Policy
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.record import Block, RunMeta
from marlin_bench.retry import cells_to_repeat, repeated
from marlin_bench.store import Run

NOISES = ("plain", "skewed", "drifting", "bimodal")
BLOCKS = 30
H200_BLOCKS = 50  # in the median cell of the published run
_STRIDE = 331  # cells apart in the table of published ones
CLOCK_HZ = 1.7e9
TIMES = {"cublas_fp16": 3e-4, "marlin": 1e-4}
_PROTOTYPES = {backend: make_record(backend, 16, time) for backend, time in TIMES.items()}


def _block(index, time, clock):
    return Block(index=index, order=0, times=[time], started_s=0.1 * index, sm_clock_hz=clock)


def record(backend, cell, times, clocks=None, **changes):
    """A right record with these times, one a block."""
    clocks = [CLOCK_HZ] * len(times) if clocks is None else clocks
    blocks = [_block(*part) for part in zip(range(len(times)), map(float, times), map(float, clocks), strict=True)]
    return _PROTOTYPES[backend].model_copy(update={"cell": cell, "blocks": blocks, **changes})


def _logs(rng, noise, level):
    """Noise of one backend in one run: between blocks, and 0.1 % from one process to the next."""
    logs = level + rng.normal(0, 0.003, BLOCKS) + rng.normal(0, 0.001)
    if noise == "skewed":
        logs += 0.003 * rng.exponential(1, BLOCKS)
    if noise == "bimodal":
        logs += 0.01 * (rng.random(BLOCKS) < rng.uniform(0, 0.3))
    return logs


def simulated_records(rng, noise, *, cells, slower=0.0, only=None):
    """Records of one run; `slower` is the share by which marlin lost time, in all cells or in `only`."""
    if noise == "h200_fit":
        return _like_an_h200(rng, cells, slower, only)
    records, machine = [], rng.normal(0, 0.0015)
    for number in range(cells):
        drift = np.zeros(BLOCKS)
        if noise == "drifting":
            turns = np.linspace(0, rng.uniform(1, 6), BLOCKS) + rng.uniform(0, 6)
            drift = rng.normal(0, 0.01) * np.linspace(-0.5, 0.5, BLOCKS) + 0.006 * np.sin(turns)
        is_compute_bound = bool(rng.random() < 0.5)  # only these feel the clock
        clocks = CLOCK_HZ * np.exp(-drift)
        for backend, time in TIMES.items():
            logs = _logs(rng, noise, math.log(time) + machine) + (drift if is_compute_bound else 0.1 * drift)
            if backend == "marlin" and (only is None or number in only):
                logs = logs + math.log1p(slower)
            records.append(record(backend, f"layer/g128/M{number}", np.exp(logs), clocks))
    return records


def _like_an_h200(rng, cells, slower, only):
    """Records with the noise of published cells (simulated_noise.py); a cell is the same one in every run."""
    table, records = fitted_cells(), []
    for number in range(cells):
        for place, (backend, time) in enumerate(TIMES.items()):
            cell = table[(_STRIDE * (number + 1) + place) % len(table)]
            level, clock = another_run(rng, cell)
            logs, clocks = simulate(rng, cell, H200_BLOCKS, level, clock)
            if backend == "marlin" and (only is None or number in only):
                logs = logs + math.log1p(slower)
            records.append(record(backend, f"layer/g128/M{number}", time * np.exp(logs), CLOCK_HZ * np.exp(clocks)))
    return records


def simulated_run(meta: RunMeta, folder, records) -> Run:
    """A run in memory."""
    return Run(folder, meta, records)


def meta_of(tmp_path, **changes) -> RunMeta:
    """The head of a synthetic run."""
    spec = RunSpec([make_record("marlin", 16, 1e-4)], **changes)
    return spec.write(tmp_path).meta


def relative_case(meta, folder, old, new, rule=None):
    """A gate with one relative rule on marlin."""
    rule = rule or RelativeRule.model_validate({"rule": "relative", "select": {"backend": "marlin"}})
    return Case(Run(folder, meta, new), Policy("simulated", "simulated.yaml", (rule,), None), Run(folder, meta, old))


def gate_report(meta, folder, rng, noise, *, cells, slower=0.0, accepted=1, retries=0):
    """A gate as in CI: a baseline of so many processes, failing and open cells measured again in so many more."""
    old = Run(folder, meta, simulated_records(rng, noise, cells=cells))
    for _ in range(accepted - 1):
        old = repeated(old, simulated_records(rng, noise, cells=cells))
    new = simulated_records(rng, noise, cells=cells, slower=slower)
    case = relative_case(meta, folder, old.records, new)
    report = judge(case)
    for _ in range(retries):
        open_cells = cells_to_repeat(report, (one.cell for one in case.run.records))
        if not open_cells:
            break
        again = simulated_records(rng, noise, cells=cells, slower=slower)
        case = replace(case, run=repeated(case.run, [one for one in again if one.cell in open_cells]))
        report = judge(case)
    return report
