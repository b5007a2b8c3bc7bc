"""What the plots draw, worked out beforehand: rows gathered into panels, one a layer.

A plot only places what stands here on axes. Roofs are those of the run at the clock that its fastest product held; the
band beside the tensor roof spans the clocks of the panel's records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from marlin_bench.problem import DTYPE_BITS, FP16, Format, Problem
from marlin_bench.record import Flag, Origin, Status
from marlin_bench.roofline import Roofs, attainable_time, knee_batch
from marlin_bench.speedup import Curve, Row, curves

_ABOVE = {Flag.ABOVE_IDEAL, Flag.ABOVE_MEASURED_ROOF}
_DOUBTFUL = {Flag.NOT_CONVERGED, Flag.THROTTLED, Flag.FEW_OPERAND_SETS}


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its bounds (None where nothing bounds it) over `x`, belonging to batch size M.

    `flagged`: above a measured roof or above ideal; `doubtful`: not converged, throttled or warm operands.
    """

    x: float
    y: float
    low: float | None
    high: float | None
    M: int
    flagged: bool
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """One backend's points by rising M; `other_dtype`: of its activations, where the baseline's are of another one."""

    backend: str
    published: bool
    is_baseline: bool
    points: tuple[Point, ...]
    other_dtype: str = ""


@dataclass(frozen=True, slots=True)
class ComputeRoof:
    """A tensor roof in flop/s at the clock held, and the range it moved through with the clock."""

    name: str
    rate: float
    lowest: float
    highest: float
    sm_clock_hz: float | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the roofline: a crossover, a record that cannot be true, a product over other bytes."""

    backend: str
    M: float
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class LaunchFloor:
    """Flop/s that an empty launch of `seconds` leaves, over intensity, for the weight format that it binds first."""

    seconds: float
    format: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class RooflinePanel:
    """One layer over arithmetic intensity [flop/byte]; y in flop/s. `knee` is the intensity where the roofs meet.

    `knees` are the M at which a perfect kernel of each weight format leaves the memory roof; `crossovers` lie on the
    curve of their backend where the baseline overtakes it; `impossible` are records whose time beat physics, on the
    roof at their intensity, because no sample of theirs is kept; `profiled` are points at the bytes a profiler counted.
    """

    title: str
    memory: float | None
    memory_name: str
    l2: float | None
    compute: tuple[ComputeRoof, ...]
    knee: float | None
    series: tuple[Series, ...]
    twins: tuple[tuple[str, tuple[float, float], tuple[float, float]], ...]
    launch: LaunchFloor | None = None
    knees: tuple[tuple[str, float], ...] = ()
    crossovers: tuple[Mark, ...] = ()
    impossible: tuple[Mark, ...] = ()
    profiled: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class IdealLine:
    """The ideal speed-up of one weight format over M."""

    format: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class SpeedupPanel:
    """One layer over M; y is the speed-up over `baseline`."""

    title: str
    baseline: str
    series: tuple[Series, ...]
    ideals: tuple[IdealLine, ...]
    crossovers: tuple[tuple[str, float], ...]


def _panels(rows: Iterable[Row]) -> list[list[Curve]]:
    """Curves with something to draw, by layer and group size, in order of first appearance."""
    gathered: dict[tuple[str, int, int, int | None, str], list[Curve]] = {}
    for curve in curves(rows):
        gathered.setdefault((curve.layer, curve.N, curve.K, curve.group_size, curve.device), []).append(curve)
    return list(gathered.values())


def _title(curve: Curve, *, with_group: bool) -> str:
    shape = f"K={curve.K} N={curve.N}"
    group = (" one scale a column" if curve.group_size is None else f" g={curve.group_size}") if with_group else ""
    return f"{curve.layer}  ({shape}{group})" if curve.layer != f"{curve.K}x{curve.N}" else f"{shape}{group}"


def _several_groups(panels: Sequence[Sequence[Curve]]) -> bool:
    return len({panel[0].group_size for panel in panels}) > 1


def _series(curve: Curve, points: Iterable[Point]) -> Series:
    published = any(row.record.origin is Origin.PUBLISHED for row in curve.points)
    other = {row.record.activation_dtype for row in curve.points if row.headline is not None and row.headline.dtypes}
    baseline = any(row.record.baseline for row in curve.points)
    return Series(curve.backend, published, baseline, tuple(points), "/".join(sorted(other)))


def _flops_point(row: Row) -> Point | None:
    if row.time is None or row.achieved_flops is None:
        return None
    flop = row.record.problem.flop
    bounded = row.time.low > 0 and row.time.high < float("inf")
    return Point(
        x=row.arithmetic_intensity,
        y=row.achieved_flops,
        low=flop / row.time.high if bounded else None,
        high=flop / row.time.low if bounded else None,
        M=row.record.M,
        flagged=bool(_ABOVE.intersection(row.flags)),
        doubtful=bool(_DOUBTFUL.intersection(row.flags)),
    )


def _clock_of_fastest(rows: Sequence[Row]) -> float | None:
    fastest = max(rows, key=lambda row: row.achieved_flops or 0.0, default=None)
    return None if fastest is None else fastest.sm_clock_hz


def _compute_roofs(rows: Sequence[Row], roofs: Roofs) -> tuple[ComputeRoof, ...]:
    clocks = [row.sm_clock_hz for row in rows if row.sm_clock_hz is not None]
    held = _clock_of_fastest(rows)
    kinds: dict[tuple[str, bool], Format] = {}
    for row in rows:
        fmt = row.record.weight_format
        kinds.setdefault((row.record.activation_dtype, fmt.is_sparse), fmt if fmt.is_sparse else FP16)
    found: dict[float, ComputeRoof] = {}
    for (dtype, sparse), fmt in kinds.items():
        rate = roofs.at_clock(held).compute_rate(fmt, dtype)
        if rate is None or rate in found:  # fp16 and bf16 tensor cores are one roof
            continue
        at_clocks = [roofs.at_clock(clock).compute_rate(fmt, dtype) or rate for clock in clocks] or [rate]
        clock = held if held is not None else roofs.sm_clock_hz
        found[rate] = ComputeRoof(f"{dtype} 2:4" if sparse else dtype, rate, min(at_clocks), max(at_clocks), clock)
    return tuple(found.values())


def _twins(panel: Sequence[Curve]) -> tuple[tuple[str, tuple[float, float], tuple[float, float]], ...]:
    """Each backend's point with the point of the baseline it is compared with, in the same cell."""
    placed = {
        (row.record.backend, row.record.cell): (point.x, point.y)
        for curve in panel
        for row in curve.points
        if (point := _flops_point(row)) is not None
    }
    return tuple(
        (row.record.backend, placed[row.baseline, row.record.cell], placed[row.record.backend, row.record.cell])
        for curve in panel
        for row in curve.points
        if row.baseline is not None
        and row.baseline != row.record.backend
        and not row.record.baseline
        and (row.baseline, row.record.cell) in placed
        and (row.record.backend, row.record.cell) in placed
    )


