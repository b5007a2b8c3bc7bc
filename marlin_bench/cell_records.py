"""From the backends of one cell to their records: what was measured, or why nothing was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marlin_bench.backends.protocol import Backend
from marlin_bench.entrant import L2_ROUNDS, Emitter, Entrant, Job
from marlin_bench.machine import Machine
from marlin_bench.problem import DTYPE_BITS
from marlin_bench.record import Flag, Record, Rotation, Status, TimerName, record_id


class CellRecords:
    """Makes the records of a cell and hands them to `emitter`.

    changed_settings: by backend, which process-wide settings it changed.
    """

    def __init__(self, job: Job, machine: Machine, emitter: Emitter, changed_settings: Mapping[str, set[str]]) -> None:
        self.job, self.machine, self.emitter, self.changed_settings = job, machine, emitter, changed_settings
        self.cell = job.cell

    def without_samples(
        self, backend: Backend, status: Status, reason: str | None, entrant: Entrant | None = None
    ) -> None:
        """A record of a backend that is not timed, or whose times count for nothing."""
        self.emitter.record(self._record(backend, "kernel", status, reason, entrant))

    def finish(self, entrants: Sequence[Entrant], power_w: float | None) -> None:
        """A record for every timer of every backend that is right and possible; `power_w`: the cell's mean."""
        for entrant in entrants:
            sentence = self._impossible(entrant)
            if sentence is not None:
                self.without_samples(entrant.backend, Status.IMPOSSIBLE, sentence, entrant)
                continue
            for timer, blocks in entrant.blocks.items():
                record = self._record(entrant.backend, timer, Status.OK, None, entrant)
                self.emitter.record(
                    record.model_copy(
                        update={
                            "blocks": blocks,
                            "throttled_blocks": entrant.throttled_blocks[timer],
                            "converged": entrant.converged[timer],
                            "flags": self._flags(timer, entrant),
                            "cell_power_w": power_w,
                            "energy": entrant.energy if timer == self.cell.timers[0] else None,
                        }
                    )
                )

    def _impossible(self, entrant: Entrant) -> str | None:
        problem, backend = self.cell.problem, entrant.backend
        fmt = backend.format(problem)
        resident = self._rotation(entrant, "kernel").bytes < self.machine.traits.l2_bytes
        bits = DTYPE_BITS[backend.operand_dtype]
        moved = 0.0 if resident else problem.traffic(fmt, bits, DTYPE_BITS[backend.output_dtype]).total
        flop = problem.executed_flop(fmt) * min(bits, 16) / 16  # tensor cores are twice as fast on 8 bits as on 16
        for blocks in entrant.blocks.values():
            times = [time for block in blocks for time in block.times]
            clocks = [block.sm_clock_hz for block in blocks if block.sm_clock_hz]
            floor = self.machine.limits.floor_seconds(moved, flop, max(clocks, default=None))
            typical = sorted(times)[len(times) // 2]
            if not typical >= floor:
                return f"median {typical:.4g} s is below the physical floor of {floor:.4g} s"
        return None

    def _rotation(self, entrant: Entrant, timer: TimerName) -> Rotation:
        stopwatch = entrant.stopwatches.get(timer)
        return Rotation(
            sets=len(entrant.packed),
            bytes=sum(one.nbytes for one in entrant.packed),
            launches=stopwatch.launches if stopwatch else 0,
        )

    def _flags(self, timer: TimerName, entrant: Entrant) -> list[Flag]:
        flags = {flag for block in entrant.blocks[timer] for flag in block.flags}
        if not entrant.converged[timer]:
            flags.add(Flag.NOT_CONVERGED)
        if self._rotation(entrant, timer).bytes < L2_ROUNDS * self.machine.traits.l2_bytes:
            flags.add(Flag.FEW_OPERAND_SETS)
        if self.changed_settings.get(entrant.name):
            flags.add(Flag.CHANGED_SETTINGS)
        return sorted(flags)

    def _record(
        self, backend: Backend, timer: TimerName, status: Status, reason: str | None, entrant: Entrant | None = None
    ) -> Record:
        """The record of one timer, without its samples."""
        cell = self.cell
        made = Record.model_construct(
            id=record_id(self.job.device, f"{cell.suite}/{cell.id}", backend.name, timer),
            run=self.job.run,
            cell=cell.id,
            suite=cell.suite,
            layer=cell.layer,
            device=self.job.device,
            timer=timer,
            backend=backend.name,
            backend_version=backend.version() if status is not Status.MISSING else "missing",
            kernel_digest=backend.kernel_digest(),
            baseline=backend.name in self.job.baselines,
            M=cell.M,
            N=cell.N,
            K=cell.K,
            group_size=cell.group_size,
            format=backend.format(cell.problem).name,
            activation_dtype=backend.operand_dtype,
            output_dtype=backend.output_dtype,
            status=status,
            reason=reason,
            clocks_locked=self.job.clocks_locked,
            profile=self.job.profile,
            seed=cell.seed,
            isolated=self.job.isolated,
        )
        if entrant is None:
            return made
        return made.model_copy(
            update={
                "stored_bytes": entrant.packed[0].nbytes,
                "choice": dict(entrant.choice),
                "tuning": entrant.tuning,
                "prepare_s": entrant.prepare_s,
                "activation_quantization_s": entrant.quantization_s,
                "canonical_error": entrant.canonical_error,
                "checks": entrant.checks,
                "rotation": self._rotation(entrant, timer),
            }
        )
