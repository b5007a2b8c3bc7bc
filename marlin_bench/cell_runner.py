"""One cell on one device, whatever its backends do: crash, hang, or run out of memory.

A backend that takes the worker down costs itself alone: it gets a record with the reason, the blocks that the others
had finished are kept, and the rest of the cell is measured again in a fresh worker. A backend with `isolation: own`
is measured in a worker of its own together with the cell's baselines, under a cell name of its own, so that its
ratios are paired all the same; that worker lives as long as the shared one.

A backend that runs out of memory while others hold some, or is wrong in a worker that others have used, gets one more
chance, the same way, in a fresh worker that has the device to itself. When a baseline goes bad among others, it is
measured by itself, and each of the others beside it in a worker of its own; whoever spoils it there is `wrong`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from marlin_bench.errand import BackendFacts, Errand, Listener, RunContext
from marlin_bench.executor import Executor, Session, WorkerLostError
from marlin_bench.messages import BlockDone, CellDone, PhaseEntered, RecordDone, Verified
from marlin_bench.plan import Cell
from marlin_bench.record import Block, Record, Status, TimerName


def _once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


@dataclass
class _Progress:
    """What is known of a request while it runs."""

    blamed: str | None = None
    phase: str = "start"
    blocks: dict[tuple[str, TimerName], list[Block]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)


@dataclass
class _Group:
    """What comes of some backends in one worker.

    mixed: it has, or had, more than one backend beside the baselines. crowded: that, or other workers hold memory too.
    """

    errand: Errand
    mixed: bool
    crowded: bool
    has_candidates: bool
    timed_s: float = 0.0
    kept: dict[tuple[str, TimerName], list[Block]] = field(default_factory=dict)
    passed: list[Record] = field(default_factory=list)
    doubtful: list[Record] = field(default_factory=list)
    """Bad ones that may be a neighbour's doing: not passed on."""
    held: list[Record] = field(default_factory=list)
    """Good ones after a doubtful baseline, without which they have no speed-up: not passed on."""

    def doubtful_baseline(self) -> Record | None:
        """The first baseline that went bad."""
        return next((record for record in self.doubtful if record.baseline), None)

    def pass_on(self, record: Record) -> None:
        """Into the run."""
        self.passed.append(record)
        self.errand.listener.record(record)


_SHARED = ""
_BAD = {Status.WRONG, Status.OUT_OF_MEMORY, Status.CRASHED, Status.TIMEOUT}


