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

from marlin_bench.problem import FP16, Format, Problem
from marlin_bench.quantize import QuantizedWeights

Launch = Callable[[], Tensor | None]
"""Enqueues one product on the current stream (on the CPU: computes it).

None: it wrote the output it was made for. A tensor [M,N] of the backend's output dtype: the result it allocated itself,
for libraries that cannot write into a given one; that is then what is checked, and nothing is copied.
"""

Dtype = Literal["fp16", "bf16", "fp32"]
EightBit = Literal["fp8", "int8"]
Effort = Literal["quick", "full"]
"""How long a backend may search for its configuration: the suite's `tune`."""

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
    quantiser): the outputs are judged against it. `remake` packs again where the weights live in an object of a library
    that cannot be cloned.
    """

    tensors: Mapping[str, Tensor]
    reference: Callable[[slice], Tensor] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    remake: Callable[[], Packed] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes as really stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def copy(self) -> Packed:
        """The same weights at other addresses, for rotation past the caches."""
        if self.remake is not None:
            return self.remake()
        return Packed({name: t.clone() for name, t in self.tensors.items()}, self.reference, deepcopy(dict(self.extra)))


@dataclass(frozen=True)
class EightBitActivations:
    """Activations as a kernel for 8-bit operands reads them.

    `quantize` fills `tensors` (codes [M,K] and scales) from the activations it was made for, at the same addresses each
    time: it is timed apart from the product. `dequantized` gives the [M,K] values that the tensors stand for now.
    """

    tensors: Mapping[str, Tensor]
    quantize: Launch
    dequantized: Callable[[], Tensor]


class Backend(ABC):
    """A kernel or baseline; subclasses are registered by name in `marlin_bench.backends` or by an entry point."""

    name: ClassVar[str]
    summary: ClassVar[str]
    project: ClassVar[str] = ""
    """Where it comes from (URL); empty for this project's own."""
    license: ClassVar[str] = ""
    """SPDX name of that project's licence."""
    meant_for: ClassVar[str] = ""
    """The M it is written for, in a few words."""
    device: ClassVar[Literal["cuda", "cpu"]] = "cuda"
    activation_dtype: ClassVar[Dtype] = "fp16"
    output_dtype: ClassVar[Dtype] = "fp16"
    isolation: ClassVar[Literal["shared", "own"]] = "shared"
    is_baseline: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.001
    """Largest mean|Δ| / mean|reference| allowed (DESIGN 3.1); 0.002 for sparse kernels."""

    tune_is_kept: ClassVar[bool] = False
    """Whether the answer of `tune` is kept on disk, as those of `candidates` are: for a search that takes seconds."""

    @property
    def operand_dtype(self) -> str:
        """What the kernel multiplies with: the activations as given, or the 8-bit ones made of them."""
        return self.activation_dtype

    @property
    def accepted(self) -> str:
        """The activations that it takes, and what it makes of them first: `fp16`, `bf16 as fp8`."""
        given, multiplied = self.activation_dtype, self.operand_dtype
        return given if given == multiplied else f"{given} as {multiplied}"

    def missing(self) -> Missing | None:
        """Why this backend cannot be loaded on this machine (package, library), or None. Must neither raise nor import.

        What it says goes into the list of backends and into records of status `missing`.
        """
        return None

    def load(self) -> None:  # noqa: B027  most backends have nothing to load
        """Import what does the work, before anything else is called.

        ImportError, OSError or AttributeError means that it is installed and does not work here: the backend is then
        `missing`, with that reason.
        """

    def remedy(self) -> str:
        """The one command that brings what `load` could not."""
        return "see its documentation"

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

    def held_weights(self, packed: Packed, choice: Choice) -> Callable[[slice], Tensor] | None:
        """The [K, N] weights that products with `choice` are judged by; None: the canonical ones.

        For backends whose choice decides whether weights are rounded further; for all others it is what they packed.
        """
        return packed.reference

    def candidates(self, problem: Problem, device: DeviceTraits, effort: Effort) -> Sequence[Choice]:
        """Configurations worth timing for `problem`, the library's own choice first; empty where `tune` decides.

        The suite times them within its bounds, skips those that raise RuntimeError or ValueError, and keeps the
        fastest on disk. See marlin_bench/tuning.py.
        """
        return ()

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """Choose a configuration for this M, untimed; the sequences are the rotated operand sets."""
        return {}

    @abstractmethod
    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """A launch computing output[M,N] = activations[M,K] @ W; both are contiguous, in this backend's dtypes."""


class EightBitBackend(Backend):
    """A kernel whose activations have 8 bits: the suite hands over 16-bit ones, which it quantises itself.

    The time of a record is that of `multiply`; that of `quantize` is recorded beside it. Outputs are judged against the
    product of the operands as it quantised them, and their error against the canonical product is recorded apart.
    """

    compute_dtype: ClassVar[EightBit]

    @property
    def operand_dtype(self) -> str:
        """8 bits."""
        return self.compute_dtype

    @abstractmethod
    def quantize(self, activations: Tensor) -> EightBitActivations:
        """Room for `activations` [M,K] in 8 bits and the launch that fills it; called once for each operand set."""

    @abstractmethod
    def multiply(self, packed: Packed, given: EightBitActivations, output: Tensor, choice: Choice) -> Launch:
        """A launch computing output[M,N] from quantised activations."""

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """Both steps, one after the other: what a caller with 16-bit activations pays."""
        given = self.quantize(activations)
        product = self.multiply(packed, given, output, choice)

        def both() -> Tensor | None:
            given.quantize()
            return product()

        return both
