"""Everything about the machine and the software that can move a number, read once at the start of a run."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.provenance import code_digest, revision
from marlin_bench.record import Environment

if TYPE_CHECKING:
    from marlin_bench.machine import TelemetryWindow

_PACKAGES = ("torch", "cupy-cuda13x", "cupy-cuda12x", "triton", "numpy", "nvidia-ml-py", "nvidia-cublas")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    for path in (Path("/proc/cpuinfo"),):
        if path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed_packages() -> dict[str, str]:
    """Versions of the packages that do or drive the work; those not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _host() -> dict[str, object]:
    here = revision()
    return {
        "cpu": cpu_model(),
        "cpu_threads": os.cpu_count() or 1,
        "python": platform.python_version(),
        "packages": installed_packages(),
        "commit": here.commit,
        "dirty": here.dirty,
        "code_digest": code_digest(),
    }


def cpu_environment() -> Environment:
    """A host without a GPU in play."""
    import torch

    settings = {
        "torch_threads": str(torch.get_num_threads()),
        "mkldnn": str(torch.backends.mkldnn.is_available()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    return Environment.model_validate(
        {**_host(), "device_name": cpu_model(), "device_kind": "cpu", "settings": settings}
    )


def pin_cuda_math() -> None:
    """Fix what torch leaves open, so that the FP16 baseline is the same on every machine.

    No TF32, no FP16/BF16 reduction inside split-K: cuBLAS accumulates in FP32 throughout.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _cuda_settings() -> dict[str, str]:
    import torch

    matmul = torch.backends.cuda.matmul
    return {
        "allow_tf32": str(matmul.allow_tf32),
        "allow_fp16_reduced_precision_reduction": str(matmul.allow_fp16_reduced_precision_reduction),
        "allow_bf16_reduced_precision_reduction": str(matmul.allow_bf16_reduced_precision_reduction),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "default"),
    }


def device_uuid() -> str:
    """UUID of the CUDA device this process sees, as NVML writes it."""
    import torch

    uuid = str(torch.cuda.get_device_properties(0).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def cuda_environment(traits: DeviceTraits) -> Environment:
    """Device, driver and host of the CUDA device in hand; what NVML refuses to tell is None."""
    import torch

    from marlin_bench.nvml import read_facts

    uuid = device_uuid()
    facts = read_facts(uuid)
    return Environment.model_validate(
        {
            **_host(),
            "device_name": traits.name,
            "device_kind": "cuda",
            "device_uuid_hash": hashlib.sha256(uuid.encode()).hexdigest()[:12],
            "capability": ".".join(map(str, traits.capability or ())),
            "sm_count": traits.sm_count,
            "l2_bytes": traits.l2_bytes,
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "max_sm_clock_hz": facts.max_sm_clock_hz,
            "memory_bandwidth": facts.memory_bandwidth,
            "ecc": facts.ecc,
            "mig": facts.mig,
            "persistence": facts.persistence,
            "power_limit_w": facts.power_limit_w,
            "driver": facts.driver,
            "cuda": torch.version.cuda,
            "settings": _cuda_settings(),
        }
    )


def cuda_sensors() -> AbstractContextManager[TelemetryWindow | None]:
    """Telemetry of the CUDA device in hand; nothing where NVML is not there."""
    from marlin_bench.nvml import NvmlError
    from marlin_bench.telemetry import Sidecar

    try:
        return Sidecar(device_uuid())
    except NvmlError:
        return nullcontext(None)
