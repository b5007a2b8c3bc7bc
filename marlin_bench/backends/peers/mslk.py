"""MSLK, the kernels of Meta that were FBGEMM GenAI: CUTLASS mixed-input GEMM with 4-bit weights."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from marlin_bench.backends import carried
from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

LIBRARY = "mslk/mslk.so.xz"


@cache
def operators() -> Any:
    """torch.ops.mslk; OSError where the library does not load. The package itself is not imported: it is large."""
    spec = find_spec("mslk")
    if spec is not None and spec.submodule_search_locations:
        library = Path(spec.submodule_search_locations[0]) / "mslk.so"
    else:
        library = carried.unpacked(LIBRARY)
    torch.ops.load_library(str(library))
    return torch.ops.mslk


class Mslk(Peer):
    """bf16i4bf16_shuffled of MSLK (pytorch/MSLK), BSD-3: CUTLASS for Hopper, BF16 activations.

    Weights: 4 + 32/128 bits (a BF16 scale and a BF16 zero point a group; the zero points are nought here). Meant for
    Hopper at M from 16 on. The weights are shuffled for the kernel beforehand (pytorch/FBGEMM#3913, where it comes
    from); GPUs of another maker cannot read that form (meta-pytorch/MSLK#403).
    """

    name = "mslk"
    summary = "MSLK bf16i4bf16 (CUTLASS for Hopper, BF16)"
    project = "https://github.com/pytorch/MSLK"
    license = "BSD-3-Clause"
    meant_for = "Hopper, M from 16 on"
    extra = "mslk"
    packages = (Package("mslk-cuda", "mslk", at_least="1.1.0", carried=LIBRARY),)
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"

    def load(self) -> None:
        """The library of operators."""
        operators()

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Hopper, groups of 128, N in multiples of 128."""
        if device.capability is None or device.capability[0] != 9:
            return f"{device.name} is not a Hopper GPU (sm_90)"
        return packing.unsupported(problem, multiple_n=128)

    def format(self, problem: Problem) -> Format:
        """4-bit codes; its zero points are its own overhead."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Signed nibbles through MSLK's preshuffling, scales [groups, N] in BF16."""
        scales = weights.scales.bfloat16().contiguous()
        nibbles = packing.signed_bytes_along_k(packing.symmetric(weights).codes)
        codes, shuffled = operators().preshuffle_i4(nibbles, scales)
        return Packed(
            {"codes": codes, "scales": shuffled, "zeros": torch.zeros_like(scales)},
            reference=packing.held_in_bf16(weights),
        )

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """bf16i4bf16_shuffled, which makes its own result."""
        codes, scales, zeros = (packed.tensors[name] for name in ("codes", "scales", "zeros"))
        product_of = operators().bf16i4bf16_shuffled

        def multiply() -> Tensor:
            product: Tensor = product_of(activations, codes, scales, zeros)
            return product

        return multiply
