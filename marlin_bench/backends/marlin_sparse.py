"""Sparse-MARLIN (kernels/marlin_sparse.cu): 2:4-sparse 4-bit weights on sparse tensor cores, from Ampere on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.cuda_kernel import CudaKernel
from marlin_bench.backends.marlin import SMALLEST_CAPABILITY
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, Effort, Launch, Packed
from marlin_bench.cuda_driver import TENSOR_MAP_BYTES, Geometry
from marlin_bench.cuda_source import source_digest
from marlin_bench.kernel_launch import (
    StripedProduct,
    Workspace,
    kernel_function,
    make_workspace,
    panel_map,
    starts_early,
)
from marlin_bench.layouts import marlin_sparse as layout
from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.marlin_config import Operands
from marlin_bench.marlin_sparse_choice import SparseMachine, choose_build, suitable_grid
from marlin_bench.marlin_sparse_config import (
    SparseBuild,
    SparsePlan,
    build_for,
    plan_for,
    tile_named,
    unsupported_shape,
)
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.pruning import largest_two_of_four
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

KERNEL = "marlin_sparse"
_CHUNK_WEIGHTS = 1 << 26
"""Weights pruned at a time: bounds the temporary memory to a few times this many bytes."""


@cache
def _function(build: SparseBuild, device_index: int) -> int:
    return kernel_function(KERNEL, build.defines, build.shared_bytes, device_index)


@cache
def _machine(device_index: int) -> SparseMachine:
    properties = torch.cuda.get_device_properties(device_index)
    shared: int = getattr(properties, "shared_memory_per_block_optin")  # noqa: B009  # torch's stub lacks it
    return SparseMachine(properties.multi_processor_count, shared, (properties.major, properties.minor) == (9, 0))


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
    return plan_for(build, M, N, K, int(choice.get("ctas", suitable_grid(build.tile, M, N, machine.sm_count))))


def _activation_map(build: SparseBuild, activations: Tensor) -> bytes:
    """The kernel's last parameter: how a stage's panels of 64 k are fetched (sm_90a)."""
    if not _machine(activations.device.index).is_sm90a:
        return bytes(TENSOR_MAP_BYTES)
    return panel_map(activations, build.tile.rows, build.tile.depth // BLOCK)


class SparseProduct(StripedProduct):
    """One launch of the kernel.

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
        *,
        dependent: bool = True,
    ) -> None:
        """output[M,N] = activations[M,K] @ W (+ bias[N]); activations, output and bias contiguous and of one dtype.

        A `dependent` launch may read its weights before its predecessor in the stream has ended.
        """
        M, K = activations.shape
        N = output.shape[1]
        build, index = plan.build, activations.device.index
        overlaps = dependent and starts_early(index)
        super().__init__(
            _function(build, index),
            Geometry(plan.ctas, build.tile.threads, build.shared_bytes, build.tile.cluster, overlaps),
            (activations, packed.tensors["blocks"], packed.tensors["scales"], bias, output),
            (M, N, K, build.operands.group_shift),
            workspace or make_workspace(plan, activations.device),
            _activation_map(build, activations),
        )


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


class MarlinSparse(CudaKernel):
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
        self,
        activations: Tensor,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        output: Tensor,
        group_size: int | None,
    ) -> None:
        """output[M,N] = activations[M,K] @ W (+ bias) with tensors from `pack`."""
        (M, K), N = activations.shape, output.shape[1]
        if reason := unsupported_shape(M, N, K, group_size):
            raise ValueError(reason)
        blocks, scales = tensors
        operands = Operands(group_size, bf16=activations.dtype is torch.bfloat16)
        plan = make_plan(operands, M, N, K, activations.device)
        packed = Packed({"blocks": blocks, "scales": scales})
        # Not dependent: what the stream holds before this call is not known here, it may be writing these weights.
        SparseProduct(plan, packed, activations, output, bias, dependent=False)()


LINEAR_KERNEL = MarlinSparseLinearKernel()
