"""From stored records to rows: time, speed-up over the cell's baseline, and the share of the ideal reached.

Speed-ups come from paired blocks: a record meets the baselines of its own device, cell and timer, and only blocks that
both finished are compared. A published record gives the value it quotes. Nothing here touches a device, and everything
that shows, exports or draws records reads these rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from marlin_bench.crossing import stays_below
from marlin_bench.problem import DTYPE_BITS, parse_format
from marlin_bench.record import Flag, Record, Status
from marlin_bench.roofline import Roofs, attainable_time, compulsory_bytes
from marlin_bench.statistics import Interval, block_medians, median_interval, ratio_of_logs

HEADLINE_BASELINE = "cublas_fp16"
"""What speed-ups are over wherever a cell has it; elsewhere (a CPU) they are over the fastest baseline of the cell."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One record against one baseline of its cell. `speedup` is baseline time over time, with its interval."""

    baseline: str
    speedup: Interval
    ideal_speedup: float | None
    paired_blocks: int
    dtypes: str | None = None
    """Where the two compute with other types: those of record and baseline, such as `bf16 over fp16`."""

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
    """One record with everything derived from it, in SI base units; None where it cannot be known.

    `roofs` are those at the clock that it held, `sm_clock_hz` (the median over its blocks).
    """

    record: Record
    time: Interval | None
    comparisons: tuple[Comparison, ...]
    attainable_s: float | None
    roofs: Roofs | None
    sm_clock_hz: float | None = None

    @property
    def headline(self) -> Comparison | None:
        """The comparison that tables and plots show: with cublas_fp16, else with the cell's fastest baseline."""
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
        """Share of the ideal speed-up reached; None for baselines, which have no ideal to reach."""
        if self.headline is None or self.record.baseline:
            return None
        return self.headline.fraction_of_ideal

    @property
    def activation_bits(self) -> int:
        """Bits of one activation, as the kernel reads it."""
        return DTYPE_BITS[self.record.activation_dtype]

    @property
    def output_bits(self) -> int:
        """Bits of one output; records from before it was stored had outputs like their activations."""
        return DTYPE_BITS[self.record.output_dtype or self.record.activation_dtype]

    @property
    def arithmetic_intensity(self) -> float:
        """Dense-equivalent flop per compulsory byte."""
        return self.record.problem.arithmetic_intensity(
            self.record.weight_format, self.activation_bits, self.output_bits
        )

    @property
    def achieved_flops(self) -> float | None:
        """Dense-equivalent flop/s at the median time."""
        return None if self.time is None else self.record.problem.flop / self.time.value

    @property
    def achieved_bandwidth(self) -> float | None:
        """Compulsory bytes/s at the median time."""
        if self.time is None:
            return None
        record = self.record
        moved = compulsory_bytes(record.problem, record.weight_format, self.activation_bits, self.output_bits)
        return moved / self.time.value

    @property
    def fraction_of_memory_roof(self) -> float | None:
        """Achieved bandwidth over the measured memory rate."""
        bandwidth = self.achieved_bandwidth
        return None if self.roofs is None or bandwidth is None else bandwidth / self.roofs.memory

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
        if headline is not None and not self.record.baseline and headline.is_above_ideal:
            derived.append(Flag.ABOVE_IDEAL)
        return sorted({*self.record.flags, *derived})

    @property
    def cycles(self) -> float | None:
        """SM cycles of a launch: the time that does not move with the clock."""
        return None if self.time is None or self.sm_clock_hz is None else self.time.value * self.sm_clock_hz


