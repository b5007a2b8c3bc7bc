"""Run folders with known numbers: an H200 as it was measured, a small CPU, and whatever else a test asks for."""

from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np

from marlin_bench.record import (
    Block,
    Ceiling,
    Environment,
    Origin,
    Published,
    Record,
    RunMeta,
    Status,
    Telemetry,
    record_id,
)
from marlin_bench.record_lines import line_of
from marlin_bench.run_writer import open_writer
from marlin_bench.store import RECORDS_FILE, Run

BATCHES = (1, 16, 32, 64, 128, 256, 512, 1024)
LAYERS = {"square_8k": (8192, 8192), "mlp_up": (28672, 8192), "72k_x_18k": (18432, 73728)}  # name -> N, K

# Microseconds measured on an H200: cuBLAS FP16, and the original Marlin kernels (dense, 2:4) beside it.
H200_US = {
    "72k_x_18k": {
        "cublas_fp16": (604, 617, 648, 696, 654, 1081, 2025, 4246),
        "marlin": (241, 245, 314, 449, 905, 2008, 4659, 8599),
        "marlin_sparse": (200.7, 205.0, 256.1, 421.8, 860.5, 1930, 4050, 7321),
    },
    "square_8k": {
        "cublas_fp16": (38.5, 34.9, 34.7, 35.4, 36.1, 53.3, 96.6, 187),
        "marlin": (17.6, 17.7, 24.0, 33.6, 51.8, 99.0, 197, 437),
        "marlin_sparse": (15.2, 15.5, 22.5, 35.4, 52.3, 102.5, 197, 374),
    },
    "mlp_up": {
        "cublas_fp16": (111, 113, 114, 116, 134, 187, 340, 657),
        "marlin": (49.7, 51.0, 59.7, 86.2, 165, 393, 764, 1374),
    },
}
H200_CLOCK_HZ = (1980e6, 1980e6, 1850e6, 1700e6, 1550e6, 1450e6, 1410e6, 1400e6)
FORMATS = {
    "cublas_fp16": "fp16",
    "cublas_bf16": "bf16",
    "marlin": "int4_g128",
    "marlin_sparse": "int4_2of4_g128",
    "naive_w4a16": "int4_g128",
    "tinygemm": "int4_g128_zp",
    "dense_bf16": "bf16",
    "dense_fp32": "fp32",
    "tinygemm_cpu": "int4_g128_zp",
}
DTYPES = {"cublas_bf16": "bf16", "tinygemm": "bf16", "dense_bf16": "bf16", "tinygemm_cpu": "bf16", "dense_fp32": "fp32"}
BASELINES = {"cublas_fp16", "cublas_bf16", "dense_bf16", "dense_fp32"}
H200_CEILINGS = [
    Ceiling(name="hbm_read", value=4.31e12, sm_clock_hz=1980e6, detail="TMA read, 16 KiB x 8"),
    Ceiling(name="l2_read", value=9.5e12, sm_clock_hz=1980e6, detail="vector read"),
    Ceiling(name="fp16_tensor", value=760e12, sm_clock_hz=1410e6, detail="cuBLAS 8192x8192x8192"),
    Ceiling(name="launch", value=1.4e-6, sm_clock_hz=1980e6, detail="empty kernel in a graph"),
]


