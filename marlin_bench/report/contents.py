"""What a report holds, as plain data: the rows, rooflines and clocks of a run for the page's own script.

Numbers are in SI base units and rounded to six digits, which halves the page; text is whatever the records carry and is
escaped where it is written.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marlin_bench.clock_timeline import timeline
from marlin_bench.grade import Validity, validities
from marlin_bench.knee import told_together
from marlin_bench.model_times import (
    LayerTimes,
    ModelTime,
    NoAnswerError,
    common_group_size,
    layer_times,
    model_batches,
    model_time,
)
from marlin_bench.models import Model
from marlin_bench.panels import RooflinePanel, SpeedupPanel, roofline_panels, speedup_panels
from marlin_bench.plots.theme import looks
from marlin_bench.record import Origin, RunMeta
from marlin_bench.record_table import notes
from marlin_bench.roofline import Roofs
from marlin_bench.selection import suite_models
from marlin_bench.speedup import Row, without_companions
from marlin_bench.store import Run

MOST_CLOCK_POINTS = 1500
ROW_FIELDS = (
    "id", "layer", "M", "K", "N", "g", "backend", "timer", "status", "grade", "time_s", "margin", "speedup",
    "of_ideal", "bandwidth", "flops", "clock_hz", "power_w", "notes", "reasons", "command", "baseline",
)  # fmt: skip


@dataclass(frozen=True)
class ModelHeadline:
    """One model over the M of the run: the summed time of each backend."""

    model: Model
    baseline: str | None
    batches: tuple[int, ...]
    backends: tuple[tuple[str, tuple[ModelTime | None, ...]], ...]

    def best(self, position: int) -> str | None:
        """The backend with the least time at the M of that position."""
        known = [(times[position], name) for name, times in self.backends]
        return min(((time.time_s, name) for time, name in known if time is not None), default=(0.0, None))[1]


def rounded(value: float | None) -> float | None:
    """Six significant digits; None for what is unknown or not finite, which JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def command_of(row: Row, meta: RunMeta) -> str:
    """How to measure this record again."""
    record = row.record
    names = [name for name in dict.fromkeys((row.baseline, record.backend)) if name is not None]
    cell = record.cell.partition("+")[0]
    words = ["marlin-bench", "run", meta.suite, "--only", cell, "--backend", ",".join(names)]
    return shlex.join(words)


def _power(row: Row) -> float | None:
    record = row.record
    return record.energy.power_w if record.energy is not None else record.cell_power_w


def row_data(row: Row, meta: RunMeta, grade: Validity | None) -> list[Any]:
    """One row in the order of ROW_FIELDS."""
    record, time = row.record, row.time
    speedup = None if record.baseline and row.baseline == record.backend else row.speedup
    measured = record.origin is Origin.MEASURED
    return [
        record.id,
        record.layer,
        record.M,
        record.K,
        record.N,
        record.group_size,
        record.backend,
        record.timer,
        record.status.value,
        grade.grade.value if grade is not None else None,
        rounded(None if time is None else time.value),
        rounded(None if time is None else time.margin),
        rounded(None if speedup is None else speedup.value),
        rounded(row.fraction_of_ideal),
        rounded(row.achieved_bandwidth),
        rounded(row.achieved_flops),
        rounded(row.sm_clock_hz),
        rounded(_power(row)),
        notes(row),
        list(grade.reasons) if grade is not None else [],
        command_of(row, meta) if measured else "",
        row.baseline,
    ]


def _roofline(panel: RooflinePanel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "memory": panel.memory,
        "memoryName": panel.memory_name,
        "l2": panel.l2,
        "compute": [
            {"name": roof.name, "rate": roof.rate, "low": roof.lowest, "high": roof.highest, "clock": roof.sm_clock_hz}
            for roof in panel.compute
        ],
        "knees": told_together(panel.knees),
        "series": [
            {
                "backend": series.backend,
                "published": series.published,
                "points": [
                    [rounded(p.x), rounded(p.y), rounded(p.low), rounded(p.high), p.M, p.flagged, p.doubtful]
                    for p in series.points
                ],
            }
            for series in panel.series
        ],
        "twins": [[name, *map(rounded, start), *map(rounded, end)] for name, start, end in panel.twins],
    }


def _speedup(panel: SpeedupPanel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "baseline": panel.baseline,
        "series": [
            {
                "backend": series.backend,
                "published": series.published,
                "points": [
                    [rounded(p.x), rounded(p.y), rounded(p.low), rounded(p.high), p.M, p.flagged, p.doubtful]
                    for p in series.points
                ],
            }
            for series in panel.series
        ],
        "ideals": [[ideal.format, [[M, rounded(value)] for M, value in ideal.points]] for ideal in panel.ideals],
        "crossovers": [[name, rounded(M)] for name, M in panel.crossovers],
    }


def _thinned(points: Sequence[tuple[float, float]]) -> list[list[float | None]]:
    """At most MOST_CLOCK_POINTS of them, evenly chosen."""
    step = max(1, math.ceil(len(points) / MOST_CLOCK_POINTS))
    return [[rounded(x), rounded(y)] for x, y in points[::step]]


def page_data(run: Run, roofs: Roofs | None, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that the page's script draws."""
    grades = validities(run.records, run.meta.environment)
    timers = dict.fromkeys(row.record.timer for row in rows)
    headline = "kernel" if "kernel" in timers else next(iter(timers), "kernel")
    drawn = without_companions(row for row in rows if row.record.timer == headline)
    clocks = timeline(run.records)
    return {
        "fields": list(ROW_FIELDS),
        "rows": [row_data(row, run.meta, grades.get(row.record.id)) for row in without_companions(rows)],
        "headlineTimer": headline,
        "looks": {name: look.colour for name, look in looks(row.record.backend for row in rows).items()},
        "rooflines": [_roofline(panel) for panel in roofline_panels(drawn, roofs)],
        "speedups": [_speedup(panel) for panel in speedup_panels(drawn)],
        "clock": _thinned(clocks.probe or clocks.nvml),
        "power": _thinned(clocks.power),
        "temperature": _thinned(clocks.temperature),
    }


def model_headlines(meta: RunMeta, rows: Sequence[Row]) -> list[ModelHeadline]:
    """The models of the suite that the run can answer for, at every M that all their layers have."""
    try:
        times = layer_times(rows, common_group_size(rows))
    except NoAnswerError:
        return []
    found = []
    for model in suite_models(meta):
        try:
            batches = model_batches(model, times)
        except NoAnswerError:
            continue
        found.append(_headline(model, times, batches))
    return found


def _headline(model: Model, times: LayerTimes, batches: Sequence[int]) -> ModelHeadline:
    series = [(name, tuple(model_time(model, times, name, M) for M in batches)) for name in times.backends]
    answered = tuple((name, own) for name, own in series if any(time is not None for time in own))
    return ModelHeadline(model, times.baseline, tuple(batches), answered)
