"""Runs one product under Nsight Compute and reads what its counters say.

ncu gets a process of its own, which never times anything: it replays kernels, flushes caches before each pass and slows
the device down. The clocks are left alone (`--clock-control none`).
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marlin_bench.ledger import Profile

METRICS = {
    "seconds": "gpu__time_duration.sum",
    "dram_read": "dram__bytes_read.sum",
    "dram_write": "dram__bytes_write.sum",
    "l2_read": "lts__t_sectors_srcunit_tex_op_read.sum",
    "l2_write": "lts__t_sectors_srcunit_tex_op_write.sum",
    "tensor_pipe": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
}
_SECTOR_BYTES = 32
_SCALES = {"seconds": 1e-9, "l2_read": _SECTOR_BYTES, "l2_write": _SECTOR_BYTES, "tensor_pipe": 0.01, "issue": 0.01}
_SHARES = ("tensor_pipe", "issue")
_OPTIONAL = {"tensor_pipe", "issue"}
_NO_RIGHTS = "ERR_NVGPUCTRPERM"
_TIMEOUT_SECONDS = 300


class ProfileError(RuntimeError):
    """Nothing could be profiled here; one sentence with the remedy."""


@dataclass(frozen=True)
class Subject:
    """What is profiled: one backend in one cell of a suite."""

    suite: str
    cell: str
    backend: str


@dataclass(frozen=True)
class Counters:
    """The metrics of METRICS over all kernels of the product, in SI base units; an absent one is not there."""

    kernels: tuple[str, ...]
    values: Mapping[str, float]


def ncu_command(ncu: str, subject: Subject) -> list[str]:
    """The command line: base units, raw page, only what lies between cudaProfilerStart and Stop."""
    return [
        ncu,
        *("--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"),
        *("--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS.values())),
        *(sys.executable, "-m", "marlin_bench.profile_subject", subject.suite, subject.cell, subject.backend),
    ]


def find_ncu() -> str:
    """Where ncu is; ProfileError when it is not installed."""
    found = shutil.which("ncu")
    if found is None:
        raise ProfileError("ncu is not on the PATH: install Nsight Compute, which comes with the CUDA toolkit")
    return found


def run_ncu(ncu: str, subject: Subject, timeout_s: float = _TIMEOUT_SECONDS) -> Counters:
    """The counters of one product; ProfileError where ncu is refused them or the product fails."""
    try:
        done = subprocess.run(ncu_command(ncu, subject), capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProfileError(
            f"ncu did not finish {subject.backend} in {timeout_s:.0f} s: choose a smaller cell"
        ) from error
    said = done.stdout + done.stderr
    if _NO_RIGHTS in said:
        raise ProfileError(
            "this user may not read the GPU's counters (ERR_NVGPUCTRPERM): load the driver with "
            "NVreg_RestrictProfilingToAdminUsers=0 or profile as root"
        )
    if done.returncode != 0:
        raise ProfileError(f"ncu ended with {done.returncode} on {subject.backend}: {_last_line(said)}")
    return read_csv(done.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def read_csv(text: str) -> Counters:
    """ncu's raw page: a heading, a line of units, a line a kernel; whatever the program printed before is skipped."""
    lines = text.splitlines()
    heading = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if heading is None:
        raise ProfileError(f"ncu profiled no kernel: {_last_line(text)}")
    kernels = list(csv.DictReader(io.StringIO("\n".join(lines[heading:]))))[1:]  # the first line holds units
    if not kernels:
        raise ProfileError("ncu profiled no kernel: the backend launched none")
    values = {name: value for name, metric in METRICS.items() if (value := _total(name, metric, kernels)) is not None}
    lacking = sorted(set(METRICS) - set(values) - _OPTIONAL)
    if lacking:
        raise ProfileError(f"this ncu does not count {', '.join(METRICS[name] for name in lacking)} on this GPU")
    return Counters(tuple(kernel["Kernel Name"] for kernel in kernels), values)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.replace(",", ""))
    except ValueError:  # n/a
        return None


def _total(name: str, metric: str, kernels: Sequence[Mapping[str, str]]) -> float | None:
    """The sum over kernels; shares are weighted by the time of their kernel."""
    found = [(_number(kernel.get(metric)), _number(kernel.get(METRICS["seconds"]))) for kernel in kernels]
    known = [(value, seconds or 0.0) for value, seconds in found if value is not None]
    if len(known) < len(found):
        return None
    scale = _SCALES.get(name, 1.0)
    if name in _SHARES:
        whole = sum(seconds for _, seconds in known)
        return scale * sum(value * seconds for value, seconds in known) / whole if whole else None
    return scale * sum(value for value, _ in known)


def profile_of(counters: Counters, description: Mapping[str, object], profiler: str) -> Profile:
    """The counters with what they belong to: the fields of Profile that describe the product."""
    return Profile.model_validate(
        {**description, **counters.values, "kernels": list(counters.kernels), "profiler": profiler}
    )


def ncu_version(ncu: str) -> str:
    """What `ncu --version` says in its last line."""
    done = subprocess.run([ncu, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return _last_line(done.stdout)
