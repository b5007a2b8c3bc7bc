"""torchao's int4 weight-only quantisation, tile-packed for tinygemm."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import LARGEST_CODE, SYMMETRIC_ZERO, QuantizedWeights

_PADDED_K = 1024


class TorchaoInt4(Peer):
    """Int4WeightOnlyConfig with tile_packed_to_4d of torchao (pytorch/ao), BSD-3: torch's tinygemm underneath.

    Weights: 4 + 32/128 bits (a BF16 scale and offset a group). BF16 only. Meant for M up to 16: at larger M it is many
    times slower than 16-bit weights (pytorch/ao#3496), on narrow layers at M = 1 too (pytorch/ao#1606). It quantises
    the same weights for itself (asymmetric) and is judged against what that gives. Against `tinygemm` it shows what its
    tensor subclass adds. The packing that it takes by default, "plain", is for MSLK: see `mslk`.
    """

    name = "torchao"
    summary = "torchao int4 weight-only, tile-packed (BF16)"
    project = "https://github.com/pytorch/ao"
    license = "BSD-3-Clause"
    meant_for = "M up to 16"
    extra = "torchao"
    packages = (Package("torchao", "torchao", at_least="0.18.0"),)
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"

    def load(self) -> None:
        """Its quantisation API."""
        from torchao.quantization import Int4WeightOnlyConfig, quantize_  # noqa: F401

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """sm_80, groups of 128; K is not padded here, which it would be from one multiple of 1024 to the next."""
        if device.capability is not None and device.capability < (8, 0):
            return f"compute capability {'.'.join(map(str, device.capability))} is below 8.0"
        return packing.unsupported(problem, multiple_n=8, multiple_k=_PADDED_K)

    def format(self, problem: Problem) -> Format:
        """4-bit codes; the compulsory bytes are those of a scale a group."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """A linear layer of the BF16 weights, quantised in place."""
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        dense = packing.symmetric(weights).dequantized().bfloat16().t().contiguous()
        layer = torch.nn.Linear(weights.K, weights.N, bias=False, device="meta", dtype=torch.bfloat16)
        layer.weight = torch.nn.Parameter(dense, requires_grad=False)
        holder = torch.nn.Sequential(layer)
        quantize_(
            holder,
            Int4WeightOnlyConfig(
                group_size=packing.GROUP_SIZE, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            ),
        )
        quantized: Any = holder[0].weight
        return Packed(
            {"codes": quantized.qdata, "scales_and_offsets": quantized.scale_and_zero},
            reference=lambda columns: held(weights, columns),
            extra={"layer": holder[0]},
            remake=lambda: self.pack(weights),
        )

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """The layer's forward, which makes its own result."""
        layer: Any = packed.extra["layer"]

        def multiply() -> Tensor:
            with torch.no_grad():
                product: Tensor = layer(activations)
            return product

        return multiply


def held(weights: QuantizedWeights, columns: slice) -> Tensor:
    """The weights [K, columns] as torchao quantises them: its codes, and tinygemm's (code - 8) · scale + offset.

    The kernel fuses the two and rounds to BF16 once; torchao's own dequantisation rounds twice.
    """
    from torchao.quantization.quant_primitives import (
        MappingType,
        _choose_qparams_affine_tinygemm,
        _quantize_affine_tinygemm,
    )

    dense = weights.dequantized(columns).bfloat16().t().contiguous()
    block = (1, packing.GROUP_SIZE)
    scale, offset = _choose_qparams_affine_tinygemm(
        dense,
        mapping_type=MappingType.ASYMMETRIC,
        block_size=block,
        target_dtype=torch.int32,
        quant_min=0,
        quant_max=LARGEST_CODE,
        scale_dtype=torch.bfloat16,
        zero_point_dtype=torch.bfloat16,
    )
    codes = _quantize_affine_tinygemm(dense, block, scale, offset, torch.int32, 0, LARGEST_CODE)
    N, K = dense.shape
    signed = (codes.view(N, -1, packing.GROUP_SIZE) - SYMMETRIC_ZERO).float()
    values: Tensor = signed * scale.float().view(N, -1, 1) + offset.float().view(N, -1, 1)
    return values.bfloat16().view(N, K).t()
