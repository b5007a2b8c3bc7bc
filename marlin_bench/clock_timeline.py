"""The run as its sensors saw it: clock, power, temperature and clock events over time, and which cell was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marlin_bench.clock_reasons import must_repeat
from marlin_bench.record import Block, Record, Telemetry

Line = list[tuple[float, float]]
"""(seconds since the run's start, value), in order of time."""


@dataclass(frozen=True)
class CellSpan:
    """When a cell was measured, from its first block to its last, and the mean power meanwhile (None: not known)."""

    cell: str
    start_s: float
    end_s: float
    power_w: float | None = None


@dataclass(frozen=True)
class Event:
    """A clock event reason and the blocks' times at which it was seen; `slowed` when such blocks are repeated."""

    reason: str
    times: list[float]
    slowed: bool


@dataclass(frozen=True)
class ClockTimeline:
    """Clocks in Hz, power in watts, temperature in °C; a line is empty where nothing was recorded."""

    probe: Line
    nvml: Line
    power: Line
    temperature: Line
    events: list[Event]
    cells: list[CellSpan]


def timeline(records: Sequence[Record]) -> ClockTimeline:
    """Everything that the blocks of `records` carry, in order of time."""
    blocks = sorted((block for record in records for block in record.blocks), key=lambda block: block.started_s)
    return ClockTimeline(
        probe=[(block.started_s, block.sm_clock_hz) for block in blocks if block.sm_clock_hz is not None],
        nvml=_line(blocks, lambda telemetry: telemetry.sm_clock_hz),
        power=_line(blocks, lambda telemetry: telemetry.power_w),
        temperature=_line(blocks, lambda telemetry: telemetry.temperature_c),
        events=_events(blocks),
        cells=_spans(records),
    )


def _line(blocks: Sequence[Block], read: Callable[[Telemetry], float | None]) -> Line:
    found = ((block.started_s, read(block.telemetry)) for block in blocks if block.telemetry is not None)
    return [(moment, value) for moment, value in found if value is not None]


def _events(blocks: Sequence[Block]) -> list[Event]:
    """By reason, those that slow the hardware down first."""
    times: dict[str, list[float]] = {}
    for block in blocks:
        if block.telemetry is not None:
            for reason in {*block.telemetry.event_reasons, *block.telemetry.throttle_s}:
                times.setdefault(reason, []).append(block.started_s)
    found = [
        Event(reason, seen, slowed=must_repeat(Telemetry(event_reasons=[reason]))) for reason, seen in times.items()
    ]
    return sorted(found, key=lambda event: (not event.slowed, event.reason))


def _spans(records: Sequence[Record]) -> list[CellSpan]:
    times: dict[str, list[float]] = {}
    powers: dict[str, float] = {}
    for record in records:
        if record.blocks:
            times.setdefault(record.cell, []).extend(block.started_s for block in record.blocks)
        if record.cell_power_w is not None:
            powers[record.cell] = record.cell_power_w
    spans = [CellSpan(cell, min(seen), max(seen), powers.get(cell)) for cell, seen in times.items()]
    return sorted(spans, key=lambda span: span.start_s)
