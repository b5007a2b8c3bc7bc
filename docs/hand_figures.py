"""Prints a table of docs/peers.md: speed-ups measured by hand elsewhere, beside those of a run of `peers`.

    marlin-bench run peers && python docs/hand_figures.py results/<device>/<run>

Those figures were taken on an H200 on 2026-11-21 with the same libraries: graph replay, rotated weights, random data,
FP16 by F.linear (weights [N, K], the record's layout NK), and each kernel by itself. A run differs in two things: its
FP16 is the faster of two layouts, and its kernels have turns, at another clock than the one that the power limit leaves
a kernel by itself. `--alone` therefore measures what is not explained once more as the figures were taken, each kernel
by itself until the clock has settled; it needs the GPU and adds what it finds to docs/hand_figures.json, which the
table is judged with.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from marlin_bench.record import Status
from marlin_bench.store import read_run

ALONE = Path(__file__).with_suffix(".json")
BEGIN, END = "<!-- hand figures: begin -->", "<!-- hand figures: end -->"
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
FP16_US = {
    "8192x8192": (38, 39, 34, 34, 36, 37, 57, 106, 200, 803),
    "8192x28672": (118, 118, 113, 114, 116, 132, 200, 359, 722, 2854),
}
SPEEDUPS = {
    "humming": (
        (2.45, 2.45, 1.91, 1.58, 1.43, 1.11, 1.00, 0.94, 0.96, 1.01),
        (3.11, 2.94, 2.38, 1.70, 1.53, 1.29, 0.98, 0.99, 1.02, 1.01),
    ),
    "quack": (
        (2.03, 2.19, 1.90, 1.77, 1.60, 1.28, 1.12, 1.13, 1.06, 1.06),
        (2.25, 2.26, 2.17, 2.05, 1.59, 1.30, 1.11, 1.01, 1.11, 0.95),
    ),
    "vllm_machete": (
        (1.60, 1.65, 1.43, 1.42, 1.27, 1.02, 0.98, 1.06, 1.01, 0.97),
        (2.32, 2.33, 2.22, 2.04, 1.42, 1.36, 1.04, 1.02, 1.06, 0.92),
    ),
    "vllm_marlin": (
        (2.37, 2.41, 1.92, 1.22, 0.90, 0.71, 0.56, 0.56, 0.55, 0.54),
        (2.43, 2.39, 2.25, 1.75, 1.25, 0.75, 0.61, 0.51, 0.47, 0.60),
    ),
    "gptq_exllama": (
        (2.42, 1.00, 0.49, 0.26, 0.36, 0.35, 0.49, 0.56, 0.74, 0.89),
        (2.72, 1.00, 0.51, 0.26, 0.39, 0.44, 0.55, 0.67, 0.83, 0.94),
    ),
    "awq": (
        (0.68, 0.65, 0.52, 0.49, 0.28, 0.18, 0.25, 0.40, 0.56, 0.85),
        (1.39, 1.31, 1.17, 0.65, 0.36, 0.22, 0.19, 0.29, 0.48, 0.82),
    ),
    "bitsandbytes_nf4": (
        (1.11, 0.42, 0.36, 0.31, 0.32, 0.32, 0.42, 0.59, 0.72, 0.92),
        (1.15, 0.33, 0.31, 0.31, 0.32, 0.34, 0.44, 0.57, 0.77, 0.91),
    ),
    "tinygemm": (
        (1.83, 0.82, 0.41, 0.22, 0.12, 0.06, 0.05, 0.05, 0.05, 0.05),
        (1.73, 0.70, 0.43, 0.22, 0.11, 0.07, 0.05, 0.04, 0.05, 0.05),
    ),
    "w4a8_fp8": (
        (1.55, 1.57, 1.37, 1.28, 1.33, 1.28, 1.57, 2.08, 1.93, 1.91),
        (2.50, 2.47, 2.36, 2.24, 2.00, 1.80, 1.97, 1.73, 1.98, 1.85),
    ),
}
BASELINE = "cublas_fp16"
NEAR = 0.10
BUSY_SECONDS, MOST_BUSY, TURNS, BLOCK_SECONDS = 0.3, 8, 9, 0.004
SETTLED = 0.01  # of the clock, between two looks at it
UNEXPLAINED = "not explained"
SAME_CYCLES = 0.03
LEAST_SHARED = 0.5


def typical_us(record):
    """The median block."""
    return median(time for block in record.blocks for time in block.times) * 1e6


def compared(run):
    """(layer, M, name, hand speed-up, hand FP16 µs, record, FP16 record) of every cell that both have."""
    found = {
        (record.layer, record.M, record.backend): record
        for record in run.records
        if record.status is Status.OK and record.timer == "kernel" and not (record.isolated and record.baseline)
    }
    for name, rows in SPEEDUPS.items():
        for (layer, baselines), speedups in zip(FP16_US.items(), rows, strict=True):
            for M, fp16_us, speedup in zip(BATCHES, baselines, speedups, strict=True):
                keys = (layer, M, name), (layer, M, BASELINE)
                if all(key in found for key in keys):
                    yield layer, M, name, speedup, fp16_us, *(found[key] for key in keys)


def differs(here, there):
    """Whether two numbers are further apart than 10 %."""
    return not abs(here / there - 1) <= NEAR


def alone(rows):
    """µs and MHz of each kernel by itself, and of FP16 in F.linear's layout, for what differs in ratio or in time."""
    import torch

    from marlin_bench.backends import load_backend
    from marlin_bench.entrant import DTYPES, LayerCache
    from marlin_bench.machine import open_machine
    from marlin_bench.operands import LayerKey, make_activations

    wanted = {}
    for layer, M, name, _, _, record, baseline in rows:
        if "8" not in record.activation_dtype:  # products of 8-bit activations differ by their baseline alone
            wanted[layer, M, BASELINE] = baseline, {"layout": "NK"}
            wanted[layer, M, name] = record, record.choice
    machine, cache = open_machine("cuda"), LayerCache()
    for (layer, M, name), (record, choice) in sorted(wanted.items(), key=lambda item: (item[0][0], item[0][2])):
        backend = load_backend(name)
        backend.load()
        cache.turn_to(LayerKey(record.K, record.N, record.group_size, record.seed), machine)
        packed_sets = cache.packed_sets(backend, machine)
        activations = make_activations(record.seed, M, record.K, 0, DTYPES[backend.activation_dtype], "cuda")
        output = torch.empty(M, record.N, dtype=DTYPES[backend.output_dtype], device="cuda")
        launches = [backend.launch(packed, activations, output, choice) for packed in packed_sets]
        for launch in launches:
            launch()
        stopwatch = machine.timers["kernel"].stopwatch(launches, BLOCK_SECONDS)
        clock = 0.0
        for _ in range(MOST_BUSY):
            stopwatch.keep_busy(BUSY_SECONDS)
            before, clock = clock, stopwatch.sample().sm_clock_hz
            if abs(clock - before) <= SETTLED * clock:
                break
        samples = [stopwatch.sample() for _ in range(TURNS)]
        us = median(time for sample in samples for time in sample.times) * 1e6
        mhz = median(sample.sm_clock_hz for sample in samples) * 1e-6
        yield {"layer": layer, "M": M, "backend": name, "us": round(us, 1), "mhz": round(mhz)}


