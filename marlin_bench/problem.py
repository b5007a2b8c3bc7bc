"""What one product C[M,N] = A[M,K] @ W[K,N] costs: flop, compulsory bytes, arithmetic intensity.

This is the only module that counts. Every roofline, ideal line and gate divides its numbers by a time.
Compulsory bytes follow the MARLIN paper (arXiv 2408.11743, section 3.4) with the scales it leaves out: each
operand crosses the memory bus exactly once, whatever a kernel really reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

SCALE_BITS = 16
ZERO_POINT_BITS = 4
DTYPE_BITS = {"fp16": 16, "bf16": 16, "fp32": 32, "fp8": 8, "int8": 8}


class FormatError(ValueError):
    """A weight format name that cannot be read."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a weight matrix is stored.

    `code_bits` are the bits of one *stored* weight; `kept` is the stored share of the dense weights (1/2 for 2:4);
    `group_size` is how many dense K share a scale, None for one scale a column; `scale_bits` is 0 where there is none.
    """

    name: str
    code_bits: int
    scale_bits: int = 0
    group_size: int | None = None
    zero_bits: int = 0
    kept: Fraction = Fraction(1)
    metadata_bits: int = 0

    def __hash__(self) -> int:
        """By its name: what counts bytes looks formats up thousands of times, and a fraction is slow to hash."""
        return hash(self.name)

    @property
    def is_quantized(self) -> bool:
        """Whether the codes need scales to become weights."""
        return self.scale_bits > 0

    @property
    def is_sparse(self) -> bool:
        """Whether only a part of the dense weights is stored (2:4)."""
        return self.kept != 1

    def groups(self, K: int) -> int:
        """Scales a column holds: K / group_size, or 1 per column; 0 without scales."""
        if not self.is_quantized:
            return 0
        return 1 if self.group_size is None else K // self.group_size

    def bits_per_weight(self, K: int) -> float:
        """Bits stored for each dense weight of a matrix with K input features, scales and metadata included."""
        per_group = (self.scale_bits + self.zero_bits) * self.groups(K) / K
        return float(self.code_bits * self.kept) + self.metadata_bits + per_group


FP16 = Format("fp16", 16)
BF16 = Format("bf16", 16)
FP32 = Format("fp32", 32)
FP16_2OF4 = Format("fp16_2of4", 16, kept=Fraction(1, 2), metadata_bits=1)
"""2:4-sparse FP16: half the weights, and two bits of position each."""
FP8 = Format("fp8", 8, scale_bits=32)
"""E4M3 codes with an FP32 scale a column."""
FP8_TENSOR = Format("fp8_tensor", 8)
"""E4M3 codes with one scale in all."""
INT8 = Format("int8", 8, scale_bits=32)
"""8-bit integers with an FP32 scale a column."""
_FIXED = {fmt.name: fmt for fmt in (FP16, BF16, FP32, FP16_2OF4, FP8, FP8_TENSOR, INT8)}


def int4(group_size: int | None, *, zero_points: bool = False, sparse: bool = False) -> Format:
    """The format of 4-bit codes with FP16 scales: `int4_g128`, `int4_gK`, `int4_g128_zp`, `int4_2of4_g128` …

    Sparse (2:4) stores half the codes and one metadata bit for each dense weight: 2 + 1 + 16/g bits.
    """
    group = "gK" if group_size is None else f"g{group_size}"
    name = "int4" + ("_2of4" if sparse else "") + f"_{group}" + ("_zp" if zero_points else "")
    return Format(
        name=name,
        code_bits=4,
        scale_bits=SCALE_BITS,
        group_size=group_size,
        zero_bits=ZERO_POINT_BITS if zero_points else 0,
        kept=Fraction(1, 2) if sparse else Fraction(1),
        metadata_bits=1 if sparse else 0,
    )


def nf4(block: int) -> Format:
    """4-bit codes of a table (NormalFloat) with an FP32 scale for each `block` rows."""
    return Format(f"nf4_g{block}", 4, scale_bits=32, group_size=block)


def fp4(block: int) -> Format:
    """4-bit floating-point codes with an FP32 scale for each `block` rows."""
    return Format(f"fp4_g{block}", 4, scale_bits=32, group_size=block)


_TABLE_FORMATS = {"nf4": nf4, "fp4": fp4}
_TABLE_NAME = re.compile(r"(?P<kind>nf4|fp4)_g(?P<block>[1-9]\d*)")
_INT4_NAME = re.compile(r"int4(?P<sparse>_2of4)?_g(?P<group>\d+|K)(?P<zero>_zp)?")


@cache
def parse_format(name: str) -> Format:
    """The format called `name`; FormatError when there is none."""
    if name in _FIXED:
        return _FIXED[name]
    table = _TABLE_NAME.fullmatch(name)
    if table is not None:
        return _TABLE_FORMATS[table["kind"]](int(table["block"]))
    match = _INT4_NAME.fullmatch(name)
    if match is None:
        raise FormatError(
            f"unknown weight format '{name}': use {', '.join(_FIXED)}, nf4_g<size>, fp4_g<size> or "
            "int4[_2of4]_g<size|K>[_zp]"
        )
    group = None if match["group"] == "K" else int(match["group"])
    if group is not None and group < 1:
        raise FormatError(f"weight format '{name}' has a group size of {group}: it must be at least 1")
    return int4(group, zero_points=bool(match["zero"]), sparse=bool(match["sparse"]))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Compulsory bytes of one product, by operand."""

    activations: float
    weights: float
    scales: float
    zeros: float
    metadata: float
    outputs: float

    @property
    def total(self) -> float:
        """All bytes, each operand once."""
        return self.activations + self.stored_weights + self.outputs

    @property
    def stored_weights(self) -> float:
        """What the weight matrix takes in memory: codes, scales, zero points and metadata."""
        return self.weights + self.scales + self.zeros + self.metadata


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One product C[M,N] = A[M,K] @ W[K,N]; `group_size` None means one scale a column for quantised formats."""

    M: int
    N: int
    K: int
    group_size: int | None = 128

    def __post_init__(self) -> None:
        for name in ("M", "N", "K"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.group_size is not None and (self.group_size < 1 or self.K % self.group_size):
            raise ValueError(f"K {self.K} is not divisible by the group size {self.group_size}")

    @property
    def flop(self) -> int:
        """Dense-equivalent floating-point operations: 2·M·N·K, a multiply and an add each."""
        return 2 * self.M * self.N * self.K

    def executed_flop(self, fmt: Format) -> float:
        """Operations the tensor cores carry out: half of `flop` for 2:4."""
        return float(self.flop * fmt.kept)

    def traffic(self, fmt: Format, activation_bits: int = 16, output_bits: int | None = None) -> Traffic:
        """Compulsory bytes with weights in `fmt`; outputs have as many bits as activations where nothing else is said.

        Products of 8-bit operands are written in 16 bits: they say so.
        """
        weights = self.N * self.K
        groups = fmt.groups(self.K) * self.N
        return Traffic(
            activations=self.M * self.K * activation_bits / 8,
            weights=weights * float(fmt.code_bits * fmt.kept) / 8,
            scales=groups * fmt.scale_bits / 8,
            zeros=groups * fmt.zero_bits / 8,
            metadata=weights * fmt.metadata_bits / 8,
            outputs=self.M * self.N * (activation_bits if output_bits is None else output_bits) / 8,
        )

    def arithmetic_intensity(self, fmt: Format, activation_bits: int = 16, output_bits: int | None = None) -> float:
        """Dense-equivalent flop per compulsory byte."""
        return self.flop / self.traffic(fmt, activation_bits, output_bits).total
