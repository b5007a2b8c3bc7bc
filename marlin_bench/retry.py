"""Measuring again before judging: what failed or stayed open gets fresh processes, and their blocks count together.

Noise between processes is the noise that a gate must not mistake for a regression, so the blocks of every process are
pooled: an effect of one process alone then shows as spread. A wrong answer in any process stays wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from marlin_bench.record import Record, Status
from marlin_bench.store import RETRIES_FOLDER, Run
from marlin_bench.verdict import GateReport, Outcome, Verdict

_WRONG = {Status.WRONG, Status.IMPOSSIBLE}

Measure = Callable[[tuple[str, ...]], list[Record]]
"""Planned cells → their records, measured in fresh processes."""


def cells_to_repeat(report: GateReport, known: Iterable[str]) -> tuple[str, ...]:
    """The cells behind failing and inconclusive verdicts, in order; a rule or curve as a whole asks for all its own."""
    cells: dict[str, None] = {}
    names = list(dict.fromkeys(known))
    for verdict in report.verdicts:
        if verdict.outcome in {Outcome.FAILED, Outcome.INCONCLUSIVE}:
            cells.update(dict.fromkeys(_cells_of(verdict, names)))
    return tuple(cells)


def _cells_of(verdict: Verdict, known: list[str]) -> list[str]:
    subject = verdict.subject
    if subject.cell is not None:
        return [subject.cell]
    if subject.layer is None:
        return []  # no baseline, nothing selected: measuring again helps neither
    suffix = None if subject.M is None else f"/M{subject.M}"
    prefix = (f"{subject.layer}/", f"{subject.layer}.")  # a layer, or the layers of a model
    return [cell for cell in known if cell.startswith(prefix) and (suffix is None or cell.endswith(suffix))]


def pooled(first: Record, again: Record) -> Record:
    """Both measurements as one record: later blocks follow earlier ones; what was ever wrong stays wrong."""
    if first.status in _WRONG:
        return first
    if first.status is not Status.OK or again.status is not Status.OK:
        return again
    start = 1 + max(block.index for block in first.blocks)
    later = 1 + max(block.started_s for block in first.blocks)
    moved = [replace(block, index=block.index + start, started_s=block.started_s + later) for block in again.blocks]
    return first.model_copy(
        update={
            "blocks": [*first.blocks, *moved],
            "flags": sorted({*first.flags, *again.flags}),
            "checks": [*first.checks, *again.checks],
            "converged": bool(first.converged and again.converged),
            "clocks_locked": first.clocks_locked and again.clocks_locked,
        }
    )


def repeated(run: Run, records: Iterable[Record]) -> Run:
    """`run` with `records` pooled into it.

    Block indices stay paired: every record of a cell is moved by the same number, its first run's longest.
    """
    fresh = {(record.cell, record.backend, record.timer): record for record in records}
    longest: dict[tuple[str, str], int] = {}
    for record in run.records:
        place = (record.cell, record.timer)
        last = max((block.index for block in record.blocks), default=-1)
        longest[place] = max(longest.get(place, -1), last)
    merged = []
    for record in run.records:
        again = fresh.pop((record.cell, record.backend, record.timer), None)
        if again is None:
            merged.append(record)
            continue
        shift = longest[record.cell, record.timer] - max((block.index for block in record.blocks), default=-1)
        shifted = [replace(block, index=block.index + shift) for block in again.blocks]
        merged.append(pooled(record, again.model_copy(update={"blocks": shifted})))
    return replace(run, records=[*merged, *fresh.values()])


def retry_folder(run: Run, attempt: int) -> Path:
    """Where the runs of a retry lie: beside the run that is judged, never inside results that others read."""
    return run.folder / RETRIES_FOLDER / str(attempt)
