"""What the backends of the project's own kernels share: a loaded kernel, and products that meet in a workspace.

marlin and marlin_sparse deal out their work in stripes (kernels/stripes.cuh), so that several CTAs may hold a part of
one tile: the sums meet in a workspace (kernels/reduction.cuh). Tiles, packed weights and choices are the backends' own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from marlin_bench.cuda_driver import Geometry, PreparedLaunch, tensor_map_3d
from marlin_bench.cuda_source import load_module

_PANEL_COLUMNS = 64


def kernel_function(source: str, defines: Mapping[str, int | str], shared_bytes: int, device_index: int) -> int:
    """The CUfunction of kernels/<source>.cu on a device, allowed the dynamic shared memory it needs."""
    with torch.cuda.device(device_index):
        kernel = load_module(source, defines).get_function(source)
        kernel.max_dynamic_shared_size_bytes = shared_bytes
        pointer: int = kernel.kernel.ptr
        return pointer


def panel_map(matrix: Tensor, rows: int, panels: int) -> bytes:
    """The tensor map of a contiguous FP16 or BF16 matrix [M, columns], cut into panels of 64 columns (128 bytes).

    A copy is `rows` rows of `panels` panels, one panel after the other; rows past M are zeros and are not stored.
    """
    M, columns = matrix.shape
    return tensor_map_3d(
        "bf16" if matrix.dtype is torch.bfloat16 else "fp16",
        matrix.data_ptr(),
        extents=(_PANEL_COLUMNS, M, columns // _PANEL_COLUMNS),
        strides=(2 * columns, 2 * _PANEL_COLUMNS),
        box=(_PANEL_COLUMNS, rows, panels),
    )


@cache
def starts_early(device_index: int) -> bool:
    """Whether a launch may begin before its predecessor ends: the kernels wait for it on Hopper and later only."""
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


@dataclass(frozen=True)
class Workspace:
    """Where the slices of a tile meet: it belongs to one launch at a time.

    sums: float32, any content. counters: int64, any content that no running launch is writing; see reduction.cuh.
    """

    sums: Tensor
    counters: Tensor


class WorkspacePlan(Protocol):
    """What a launch needs of a workspace."""

    @property
    def sum_bytes(self) -> int:
        """Bytes of partial sums."""

    @property
    def counters(self) -> int:
        """Tiles that several CTAs hold a part of."""


def make_workspace(plan: WorkspacePlan, device: torch.device) -> Workspace:
    """A workspace for launches of `plan` that run one after the other; nothing needs clearing (reduction.cuh)."""
    return Workspace(
        torch.empty(plan.sum_bytes // 4, dtype=torch.float32, device=device),
        torch.empty(plan.counters, dtype=torch.int64, device=device),
    )


class StripedProduct:
    """One product bound to its operands; calling it enqueues one launch on torch's current stream."""

    def __init__(
        self,
        function: int,
        geometry: Geometry,
        operands: Sequence[Tensor | None],
        sizes: Sequence[int],
        workspace: Workspace,
        tensor_map: bytes = b"",
    ) -> None:
        """The kernel's parameters: pointers to `operands` and the workspace's two, then `sizes` and a `tensor_map`."""
        self.workspace = workspace
        self._operands = (*operands, workspace.sums, workspace.counters)
        addresses = (struct.pack("Q", 0 if tensor is None else tensor.data_ptr()) for tensor in self._operands)
        arguments = [*addresses, *(struct.pack("i", size) for size in sizes)]
        self._launch = PreparedLaunch(function, geometry, arguments + [tensor_map] * bool(tensor_map))
        self._device = workspace.sums.device

    def __call__(self) -> None:
        """Enqueue the product."""
        self._launch(torch.cuda.current_stream(self._device).cuda_stream)
