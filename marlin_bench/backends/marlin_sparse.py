"""Sparse-MARLIN (kernels/marlin_sparse.cu): 2:4-sparse 4-bit weights on sparse tensor cores, from Ampere on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.marlin import SMALLEST_CAPABILITY, Workspace
from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Dtype, Effort, Launch, Packed
from marlin_bench.cuda_driver import Geometry, PreparedLaunch
from marlin_bench.cuda_source import load_module, source_digest
from marlin_bench.layouts import marlin_sparse as layout
from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.marlin_choice import suitable_ctas
from marlin_bench.marlin_config import Operands
from marlin_bench.marlin_sparse_config import (
    SparseBuild,
    SparseMachine,
    SparsePlan,
    build_for,
    choose_build,
    plan_for,
    tile_named,
    unsupported_shape,
)
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.pruning import largest_two_of_four
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

KERNEL = "marlin_sparse"
_ALIGNMENT = 16  # bytes: activations are fetched in vectors of eight
_CHUNK_WEIGHTS = 1 << 26
"""Weights pruned at a time: bounds the temporary memory to a few times this many bytes."""


@cache
def _function(build: SparseBuild, device_index: int) -> int:
    """The kernel's CUfunction on a device, allowed the shared memory it needs."""
    with torch.cuda.device(device_index):
        kernel = load_module(KERNEL, build.defines).get_function(KERNEL)
        kernel.max_dynamic_shared_size_bytes = build.shared_bytes
        pointer: int = kernel.kernel.ptr
        return pointer


@cache
def _machine(device_index: int) -> SparseMachine:
    properties = torch.cuda.get_device_properties(device_index)
    shared: int = getattr(properties, "shared_memory_per_block_optin")  # noqa: B009  # torch's stub lacks it
    return SparseMachine(properties.multi_processor_count, shared, (properties.major, properties.minor) == (9, 0))


@cache
def _starts_early(device_index: int) -> bool:
    """Whether a launch may begin before its predecessor ends: the kernel waits for it on Hopper and later only."""
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


def make_plan(
    operands: Operands, M: int, N: int, K: int, device: torch.device, choice: Choice | None = None
) -> SparsePlan:
    """The launch for a problem on `device`; `choice` may fix the "tile", the "stages" and the number of "ctas"."""
    choice = choice or {}
    machine = _machine(torch.cuda.current_device() if device.index is None else device.index)
    if "tile" in choice:
        build = build_for(tile_named(choice["tile"]), operands, machine.shared_per_block)
    else:
        build = choose_build(operands, M, N, K, machine)
    if "stages" in choice:
        build = SparseBuild(build.tile, operands, int(choice["stages"]))
    return plan_for(build, M, N, K, int(choice.get("ctas", suitable_ctas(build.tile, M, N, machine.sm_count))))


