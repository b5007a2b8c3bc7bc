"""MARLIN (kernels/marlin.cu, marlin_ring.cu): the project's dense W4A16 kernel for every GPU from Ampere on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.cuda_kernel import CudaKernel
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
from marlin_bench.layouts import marlin as layout
from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.marlin_choice import Machine, choose_build, suitable_ctas
from marlin_bench.marlin_config import (
    TILES,
    Build,
    ConfigError,
    Operands,
    Plan,
    Tile,
    build_for,
    plan_for,
    tile_named,
    unsupported_shape,
)
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

SMALLEST_CAPABILITY = (8, 0)
SOURCES = ("marlin", "marlin_ring")


@cache
def _function(build: Build, device_index: int) -> int:
    return kernel_function(build.source, build.defines, build.shared_bytes, device_index)


@cache
def _machine(device_index: int) -> Machine:
    properties = torch.cuda.get_device_properties(device_index)
    shared: int = getattr(properties, "shared_memory_per_block_optin")  # noqa: B009  # torch's stub lacks it
    return Machine(properties.multi_processor_count, shared, torch.cuda.get_device_capability(device_index))


def tiles_of(device: torch.device) -> tuple[Tile, ...]:
    """The tiles that `device` has the instructions for."""
    capability = _machine(torch.cuda.current_device() if device.index is None else device.index).capability
    return tuple(tile for tile in TILES if tile.runs_on(capability))


def make_plan(operands: Operands, M: int, N: int, K: int, device: torch.device, choice: Choice | None = None) -> Plan:
    """The launch for a problem on `device`; `choice` may fix the "tile", the "stages" and the number of "ctas"."""
    choice = choice or {}
    machine = _machine(torch.cuda.current_device() if device.index is None else device.index)
    if "tile" in choice:
        tile = tile_named(choice["tile"])
        if not tile.runs_on(machine.capability):
            raise ConfigError(f"tile {tile} takes instructions that this GPU does not have")
        build = build_for(tile, operands, machine.shared_per_block)
    else:
        build = choose_build(operands, M, N, K, machine)
    if "stages" in choice:
        build = Build(build.tile, operands, int(choice["stages"]))
    ctas = int(choice["ctas"]) if "ctas" in choice else suitable_ctas(build.tile, M, N, machine.sm_count)
    return plan_for(build, M, N, K, ctas)


def _activation_map(build: Build, activations: Tensor) -> bytes:
    """The last parameter of marlin_ring.cu: how a stage's panels of 64 k are fetched; marlin.cu has none."""
    tile = build.tile
    if not tile.by_map:
        return bytes(TENSOR_MAP_BYTES if tile.ring else 0)
    return panel_map(activations, tile.rows, tile.depth // BLOCK)


class Product(StripedProduct):
    """One launch of the kernel.

    Launches that may run at the same time need workspaces of their own, which is what they get without one.
    """

    def __init__(
        self,
        plan: Plan,
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
        tensors = packed.tensors
        build, index = plan.build, activations.device.index
        super().__init__(
            _function(build, index),
            Geometry(
                plan.ctas,
                build.tile.threads,
                build.shared_bytes,
                build.tile.cluster,
                dependent=dependent and starts_early(index),
            ),
            (activations, tensors["codes"], tensors["scales"], tensors.get("zeros"), tensors["unit"], bias, output),
            (M, N, K, build.operands.group_shift),
            workspace or make_workspace(plan, activations.device),
            _activation_map(build, activations),
        )


def pack_weights(weights: QuantizedWeights, dtype: torch.dtype) -> Packed:
    """Canonical weights in the kernel's order, with scales in the activations' dtype.

    BF16 scales are not the canonical FP16 ones: `reference` then gives the weights that the
    kernel really computes with.
    """
    scales = weights.scales.to(dtype)
    kernel_scales, unit = layout.kernel_scales(layout.pack_scales(scales))
    tensors = {"codes": layout.pack_codes(weights.codes), "scales": kernel_scales, "unit": unit}
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


class Marlin(CudaKernel):
    """Our MARLIN on FP16 activations; weights with zero points are recognised when they are packed."""

    name = "marlin"
    summary = "MARLIN, 4-bit weights and FP16 activations on mma.sync (sm_80 and up)"
    dtype: ClassVar[torch.dtype] = torch.float16

    def __init__(self) -> None:
        self._workspaces: dict[tuple[torch.device, int], Workspace] = {}

    def version(self) -> str:
        """The digest of the kernel's sources."""
        return f"marlin {self.kernel_digest()}"

    def kernel_digest(self) -> str:
        """Digest of kernels/marlin.cu, marlin_ring.cu and their headers."""
        return "-".join(source_digest(source) for source in SOURCES)

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
        """One launch of the kernel; launches for two streams are made under those streams."""
        M, K = activations.shape
        plan = make_plan(packed_operands(packed), M, output.shape[1], K, activations.device, choice)
        return Product(plan, packed, activations, output, workspace=self._workspace(plan, activations.device))

    def _workspace(self, plan: Plan, device: torch.device) -> Workspace:
        """The workspace of the current stream: launches made under one stream run one after the other on it."""
        key = (device, torch.cuda.current_stream(device).cuda_stream)
        kept = self._workspaces.get(key)
        if kept is None or kept.sums.numel() * 4 < plan.sum_bytes or kept.counters.numel() < plan.counters:
            kept = self._workspaces[key] = make_workspace(plan, device)
        return kept

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """The tile that suits the shape; nothing is measured."""
        M, K = activations[0].shape
        plan = make_plan(packed_operands(packed[0]), M, outputs[0].shape[1], K, activations[0].device)
        return {"tile": str(plan.build.tile), "stages": str(plan.build.stages), "ctas": str(plan.ctas)}


class MarlinBf16(Marlin):
    """Our MARLIN on BF16 activations, with the scales rounded to BF16."""

    name = "marlin_bf16"
    summary = "MARLIN, 4-bit weights and BF16 activations on mma.sync (sm_80 and up)"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    dtype = torch.bfloat16


class MarlinLinearKernel:
    """The kernel as `marlin_bench.linear` drives it: tensors in a fixed order, a workspace a call."""

    name = "marlin"

    def unsupported(self, weights: QuantizedWeights) -> str | None:
        """One sentence why these weights have no packed form, or None."""
        return unsupported_shape(1, weights.N, weights.K, weights.group_size)

    def pack(self, weights: QuantizedWeights, dtype: torch.dtype) -> list[Tensor]:
        """[codes, scales, unit] or [codes, scales, unit, zeros] for activations of `dtype`."""
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
        codes, scales, unit, *zeros = tensors
        operands = Operands(group_size, bool(zeros), activations.dtype is torch.bfloat16)
        packed = Packed({"codes": codes, "scales": scales, "unit": unit} | ({"zeros": zeros[0]} if zeros else {}))
        plan = make_plan(operands, M, N, K, activations.device)
        # Not dependent: what the stream holds before this call is not known here, it may be writing these weights.
        Product(plan, packed, activations, output, bias, dependent=False)()


LINEAR_KERNEL = MarlinLinearKernel()
