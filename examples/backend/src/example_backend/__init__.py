"""A 4-bit backend for the CPU, as short as the protocol allows: unpack the weights, then multiply."""

from __future__ import annotations

from importlib.metadata import version
from typing import ClassVar, Literal

import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights


class UnpackCpu(Backend):
    """Two codes a byte and FP16 scales, made FP32 at every call: 4 + 16/g bits a weight. Meant to be read."""

    name = "unpack_cpu"
    summary = "the example backend: unpack to FP32, then torch.mm"
    license = "Apache-2.0"
    meant_for = "reading"
    device: ClassVar[Literal["cuda", "cpu"]] = "cpu"
    activation_dtype: ClassVar[Dtype] = "fp32"
    output_dtype: ClassVar[Dtype] = "fp32"

    def version(self) -> str:
        """Goes into every record."""
        return f"example {version('marlin-bench-example-backend')}, torch {torch.__version__}"

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """One sentence with the value and the limit, or None."""
        rows = problem.group_size or problem.K
        return f"a group of {rows} rows is odd" if rows % 2 else None

    def format(self, problem: Problem) -> Format:
        """What the compulsory bytes are counted from."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """uint8 [K/2, N]: the codes of rows k and k + 1 share a byte. Once a layer, untimed."""
        codes = weights.codes[::2] | (weights.codes[1::2] << 4)
        return Packed({"codes": codes, "scales": weights.scales.clone()}, extra={"group_rows": weights.group_rows})

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """A call without arguments that computes output[M,N] = activations[M,K] @ W: this alone is timed."""
        codes, scales = packed.tensors["codes"], packed.tensors["scales"]
        group_rows = packed.extra["group_rows"]
        K, N = activations.shape[1], output.shape[1]

        def multiply() -> None:
            weights = torch.stack((codes & 0xF, codes >> 4), dim=1).view(K, N).float().sub_(SYMMETRIC_ZERO)
            weights.view(-1, group_rows, N).mul_(scales[:, None])
            torch.mm(activations, weights, out=output)

        return multiply