def make_workspace(plan: SparsePlan, device: torch.device) -> Workspace:
    """A workspace for launches of `plan` that run one after the other."""
    return Workspace(
        torch.empty(plan.sum_bytes // 4, dtype=torch.float32, device=device),
        torch.zeros(plan.counters, dtype=torch.int64, device=device),
    )


def _address(tensor: Tensor | None) -> bytes:
    return struct.pack("Q", 0 if tensor is None else tensor.data_ptr())


class SparseProduct:
    """One product bound to its operands; calling it enqueues one launch on torch's current stream.

    The workspace belongs to the product: one object must not run on two streams at once, two objects may.
    """

    def __init__(
        self,
        plan: SparsePlan,
        packed: Packed,
        activations: Tensor,
        output: Tensor,
        bias: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        """output[M,N] = activations[M,K] @ W (+ bias[N]); activations, output and bias contiguous and of one dtype."""
        M, K = activations.shape
        N = output.shape[1]
        build = plan.build
        self.plan = plan
        self.workspace = workspace or make_workspace(plan, activations.device)
        self._operands = (
            *(activations, packed.tensors["blocks"], packed.tensors["scales"], bias, output),
            *(self.workspace.sums, self.workspace.counters),
        )
        sizes = (struct.pack("i", size) for size in (M, N, K, build.operands.group_shift))
        index = activations.device.index
        geometry = Geometry(plan.ctas, build.tile.threads, build.shared_bytes, build.tile.cluster, _starts_early(index))
        self._launch = PreparedLaunch(_function(build, index), geometry, (*map(_address, self._operands), *sizes))
        self._device = activations.device

    def __call__(self) -> None:
        """Enqueue the product."""
        self._launch(torch.cuda.current_stream(self._device).cuda_stream)


def mask_of(weights: QuantizedWeights, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
    """The 2:4 mask of (a part of) canonical weights: their own, else the two of four of largest |dequantised weight|.

    Four neighbours share a scale, so |code - 8| ranks them. `rows` must begin and end at multiples of 4.
    """
    if weights.mask is not None:
        return weights.mask[rows, columns]
    return largest_two_of_four((weights.codes[rows, columns].to(torch.int8) - SYMMETRIC_ZERO).abs())


def pruned_weights(weights: QuantizedWeights, columns: slice, dtype: torch.dtype) -> Tensor:
    """The 2:4-pruned, dequantised weights [K, columns] that the kernel computes with; scales rounded to `dtype`."""
    held = QuantizedWeights(
        weights.codes[:, columns],
        weights.scales[:, columns].to(dtype),
        mask=mask_of(weights, columns=columns),
        group_size=weights.group_size,
    )
    return held.dequantized(dtype=dtype)


def pack_weights(weights: QuantizedWeights, dtype: torch.dtype) -> Packed:
    """Canonical weights, pruned 2:4 where they carry no mask, in the kernel's order; scales in the activations' dtype.

    Codes and scales of the kept weights stay as they are. `reference` gives the pruned weights. ValueError for weights
    with zero points: nought must be a code.
    """
    if weights.zeros is not None:
        raise ValueError("2:4-sparse weights are symmetric: they have no zero points")
    K, N = weights.codes.shape
    blocks = torch.empty(K // BLOCK, N // BLOCK, layout.WORDS_PER_BLOCK, dtype=torch.int32, device=weights.codes.device)
    step = max(1, _CHUNK_WEIGHTS // (BLOCK * N))
    for first in range(0, K // BLOCK, step):
        rows = slice(first * BLOCK, (first + step) * BLOCK)
        blocks[first : first + step] = layout.pack(weights.codes[rows], mask_of(weights, rows))
    return Packed(
        {"blocks": blocks, "scales": weights.scales.to(dtype).contiguous()},
        reference=lambda columns: pruned_weights(weights, columns, dtype),
        extra={"operands": Operands(weights.group_size, bf16=dtype is torch.bfloat16)},
    )


def packed_operands(packed: Packed) -> Operands:
    """What `pack_weights` recorded; TypeError for weights packed by another backend."""
    operands = packed.extra.get("operands")
    if not isinstance(operands, Operands) or "blocks" not in packed.tensors:
        raise TypeError("packed by another backend")
    return operands


class MarlinSparse(Backend):
    """Our Sparse-MARLIN on FP16 activations; dense weights are pruned 2:4 by magnitude when they are packed."""

    name = "marlin_sparse"
    summary = "Sparse-MARLIN, 2:4-sparse 4-bit weights and FP16 activations on mma.sp (sm_80 and up)"
    tolerance = 0.002
    dtype: ClassVar[torch.dtype] = torch.float16

    def version(self) -> str:
        """The digest of the kernel's sources."""
        return f"{KERNEL} {source_digest(KERNEL)}"

    def kernel_digest(self) -> str:
        """Digest of kernels/marlin_sparse.cu and its headers."""
        return source_digest(KERNEL)

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Shapes without an instance, and GPUs before Ampere."""
        if device.capability is not None and device.capability < SMALLEST_CAPABILITY:
            return f"compute capability {'.'.join(map(str, device.capability))} is below 8.0, which has mma.sp"
        return unsupported_shape(problem.M, problem.N, problem.K, problem.group_size)

    def format(self, problem: Problem) -> Format:
        """Two of four 4-bit codes, their positions, and 16-bit scales."""
        return int4(problem.group_size, sparse=True)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Into 64×64 blocks of kept codes and positions (layouts/marlin_sparse.py)."""
        return pack_weights(weights, self.dtype)

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """The tile that suits the shape; nothing is measured."""
        M, K = activations[0].shape
        plan = make_plan(packed_operands(packed[0]), M, outputs[0].shape[1], K, activations[0].device)
        return {"tile": str(plan.build.tile), "stages": str(plan.build.stages), "ctas": str(plan.ctas)}

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One launch of the kernel, with a workspace of its own."""
        M, K = activations.shape
        plan = make_plan(packed_operands(packed), M, output.shape[1], K, activations.device, choice)
        return SparseProduct(plan, packed, activations, output)


class MarlinSparseBf16(MarlinSparse):
    """Our Sparse-MARLIN on BF16 activations, with the scales rounded to BF16."""

    name = "marlin_sparse_bf16"
    summary = "Sparse-MARLIN, 2:4-sparse 4-bit weights and BF16 activations on mma.sp (sm_80 and up)"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    dtype = torch.bfloat16


class MarlinSparseLinearKernel:
    """The kernel as `marlin_bench.linear` drives it: for weights that carry a mask."""

    name = KERNEL

    def unsupported(self, weights: QuantizedWeights) -> str | None:
        """One sentence why these weights have no packed form, or None."""
        if weights.mask is None:
            return "the weights are dense"
        if weights.zeros is not None:
            return "2:4-sparse weights are symmetric: they have no zero points"
        return unsupported_shape(1, weights.N, weights.K, weights.group_size)

    def pack(self, weights: QuantizedWeights, dtype: torch.dtype) -> list[Tensor]:
        """[blocks, scales] for activations of `dtype`."""
        return list(pack_weights(weights, dtype).tensors.values())

    def multiply(
        self, activations: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, group_size: int | None
    ) -> Tensor:
        """activations[M,K] @ W (+ bias) with tensors from `pack`."""
        M, K = activations.shape
        blocks, scales = tensors
        N = blocks.shape[1] * BLOCK
        output = torch.empty(M, N, dtype=activations.dtype, device=activations.device)
        if M == 0:
            return output
        if reason := unsupported_shape(M, N, K, group_size):
            raise ValueError(reason)
        if activations.data_ptr() % _ALIGNMENT:
            activations = activations.clone()
        operands = Operands(group_size, bf16=activations.dtype is torch.bfloat16)
        plan = make_plan(operands, M, N, K, activations.device)
        SparseProduct(plan, Packed({"blocks": blocks, "scales": scales}), activations, output, bias)()
        return output


LINEAR_KERNEL = MarlinSparseLinearKernel()
