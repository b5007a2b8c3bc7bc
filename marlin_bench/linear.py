"""MarlinLinear: a torch module with 4-bit weights, for use outside the suite.

    layer = MarlinLinear.from_linear(torch.nn.Linear(4096, 11008, dtype=torch.float16, device="cuda"))
    y = layer(x)                                            # also under torch.compile and torch.cuda.graph

Which kernel multiplies is decided once, by the compute capability of the weights' device (`linear_kernel`); the module
holds that kernel's packed tensors. The product is one custom operator, `marlin_bench::w4a16_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Optional, Protocol

import torch
from torch import Tensor

from marlin_bench.quantize import QuantizedWeights, quantize

Capability = tuple[int, int]
DTYPES = (torch.float16, torch.bfloat16)
_ALIGNMENT = 16  # bytes that the kernels fetch at a time, with cp.async or by a tensor map


class LinearError(ValueError):
    """Weights or a device that no kernel serves."""


class LinearKernel(Protocol):
    """A kernel that multiplies by packed 4-bit weights."""

    name: str

    def unsupported(self, weights: QuantizedWeights) -> str | None:
        """One sentence why these weights cannot be packed, or None."""

    def pack(self, weights: QuantizedWeights, dtype: torch.dtype) -> list[Tensor]:
        """The tensors that a product with activations of `dtype` reads."""

    def multiply(
        self,
        activations: Tensor,
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        output: Tensor,
        group_size: int | None,
    ) -> None:
        """output[M,N] = activations[M,K] @ W (+ bias[N]), enqueued on the current stream; M is at least 1.

        activations and output are contiguous, activations begin at a multiple of 16 bytes.
        """


@dataclass(frozen=True)
class _Candidate:
    """A kernel, named "module:object" in marlin_bench.backends, and the capabilities from … to that it is for."""

    name: str
    where: str
    first: Capability
    last: Capability


_CANDIDATES = (
    _Candidate("marlin_sparse", "marlin_sparse:LINEAR_KERNEL", (8, 0), (99, 9)),
    _Candidate("marlin_hopper", "marlin_hopper:LINEAR_KERNEL", (9, 0), (9, 0)),
    _Candidate("marlin", "marlin:LINEAR_KERNEL", (8, 0), (99, 9)),
)
"""Kernels, the preferred one first. A kernel for one kind of weights or architecture goes before those for many."""


@cache
def _kernel_named(name: str) -> LinearKernel:
    for candidate in _CANDIDATES:
        if candidate.name == name:
            module, _, attribute = candidate.where.partition(":")
            kernel: LinearKernel = getattr(import_module(f"marlin_bench.backends.{module}"), attribute)
            return kernel
    raise LinearError(f"there is no linear kernel '{name}'")


def linear_kernel(capability: Capability, weights: QuantizedWeights) -> LinearKernel:
    """The kernel for a compute capability and these weights; LinearError says why there is none."""
    reasons = []
    for candidate in _CANDIDATES:
        if candidate.first <= capability <= candidate.last:
            kernel = _kernel_named(candidate.name)
            reason = kernel.unsupported(weights)
            if reason is None:
                return kernel
            reasons.append(reason)
    version = ".".join(map(str, capability))
    raise LinearError(
        "; ".join(reasons) or f"compute capability {version} is below 8.0, the least that any kernel needs"
    )


@torch.library.custom_op("marlin_bench::w4a16_linear", mutates_args=())
def w4a16_linear(
    activations: Tensor,
    tensors: list[Tensor],
    bias: Optional[Tensor],  # noqa: UP045  # the schema is inferred from these annotations
    kernel: str,
    N: int,
    group_size: Optional[int],  # noqa: UP045
) -> Tensor:
    """activations[M,K] @ W[K,N] (+ bias[N]) with the packed `tensors` of the kernel called `kernel`."""
    output = activations.new_empty(activations.shape[0], N)
    if output.shape[0] == 0:
        return output
    rows = activations.contiguous()
    if rows.data_ptr() % _ALIGNMENT:
        rows = rows.clone()
    _kernel_named(kernel).multiply(rows, tensors, bias, output, group_size)
    return output


@w4a16_linear.register_fake
def _(
    activations: Tensor,
    tensors: list[Tensor],  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    kernel: str,  # noqa: ARG001
    N: int,
    group_size: int | None,  # noqa: ARG001
) -> Tensor:
    return activations.new_empty(activations.shape[0], N)


class MarlinLinear(torch.nn.Module):
    """y[…, N] = x[…, K] @ W[K, N] (+ bias[N]), W held in 4 bits; x in FP16 or BF16, as chosen when packed."""

    bias: Tensor | None

    def __init__(
        self, weights: QuantizedWeights, bias: Tensor | None = None, *, dtype: torch.dtype = torch.float16
    ) -> None:
        """Packs `weights`, which lie on the GPU that will multiply; LinearError when no kernel serves them."""
        super().__init__()
        if dtype not in DTYPES:
            raise LinearError(f"activations in {dtype} are not served: use torch.float16 or torch.bfloat16")
        if weights.codes.device.type != "cuda":
            raise LinearError(f"the weights are on {weights.codes.device}: move them to a GPU first")
        kernel = linear_kernel(torch.cuda.get_device_capability(weights.codes.device), weights)
        self.in_features, self.out_features = weights.K, weights.N
        self.group_size, self.dtype, self.kernel = weights.group_size, dtype, kernel.name
        packed = kernel.pack(weights, dtype)
        self._names = [f"packed_{index}" for index in range(len(packed))]
        for name, tensor in zip(self._names, packed, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype).contiguous())

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, group_size: int | None = 128, *, zero_points: bool = False
    ) -> MarlinLinear:
        """Quantises a dense layer by rounding to nearest; activations keep the layer's dtype."""
        weights = quantize(linear.weight.detach().t(), group_size, zero_points=zero_points)
        return cls(weights, linear.bias, dtype=linear.weight.dtype)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        group_size: int | None = 128,
        dtype: torch.dtype = torch.float16,
    ) -> MarlinLinear:
        """From a quantiser's result: uint8 codes [K, N], FP16 scales and uint8 zero points [groups, N]."""
        return cls(QuantizedWeights(codes, scales, zeros, group_size=group_size), bias, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x[…, K] → y[…, N]."""
        if x.dtype is not self.dtype:
            raise LinearError(f"activations are {x.dtype}, this layer was packed for {self.dtype}")
        tensors = [self.get_buffer(name) for name in self._names]
        rows = x.reshape(-1, self.in_features)
        y: Tensor = w4a16_linear(rows, tensors, self.bias, self.kernel, self.out_features, self.group_size)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape, group and kernel, as print(model) shows them."""
        group = "column" if self.group_size is None else self.group_size
        return f"in_features={self.in_features}, out_features={self.out_features}, group={group}, kernel={self.kernel}"