class DeviceRunner:
    """Runs cells on one device, replacing its workers when they die."""

    def __init__(self, executor: Executor, device: str) -> None:
        self._executor = executor
        self._device = device
        self._sessions: dict[str, Session] = {}  # by backend with a process of its own; the shared one under ""
        self._used: set[str] = set()
        self._bad_alone: set[str] = set()  # wrong with no other beside them: no doubt is left
        self._spoilers: set[str] = set()  # a baseline goes wrong beside them: never in the shared worker again
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
        errand = Errand(cell, facts, context, listener)
        apart = [name for name in cell.backends if facts[name].own_process or name in self._spoilers]
        shared = tuple(name for name in cell.backends if name not in apart)
        baselines = tuple(name for name in shared if facts[name].is_baseline)
        self._turn_to(_SHARED)
        group = self._run_group(errand, shared)
        timed_s = group.timed_s
        again = [record.backend for record in group.doubtful if not record.baseline]
        if group.doubtful_baseline() is not None:
            timed_s += self._take_apart(group, baselines)
        for name in apart:
            self._turn_to(name)
            own = self._run_group(errand.alone(name), _once(*baselines, name))
            timed_s += own.timed_s
            if any(record.status is Status.OUT_OF_MEMORY or not record.baseline for record in own.doubtful):
                again.append(name)  # a baseline that starved there is measured again with it
        return timed_s + sum(self._second_chance(errand, name, baselines) for name in again)

    def _take_apart(self, group: _Group, baselines: tuple[str, ...]) -> float:
        """A cell whose baseline went bad among others: the baselines by themselves, then each of the rest with them."""
        self._renew(_SHARED)
        alone = self._run_group(group.errand, baselines)
        bad = {record.backend for record in alone.passed if record.status in _BAD}
        if bad.intersection(record.backend for record in group.doubtful):
            self._bad_alone |= bad
            for record in group.held:
                group.pass_on(record)
            return alone.timed_s
        rest = _once(*(record.backend for record in group.held if record.backend not in baselines))
        timed_s = alone.timed_s + sum(self._second_chance(group.errand, name, baselines) for name in rest)
        self._renew(_SHARED)  # the last of them may have been the one
        return timed_s

    def _second_chance(self, errand: Errand, name: str, baselines: tuple[str, ...]) -> float:
        """A backend in a fresh worker with no other than the baselines on the device."""
        self._renew(name if errand.facts[name].own_process else _SHARED)
        others = tuple(other for other in baselines if other != name)
        return self._run_group(errand.alone(name), _once(*others, name)).timed_s

    def _renew(self, owner: str) -> None:
        """A fresh worker for `owner`, and no other."""
        self.close()
        self._turn_to(owner)

    def _run_group(self, errand: Errand, backends: tuple[str, ...]) -> _Group:
        """Measure some backends in the worker in use."""
        candidates = [name for name in backends if not errand.facts[name].is_baseline]
        several = len(candidates) > 1
        group = _Group(errand, several or self._owner in self._used, several or bool(self._used), bool(candidates))
        self._used.add(self._owner)
        remaining = backends
        while remaining:
            progress = _Progress()
            earlier = [block.index for blocks in group.kept.values() for block in blocks]
            request = errand.request(remaining, 1 + max(earlier, default=-1))
            try:
                for reply in self.session.ask(request, errand.context.sampling.timeout_seconds):
                    self._note(reply, progress, group)
                return group
            except WorkerLostError as lost:
                blamed = progress.blamed or remaining[0]
                self._file(errand.obituary(blamed, lost, progress.phase), group)
                for key, blocks in progress.blocks.items():
                    group.kept.setdefault(key, []).extend(blocks)
                settled = progress.settled | {blamed}
                remaining = tuple(name for name in remaining if name not in settled)
                self._restart()
        return group

    def _note(self, reply: object, progress: _Progress, group: _Group) -> None:
        listener = group.errand.listener
        if isinstance(reply, PhaseEntered):
            progress.blamed, progress.phase = reply.backend, reply.phase
            listener.phase(reply.backend, reply.phase)
        elif isinstance(reply, BlockDone):
            progress.blocks.setdefault((reply.backend, reply.timer), []).append(reply.block)
        elif isinstance(reply, RecordDone):
            record = reply.record
            earlier = group.kept.get((record.backend, record.timer), [])
            if earlier and record.status is Status.OK:
                record = record.model_copy(update={"blocks": [*earlier, *record.blocks]})
            progress.settled.add(record.backend)
            self._file(record, group)
        elif isinstance(reply, Verified):
            progress.settled.add(reply.backend)
            listener.verified(reply.backend, reply.check)
        elif isinstance(reply, CellDone):
            group.timed_s += reply.timed_s

    def _file(self, record: Record, group: _Group) -> None:
        """Pass a record on, or keep it until it is known whose fault it is."""
        if record.status is not Status.OK:
            if self._is_doubtful(record, group):
                group.doubtful.append(record)
                return
            if record.status is Status.WRONG and not group.mixed:
                self._bad_alone.add(record.backend)
            group.pass_on(record)
            return
        spoilt = group.doubtful_baseline()
        if spoilt is None:
            group.pass_on(record)
        elif not group.errand.isolated:
            group.held.append(record)
        elif spoilt.status is Status.WRONG and not record.baseline:
            self._spoilers.add(record.backend)
            group.pass_on(_accused(record, spoilt))

    def _is_doubtful(self, record: Record, group: _Group) -> bool:
        """Whether what went wrong may be a neighbour's doing."""
        if record.backend in self._bad_alone:
            return False
        if record.status is Status.OUT_OF_MEMORY and group.crowded:
            return True
        if not record.baseline:
            return record.status is Status.WRONG and group.mixed
        if group.errand.isolated:
            return record.status is Status.WRONG
        return record.status in _BAD and (group.mixed or group.has_candidates)


def _accused(record: Record, spoilt: Record) -> Record:
    """The record of a backend that was right itself, and beside which alone a baseline went wrong."""
    reason = f"it spoils what runs beside it: {spoilt.backend} is wrong there ({spoilt.reason})"
    no_samples: dict[str, object] = {"blocks": [], "throttled_blocks": [], "flags": [], "converged": None}
    return record.model_copy(
        update={"status": Status.WRONG, "reason": reason, "energy": None, "cell_power_w": None, **no_samples}
    )
