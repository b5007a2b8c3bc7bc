"""How far a record can be trusted: a letter with its reasons, from what the record itself proves.

A: right before and after, converged, clock spread below 1 %, never throttled, operands rotated past 5x L2, clean
commit. B: only the clock rules fail. C: not converged, or the cold timer disagrees by more than 3 %. D: anything else
that still counts as `ok`. What cannot be proved has not passed; a record without samples has no grade.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from marlin_bench.record import Check, Environment, Flag, Record, Status

CLOCK_SPREAD = 0.01
COLD_DISAGREEMENT = 0.03
L2_ROUNDS = 5
UNKNOWN_COMMIT = "unknown"


class Grade(StrEnum):
    """The letter; later ones are worse."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"


@dataclass(frozen=True, slots=True)
class Validity:
    """A grade and why it is not better; an A has no reasons."""

    grade: Grade
    reasons: tuple[str, ...]


def clock_spread(record: Record) -> float | None:
    """(highest - lowest) / median SM clock over the blocks; None where a block does not know its clock."""
    clocks = [block.sm_clock_hz for block in record.blocks]
    known = [clock for clock in clocks if clock is not None]
    if not known or len(known) < len(clocks):
        return None
    return (max(known) - min(known)) / median(known)


def _median_time(record: Record) -> float:
    return median(record.times)


def _is_right(checks: Iterable[Check]) -> bool:
    checks = list(checks)
    # a NaN error is not below its limit: comparisons with it are false
    return bool(checks) and all(c.mean_error < c.limit and c.nan == 0 and c.untouched == 0 for c in checks)


def _failures(record: Record, environment: Environment, cold: Record | None) -> list[tuple[Grade, str]]:
    found: list[tuple[Grade, str]] = []
    for when in ("before", "after"):
        if not _is_right(check for check in record.checks if check.when == when):
            found.append((Grade.D, f"no right answer on record {when} timing"))
    found += _rotation_failures(record, environment)
    if environment.commit == UNKNOWN_COMMIT or environment.dirty is not False:
        found.append((Grade.D, "measured by uncommitted or unknown code"))
    if record.converged is not True:
        found.append((Grade.C, "not converged"))
    if cold is not None:
        difference = _median_time(cold) / _median_time(record) - 1
        if not abs(difference) <= COLD_DISAGREEMENT:
            found.append((Grade.C, f"the cold timer says {difference:+.1%}"))
    spread = clock_spread(record)
    if spread is None:
        found.append((Grade.B, "clock not known in every block"))
    elif not spread < CLOCK_SPREAD:
        found.append((Grade.B, f"clock spread {spread:.1%}"))
    flags = {*record.flags, *(flag for block in record.blocks for flag in block.flags)}
    if Flag.THROTTLED in flags:
        found.append((Grade.B, "throttled"))
    return found


def _rotation_failures(record: Record, environment: Environment) -> list[tuple[Grade, str]]:
    if record.rotation is None or Flag.FEW_OPERAND_SETS in record.flags:
        return [(Grade.D, "operands not rotated past the cache")]
    if environment.l2_bytes is not None and record.rotation.bytes < L2_ROUNDS * environment.l2_bytes:
        return [(Grade.D, f"a round reads less than {L2_ROUNDS}x L2")]
    return []


def validity(record: Record, environment: Environment, cold: Record | None = None) -> Validity | None:
    """The grade of a measured record with status `ok`; None for any other, published ones included.

    `cold` is the record of the same cell and backend under the cold timer, where there is one.
    """
    if record.status is not Status.OK or not record.blocks:
        return None
    failures = _failures(record, environment, cold)
    worst = max((grade for grade, _ in failures), default=Grade.A)
    return Validity(worst, tuple(reason for _, reason in sorted(failures, reverse=True)))


def validities(records: Iterable[Record], environment: Environment) -> dict[str, Validity]:
    """Grades by record id, each headline record held against its cold twin."""
    records = list(records)

    def place(record: Record) -> tuple[str, str, bool]:
        return (record.cell, record.backend, record.isolated)

    cold = {place(record): record for record in records if record.timer == "cold" and record.blocks}
    judged = {
        record.id: validity(record, environment, cold.get(place(record)) if record.timer == "kernel" else None)
        for record in records
    }
    return {name: found for name, found in judged.items() if found is not None}
