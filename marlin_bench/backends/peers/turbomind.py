"""TurboMind, the engine of lmdeploy, through its package of 4-bit kernels."""

from __future__ import annotations

import atexit
import ctypes
import sys
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakSet

import torch
from torch import Tensor

from marlin_bench.backends import carried
from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

_EXTENSION = "_turbomind_ext"
_FILE = f"{_EXTENSION}.cpython-{sys.version_info.major}{sys.version_info.minor}-x86_64-linux-gnu.so"
_CARRIED = f"turbomind/{_FILE}.xz"
_RUNTIME = "turbomind/libcudart.so.12.xz"


@cache
def extension() -> Any:
    """TurboMind's extension module, without the package around it; OSError or ImportError where it does not load."""
    spec = find_spec("turbomind")
    if spec is not None and spec.submodule_search_locations:
        file = Path(spec.submodule_search_locations[0]) / "lib" / _FILE
    else:
        ctypes.CDLL(str(carried.unpacked(_RUNTIME)))  # found by its name when the extension asks for it
        file = carried.unpacked(_CARRIED)
    loader = ExtensionFileLoader(_EXTENSION, str(file))
    found = spec_from_loader(_EXTENSION, loader)
    if found is None:
        raise ImportError(f"{file} is no extension module")
    module = module_from_spec(found)
    loader.exec_module(module)
    return module


class _Layer:
    """A layer of the library that ends before the CUDA driver does: its destructor would abort the process."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        _layers.add(self)


_layers: WeakSet[_Layer] = WeakSet()


@atexit.register
def _end_layers() -> None:
    for holder in _layers:
        holder.layer = None


class _Exchanged:
    """A tensor for DLPack that makes no stream wait for another: that would end the capture of a graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, *_: object, **__: object) -> Any:
        return self.tensor.__dlpack__(stream=-1)  # no waiting, in the words of the standard

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.tensor.__dlpack_device__()
        return device


class Turbomind(Peer):
    """TurboMind's Linear (InternLM/turbomind 0.0.2, out of lmdeploy), Apache-2.0: mma.sync.

    Weights: 4 + 32/128 bits (an FP16 scale and an FP16 zero point a group). Meant for small and middle M on Ampere.
    lmdeploy's kernels have gone on without this package (InternLM/lmdeploy#4897). It needs CUDA 12's runtime, hence a
    process of its own, which it would abort at its end if its layers outlived the driver.
    """

    name = "turbomind"
    summary = "TurboMind's Linear (lmdeploy, FP16)"
    project = "https://github.com/InternLM/turbomind"
    license = "Apache-2.0"
    meant_for = "M up to about 64"
    extra = "turbomind"
    packages = (Package("turbomind", "turbomind", at_least="0.0.2", carried=_CARRIED),)
    isolation: ClassVar[Literal["shared", "own"]] = "own"

    def load(self) -> None:
        """The extension and the runtime that it is linked against."""
        extension()

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Groups of 128, N in multiples of 8."""
        return packing.unsupported(problem, multiple_n=8)

    def format(self, problem: Problem) -> Format:
        """4-bit codes; that its zero points have 16 bits is its own overhead."""
        return int4(problem.group_size, zero_points=True)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Words along N, then the library's own conversion; the layer holds its weights, hence `remake`."""
        codes = packing.words_along_n(packing.symmetric(weights).codes)
        scales = weights.scales.clone()
        zeros = torch.full_like(scales, SYMMETRIC_ZERO)
        layer = extension().Linear(weights.K, weights.N, 4, packing.GROUP_SIZE)
        layer.post_init(codes, scales, zeros, False)
        torch.cuda.synchronize(codes.device)
        tensors = {"codes": codes, "scales": scales, "zeros": zeros}
        return Packed(tensors, extra={"layer": _Layer(layer)}, remake=lambda: self.pack(weights))

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """Linear.forward into `output`."""
        holder = packed.extra["layer"]
        if not isinstance(holder, _Layer):
            raise TypeError("packed by another backend")
        given, written = _Exchanged(activations), _Exchanged(output)

        def multiply() -> None:
            holder.layer.forward(given, written, torch.cuda.current_stream().cuda_stream)

        return multiply
