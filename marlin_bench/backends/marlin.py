"""MARLIN (kernels/marlin.cu): the project's dense W4A16 kernel for every GPU from Ampere on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.cuda_source import load_module, source_digest
from marlin_bench.layouts import marlin as layout
from marlin_bench.marlin_config import (
    Build,
    Operands,
    Plan,
    build_for,
    choose_tile,
    plan_for,
    tile_named,
    unsupported_shape,
)
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

if TYPE_CHECKING:
    import cupy

SMALLEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Workspace:
    """Where the slices of a tile meet: it belongs to one launch at a time.

    sums: float32, any content. counters: int64, any content that no running launch is writing; see reduction.cuh.
    """

    sums: Tensor
    counters: Tensor


@cache
def _kernel(build: Build, device_index: int) -> cupy.RawKernel:
    kernel = load_module("marlin", build.defines).get_function("marlin")
    kernel.max_dynamic_shared_size_bytes = build.shared_bytes
    return kernel


def make_plan(
    operands: Operands, M: int, N: int, K: int, device: torch.device, choice: Choice | None = None
) -> Plan:
    """The launch for a problem on `device`; `choice` may fix the "tile", the "stages" and the number of "ctas"."""
    choice = choice or {}
    properties = torch.cuda.get_device_properties(device)
    tile = tile_named(choice["tile"]) if "tile" in choice else choose_tile(M, K)
    build = build_for(tile, operands, properties.shared_memory_per_block_optin)
    if "stages" in choice:
        build = Build(tile, operands, int(choice["stages"]))
    return plan_for(build, M, N, K, int(choice.get("ctas", properties.multi_processor_count * tile.ctas_per_sm)))


def make_workspace(plan: Plan, device: torch.device) -> Workspace:
    """A workspace for launches of `plan` that run one after the other."""
    return Workspace(
        torch.empty(plan.sum_bytes // 4, dtype=torch.float32, device=device),
        torch.zeros(plan.counters, dtype=torch.int64, device=device),
    )


def _address(tensor: Tensor | None) -> np.uint64:
    return np.uint64(0 if tensor is None else tensor.data_ptr())


def launcher(
    plan: Plan, packed: Packed, activations: Tensor, output: Tensor, workspace: Workspace, bias: Tensor | None = None
) -> Launch:
    """A launch computing output[M,N] = activations[M,K] @ W (+ bias[N]) on the stream that is current when called."""
    import cupy

    M, K = activations.shape
    N = output.shape[1]
    operands = (
        activations,
        packed.tensors["codes"],
        packed.tensors["scales"],
        packed.tensors.get("zeros"),
        bias,
        output,
        workspace.sums,
        workspace.counters,
    )
    sizes = (np.int32(M), np.int32(N), np.int32(K), np.int32(plan.build.operands.group_shift))
    arguments = (*map(_address, operands), *sizes)
    device_index = activations.device.index
    kernel = _kernel(plan.build, device_index)
    grid, block, shared = (plan.ctas,), (kernel_threads(plan),), plan.build.shared_bytes

    def launch() -> None:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream(device_index).cuda_stream):
            kernel(grid, block, arguments, shared_mem=shared)

    launch.operands = operands  # type: ignore[attr-defined]  # what the addresses point at lives as long as the launch
    return launch


def kernel_threads(plan: Plan) -> int:
    """Threads of a CTA: the same for every build."""
    from marlin_bench.marlin_config import THREADS

    return THREADS


def pack_weights(weights: QuantizedWeights, dtype: torch.dtype) -> Packed:
    """Canonical weights in the kernel's order, with scales in the activations' dtype.

    BF16 scales are not the canonical FP16 ones: `reference` then gives the weights that the kernel really computes with.
    """
    scales = weights.scales.to(dtype)
    tensors = {"codes": layout.pack_codes(weights.codes), "scales": layout.pack_scales(scales)}
    if weights.zeros is not None:
        tensors["zeros"] = layout.pack_zeros(weights.zeros)
    extra: dict[str, object] = {
        "operands": Operands(weights.group_size, weights.zeros is not None, dtype is torch.bfloat16)
    }
    if dtype is torch.float16:
        return Packed(tensors, extra=extra)
    held = QuantizedWeights(weights.codes, scales, weights.zeros, group_size=weights.group_size)
    return Packed(tensors, reference=lambda columns: held.dequantized(columns, dtype), extra=extra)


def packed_operands(packed: Packed) -> Operands:
    """What `pack_weights` recorded; TypeError for weights packed by another backend."""
    operands = packed.extra.get("operands")
    if not isinstance(operands, Operands):
        raise TypeError("packed by another backend")
    return operands


class Marlin(Backend):
    """Our MARLIN on FP16 activations; weights with zero points are recognised when they are packed."""

    name = "marlin"
    summary = "MARLIN, 4-bit weights and FP16 activations on mma.sync (sm_80 and up)"
    dtype: ClassVar[torch.dtype] = torch.float16

    def version(self) -> str:
        """The digest of the kernel's sources."""
        return f"marlin {source_digest('marlin')}"

    def kernel_digest(self) -> str:
        """Digest of kernels/marlin.cu and its headers."""
        return source_digest("marlin")

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Shapes without an instance, and GPUs before Ampere."""
        if device.capability is not None and device.capability < SMALLEST_CAPABILITY:
            return f"compute capability {'.'.join(map(str, device.capability))} is below 8.0, which has cp.async"
        return unsupported_shape(problem.M, problem.N, problem.K, problem.group_size)

    def format(self, problem: Problem) -> Format:
        """4-bit codes with 16-bit scales."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Into 64×64 blocks (layouts/marlin.py)."""
        return pack_weights(weights, self.dtype)

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One launch of the kernel, with a workspace of its own."""
        M, K = activations.shape
        plan = make_plan(packed_operands(packed), M, output.shape[1], K, activations.device, choice)
        return launcher(plan, packed, activations, output, make_workspace(plan, activations.device))


class MarlinBf16(Marlin):
    """Our MARLIN on BF16 activations, with the scales rounded to BF16."""

    name = "marlin_bf16"
    summary = "MARLIN, 4-bit weights and BF16 activations on mma.sync (sm_80 and up)"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    dtype = torch.bfloat16
