"""A run before the gate: its rows, what its rules select, and what makes a record no evidence."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property

from marlin_bench.gate_policy import Policy, suite_of_run
from marlin_bench.gate_rules import GateRule, Select
from marlin_bench.noise import NoiseMap
from marlin_bench.plan import plan
from marlin_bench.record import Flag, Origin, Record
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import Row, rows, without_companions
from marlin_bench.store import Run
from marlin_bench.suite import Suite
from marlin_bench.verdict import Subject

HEADLINE_TIMER = "kernel"


@dataclass(frozen=True)
class Case:
    """A run before the gate, with what its rules may ask for."""

    run: Run
    policy: Policy
    baseline: Run | None = None
    noise: NoiseMap | None = None

    @cached_property
    def suite(self) -> Suite | None:
        """The suite that says what should have been measured."""
        return self.policy.suite or suite_of_run(self.run.meta)

    @cached_property
    def rows(self) -> list[Row]:
        """The headline rows, companions of isolated backends left out."""
        found = rows(self.run.records, roofs_from_ceilings(self.run.meta.ceilings))
        timers = {row.record.timer for row in found}
        timer = HEADLINE_TIMER if HEADLINE_TIMER in timers else sorted(timers)[0]
        return without_companions(row for row in found if row.record.timer == timer)

    @cached_property
    def row_of(self) -> dict[tuple[str, str], Row]:
        """Rows by planned cell and backend."""
        return {(planned_cell(row.record), row.record.backend): row for row in self.rows}

    @property
    def is_published(self) -> bool:
        """Whether the run quotes values that somebody published."""
        return self.run.meta.origin is Origin.PUBLISHED

    def selected(self, select: Select) -> list[Row]:
        """The headline rows that a rule is about."""
        return [row for row in self.rows if selects(select, row.record)]

    def missing(self, select: Select) -> list[str]:
        """Planned and selected, but without a record: `cell backend`, in plan order; nothing for a quotation."""
        if self.suite is None or self.is_published:
            return []
        formats = {row.record.backend: row.record.format for row in self.rows}
        return [
            f"{cell.id} {backend}"
            for cell in plan(self.suite)
            for backend in cell.backends
            if (cell.id, backend) not in self.row_of
            and select.matches(
                backend=backend, layer=cell.layer, M=cell.M, group_size=cell.group_size, format=formats.get(backend, "")
            )
        ]

    def command(self, verb: str, record: Record) -> str:
        """The command that looks at one record again."""
        suite = self.policy.name if self.policy.suite is not None else self.run.meta.suite
        what = str(self.run.folder) if verb == "show" else suite
        words = ["marlin-bench", verb, what, "--only", planned_cell(record), "--backend", record.backend]
        return shlex.join(words)


def planned_cell(record: Record) -> str:
    """The planned cell of a record: a backend of its own process is stored under `<cell>+<backend>`."""
    return record.cell.partition("+")[0]


def selects(select: Select, record: Record) -> bool:
    """Whether a rule is about a record."""
    return select.matches(
        backend=record.backend,
        layer=record.layer,
        M=record.M,
        group_size=record.group_size,
        format=record.format,
    )


def subject_of(record: Record) -> Subject:
    """A record as the subject of a verdict."""
    return Subject(planned_cell(record), record.backend, record.layer, record.M, record.id)


def doubt(record: Record, rule: GateRule) -> str | None:
    """Why a record is no evidence, whatever its value; None where it is."""
    if rule.clocks == "locked" and not record.clocks_locked:
        return "clocks were not locked, and the rule asks for it"
    if Flag.THROTTLED in record.flags:
        return "throttled: the hardware slowed itself down"
    return None
