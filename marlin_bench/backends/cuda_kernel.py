"""What backends of this project's own kernels share: CuPy loads them."""

from __future__ import annotations

from importlib.util import find_spec

from marlin_bench.backends.protocol import Backend, Missing


class CudaKernel(Backend):
    """A kernel of kernels/, compiled by NVRTC and loaded by CuPy."""

    def missing(self) -> Missing | None:
        """CuPy, of either CUDA version."""
        if find_spec("cupy") is not None:
            return None
        return Missing("CuPy is not installed", "pip install 'marlin-bench[cuda13]', or [cuda12] for a CUDA 12 driver")
