"""Which run a command is about, and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from marlin_bench.plan import Selection
from marlin_bench.roofline import Roofs, roofs_from_ceilings
from marlin_bench.selection import model_shapes_of, select
from marlin_bench.speedup import Row, rows
from marlin_bench.store import (
    META_FILE,
    RECORDS_FILE,
    Run,
    find_runs,
    fullest_run,
    newest_run,
    published_folder,
    read_run,
)


class NoRunError(RuntimeError):
    """There is no run to read; one sentence."""


class SeveralRunsError(NoRunError):
    """More runs than one have what was given in their names; one sentence."""


@dataclass(frozen=True)
class SelectedRun:
    """A stored run, its roofs, its rows, and those that the selection leaves."""

    run: Run
    roofs: Roofs | None
    all_rows: list[Row]
    rows: list[Row]

    @property
    def rows_with_baselines(self) -> list[Row]:
        """The selected rows and the baselines that they are compared with."""
        wanted = {(row.record.cell, row.record.timer, row.baseline) for row in self.rows}
        wanted |= {(row.record.cell, row.record.timer, row.record.backend) for row in self.rows}
        return [row for row in self.all_rows if (row.record.cell, row.record.timer, row.record.backend) in wanted]


def find_run(argument: str | None, results: Path) -> Path:
    """The folder of a run: by path, by a part of its name or by its suite, else one's own newest, else the fullest.

    NoRunError when there is none, SeveralRunsError when there is more than one of the name.
    """
    if argument is None:
        found = newest_run(results, own_only=True) or fullest_run(published_folder())
        if found is None:
            raise NoRunError(f"there is no run under {results}: measure one with `marlin-bench run smoke`")
        return found
    path = Path(argument)
    if path.name in {META_FILE, RECORDS_FILE}:
        path = path.parent
    if path.is_dir():
        if (path / META_FILE).exists():
            return path
        inside = newest_run(path)
        if inside is None:
            raise NoRunError(f"{path} holds no run: give a folder with a {META_FILE}")
        return inside
    return _by_name(argument, results)


def _by_name(name: str, results: Path) -> Path:
    known = {folder.resolve(): folder for root in (results, published_folder()) for folder in find_runs(root)}
    exact = [folder for folder in known.values() if folder.name == name]
    matching = exact or [folder for folder in known.values() if name in folder.name]
    if not matching:
        raise NoRunError(f"there is no run folder '{name}', nor a run of that name: see `marlin-bench list runs`")
    of_suite = [folder for folder in matching if _suite_of(folder) == name]
    if of_suite and not exact:
        return max(of_suite, key=lambda folder: folder.name)  # a suite's name means its newest run
    if len(matching) > 1:
        names = ", ".join(folder.name for folder in matching[:3]) + (", …" if len(matching) > 3 else "")
        raise SeveralRunsError(f"'{name}' is a part of {len(matching)} run names ({names}): give more of it")
    return matching[0]


def _suite_of(folder: Path) -> str:
    """The suite in `<UTC>_<suite>_<commit>[_dirty]`."""
    return folder.name.removesuffix("_dirty").partition("_")[2].rpartition("_")[0]


def open_run(
    argument: str | None,
    results: Path,
    selected: Selection,
    *,
    datasheet: bool = False,
    with_telemetry: bool = False,
) -> SelectedRun:
    """Read a run and say on stderr which one; with `datasheet` the vendor's roofs take the place of measured ones."""
    folder = find_run(argument, results)
    run = read_run(folder, with_telemetry=with_telemetry)
    meta, environment = run.meta, run.meta.environment
    typer.echo(
        f"{folder} ({environment.device_name}, {meta.origin.value} {meta.started}, clocks {meta.clock_policy})",
        err=True,
    )
    if not run.records:
        raise NoRunError(f"{folder} has no records yet: run its suite to measure them")
    roofs = _datasheet_roofs(environment.device_name) if datasheet else roofs_from_ceilings(run.meta.ceilings)
    chosen = {id(record) for record in select(run.records, selected, model_shapes_of(run.meta))}
    found = rows(run.records, roofs)
    return SelectedRun(run, roofs, found, [row for row in found if id(row.record) in chosen])


def _datasheet_roofs(device_name: str) -> Roofs:
    from marlin_bench.datasheet import find_datasheet

    sheet = find_datasheet(device_name)
    if sheet is None:
        raise NoRunError(f"there is no datasheet of {device_name}: leave out --datasheet to use the measured roofs")
    return sheet.roofs()


def headline_timer(found: list[Row]) -> str:
    """The timer that tables and plots show by default: `kernel` where there is one, else the first."""
    timers = dict.fromkeys(row.record.timer for row in found)
    return "kernel" if "kernel" in timers else next(iter(timers))
