"""What a cell's runner carries through the workers: the cell, what is known of its backends, and who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from marlin_bench.executor import WorkerLostError
from marlin_bench.messages import HeldClocks, MeasureCell
from marlin_bench.plan import Cell
from marlin_bench.record import Check, Record, TimerName, record_id
from marlin_bench.suite_format import Energy, Sampling

if TYPE_CHECKING:
    from marlin_bench.backends.protocol import Effort  # which brings torch: the parent starts workers first


@dataclass(frozen=True)
class BackendFacts:
    """What the parent must know of a backend without loading it onto a device."""

    name: str
    is_baseline: bool
    own_process: bool
    format: str
    activation_dtype: str
    output_dtype: str
    version: str


@dataclass(frozen=True)
class RunContext:
    """What all cells of a run share."""

    run: str
    device: str
    sampling: Sampling
    clock_origin: float
    effort: Effort = "quick"
    clocks: HeldClocks = field(default_factory=HeldClocks)
    verify_only: bool = False
    energy: Energy | None = None

    def energy_seconds(self, cell: Cell) -> float | None:
        """How long each backend's energy is measured in `cell`; None where the suite does not ask for it."""
        if self.energy is None or not any(fnmatchcase(cell.id, pattern) for pattern in self.energy.cells):
            return None
        return self.energy.seconds


@dataclass(frozen=True)
class Listener:
    """Where news of a cell goes."""

    phase: Callable[[str, str], None]
    record: Callable[[Record], None]
    verified: Callable[[str, Check], None]


@dataclass(frozen=True)
class Errand:
    """One cell on its way through the workers; `isolated` where it is one backend's with the baselines beside it."""

    cell: Cell
    facts: dict[str, BackendFacts]
    context: RunContext
    listener: Listener
    isolated: bool = False

    def alone(self, backend: str) -> Errand:
        """The cell of one backend, under a name of its own."""
        return replace(self, cell=replace(self.cell, id=f"{self.cell.id}+{backend}"), isolated=True)

    def request(self, backends: tuple[str, ...], first_block: int) -> MeasureCell:
        """What the worker is asked: some of the backends, their blocks counted from `first_block`."""
        cell, context = self.cell, self.context
        return MeasureCell.model_validate(
            {
                "cell": cell.id,
                "suite": cell.suite,
                "layer": cell.layer,
                "M": cell.M,
                "N": cell.N,
                "K": cell.K,
                "group_size": cell.group_size,
                "seed": cell.seed,
                "timers": cell.timers,
                "backends": backends,
                "baselines": tuple(name for name in backends if self.facts[name].is_baseline),
                "sampling": context.sampling,
                "effort": context.effort,
                "run": context.run,
                "device": context.device,
                "clocks": context.clocks,
                "isolated": self.isolated,
                "first_block": first_block,
                "clock_origin": context.clock_origin,
                "energy_seconds": context.energy_seconds(cell),
                "verify_only": context.verify_only,
            }
        )

    def obituary(self, backend: str, lost: WorkerLostError, phase: str) -> Record:
        """The record of a backend that took its worker with it."""
        cell, context, facts = self.cell, self.context, self.facts[backend]
        timer: TimerName = "kernel"
        return Record(
            id=record_id(context.device, f"{cell.suite}/{cell.id}", facts.name, timer),
            run=context.run,
            cell=cell.id,
            suite=cell.suite,
            layer=cell.layer,
            device=context.device,
            timer=timer,
            backend=facts.name,
            backend_version=facts.version,
            baseline=facts.is_baseline,
            M=cell.M,
            N=cell.N,
            K=cell.K,
            group_size=cell.group_size,
            format=facts.format,
            activation_dtype=facts.activation_dtype,
            output_dtype=facts.output_dtype,
            status=lost.status,
            reason=f"{lost.reason} (during {phase})",
            clocks_locked=context.clocks.locked,
            profile=context.clocks.profile,
            seed=cell.seed,
            isolated=self.isolated,
        )