def _launch_floor(rows: Sequence[Row], roofs: Roofs) -> LaunchFloor | None:
    """The floor of the format with the fewest bytes: it lies lowest over intensity."""
    if roofs.launch is None:
        return None
    row = min(rows, key=lambda row: row.record.weight_format.bits_per_weight(row.record.K))
    fmt, problem = row.record.weight_format, row.record.problem
    batches = sorted({row.record.M for row in rows})
    products = [Problem(M, problem.N, problem.K, problem.group_size) for M in batches]
    points = [(p.arithmetic_intensity(fmt, row.activation_bits), p.flop / roofs.launch) for p in products]
    return LaunchFloor(roofs.launch, fmt.name, tuple(points))


def _knees(rows: Sequence[Row], roofs: Roofs) -> tuple[tuple[str, float], ...]:
    held = roofs.at_clock(_clock_of_fastest(rows))
    found: dict[str, float] = {}
    for row in rows:
        record = row.record
        M = knee_batch(
            record.N,
            record.K,
            record.weight_format,
            held,
            group_size=record.group_size,
            activation_dtype=record.activation_dtype,
        )
        if M is not None and math.isfinite(M) and DTYPE_BITS[record.activation_dtype] == 16:
            found.setdefault("fp16" if record.format == "bf16" else record.format, M)
    return tuple(sorted(found.items(), key=lambda pair: pair[1]))


def _crossovers(panel: Sequence[Curve]) -> tuple[Mark, ...]:
    """Where each curve falls through the baseline, between its two measured neighbours, as straight as it is drawn."""
    marks = []
    for curve in panel:
        batch = curve.crossover
        points = [(row.record.M, point) for row in curve.points if (point := _flops_point(row)) is not None]
        for (left, start), (right, end) in pairwise(points):
            if batch is not None and left <= batch <= right:
                share = math.log(batch / left) / math.log(right / left)
                x, y = (a * (b / a) ** share for a, b in ((start.x, end.x), (start.y, end.y)))
                marks.append(Mark(curve.backend, batch, x, y))
                break
    return tuple(marks)


