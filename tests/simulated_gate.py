"""Pairs of simulated runs for comparisons: noise as GPUs make it, and a kernel that got slower by a known share."""

import math

import numpy as np
from synthetic_run import RunSpec, make_record

from marlin_bench.gate_case import Case
from marlin_bench.gate_policy import Policy
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.record import Block, RunMeta
from marlin_bench.store import Run

NOISES = ("plain", "skewed", "drifting", "bimodal")
BLOCKS = 30
CLOCK_HZ = 1.7e9
TIMES = {"cublas_fp16": 3e-4, "marlin": 1e-4}
_PROTOTYPES = {backend: make_record(backend, 16, time) for backend, time in TIMES.items()}


def _block(index, time, clock):
    # built without validation: a thousand gates hold half a million blocks
    return Block.model_construct(
        index=index, order=0, times=[time], started_s=0.1 * index, sm_clock_hz=clock, telemetry=None, flags=[]
    )


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
