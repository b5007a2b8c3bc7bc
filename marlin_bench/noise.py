"""The A/A noise map: how far the same cell moves between runs of the same code on the same machine.

A run knows its own noise but not that of the next process, which may get other addresses or another clock. Several runs
of one code show it: the range of their medians over what a normal variable's range would be (the d2 constants of
control charts; Tippett 1925, Biometrika 17, 364-387). The medians are those at one clock (one_clock.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from marlin_bench.one_clock import blocks_of, elasticity
from marlin_bench.record import Record, Status
from marlin_bench.store import Run

_EXPECTED_RANGE = (1.128, 1.693, 2.059, 2.326, 2.534, 2.704, 2.847, 2.970, 3.078)  # of 2, 3, … 10 normal samples


PROCESS_NOISE_WAITING = 0.0045
PROCESS_NOISE_COMPUTING = 0.0013
"""How far a cell of 20 us and more moves from one process to the next, as the standard deviation of a difference: of a
kernel that waits for memory (other addresses), and of one that follows the clock. Median absolute deviations of three
pairs of runs of one code on H200s (results/published/h200/*_slow_down_*; tests/test_simulated_noise.py)."""


def process_noise(elasticity: float) -> float:
    """The floor of a kernel that nobody made a noise map of, by how far it follows the clock (0 to 1)."""
    return PROCESS_NOISE_WAITING + elasticity * (PROCESS_NOISE_COMPUTING - PROCESS_NOISE_WAITING)


class NoiseError(ValueError):
    """Runs that make no noise map, or a file that is none; one sentence."""


class NoiseMap(BaseModel):
    """The floor of each cell (`cell|backend|timer`) as a relative standard deviation: 0.004 is 0.4 %."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    device: str
    runs: tuple[str, ...]
    floors: dict[str, float]

    def floor(self, record: Record) -> float:
        """The cell's floor, but not below the typical one: few runs may agree by luck."""
        return max(self.floors.get(noise_key(record), 0.0), self.typical)

    @property
    def typical(self) -> float:
        """The median floor over all cells."""
        return median(self.floors.values()) if self.floors else 0.0


def noise_key(record: Record) -> str:
    """What a floor is kept under."""
    return f"{record.cell}|{record.backend}|{record.timer}"


def noise_map(runs: Sequence[Run]) -> NoiseMap:
    """The map of several runs; NoiseError unless there are two or more of one code on one device."""
    if len(runs) < 2:
        raise NoiseError("noise needs two or more runs of the same code: measure the suite again")
    for what, values in (
        ("devices", {run.meta.environment.device_name for run in runs}),
        ("versions of the code", {run.meta.environment.code_digest for run in runs}),
    ):
        if len(values) > 1:
            raise NoiseError(f"the runs are of {len(values)} {what} ({', '.join(sorted(values))}): noise is of one")
    seen: dict[str, list[Record]] = {}
    for run in runs:
        for record in run.records:
            if record.status is Status.OK and record.blocks:
                seen.setdefault(noise_key(record), []).append(record)
    levels = {key: _levels(records) for key, records in seen.items() if len(records) >= 2}
    floors = {
        key: (max(found) - min(found)) / _EXPECTED_RANGE[min(len(found), 10) - 2] for key, found in levels.items()
    }
    if not floors:
        raise NoiseError("the runs share no measured cell: give runs of one suite")
    return NoiseMap(
        device=runs[0].meta.environment.device_name,
        runs=tuple(run.meta.run for run in runs),
        floors={key: round(value, 7) for key, value in sorted(floors.items(), key=lambda item: -item[1])},
    )


def _levels(records: Sequence[Record]) -> list[float]:
    """The median logarithm of each record's times, at one clock where the clocks were free and are known."""
    blocks = [blocks_of(record, stream) for stream, record in enumerate(records)]
    clocks = [one.clocks for one in blocks if one.clocks is not None]
    if len(clocks) < len(blocks) or all(record.clocks_locked for record in records):
        return [float(np.median(one.times)) for one in blocks]
    slope = elasticity([(one.times, own, one.stream) for one, own in zip(blocks, clocks, strict=True)]).value
    middle = float(np.mean([np.median(own) for own in clocks]))
    return [float(np.median(one.times + slope * (own - middle))) for one, own in zip(blocks, clocks, strict=True)]


def read_noise_map(path: Path) -> NoiseMap:
    """A map as `marlin-bench noise -o` wrote it; NoiseError for anything else."""
    try:
        return NoiseMap.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no noise map"
        raise NoiseError(
            f"{path} cannot be read ({reason}): write one with `marlin-bench noise RUN RUN -o FILE`"
        ) from (error)
