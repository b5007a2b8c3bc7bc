"""torch's own int4 kernel on CUDA (tinygemm), as `torch._weight_int4pack_mm` has it since 2.1; BSD-3."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

_INNER_K_TILES = 8


class Tinygemm(Backend):
    """BF16 activations, BF16 scales and offsets a group: 4 + 32/g bits a weight; meant for M up to 16.

    torch's own (BSD-3-Clause). Slower than 16-bit products from M = 16 on, many times at larger M (pytorch/ao#3496).
    """

    name = "tinygemm"
    summary = "torch _weight_int4pack_mm (BF16, scales and offsets in BF16)"
    project = "https://github.com/pytorch/pytorch"
    license = "BSD-3-Clause"
    meant_for = "M up to 16"
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"
    group_sizes = (32, 64, 128, 256)

    def version(self) -> str:
        """Torch carries the kernel."""
        return f"torch {torch.__version__} cuda {torch.version.cuda}"

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Its limits: sm_80, groups of 32 to 256, K a multiple of 128, N of 8."""
        if device.capability is not None and device.capability < (8, 0):
            return f"compute capability {device.capability[0]}.{device.capability[1]} is below 8.0"
        if problem.group_size not in self.group_sizes:
            return f"group size {problem.group_size or 'column'}: it takes 32, 64, 128 or 256"
        if problem.K % (16 * _INNER_K_TILES):
            return f"K {problem.K} is not a multiple of {16 * _INNER_K_TILES}"
        if problem.N % 8:
            return f"N {problem.N} is not a multiple of 8"
        return None

    def format(self, problem: Problem) -> Format:
        """4-bit codes; the compulsory bytes are those of a scale a group (its BF16 offset is its own overhead)."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Codes in its tile order, (scale, offset) pairs [groups, N, 2]; the offset of symmetric weights is 0."""
        codes = weights.codes.t()
        packed_codes = (codes[:, ::2] << 4) | codes[:, 1::2]
        tiles = torch.ops.aten._convert_weight_to_int4pack(packed_codes.contiguous(), _INNER_K_TILES)
        scales = weights.scales.bfloat16()
        pairs = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()
        held = QuantizedWeights(weights.codes, scales, group_size=weights.group_size)
        return Packed(
            {"codes": tiles, "scales_and_offsets": pairs},
            reference=lambda columns: held.dequantized(columns, torch.bfloat16),
            extra={"group_size": weights.group_rows},
        )

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One product, in memory that the operator allocates."""
        codes, pairs = packed.tensors["codes"], packed.tensors["scales_and_offsets"]
        group_size = packed.extra["group_size"]

        def multiply() -> Tensor:
            result: Tensor = torch.ops.aten._weight_int4pack_mm(activations, codes, group_size, pairs)
            return result

        return multiply