def by_place(run):
    """The record of every kernel in a run, by layer, M and name: the same kernels at other clocks."""
    return {(layer, M, name): record for layer, M, name, _, _, record, _ in compared(run)}


def reason(row, singles, elsewhere=None):
    """Why a figure differs, from the numbers; None where neither speed-up nor time does.

    singles: what was measured by itself; elsewhere: records of another run, by layer, M and name.
    """
    *_, speedup, fp16_us, record, baseline = row
    us, base_us, hand_us = typical_us(record), typical_us(baseline), fp16_us / speedup
    if differs(us, hand_us):
        return reason_of_time(row, singles, elsewhere or {})
    if not differs(base_us / us, speedup):
        return None
    return f"the time agrees ({us / hand_us - 1:+.0%}); FP16 takes {base_us / fp16_us - 1:+.0%} here"


def reason_of_time(row, singles, elsewhere):
    """Why a time differs: whether the clock accounts for it."""
    layer, M, name, speedup, fp16_us, record, baseline = row
    by_itself, fp16_itself = (singles.get((layer, M, one)) for one in (name, BASELINE))
    hand_us, us, base_us = fp16_us / speedup, typical_us(record), typical_us(baseline)
    if by_itself is None:
        with_fp16 = (base_us / fp16_us - 1) / (us / hand_us - 1)  # 1: FP16's time differs as much, the same way
        if not differs(base_us / us, speedup) and with_fp16 >= LEAST_SHARED:
            apart, fp16_apart = us / hand_us - 1, base_us / fp16_us - 1
            return f"the speed-up agrees; the time differs ({apart:+.0%}) as FP16's does ({fp16_apart:+.0%})"
        return reason_from_elsewhere(record, hand_us, elsewhere.get((layer, M, name)))
    if not differs(by_itself["us"], hand_us):
        return "the clock: by itself it takes what was measured by hand"
    if fp16_itself and not differs(fp16_itself["us"] / by_itself["us"], speedup):
        return f"the clock: both by themselves give {fp16_itself['us'] / by_itself['us']:.2f}"
    cycles, cycles_alone = us * record.sm_clock_hz * 1e-6, by_itself["us"] * by_itself["mhz"]
    slowest, fastest = (choose(single["mhz"] for single in singles.values()) for choose in (min, max))
    if abs(cycles_alone / cycles - 1) <= SAME_CYCLES and slowest <= cycles_alone / hand_us <= fastest:
        return (
            f"the clock: {cycles * 1e-6:.2f} million cycles in turns, {cycles_alone * 1e-6:.2f} by itself; by hand "
            f"that is {cycles_alone / hand_us:.0f} MHz, and kernels by themselves had {slowest} to {fastest}"
        )
    return UNEXPLAINED


