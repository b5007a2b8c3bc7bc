"""A run as Markdown: for a pull request, a terminal, or a README between two markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from marlin_bench.ceiling_table import format_ceiling
from marlin_bench.grade import Grade, validities
from marlin_bench.record import Origin, Status
from marlin_bench.report.best import Winner, share, standings, tally
from marlin_bench.report.contents import ModelHeadline, model_headlines
from marlin_bench.speedup import Curve, Row, curves, without_companions
from marlin_bench.store import Run
from marlin_bench.units import NOTHING, format_clock, format_percent, format_ratio, format_time

BEGIN = "<!-- marlin-bench results: begin -->"
END = "<!-- marlin-bench results: end -->"
RESULTS = (BEGIN, END)
BEST = ("<!-- marlin-bench best: begin -->", "<!-- marlin-bench best: end -->")
OTHER_DTYPE = "†"
_OTHER_DTYPE_MEANS = "its activations are of another dtype than the baseline's"


class MarkerError(ValueError):
    """A file without the two markers between which results go; one sentence."""


def _escaped(text: str) -> str:
    """Text that stays inside its table cell and is no markup."""
    for character in "\\|<>`*_[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---" if index == 0 else "---:" for index in range(len(titles))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, rule, *lines))


def _cell(row: Row) -> str:
    """Speed-up and share of the ideal; the time where there is no speed-up."""
    if row.speedup is None or row.record.baseline:
        return format_time(None if row.time is None else row.time.value)
    share = row.fraction_of_ideal
    ideal = f" ({format_percent(share)})" if share is not None and math.isfinite(share) else ""
    return f"{format_ratio(row.speedup.value)}{_mark(row)}{ideal}"


def _mark(row: Row) -> str:
    """A dagger where the speed-up is one across activation dtypes."""
    return OTHER_DTYPE if row.headline is not None and row.headline.dtypes is not None else ""


def speedup_table(rows: Sequence[Row]) -> str:
    """A line a layer and backend, a column an M: speed-up over the baseline and share of the ideal.

    Below it, where some are, what marks those whose activations are of another dtype than the baseline's.
    """
    drawn = [row for row in without_companions(rows) if row.record.timer == "kernel" and row.time is not None]
    drawn += [row for row in rows if row.record.published is not None and row.time is None and row.speedup is not None]
    found = [curve for curve in curves(drawn) if not all(row.record.baseline for row in curve.points)]
    batches = sorted({row.record.M for curve in found for row in curve.points})
    lines = [[_escaped(curve.layer), _escaped(_name(curve)), *_cells(curve, batches)] for curve in found]
    table = _table(["layer (K x N)", "backend", *(f"M={M}" for M in batches)], lines)
    if any(_mark(row) for curve in found for row in curve.points):
        return f"{table}\n{OTHER_DTYPE}: {_OTHER_DTYPE_MEANS}.\n"
    return table


def best_table(rows: Sequence[Row]) -> str:
    """A line a layer and kind of kernel, a column an M: the fastest, its speed-up and share of the ideal, and ours."""
    found = standings(rows)
    batches = sorted({M for one in found for M in one.winners})
    lines = []
    for one in found:
        layer = one.layer if one.group_size in {128, None} else f"{one.layer} g={one.group_size}"
        cells = [_winner_cell(one.winners[M]) if M in one.winners else NOTHING for M in batches]
        lines.append([_escaped(layer), one.contest.value, *cells])
    return _table(["layer (K x N)", "with", *(f"M={M}" for M in batches)], lines)


def _winner_cell(winner: Winner) -> str:
    best = _contestant(winner.best)
    part = share(winner.best)
    text = f"{best} ({format_percent(part)})" if part is not None else best
    if winner.own is None or not winner.is_contested:
        return text
    if winner.is_own:
        return f"**{text}**"
    return f"{text} {'≈' if winner.is_level else '>'} {_contestant(winner.own)}"


def _contestant(row: Row) -> str:
    speedup = format_ratio(None if row.speedup is None else row.speedup.value)
    return f"{_escaped(row.record.backend)}{_mark(row)} {speedup}"


def best_block(run: Run, rows: Sequence[Row]) -> str:
    """What stands between the second pair of markers of a README: who is best where."""
    marks = (
        "Bold: ours is the fastest of several; `>`: a peer is, ours after it; `≈`: the intervals overlap; "
        f"{OTHER_DTYPE}: {_OTHER_DTYPE_MEANS}.\n"
    )
    return f"{_where(run)}{tally(standings(rows))} {marks}\n{best_table(rows)}"


def _name(curve: Curve) -> str:
    published = any(row.record.origin is Origin.PUBLISHED for row in curve.points)
    group = "" if curve.group_size in {128, None} else f" g={curve.group_size}"
    return curve.backend + group + (" (published)" if published else "")


def _cells(curve: Curve, batches: Sequence[int]) -> list[str]:
    by_batch = {row.record.M: row for row in curve.points}
    return [_cell(by_batch[M]) if M in by_batch else NOTHING for M in batches]


def _model_table(headline: ModelHeadline) -> str:
    lines = []
    for name, times in headline.backends:
        cells = []
        for position, time in enumerate(times):
            star = " ★" if headline.best(position) == name else ""
            ratio = "" if time is None or name == headline.baseline else f" {format_ratio(time.speedup)}"
            cells.append(NOTHING if time is None else f"{format_time(time.time_s)}{ratio}{star}")
        lines.append([_escaped(name), *cells])
    return _table([_escaped(headline.model.name), *(f"M={M}" for M in headline.batches)], lines)


def _where(run: Run) -> str:
    meta, environment = run.meta, run.meta.environment
    changed = " with changes" if environment.dirty else ""
    return (
        f"{_escaped(environment.device_name)}, suite {_escaped(meta.suite)}, {meta.origin.value} {meta.started}, "
        f"clocks {meta.clock_policy}, commit {environment.commit}{changed}. Speed-up over the 16-bit baseline of the "
        "cell, in brackets the share of the ideal on the measured roofs.\n"
    )


def readme_block(run: Run, rows: Sequence[Row]) -> str:
    """What stands between the markers of a README."""
    return f"{_where(run)}\n{speedup_table(rows)}"


def render(run: Run, rows: Sequence[Row]) -> str:
    """The run as one Markdown page."""
    judged = validities(run.records, run.meta.environment).values()
    counts = ", ".join(f"{grade}: {sum(found.grade is grade for found in judged)}" for grade in Grade)
    failed = [row for row in rows if row.record.status not in {Status.OK, Status.UNSUPPORTED, Status.MISSING}]
    parts = [f"# {_escaped(run.meta.environment.device_name)}, suite {_escaped(run.meta.suite)}\n", _where(run)]
    parts += [_model_table(headline) for headline in model_headlines(run.meta, rows)]
    parts.append(speedup_table(rows))
    if failed:
        lines = [
            [
                _escaped(row.record.cell),
                _escaped(row.record.backend),
                row.record.status.value,
                _escaped(row.record.reason or ""),
            ]
            for row in failed
        ]
        parts.append(_table(["cell", "backend", "status", "reason"], lines))
    if run.meta.ceilings:
        lines = [[c.name, format_ceiling(c), format_clock(c.sm_clock_hz)] for c in run.meta.ceilings]
        parts.append(_table(["ceiling", "measured", "at"], lines))
    parts.append(f"Records by grade: {counts}.\n")
    return "\n".join(parts)


def put_between_markers(path: Path, block: str, markers: tuple[str, str] = RESULTS) -> bool:
    """Replace what stands between the markers of a file; whether that changed it. MarkerError without markers."""
    first, last = markers
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MarkerError(f"{path} cannot be read ({error.strerror})") from error
    begin, end = text.find(first), text.find(last)
    if begin < 0 or end < begin:
        raise MarkerError(f"{path} has no lines '{first}' and '{last}': put them where the results belong")
    changed = f"{text[: begin + len(first)]}\n{block}{text[end:]}"
    path.write_text(changed, encoding="utf-8")
    return changed != text
