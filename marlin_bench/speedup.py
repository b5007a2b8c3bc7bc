"""From stored records to rows: time, speed-up over the cell's baseline, and the share of the ideal reached.

Speed-ups come from paired blocks: a record meets the baselines of its own device, cell and timer, and only blocks that
both finished are compared. A published record gives the value it quotes. Nothing here touches a device, and everything
that shows, exports or draws records reads these rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from marlin_bench.problem import DTYPE_BITS, parse_format
from marlin_bench.record import Flag, Origin, Record, Status
from marlin_bench.roofline import Roofs, attainable_time
from marlin_bench.statistics import Interval, block_medians, median_interval, paired_ratio

BASELINES = ("cublas_fp16", "cublas_bf16", "dense_bf16", "dense_fp32")
"""Which baseline heads a row: fp16 on GPUs; on a CPU bf16, the 16-bit product there, then fp32; others come last."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One record against one baseline of its cell. `speedup` is baseline time over time, with its interval."""

    baseline: str
    speedup: Interval
    ideal_speedup: float | None
    paired_blocks: int

    @property
    def fraction_of_ideal(self) -> float | None:
        """Speed-up over ideal speed-up: 1 is a perfect kernel against a perfect baseline. Never clipped."""
        return None if self.ideal_speedup is None else self.speedup.value / self.ideal_speedup

    @property
    def is_above_ideal(self) -> bool:
        """Whether the whole interval lies above the ideal: a weak baseline, or a ceiling seen at a lower clock."""
        return self.ideal_speedup is not None and self.speedup.low > self.ideal_speedup


@dataclass(frozen=True, slots=True)
class Row:
    """One record with everything derived from it, in SI base units; None where it cannot be known."""

    record: Record
    time: Interval | None
    comparisons: tuple[Comparison, ...]
    attainable_s: float | None
    roofs: Roofs | None

    @property
    def headline(self) -> Comparison | None:
        """The comparison that tables and plots show: with the first of BASELINES that the cell holds."""
        return self.comparisons[0] if self.comparisons else None

    @property
    def baseline(self) -> str | None:
        """Which baseline `speedup` is over."""
        return None if self.headline is None else self.headline.baseline

    @property
    def speedup(self) -> Interval | None:
        """Speed-up over `baseline`."""
        return None if self.headline is None else self.headline.speedup

    @property
    def ideal_speedup(self) -> float | None:
        """What a kernel on the roof would reach over a baseline on the roof."""
        return None if self.headline is None else self.headline.ideal_speedup

    @property
    def fraction_of_ideal(self) -> float | None:
        """Share of the ideal speed-up reached; None for the baseline itself, which has no ideal to reach."""
        if self.headline is None or self.headline.baseline == self.record.backend:
            return None
        return self.headline.fraction_of_ideal

    @property
    def activation_bits(self) -> int:
        """Bits of one activation and one output."""
        return DTYPE_BITS[self.record.activation_dtype]

    @property
    def arithmetic_intensity(self) -> float:
        """Dense-equivalent flop per compulsory byte."""
        return self.record.problem.arithmetic_intensity(self.record.weight_format, self.activation_bits)

    @property
    def achieved_flops(self) -> float | None:
        """Dense-equivalent flop/s at the median time."""
        return None if self.time is None else self.record.problem.flop / self.time.value

    @property
    def achieved_bandwidth(self) -> float | None:
        """Compulsory bytes/s at the median time."""
        if self.time is None:
            return None
        return self.record.problem.traffic(self.record.weight_format, self.activation_bits).total / self.time.value

    @property
    def fraction_of_memory_roof(self) -> float | None:
        """Achieved bandwidth over the measured memory rate."""
        if self.roofs is None or self.achieved_bandwidth is None:
            return None
        return self.achieved_bandwidth / self.roofs.memory

    @property
    def fraction_of_roof(self) -> float | None:
        """Attainable time over time: how much of the lower of the two roofs is reached at the clock held."""
        return None if self.time is None or self.attainable_s is None else self.attainable_s / self.time.value

    @property
    def flags(self) -> list[Flag]:
        """The record's flags and those that follow from the roofs, where the whole interval is above them."""
        derived: list[Flag] = []
        if self.time is not None and self.attainable_s is not None and self.attainable_s > self.time.high:
            derived.append(Flag.ABOVE_MEASURED_ROOF)
        headline = self.headline
        if headline is not None and headline.baseline != self.record.backend and headline.is_above_ideal:
            derived.append(Flag.ABOVE_IDEAL)
        return sorted({*self.record.flags, *derived})

    @property
    def sm_clock_hz(self) -> float | None:
        """Median SM clock over the blocks."""
        return self.record.sm_clock_hz

    @property
    def cycles(self) -> float | None:
        """SM cycles of a launch: the time that does not move with the clock."""
        return None if self.time is None or self.sm_clock_hz is None else self.time.value * self.sm_clock_hz


def _unbounded(value: float) -> Interval:
    return Interval(value, -math.inf, math.inf)


def _time(record: Record) -> Interval | None:
    if record.published is not None:
        return None if record.published.time_s is None else _unbounded(record.published.time_s)
    # a block counts once however many samples it holds: they share its clock and its luck
    return median_interval(block_medians([block.times for block in record.blocks])) if record.blocks else None


