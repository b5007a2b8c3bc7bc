"""One cell on one device, whatever its backends do: crash, hang, or run out of memory.

A backend that takes the worker down costs itself alone: it gets a record with the reason, the blocks that the others
had finished are kept, and the rest of the cell is measured again in a fresh worker. A backend with `isolation: own`
is measured in a worker of its own together with the cell's baselines, under a cell name of its own, so that its
ratios are paired all the same; that worker lives as long as the shared one. A backend that runs out of memory while
others hold some gets one more chance, the same way, in a fresh worker that has the device to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from marlin_bench.executor import Executor, Session, WorkerLostError
from marlin_bench.messages import BlockDone, CellDone, HeldClocks, MeasureCell, PhaseEntered, RecordDone, Verified
from marlin_bench.plan import Cell
from marlin_bench.record import Block, Check, Record, Status, TimerName, record_id
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
class _Errand:
    """One cell on its way through the workers; `isolated` where it is one backend's with the baselines beside it."""

    cell: Cell
    facts: dict[str, BackendFacts]
    context: RunContext
    listener: Listener
    isolated: bool = False

    def alone(self, backend: str) -> _Errand:
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


def _once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


@dataclass
class _Progress:
    """What is known of a request while it runs."""

    blamed: str | None = None
    phase: str = "start"
    blocks: dict[tuple[str, TimerName], list[Block]] = field(default_factory=dict)
    recorded: list[Record] = field(default_factory=list)
    starved: list[str] | None = None
    verified: list[str] = field(default_factory=list)

    def settled(self) -> set[str]:
        return {record.backend for record in self.recorded} | set(self.starved or ()) | set(self.verified)


_SHARED = ""


class DeviceRunner:
    """Runs cells on one device, replacing its workers when they die."""

    def __init__(self, executor: Executor, device: str) -> None:
        self._executor = executor
        self._device = device
        self._sessions: dict[str, Session] = {}  # by backend with a process of its own; the shared one under ""
        self._used: set[str] = set()
        self._turn_to(_SHARED)

    def _turn_to(self, owner: str) -> None:
        """Make the worker of `owner` the one in use."""
        if owner not in self._sessions:
            self._sessions[owner] = self._executor.open(self._device)
            self._used.discard(owner)
        self._owner = owner

    @property
    def session(self) -> Session:
        """The worker in use."""
        return self._sessions[self._owner]

    def _restart(self) -> None:
        self._sessions.pop(self._owner).close()
        self._turn_to(self._owner)

    def close(self) -> None:
        """End every worker."""
        while self._sessions:
            self._sessions.popitem()[1].close()
        self._used.clear()

    def run(self, cell: Cell, facts: dict[str, BackendFacts], context: RunContext, listener: Listener) -> float:
        """Measure a cell; every backend of it ends with a record (or verified). Gives the seconds of timed work."""
        errand = _Errand(cell, facts, context, listener)
        shared = tuple(name for name in cell.backends if not facts[name].own_process)
        baselines = tuple(name for name in shared if facts[name].is_baseline)
        self._turn_to(_SHARED)
        timed_s, starved = self._run_group(errand, shared)
        for name in cell.backends:
            if facts[name].own_process:
                self._turn_to(name)
                seconds, hungry = self._run_group(errand.alone(name), _once(*baselines, name))
                timed_s += seconds
                starved += (name,) if hungry else ()  # a baseline that starved there is measured again with it
        for name in starved:
            timed_s += self._second_chance(errand, name, baselines)
        return timed_s

    def _second_chance(self, errand: _Errand, name: str, baselines: tuple[str, ...]) -> float:
        """A backend that ran out of memory, in a fresh worker with no other than the baselines on the device."""
        self.close()
        self._turn_to(name if errand.facts[name].own_process else _SHARED)
        others = tuple(other for other in baselines if other != name)
        timed_s, _ = self._run_group(errand.alone(name), _once(*others, name))
        return timed_s

    def _run_group(self, errand: _Errand, backends: tuple[str, ...]) -> tuple[float, tuple[str, ...]]:
        """Measure some backends in the worker in use; gives the seconds of timed work.

        And who ran out of memory, without a record, where others hold some: the worker's earlier and present backends
        as well as the other workers, which keep their layer.
        """
        candidates = [name for name in backends if not errand.facts[name].is_baseline]
        may_starve = bool(self._used) or len(candidates) > 1
        self._used.add(self._owner)
        starved: list[str] = []
        kept: dict[tuple[str, TimerName], list[Block]] = {}
        remaining = backends
        timed_s = 0.0
        while remaining:
            progress = _Progress(starved=starved if may_starve else None)
            first_block = 1 + max((block.index for blocks in kept.values() for block in blocks), default=-1)
            request = errand.request(remaining, first_block)
            try:
                for reply in self.session.ask(request, errand.context.sampling.timeout_seconds):
                    timed_s += self._note(reply, progress, kept, errand.listener)
                return timed_s, tuple(starved)
            except WorkerLostError as lost:
                blamed = progress.blamed or remaining[0]
                if may_starve and lost.status is Status.OUT_OF_MEMORY:
                    starved.append(blamed)
                else:
                    errand.listener.record(errand.obituary(blamed, lost, progress.phase))
                for key, blocks in progress.blocks.items():
                    kept.setdefault(key, []).extend(blocks)
                settled = progress.settled() | {blamed}
                remaining = tuple(name for name in remaining if name not in settled)
                self._restart()
        return timed_s, tuple(starved)

    def _note(
        self, reply: object, progress: _Progress, kept: dict[tuple[str, TimerName], list[Block]], listener: Listener
    ) -> float:
        if isinstance(reply, PhaseEntered):
            progress.blamed, progress.phase = reply.backend, reply.phase
            listener.phase(reply.backend, reply.phase)
        elif isinstance(reply, BlockDone):
            progress.blocks.setdefault((reply.backend, reply.timer), []).append(reply.block)
        elif isinstance(reply, RecordDone):
            record = reply.record
            if progress.starved is not None and record.status is Status.OUT_OF_MEMORY:
                progress.starved.append(record.backend)
                return 0.0
            earlier = kept.get((record.backend, record.timer), [])
            if earlier and record.status is Status.OK:
                record = record.model_copy(update={"blocks": [*earlier, *record.blocks]})
            progress.recorded.append(record)
            listener.record(record)
        elif isinstance(reply, Verified):
            progress.verified.append(reply.backend)
            listener.verified(reply.backend, reply.check)
        elif isinstance(reply, CellDone):
            return reply.timed_s
        return 0.0
