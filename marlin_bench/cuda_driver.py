"""The two driver calls that CuPy does not offer: tensor maps, and launches with attributes (clusters, dependence).

ctypes on libcuda, nothing cached here; addresses are device pointers as integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

TENSOR_MAP_BYTES = 128
_TENSOR_MAP_ALIGNMENT = 64
_DATA_TYPES = {"fp16": 6, "bf16": 9}
_INTERLEAVE_NONE = 0
_SWIZZLE_128B = 3
_L2_PROMOTION_256B = 3
_OUT_OF_BOUNDS_ZEROS = 0
_ATTRIBUTE_CLUSTER_DIMENSION = 4
_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class DriverError(RuntimeError):
    """A CUDA driver call that failed."""


@cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(result: int, call: str) -> None:
    if result == 0:
        return
    name = ctypes.c_char_p()
    _libcuda().cuGetErrorName(result, ctypes.byref(name))
    raise DriverError(f"{call} failed: {(name.value or b'unknown error').decode()} ({result})")


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


def tensor_map_3d(
    dtype: str, address: int, extents: Sequence[int], strides: Sequence[int], box: Sequence[int]
) -> bytes:
    """A tensor map (128 bytes) of a 3-D view, fastest dimension first, 128-byte swizzled, zeros out of bounds.

    extents and box count elements; strides are the bytes between neighbours of the second and third dimension.
    """
    storage = (ctypes.c_uint8 * (TENSOR_MAP_BYTES + _TENSOR_MAP_ALIGNMENT))()
    aligned = -(-ctypes.addressof(storage) // _TENSOR_MAP_ALIGNMENT) * _TENSOR_MAP_ALIGNMENT
    result = _libcuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned),
        _DATA_TYPES[dtype],
        ctypes.c_uint(3),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 3)(*extents),
        (ctypes.c_uint64 * 2)(*strides),
        (ctypes.c_uint32 * 3)(*box),
        (ctypes.c_uint32 * 3)(1, 1, 1),
        _INTERLEAVE_NONE,
        _SWIZZLE_128B,
        _L2_PROMOTION_256B,
        _OUT_OF_BOUNDS_ZEROS,
    )
    _check(result, "cuTensorMapEncodeTiled")
    return ctypes.string_at(aligned, TENSOR_MAP_BYTES)


@dataclass(frozen=True)
class Geometry:
    """Shape of a launch. `dependent`: the kernel may start before its predecessor ends (griddepcontrol keeps order)."""

    grid: int
    block: int
    shared_bytes: int
    cluster: int = 1
    dependent: bool = False


class PreparedLaunch:
    """A kernel with its arguments bound; calling it enqueues one launch on a stream and does nothing else."""

    def __init__(self, function: int, geometry: Geometry, arguments: Sequence[bytes]) -> None:
        self._function = ctypes.c_void_p(function)
        self._arguments = [ctypes.create_string_buffer(argument, len(argument)) for argument in arguments]
        self._pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(a) for a in self._arguments])
        attributes = (_Attribute * 2)()
        count = 0
        if geometry.cluster > 1:
            attributes[count].id = _ATTRIBUTE_CLUSTER_DIMENSION
            attributes[count].value[0:3] = [geometry.cluster, 1, 1]
            count += 1
        if geometry.dependent:
            attributes[count].id = _ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attributes[count].value[0] = 1
            count += 1
        self._attributes = attributes
        self._config = _LaunchConfig(
            grid=(geometry.grid, 1, 1),
            block=(geometry.block, 1, 1),
            shared_bytes=geometry.shared_bytes,
            attributes=ctypes.cast(attributes, ctypes.POINTER(_Attribute)),
            attribute_count=count,
        )
        self._launch: Any = _libcuda().cuLaunchKernelEx

    def __call__(self, stream: int) -> None:
        """Enqueue on `stream` (a cudaStream_t as an integer)."""
        self._config.stream = stream
        _check(self._launch(ctypes.byref(self._config), self._function, self._pointers, None), "cuLaunchKernelEx")