def _paired_blocks(baseline: Record, record: Record) -> tuple[list[list[float]], list[list[float]]]:
    mine = {block.index: list(block.times) for block in record.blocks}
    pairs = [(list(block.times), mine[block.index]) for block in baseline.blocks if block.index in mine]
    return [theirs for theirs, _ in pairs], [own for _, own in pairs]


def _ideal(record: Record, baseline_format: str, baseline_dtype: str, roofs: Roofs | None) -> float | None:
    if roofs is None:
        return None
    slow = attainable_time(record.problem, parse_format(baseline_format), roofs, baseline_dtype)
    fast = attainable_time(record.problem, record.weight_format, roofs, record.activation_dtype)
    return None if slow is None or fast is None else slow / fast


def _comparison(record: Record, baseline: Record, roofs: Roofs | None) -> Comparison | None:
    ideal = _ideal(record, baseline.format, baseline.activation_dtype, roofs)
    if record is baseline:
        return Comparison(baseline.backend, Interval(1.0, 1.0, 1.0), ideal, len(record.blocks))
    theirs, own = _paired_blocks(baseline, record)
    if not own:
        return None
    return Comparison(baseline.backend, paired_ratio(theirs, own), ideal, len(own))


def _published_comparison(record: Record, roofs: Roofs | None) -> Comparison | None:
    if record.published is None or record.published.speedup is None:
        return None
    # published speed-ups are over FP16 whatever the kernel's own dtype is: that is what papers quote
    ideal = _ideal(record, "fp16", "fp16", roofs)
    return Comparison(BASELINES[0], _unbounded(record.published.speedup), ideal, 0)


def _clock_of(record: Record) -> float | None:
    return record.sm_clock_hz if record.origin is Origin.MEASURED else None


def _comparisons(record: Record, baselines: Sequence[Record], roofs: Roofs | None) -> tuple[Comparison, ...]:
    if record.origin is Origin.PUBLISHED:
        published = _published_comparison(record, roofs)
        return () if published is None else (published,)
    found = (_comparison(record, baseline, roofs) for baseline in baselines)
    return tuple(comparison for comparison in found if comparison is not None)


def _rank(baseline: Record) -> int:
    return BASELINES.index(baseline.backend) if baseline.backend in BASELINES else len(BASELINES)


def _place(record: Record) -> tuple[str, str, str, bool]:
    """What two records must share for their ratio to mean anything: device, cell, timer and process."""
    return (record.device, record.cell, record.timer, record.isolated)


def rows(records: Iterable[Record], roofs: Roofs | None) -> list[Row]:
    """One row a record, in the order given.

    `roofs` are those of the run; each record is judged at the SM clock that it held. A cell whose baseline is not `ok`
    has no speed-ups.
    """
    records = list(records)
    baselines: dict[tuple[str, str, str, bool], list[Record]] = {}
    for record in records:
        if record.baseline and record.status is Status.OK and record.blocks:
            baselines.setdefault(_place(record), []).append(record)
    for found in baselines.values():
        found.sort(key=_rank)
    return [_row(record, baselines.get(_place(record), []), roofs) for record in records]


def _row(record: Record, baselines: Sequence[Record], roofs: Roofs | None) -> Row:
    if record.status is not Status.OK:
        return Row(record, None, (), None, roofs)
    at_clock = None if roofs is None else roofs.at_clock(_clock_of(record))
    attainable = (
        None
        if at_clock is None
        else attainable_time(record.problem, record.weight_format, at_clock, record.activation_dtype)
    )
    return Row(record, _time(record), _comparisons(record, baselines, at_clock), attainable, at_clock)


def without_companions(rows: Iterable[Row]) -> list[Row]:
    """Rows for people: without the second baseline of a cell, measured again beside a backend of its own process."""
    return [row for row in rows if not (row.record.isolated and row.record.baseline)]


@dataclass(frozen=True, slots=True)
class Curve:
    """One backend on one layer under one timer, over M: what a speed-up plot draws and a crossover is read from."""

    layer: str
    N: int
    K: int
    group_size: int | None
    backend: str
    timer: str
    device: str
    points: tuple[Row, ...]

    @property
    def crossover(self) -> float | None:
        """The M at which the baseline wins: where the speed-up falls through 1 for good; None while it never does.

        Between two measured M it is interpolated on logarithmic axes, as the curve is drawn.
        """
        known = [(row.record.M, row.speedup.value) for row in self.points if row.speedup is not None]
        for (left, above), (right, below) in reversed(list(pairwise(known))):
            if below >= 1:
                return None
            if above >= 1:
                share = math.log(above) / math.log(above / below)
                return left * math.pow(right / left, share)
        return None


def curves(rows: Iterable[Row]) -> list[Curve]:
    """Rows gathered into curves, in order of first appearance; points by rising M."""
    gathered: dict[tuple[str, int, int, int | None, str, str, str], list[Row]] = {}
    for row in rows:
        record = row.record
        key = (record.layer, record.N, record.K, record.group_size, record.backend, record.timer, record.device)
        gathered.setdefault(key, []).append(row)
    return [
        Curve(*key, points=tuple(sorted(members, key=lambda row: row.record.M))) for key, members in gathered.items()
    ]
