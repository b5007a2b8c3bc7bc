"""What the backends of one cell are given, and the float64 products that they must come up with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from marlin_bench.backends.protocol import Backend, Choice, EightBitActivations, Packed
from marlin_bench.entrant import DISTINCT_SETS, DTYPES, LayerCache
from marlin_bench.machine import Machine
from marlin_bench.operands import WeightSource, expected_product, make_activations
from marlin_bench.plan import Cell


class Answers:
    """Activations of each dtype, made once, and the answers to them."""

    def __init__(self, cell: Cell, machine: Machine, cache: LayerCache) -> None:
        self.cell, self.machine, self.cache = cell, machine, cache
        self._activations: dict[str, list[Tensor]] = {}
        self._canonical: dict[str, list[Tensor]] = {}

    def activations(self, dtype: str) -> list[Tensor]:
        """The distinct sets, each [M, K]."""
        if dtype not in self._activations:
            self._activations[dtype] = [
                make_activations(
                    self.cell.seed, self.cell.M, self.cell.K, index, DTYPES[dtype], self.machine.torch_device
                )
                for index in range(DISTINCT_SETS)
            ]
        return self._activations[dtype]

    def expected(
        self, backend: Backend, packed: Sequence[Packed], choice: Choice, eight_bit: Sequence[EightBitActivations]
    ) -> list[Tensor]:
        """Float64 answers of the distinct sets; those judged against the canonical operands share theirs."""
        count = min(DISTINCT_SETS, len(packed))
        held = [backend.held_weights(one, choice) for one in packed[:count]]
        if not eight_bit and not any(held):
            return self.canonical(backend.activation_dtype)[:count]
        activations = self.activations(backend.activation_dtype)
        return [
            expected_product(
                eight_bit[index].dequantized() if eight_bit else activations[index],
                WeightSource(self.cache.weights[index], held[index]),
            )
            for index in range(count)
        ]

    def canonical(self, dtype: str) -> list[Tensor]:
        """Float64 products of the activations of a dtype with the canonical weights."""
        if dtype not in self._canonical:
            activations = self.activations(dtype)
            self._canonical[dtype] = [
                expected_product(activations[index], WeightSource(self.cache.weights[index]))
                for index in range(DISTINCT_SETS)
            ]
        return self._canonical[dtype]

    def change_activations(self) -> None:
        """Negate all activations and turn them by a row, in place: `changed` is what happens to an answer."""
        for sets in self._activations.values():
            for activation in sets:
                activation.copy_(changed(activation))


def changed(rows: Tensor) -> Tensor:
    """[M, …] negated and turned by a row: done to the activations, it is done to their product."""
    return rows.roll(1, 0).neg_()
