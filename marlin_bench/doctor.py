"""What works on this machine, what does not, and what to do about it. Reads only; changes nothing."""

from __future__ import annotations

import importlib.util
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from marlin_bench import nvml
from marlin_bench.findings import Finding, State
from marlin_bench.units import format_bytes

_LEAST_DISK_BYTES = 50e6  # the records of a whole suite are some tens of megabytes
_COMFORTABLE_DISK_BYTES = 1e9
_INSTALL_CUPY = "pip install 'marlin-bench[cuda13]' (driver 580 or later) or 'marlin-bench[cuda12]'"


def examine(results: Path) -> list[Finding]:
    """Everything worth knowing before a run, in the order in which it would be needed."""
    uuids, gpu = _gpus()
    found = [gpu, _torch(has_gpu=bool(uuids)), _cupy(has_gpu=bool(uuids)), _nvrtc(has_gpu=bool(uuids))]
    for index, uuid in enumerate(uuids):
        found += _gpu_findings(f"GPU {index}" if len(uuids) > 1 else "GPU", uuid)
    return [*found, _peers(), _disk(results)]


def _gpus() -> tuple[list[str], Finding]:
    try:
        uuids = nvml.device_uuids()
    except nvml.NvmlError as error:
        return [], Finding(
            "GPU",
            "warn",
            f"none to be seen ({error})",
            "run CPU suites here, such as smoke; on a GPU machine look at nvidia-smi",
        )
    if not uuids:
        return [], Finding("GPU", "warn", "a driver but no GPU", "run CPU suites here, such as smoke")
    facts = [nvml.read_facts(uuid) for uuid in uuids]
    names = ", ".join(fact.name or "a GPU without a name" for fact in facts)
    return uuids, Finding("GPU", "ok", f"{names}, driver {facts[0].driver or 'unknown'}")


def _torch(*, has_gpu: bool) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}")
    if not has_gpu:
        return Finding("torch", "ok", f"{torch.__version__}, CPU only")
    if torch.version.cuda is None:
        return Finding(
            "torch", "fail", f"{torch.__version__} is a build without CUDA", "install torch for CUDA: pytorch.org"
        )
    return Finding(
        "torch",
        "fail",
        f"{torch.__version__} for CUDA {torch.version.cuda} cannot use the GPU",
        "check CUDA_VISIBLE_DEVICES and that the driver is new enough for this CUDA",
    )


def _cupy_version() -> str | None:
    for package in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _cupy(*, has_gpu: bool) -> Finding:
    if importlib.util.find_spec("cupy") is None:
        needed = "" if has_gpu else ", needed on a GPU only"
        return Finding("CuPy", "fail" if has_gpu else "warn", f"not installed{needed}", _INSTALL_CUPY)
    return Finding("CuPy", "ok", _cupy_version() or "a build of unknown version")


def _nvrtc(*, has_gpu: bool) -> Finding:
    """The compiler of the project's own kernels."""
    state: State = "fail" if has_gpu else "warn"
    if importlib.util.find_spec("cupy") is None:
        return Finding("NVRTC", state, "unknown without CuPy", _INSTALL_CUPY)
    from cupy.cuda import nvrtc

    try:
        major, minor = nvrtc.getVersion()
    except (RuntimeError, OSError, ImportError) as error:
        return Finding("NVRTC", state, f"cannot be loaded ({error})", "pip install nvidia-cuda-nvrtc")
    return Finding("NVRTC", "ok", f"{major}.{minor}")


def _gpu_findings(name: str, uuid: str) -> list[Finding]:
    facts = nvml.read_facts(uuid)
    found = [_ecc(name, facts), _persistence(name, facts), _processes(name, uuid)]
    if facts.mig:
        found.append(Finding(f"{name} MIG", "warn", "a slice of a GPU", "numbers of a slice hold for that slice alone"))
    return [*found, *_clocks(uuid)]


def _clocks(uuid: str) -> list[Finding]:
    from marlin_bench.clock_findings import clock_findings

    return clock_findings(uuid)


def _ecc(name: str, facts: nvml.Facts) -> Finding:
    if facts.ecc is None:
        return Finding(f"{name} ECC", "ok", "not offered by this GPU")
    return Finding(f"{name} ECC", "ok", f"{'on' if facts.ecc else 'off'}, recorded: never compare across it")


def _persistence(name: str, facts: nvml.Facts) -> Finding:
    if facts.persistence is False:
        return Finding(
            f"{name} persistence",
            "warn",
            "off: clocks that were locked are lost when nothing uses the GPU",
            "sudo nvidia-smi -pm 1",
        )
    return Finding(f"{name} persistence", "ok", "unknown" if facts.persistence is None else "on")


def _compute_process_ids(uuid: str) -> list[int]:
    """Processes that compute on this GPU; pynvml.NVMLError where they cannot be listed."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return [int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    finally:
        pynvml.nvmlShutdown()


def _processes(name: str, uuid: str) -> Finding:
    import pynvml

    try:
        others = _compute_process_ids(uuid)
    except pynvml.NVMLError as error:
        return Finding(f"{name} processes", "warn", f"cannot be listed ({error})")
    if others:
        listed = ", ".join(map(str, others))
        return Finding(
            f"{name} processes", "warn", f"others compute on it: {listed}", "wait for them: they move every number"
        )
    return Finding(f"{name} processes", "ok", "nobody else computes on it")


def _peers() -> Finding:
    """The kernels of other projects that are here, and whether the folder for machines without a network is one."""
    from marlin_bench.backends import backend_names, carried, load_backend
    from marlin_bench.backends.peer import Peer

    wrong_folder = carried.complaint()
    if wrong_folder is not None:
        return Finding("peers", "fail", wrong_folder, f"unset {carried.VARIABLE}, or name the folder (docs/peers.md)")
    peers = [backend for backend in map(load_backend, backend_names()) if isinstance(backend, Peer)]
    here = sorted(backend.name for backend in peers if backend.missing() is None)
    if len(here) == len(peers):
        return Finding("peers", "ok", f"all {len(peers)} kernels of other projects")
    listed = f": {', '.join(here)}" if here else ""
    remedy = "marlin-bench list backends names the command for each other one"
    return Finding("peers", "ok", f"{len(here)} of {len(peers)} kernels of other projects{listed}", remedy)


def _disk(results: Path) -> Finding:
    folder = results.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("disk", "fail", f"{folder} cannot be read ({error.strerror})", "choose another with --results")
    found = f"{format_bytes(free)} free for {results}"
    if free < _LEAST_DISK_BYTES:
        return Finding("disk", "fail", found, "free some space, or choose another place with --results")
    if free < _COMFORTABLE_DISK_BYTES:
        return Finding("disk", "warn", found, "free some space, or choose another place with --results")
    return Finding("disk", "ok", found)