def reason_from_elsewhere(record, hand_us, other):
    """Whether another run, at another clock, took as many cycles and the time that was measured by hand."""
    if other is None or differs(typical_us(other), hand_us):
        return UNEXPLAINED
    here, there = (typical_us(one) * one.sm_clock_hz * 1e-6 for one in (record, other))
    if abs(there / here - 1) > SAME_CYCLES:
        return UNEXPLAINED
    us, mhz = typical_us(other), other.sm_clock_hz * 1e-6
    return (
        f"the clock: {here * 1e-6:.2f} million cycles here, {there * 1e-6:.2f} in turns without a rest, where at "
        f"{mhz:.0f} MHz it takes {us:.0f} µs ({us / hand_us - 1:+.0%})"
    )


def table(rows, singles, elsewhere=None):
    """Markdown: how many agree, by speed-up and by time, and a line for each that does not."""
    lines, reasons, by_speedup, by_time = [], [], 0, 0
    for row in rows:
        layer, M, name, speedup, fp16_us, record, baseline = row
        us, base_us, hand_us = typical_us(record), typical_us(baseline), fp16_us / speedup
        by_speedup += not differs(base_us / us, speedup)
        by_time += not differs(us, hand_us)
        why = reason(row, singles, elsewhere)
        if why is None:
            continue
        reasons.append(why)
        single, fp16_single = (singles.get((layer, M, one)) for one in (name, BASELINE))
        fp16_alone = f"{fp16_single['us']:.4g}" if fp16_single else "–"
        alone_us = f"{single['us']:.4g} at {single['mhz']}" if single else "–"
        lines.append(
            f"| {layer} | {M} | `{name}` | {speedup:.2f} | {base_us / us:.2f} | {hand_us:.4g} | "
            f"{us:.4g} at {record.sm_clock_hz * 1e-6:.0f} | {alone_us} | "
            f"{fp16_us} | {base_us:.4g} | {fp16_alone} | {why} |"
        )
    unexplained = reasons.count(UNEXPLAINED) or "none"
    return "\n".join(
        [
            f"{len(rows)} figures: {by_speedup} agree within 10 % as speed-ups, {by_time} as times. "
            f"{len(lines)} differ in either; unexplained: {unexplained}.",
            "",
            "| layer | M | kernel | speed-up by hand | run | µs by hand | run at MHz | alone at MHz | FP16 µs by hand "
            "| run | alone | why |",
            "|" + "---|" * 12,
            *lines,
        ]
    )


def kept_alone():
    """What was measured alone before, by layer, M and backend."""
    lines = json.loads(ALONE.read_text(encoding="utf-8")) if ALONE.exists() else []
    return {(line["layer"], line["M"], line["backend"]): line for line in lines}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder of the suite peers")
    parser.add_argument("--alone", action="store_true", help="measure what is not explained by itself first")
    parser.add_argument("--beside", type=Path, help="a run of the same kernels at other clocks, to explain with")
    asked = parser.parse_args()
    all_rows, known = list(compared(read_run(asked.run))), kept_alone()
    if asked.alone:
        for found in alone([row for row in all_rows if reason(row, known) == UNEXPLAINED]):
            print(found, file=sys.stderr, flush=True)
            known[found["layer"], found["M"], found["backend"]] = found
            ALONE.write_text("[" + ",\n".join(map(json.dumps, known.values())) + "]\n", encoding="utf-8")
    print(table(all_rows, known, by_place(read_run(asked.beside)) if asked.beside else None))