def make_record(
    backend,
    M,
    time_s,
    *,
    layer="square_8k",
    N=8192,
    K=8192,
    group_size=128,
    status=Status.OK,
    reason=None,
    blocks=30,
    noise=0.004,
    clock_hz=1410e6,
    timer="kernel",
    device="NVIDIA H200",
    run="20261121T080000Z_h200_abc",
    suite="h200",
    drift=None,
    flags=(),
    isolated=False,
    first_block=0,
    block_clocks=None,
):
    """A measured record; `drift` multiplies the time of each block, noise is lognormal and its seed is the content."""
    cell = f"{layer}/g{'K' if group_size is None else group_size}/M{M}"
    rng = np.random.default_rng(crc32(f"{backend} {M} {layer} {timer} {run}".encode()))
    shift = np.ones(blocks) if drift is None else np.asarray(drift)
    samples = time_s * shift * np.exp(rng.normal(0, noise, blocks)) if noise else time_s * shift
    clocks = block_clocks if block_clocks is not None else [clock_hz] * blocks
    return Record(
        id=record_id(device, f"{suite}/{cell}", backend, timer),
        run=run,
        cell=cell,
        suite=suite,
        layer=layer,
        device=device,
        timer=timer,
        backend=backend,
        backend_version="1.0",
        baseline=backend in BASELINES,
        M=M,
        N=N,
        K=K,
        group_size=group_size,
        format=FORMATS.get(backend, "int4_g128"),
        activation_dtype=DTYPES.get(backend, "fp16"),
        status=status,
        reason=reason,
        flags=list(flags),
        isolated=isolated,
        converged=status is Status.OK,
        blocks=[]
        if status is not Status.OK
        else [
            Block(
                index=first_block + index,
                order=0,
                times=[float(sample)],
                started_s=0.1 * index,
                sm_clock_hz=clock,
                telemetry=Telemetry(sm_clock_hz=clock, power_w=600.0, temperature_c=55.0),
            )
            for index, (sample, clock) in enumerate(zip(samples, clocks, strict=True))
        ],
    )


def published_record(speedup=None, time_s=None, M=16, backend="marlin"):
    """A quotation, as results/published/a10_paper holds them."""
    made = make_record(backend, M, 1.0, layer="72k_x_18k", N=18432, K=73728, device="NVIDIA A10", suite="a10_paper")
    return made.model_copy(
        update={
            "blocks": [],
            "origin": Origin.PUBLISHED,
            "published": Published(speedup=speedup, time_s=time_s, source="Fig. 1", clocks="boost"),
            "converged": None,
        }
    )


def environment(**changes):
    """An H200 host."""
    fields = {
        "device_name": "NVIDIA H200",
        "device_kind": "cuda",
        "capability": "9.0",
        "sm_count": 132,
        "max_sm_clock_hz": 1980e6,
        "memory_bandwidth": 4.8e12,
        "cpu": "Xeon",
        "cpu_threads": 16,
        "python": "3.12",
        "commit": "abc",
        "dirty": False,
        "code_digest": "0" * 16,
    }
    return Environment(**(fields | changes))


@dataclass
class RunSpec:
    """What goes into a synthetic run folder."""

    records: list[Record]
    name: str = "20261121T080000Z_h200_abc"
    ceilings: list[Ceiling] = field(default_factory=lambda: list(H200_CEILINGS))
    suite: str = "h200"
    environment: Environment = field(default_factory=environment)
    origin: Origin = Origin.MEASURED

    def write(self, results: Path) -> Run:
        """Write the folder under `results` and give the run back."""
        meta = RunMeta(
            run=self.name,
            suite=self.suite,
            suite_text="suite: h200\n",
            suite_digest="1" * 16,
            origin=self.origin,
            started="2026-11-21T08:00:00Z",
            environment=self.environment,
            ceilings=self.ceilings,
            cells=len({record.cell for record in self.records}),
            timed_s=60.0,
            wall_s=80.0,
        )
        folder = results / self.environment.device_name.lower().replace(" ", "_") / self.name
        with open_writer(folder) as writer:
            writer.write_meta(meta)
        with (folder / RECORDS_FILE).open("a") as lines:  # at once: a writer sees each record on disk
            lines.writelines(map(line_of, self.records))
        return Run(folder, meta, self.records)


def h200_records(layers=tuple(H200_US), backends=("cublas_fp16", "marlin", "marlin_sparse")):
    """The measured H200 table as records, and naive_w4a16 refusing M above 64."""
    records = []
    for layer in layers:
        N, K = LAYERS[layer]
        for position, M in enumerate(BATCHES):
            for backend in backends:
                times = H200_US[layer].get(backend)
                if times is None:
                    continue
                clock = H200_CLOCK_HZ[position]
                records.append(make_record(backend, M, times[position] * 1e-6, layer=layer, N=N, K=K, clock_hz=clock))
    return records


def h200_run(results: Path, **selection) -> Run:
    """The measured H200 table as a run folder."""
    return RunSpec(h200_records(**selection)).write(results)