def _unbounded(value: float) -> Interval:
    return Interval(value, -math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A record with one time a block: a block counts once however many samples it holds, they share its clock."""

    record: Record
    indices: list[int]
    times: NDArray[np.float64]
    logs: NDArray[np.float64]


def _timed(record: Record) -> _Timed:
    indices = [block.index for block in record.blocks]
    times = block_medians([block.times for block in record.blocks])
    with np.errstate(divide="ignore"):  # a time of zero has no ratio: it is refused where one is taken
        return _Timed(record, indices, times, np.log(times))


def _log_ratios(baseline: _Timed, own: _Timed) -> NDArray[np.float64]:
    """Logarithm of the baseline's time over the record's, of the blocks that both finished."""
    shared = min(len(baseline.indices), len(own.indices))
    if baseline.indices[:shared] == own.indices[:shared]:  # as ever, unless one was measured again: one left earlier
        return baseline.logs[:shared] - own.logs[:shared]
    places = {index: place for place, index in enumerate(baseline.indices)}
    both = [(places[index], place) for place, index in enumerate(own.indices) if index in places]
    theirs, mine = np.array(both, np.intp).reshape(-1, 2).T
    return baseline.logs[theirs] - own.logs[mine]


def _ideal(
    record: Record, fast: float | None, baseline_format: str, baseline_dtype: str, roofs: Roofs | None
) -> float | None:
    """The attainable time of the baseline over `fast`, that of the record, on the same roofs."""
    if roofs is None or fast is None:
        return None
    slow = attainable_time(record.problem, parse_format(baseline_format), roofs, baseline_dtype)
    return None if slow is None else slow / fast


def _comparison(own: _Timed, baseline: _Timed, attainable: float | None, roofs: Roofs | None) -> Comparison | None:
    name = baseline.record.backend
    ideal = _ideal(own.record, attainable, baseline.record.format, baseline.record.activation_dtype, roofs)
    if own.record is baseline.record:
        return Comparison(name, Interval(1.0, 1.0, 1.0), ideal, len(own.times))
    ratios = _log_ratios(baseline, own)
    if not len(ratios):
        return None
    types = (own.record.activation_dtype, baseline.record.activation_dtype)
    dtypes = None if types[0] == types[1] else " over ".join(types)
    return Comparison(name, ratio_of_logs(ratios), ideal, len(ratios), dtypes)


def _published_comparison(record: Record, roofs: Roofs | None) -> Comparison | None:
    if record.published is None or record.published.speedup is None:
        return None
    # published speed-ups are over FP16 whatever the kernel's own dtype is: that is what papers quote
    ideal = _ideal(record, _attainable(record, roofs), "fp16", "fp16", roofs)
    return Comparison(HEADLINE_BASELINE, _unbounded(record.published.speedup), ideal, 0)


def _rank(baseline: _Timed) -> tuple[bool, float]:
    """cublas_fp16 first, then the faster ones: a weak baseline flatters."""
    return baseline.record.backend != HEADLINE_BASELINE, float(median(baseline.times))


def _place(record: Record) -> tuple[str, str, str, bool]:
    """What two records must share for their ratio to mean anything: device, cell, timer and process."""
    return (record.device, record.cell, record.timer, record.isolated)


def rows(records: Iterable[Record], roofs: Roofs | None) -> list[Row]:
    """One row a record, in the order given.

    `roofs` are those of the run; each record is judged at the SM clock that it held. A cell whose baseline is not `ok`
    has no speed-ups.
    """
    records = list(records)
    timed = [_timed(record) if record.status is Status.OK and record.blocks else None for record in records]
    baselines: dict[tuple[str, str, str, bool], list[_Timed]] = {}
    for one in timed:
        if one is not None and one.record.baseline:
            baselines.setdefault(_place(one.record), []).append(one)
    for found in baselines.values():
        found.sort(key=_rank)
    return [
        _quoted_row(record, roofs) if one is None else _row(one, baselines.get(_place(record), []), roofs)
        for record, one in zip(records, timed, strict=True)
    ]


def _row(own: _Timed, baselines: Sequence[_Timed], roofs: Roofs | None) -> Row:
    record = own.record
    clock = record.sm_clock_hz
    at_clock = None if roofs is None else roofs.at_clock(clock)
    attainable = _attainable(record, at_clock)
    comparisons = (_comparison(own, baseline, attainable, at_clock) for baseline in baselines)
    return Row(
        record,
        median_interval(own.times),
        tuple(comparison for comparison in comparisons if comparison is not None),
        attainable,
        at_clock,
        clock,
    )


def _quoted_row(record: Record, roofs: Roofs | None) -> Row:
    """A record without samples: a published one gives what it quotes, any other nothing."""
    published = record.published
    if published is None or record.status is not Status.OK:
        return Row(record, None, (), None, roofs)
    comparison = _published_comparison(record, roofs)
    return Row(
        record,
        None if published.time_s is None else _unbounded(published.time_s),
        () if comparison is None else (comparison,),
        _attainable(record, roofs),
        roofs,
    )


def _attainable(record: Record, roofs: Roofs | None) -> float | None:
    if roofs is None:
        return None
    return attainable_time(record.problem, record.weight_format, roofs, record.activation_dtype)


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
        """The M from which the baseline wins: where the speed-up falls through 1 for good; None while it never does."""
        if any(row.record.baseline for row in self.points):
            return None
        known = [(row.record.M, row.speedup.value) for row in self.points if row.speedup is not None]
        batch = stays_below(known, 1.0)
        has_won = any(value >= 1 for _, value in known)
        return batch if has_won and math.isfinite(batch) else None


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
