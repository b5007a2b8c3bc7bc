"""What a backend is: the one interface that kernels, baselines and third-party packages implement.

A backend packs canonical weights once a layer (untimed), may tune itself for an M (untimed), and then hands out
launches. Only launches are timed: one call enqueues exactly one product on the current stream and returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from marlin_bench.problem import DTYPE_BITS, FP16, Format, Problem
from marlin_bench.quantize import QuantizedWeights

Launch = Callable[[], None]
"""Enqueues one product on the current stream (on the CPU: computes it). Allocates nothing that the caller must keep."""

Dtype = Literal["fp16", "bf16", "fp32"]

Choice = Mapping[str, str]
"""What tuning settled on, as it is stored in the record: {"layout": "NK"}, {"tile": "128x128"} …"""


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot run here, and the one command that brings it."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class DeviceTraits:
    """What a backend may ask of the device: nothing here is a constant of a GPU model in code."""

    kind: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] | None = None
    sm_count: int | None = None
    shared_memory_per_block: int | None = None
    l2_bytes: int = 0


@dataclass(frozen=True)
class Packed:
    """One layer's weights in a backend's own order.

    `tensors` holds every tensor that a product reads beside the activations: the stored bytes are counted from it.
    `reference` is the [K, N] weight matrix it really holds where that is not the canonical one (BF16 scales, own
    quantiser): the outputs are judged against it.
    """

    tensors: Mapping[str, Tensor]
    reference: Callable[[slice], Tensor] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes as really stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def copy(self) -> Packed:
        """The same weights at other addresses, for rotation past the caches."""
        return Packed({name: t.clone() for name, t in self.tensors.items()}, self.reference, deepcopy(dict(self.extra)))


class Backend(ABC):
    """A kernel or baseline; subclasses are registered by name in `marlin_bench.backends` or by an entry point."""

    name: ClassVar[str]
    summary: ClassVar[str]
    device: ClassVar[Literal["cuda", "cpu"]] = "cuda"
    activation_dtype: ClassVar[Dtype] = "fp16"
    output_dtype: ClassVar[Dtype] = "fp16"
    isolation: ClassVar[Literal["shared", "own"]] = "shared"
    is_baseline: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.001
    """Largest mean|Δ| / mean|reference| allowed (DESIGN 3.1); 0.002 for sparse kernels."""

    @property
    def activation_bits(self) -> int:
        """Bits of one activation and one output."""
        return DTYPE_BITS[self.activation_dtype]

    def missing(self) -> Missing | None:
        """Why this backend cannot be loaded on this machine (package, library), or None. Must not raise."""
        return None

    @abstractmethod
    def version(self) -> str:
        """Version of what does the work, as stored in records: package and version, or kernel digest."""

    def kernel_digest(self) -> str | None:
        """Digest of the CUDA sources behind this backend, for the project's own kernels."""
        return None

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """One sentence why this problem cannot run here (value, limit), or None."""
        return None

    def format(self, problem: Problem) -> Format:
        """How this backend stores the weights of `problem`."""
        return FP16

    @abstractmethod
    def pack(self, weights: QuantizedWeights) -> Packed:
        """The canonical weights in this backend's order, on the weights' device; once a layer and operand set."""

    def tune(self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor]) -> Choice:
        """Choose a configuration for this M, untimed; the sequences are the rotated operand sets."""
        return {}

    @abstractmethod
    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """A launch computing output[M,N] = activations[M,K] @ W; both are contiguous, in this backend's dtypes."""
