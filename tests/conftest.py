"""What every test shares: a GPU test is skipped without a GPU, unless a GPU was promised; workers share the cores."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # several tests share the cores: more threads than that, each spinning for the others, take many times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _gpu_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config, items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items or _gpu_is_there():
        return
    if os.environ.get("MARLIN_BENCH_REQUIRE_GPU") == "1":
        raise pytest.UsageError("MARLIN_BENCH_REQUIRE_GPU=1 is set, but torch sees no CUDA device")
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
