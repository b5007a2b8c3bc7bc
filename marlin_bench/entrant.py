"""What a cell's measuring works on: the job, the layer's operands, and each backend on its way to a record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, Effort, EightBitActivations, Packed
from marlin_bench.machine import Machine
from marlin_bench.operands import LayerKey, make_weights
from marlin_bench.plan import Cell
from marlin_bench.quantize import QuantizedWeights
from marlin_bench.record import Block, Check, EnergyUse, Record, TimerName, Tuning
from marlin_bench.suite_format import Sampling
from marlin_bench.timer import Launch, Stopwatch

DISTINCT_SETS = 2  # operand sets with data of their own; further ones rotate the same data at other addresses
L2_ROUNDS = 5  # a round of launches reads at least this many times the L2
_MEMORY_SHARE = 0.1  # of the device's memory, for a second copy of weights that exceed the L2 rule alone
_MOST_SETS = 512

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Emitter(Protocol):
    """Where a cell's news goes, as it happens."""

    def phase(self, backend: str, phase: str) -> None:
        """`backend` now enters `phase`: who is to blame for what follows."""

    def block(self, timer: TimerName, backend: str, block: Block) -> None:
        """One finished turn."""

    def verified(self, backend: str, check: Check) -> None:
        """A right answer where only correctness was asked for."""

    def record(self, record: Record) -> None:
        """A finished record."""


@dataclass(frozen=True)
class Job:
    """What is to be measured, and what of it is already known."""

    cell: Cell
    backends: tuple[str, ...]
    baselines: tuple[str, ...]
    sampling: Sampling
    run: str
    device: str
    clocks_locked: bool = False
    profile: Literal["burst", "sustained"] = "burst"
    isolated: bool = False
    effort: Effort = "quick"
    first_block: int = 0
    clock_origin: float = 0.0
    energy_seconds: float | None = None
    verify_only: bool = False
    finish: Callable[[], bool] = lambda: False


@dataclass
class LayerCache:
    """Weights and packed weights of the layer in hand; cells of one layer follow each other."""

    key: LayerKey | None = None
    weights: list[QuantizedWeights] = field(default_factory=list)
    packed: dict[str, list[Packed]] = field(default_factory=dict)

    def turn_to(self, key: LayerKey, machine: Machine) -> None:
        """Make `key` the layer in hand."""
        if key == self.key:
            return
        self.key, self.weights, self.packed = key, [], {}
        machine.release_memory()
        self.weights = [make_weights(key, index, machine.torch_device) for index in range(DISTINCT_SETS)]

    def packed_sets(self, backend: Backend, machine: Machine) -> list[Packed]:
        """As many packed sets as the rotation rule asks for."""
        if backend.name not in self.packed:
            first = backend.pack(self.weights[0])
            count = rotation_sets(first.nbytes, machine.traits.l2_bytes, machine.memory_bytes)
            distinct = [first, *(backend.pack(weights) for weights in self.weights[1:count])]
            copies = [distinct[index % DISTINCT_SETS].copy() for index in range(len(distinct), count)]
            self.packed[backend.name] = [*distinct, *copies]
        return self.packed[backend.name]


def rotation_sets(packed_bytes: int, cache_bytes: int, memory_bytes: int) -> int:
    """Operand sets in a round: enough to read 5x the cache, and a second one where memory allows."""
    needed = math.ceil(L2_ROUNDS * cache_bytes / packed_bytes)
    if needed < DISTINCT_SETS and packed_bytes * DISTINCT_SETS > _MEMORY_SHARE * memory_bytes:
        return 1
    return min(_MOST_SETS, max(DISTINCT_SETS, needed))


@dataclass
class Entrant:
    """One backend in one cell, from preparation to record."""

    backend: Backend
    packed: list[Packed]
    outputs: list[Tensor]
    expected: list[Tensor]
    choice: Choice
    tuning: Tuning
    launches: list[Launch]
    prepare_s: float
    eight_bit: list[EightBitActivations] = field(default_factory=list)
    quantization_s: float | None = None
    canonical_error: float | None = None
    checks: list[Check] = field(default_factory=list)
    stopwatches: dict[TimerName, Stopwatch] = field(default_factory=dict)
    blocks: dict[TimerName, list[Block]] = field(default_factory=dict)
    throttled_blocks: dict[TimerName, list[Block]] = field(default_factory=dict)
    converged: dict[TimerName, bool] = field(default_factory=dict)
    energy: EnergyUse | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    def medians(self, timer: TimerName) -> list[float]:
        """One time a block, in block order."""
        return [sorted(block.times)[len(block.times) // 2] for block in self.blocks[timer]]
