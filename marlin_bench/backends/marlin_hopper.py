"""Marlin for Hopper: the project's own W4A16 kernel with wgmma and TMA (kernels/marlin_hopper.cu, sm_90a)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.cuda_kernel import CudaKernel
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, Effort, Launch, Packed
from marlin_bench.cuda_driver import TENSOR_MAP_BYTES, Geometry, PreparedLaunch
from marlin_bench.cuda_source import source_digest
from marlin_bench.kernel_launch import kernel_function, panel_map
from marlin_bench.layouts.marlin_hopper import HopperWeights, block_bytes, pack
from marlin_bench.marlin_hopper_choice import Plan, choose
from marlin_bench.marlin_hopper_config import MOST_PIECES, Schedule, Tiling, WeightKind, k_tiles, strips
from marlin_bench.marlin_hopper_kinds import rounds_weights
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

KERNEL = "marlin_hopper"
MULTIPLE = 64
GROUP_SIZES = (64, 128, None)


@cache
def _function(tiling: Tiling, kind: WeightKind, device_index: int) -> int:
    return kernel_function(KERNEL, tiling.defines(kind), tiling.shared_bytes(kind), device_index)


def unsupported_shape(N: int, K: int, group_size: int | None) -> str | None:
    """One sentence why a layer has no packed form, or None."""
    for name, value in (("N", N), ("K", K)):
        if value % MULTIPLE:
            return f"{name} {value} is not a multiple of {MULTIPLE}"
    if group_size not in GROUP_SIZES:
        return f"group size {group_size} is not 64, 128 or a whole column"
    return None


def _pack_and_wait(weights: QuantizedWeights) -> HopperWeights:
    """The packed weights, complete in memory: dependent launches read weights before their predecessor ends."""
    packed = pack(weights)
    torch.cuda.synchronize(packed.packed.device)
    return packed


class Workspace:
    """Partial sums and arrival counts of striped tiles (kernels/hopper_reduce.cuh), grown as launches need them.

    Launches that may run at the same time need workspaces of their own: one a stream. Counts are zero between launches.
    With tails (kernels/hopper_tail.cuh) it holds the sums of every part of a tile, a count a tile and one of tickets.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.empty(0, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(0, dtype=torch.int32, device=device)

    def reserve(self, schedule: Schedule, tiling: Tiling) -> tuple[Tensor, Tensor]:
        """(sums, arrivals) large enough for one launch; both stay alive as long as the caller holds them."""
        if schedule.stream_tiles:
            slots = schedule.tiles * schedule.most_parts if tiling.tail else 2 * schedule.grid
            floats = slots * tiling.tile_columns * tiling.batch_tile
            if self.sums.numel() < floats:
                self.sums = torch.empty(floats, dtype=torch.float32, device=self.sums.device)
            counts = schedule.tiles + 1 if tiling.tail else schedule.grid
            if self.arrivals.numel() < counts:
                self.arrivals = torch.zeros(counts, dtype=torch.int32, device=self.arrivals.device)
        return self.sums, self.arrivals


class HopperProduct:
    """One product bound to its operands; calling it enqueues one launch on the current stream.

    The workspace belongs to the stream of the first call (or of the capture that calls it): launches of one object must
    not run on two streams at once, two objects may.
    """

    def __init__(
        self,
        weights: HopperWeights,
        activations: Tensor,
        output: Tensor,
        plan: Plan,
        workspace: Workspace,
        *,
        bias: Tensor | None = None,
        dependent: bool = True,
    ) -> None:
        M, K = activations.shape
        bf16 = activations.dtype is torch.bfloat16
        kind = WeightKind(weights.group_size, weights.zero_points, bf16)
        tiling = plan.tiling
        sm_count = torch.cuda.get_device_properties(activations.device).multi_processor_count
        schedule = plan.schedule(M, weights.N, K, sm_count)
        sums, arrivals = workspace.reserve(schedule, tiling)
        self._alive = (weights, activations, output, sums, arrivals, bias)
        activation_map = panel_map(activations, tiling.batch_tile, 2 * tiling.stage_tiles // tiling.team)
        output_map = panel_map(output, tiling.batch_tile, 1) if tiling.bulk_store else bytes(TENSOR_MAP_BYTES)
        # The kernel's parameters in order: TensorMap, TensorMap, packed, Output, Workspace, Schedule, strips, k_tiles.
        arguments = (
            activation_map,
            output_map,
            struct.pack("Q", weights.packed.data_ptr()),
            struct.pack(
                "QQQii",
                output.data_ptr(),
                weights.column_factors.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                M,
                weights.N,
            ),
            struct.pack("QQ", sums.data_ptr(), arrivals.data_ptr()),
            struct.pack(
                f"{9 + MOST_PIECES + 1}i",
                schedule.units_per_tile,
                schedule.row_tiles,
                schedule.batch_tiles,
                schedule.raster,
                schedule.stream_tiles,
                int(schedule.shared_ends),
                sum(schedule.tail),
                len(schedule.tail),
                schedule.most_parts if tiling.tail else 0,
                *schedule.piece_begins,
            ),
            struct.pack("i", strips(weights.N)),
            struct.pack("i", k_tiles(K)),
        )
        geometry = Geometry(schedule.grid, tiling.threads, tiling.shared_bytes(kind), tiling.cluster, dependent)
        self._launch = PreparedLaunch(_function(tiling, kind, activations.device.index), geometry, arguments)

    def __call__(self) -> None:
        """Enqueue the product on torch's current stream."""
        self._launch(torch.cuda.current_stream().cuda_stream)


class MarlinHopper(CudaKernel):
    """W4A16 on Hopper's warpgroup tensor cores, FP16 activations."""

    name = "marlin_hopper"
    summary = "Marlin for Hopper (own kernel): wgmma with weights from registers, TMA, FP32 sums"
    dtype: ClassVar[torch.dtype] = torch.float16

    def __init__(self) -> None:
        self._workspaces: dict[tuple[torch.device, int], Workspace] = {}

    def version(self) -> str:
        """The digest of the kernel and its headers."""
        return source_digest(KERNEL)

    def kernel_digest(self) -> str | None:
        """The digest of the kernel and its headers."""
        return source_digest(KERNEL)

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """wgmma exists on sm_90 only; N and K in multiples of 64, groups of 64, 128 or a column."""
        if device.capability is None or device.capability[0] != 9:
            return f"{device.name} is not a Hopper GPU (sm_90)"
        return unsupported_shape(problem.N, problem.K, problem.group_size)

    def format(self, problem: Problem) -> Format:
        """4-bit codes with FP16 scales."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """The kernel's blobs and the factor of each output column."""
        packed = _pack_and_wait(weights)
        return Packed(
            {"packed": packed.packed, "column_factors": packed.column_factors},
            extra={
                "K": packed.K,
                "N": packed.N,
                "group_size": packed.group_size,
                "zero_points": packed.zero_points,
            },
        )

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """The chooser's plan; nothing is measured here (see `marlin-bench tune`)."""
        M, K = activations[0].shape
        weights = self._weights(packed[0])
        sm_count = torch.cuda.get_device_properties(activations[0].device).multi_processor_count
        kind = WeightKind(weights.group_size, weights.zero_points, self.dtype is torch.bfloat16)
        return {"plan": choose(M, weights.N, K, sm_count, kind).name, "pdl": "1"}

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One launch; with "pdl" it may start before its predecessor in the stream ends."""
        return HopperProduct(
            self._weights(packed),
            activations,
            output,
            Plan.parse(choice["plan"]),
            self._workspace(activations.device),
            dependent=choice["pdl"] == "1",
        )

    def _workspace(self, device: torch.device) -> Workspace:
        """The workspace of the current stream."""
        key = (device, torch.cuda.current_stream(device).cuda_stream)
        return self._workspaces.setdefault(key, Workspace(device))

    @staticmethod
    def _weights(packed: Packed) -> HopperWeights:
        extra = packed.extra
        K, N, group_size, zero_points = extra["K"], extra["N"], extra["group_size"], extra["zero_points"]
        if not (isinstance(K, int) and isinstance(N, int) and isinstance(zero_points, bool)):
            raise TypeError("packed by another backend")
        if not (group_size is None or isinstance(group_size, int)):
            raise TypeError("packed by another backend")
        return HopperWeights(packed.tensors["packed"], packed.tensors["column_factors"], K, N, group_size, zero_points)


class MarlinHopperBf16(MarlinHopper):
    """The same with BF16 activations; scales stay FP16.

    Where group scales go on the weights (from 33 rows on) those are the canonical ones rounded once to BF16, as a dense
    BF16 layer would hold them; with scales on the sums weights are not rounded at all.
    """

    name = "marlin_hopper_bf16"
    summary = "Marlin for Hopper with BF16 activations and outputs"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    dtype = torch.bfloat16

    def pack(self, weights: QuantizedWeights) -> Packed:
        """The same blobs; `reference` is the weights in BF16."""
        return replace(super().pack(weights), reference=lambda columns: weights.dequantized(columns, self.dtype))

    def held_weights(self, packed: Packed, choice: Choice) -> Callable[[slice], Tensor] | None:
        """Those in BF16 where the plan rounds weights to it."""
        kind = WeightKind(self._weights(packed).group_size, bf16=True)
        return packed.reference if rounds_weights(Plan.parse(choice["plan"]).tiling, kind) else None


class HopperLinearKernel:
    """The kernel as `marlin_bench.linear` drives it: tensors in a fixed order, a workspace a call."""

    name = KERNEL

    def unsupported(self, weights: QuantizedWeights) -> str | None:
        """One sentence why these weights have no packed form, or None."""
        if weights.mask is not None:
            return "2:4-pruned weights have a kernel of their own"
        return unsupported_shape(weights.N, weights.K, weights.group_size)

    def pack(self, weights: QuantizedWeights, dtype: torch.dtype) -> list[Tensor]:
        """[packed blocks, column factors]: the same for FP16 and BF16 activations."""
        packed = _pack_and_wait(weights)
        return [packed.packed, packed.column_factors]

    def multiply(
        self,
        activations: Tensor,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        output: Tensor,
        group_size: int | None,
    ) -> None:
        """output[M,N] = activations[M,K] @ W (+ bias) with tensors from `pack`; a workspace for each call."""
        (M, K), N = activations.shape, output.shape[1]
        packed, column_factors = tensors
        zero_points = packed.shape[-1] != block_bytes(group_size, zero_points=False)
        weights = HopperWeights(packed, column_factors, K, N, group_size, zero_points)
        sm_count = torch.cuda.get_device_properties(activations.device).multi_processor_count
        kind = WeightKind(group_size, zero_points, activations.dtype is torch.bfloat16)
        plan = choose(M, N, K, sm_count, kind)
        # Not dependent: what the stream holds before this call is not known here, it may be writing these weights.
        workspace = Workspace(activations.device)
        HopperProduct(weights, activations, output, plan, workspace, bias=bias, dependent=False)()


LINEAR_KERNEL = HopperLinearKernel()