def _impossible(rows: Sequence[Row], roofs: Roofs | None) -> tuple[Mark, ...]:
    marks = []
    for row in rows:
        record = row.record
        if record.status is not Status.IMPOSSIBLE or roofs is None:
            continue
        floor = attainable_time(record.problem, record.weight_format, roofs, record.activation_dtype)
        if floor is not None:
            marks.append(Mark(record.backend, record.M, row.arithmetic_intensity, record.problem.flop / floor))
    return tuple(marks)


def roofline_panels(
    rows: Sequence[Row], roofs: Roofs | None, profiled: Mapping[str, float] | None = None
) -> list[RooflinePanel]:
    """One panel a layer and group size that has points; `profiled` holds measured flop per byte by record id."""
    drawn = [row for row in rows if row.time is not None or row.record.status is Status.IMPOSSIBLE]
    gathered = [panel for panel in _panels(drawn) if any(row.time is not None for one in panel for row in one.points)]
    several = _several_groups(gathered) if gathered else False
    return [_roofline_panel(panel, roofs, profiled or {}, with_group=several) for panel in gathered]


def _roofline_panel(
    panel: Sequence[Curve], roofs: Roofs | None, profiled: Mapping[str, float], *, with_group: bool
) -> RooflinePanel:
    everything = [row for curve in panel for row in curve.points]
    members = [row for row in everything if row.time is not None]
    compute = () if roofs is None else _compute_roofs(members, roofs)
    dense = [roof for roof in compute if not roof.name.endswith("2:4")]
    knee = None if roofs is None or not dense else max(roof.rate for roof in dense) / roofs.memory
    points = ((curve, [point for row in curve.points if (point := _flops_point(row)) is not None]) for curve in panel)
    return RooflinePanel(
        title=_title(panel[0], with_group=with_group),
        memory=None if roofs is None else roofs.memory,
        memory_name="RAM" if any(row.record.backend.startswith("dense_") for row in members) else "HBM",
        l2=None if roofs is None else roofs.l2,
        compute=compute,
        knee=knee,
        series=tuple(_series(curve, found) for curve, found in points if found),
        twins=_twins(panel),
        launch=None if roofs is None else _launch_floor(members, roofs),
        knees=() if roofs is None else _knees(members, roofs),
        crossovers=_crossovers(panel),
        impossible=_impossible(everything, roofs),
        profiled=tuple(
            Mark(row.record.backend, row.record.M, profiled[row.record.id], row.achieved_flops)
            for row in members
            if row.record.id in profiled and row.achieved_flops is not None
        ),
    )


def _speedup_point(row: Row) -> Point | None:
    if row.speedup is None:
        return None
    bounded = row.speedup.high < float("inf")
    return Point(
        x=float(row.record.M),
        y=row.speedup.value,
        low=row.speedup.low if bounded else None,
        high=row.speedup.high if bounded else None,
        M=row.record.M,
        flagged=bool(_ABOVE.intersection(row.flags)),
        doubtful=bool(_DOUBTFUL.intersection(row.flags)),
    )


def _ideals(panel: Sequence[Curve]) -> tuple[IdealLine, ...]:
    by_format: dict[str, dict[int, float]] = {}
    for curve in panel:
        for row in curve.points:
            if row.ideal_speedup is not None and not row.record.baseline:
                by_format.setdefault(row.record.format, {}).setdefault(row.record.M, row.ideal_speedup)
    return tuple(IdealLine(name, tuple(sorted(points.items()))) for name, points in by_format.items())


def _baseline(panel: Sequence[Curve]) -> str:
    names = dict.fromkeys(row.baseline for curve in panel for row in curve.points if row.baseline is not None)
    return next(iter(names)) if len(names) == 1 else f"the faster of {' and '.join(sorted(names))}"


def speedup_panels(rows: Sequence[Row]) -> list[SpeedupPanel]:
    """One panel a layer and group size in which some backend has a speed-up."""
    gathered = [
        [curve for curve in panel if not all(row.record.baseline for row in curve.points)]
        for panel in _panels(row for row in rows if row.speedup is not None)
    ]
    gathered = [panel for panel in gathered if panel]
    several = _several_groups(gathered) if gathered else False
    return [
        SpeedupPanel(
            title=_title(panel[0], with_group=several),
            baseline=_baseline(panel),
            series=tuple(
                _series(curve, (point for row in curve.points if (point := _speedup_point(row)) is not None))
                for curve in panel
            ),
            ideals=_ideals(panel),
            crossovers=tuple((curve.backend, curve.crossover) for curve in panel if curve.crossover is not None),
        )
        for panel in gathered
    ]
