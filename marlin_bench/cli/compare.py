"""`compare`: what changed between two runs. `noise`: how far runs of one code differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.compare import CellChange
    from marlin_bench.judgement import Change
    from marlin_bench.store import Run

Tolerance = Annotated[
    float,
    typer.Option("--min-effect", metavar="SHARE", min=0, help="Changes below this share of the time do not count."),
]


def compare(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Run folder, or a part of its name.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Run folder, or a part of its name.")],
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    min_effect: Tolerance = 0.01,
    noise: Annotated[
        Path | None, typer.Option("--noise", metavar="FILE", show_default=False, help="A/A noise map.")
    ] = None,
    unlike: Annotated[
        bool, typer.Option("--unlike", help="Compare unlike machines, clock policies and formats all the same.")
    ] = False,
    fail_on_worse: Annotated[bool, typer.Option("--fail-on-worse", help="End with 1 when a cell is worse.")] = False,
    as_json: options.AsJson = False,
    results: options.Results = None,
) -> None:
    """Compare two runs cell by cell: better, same, worse, ambiguous or invalid, with the baseline's part told apart.

    Runs of two suites are compared in the cells that both have.

    Example: marlin-bench compare 20261120 20261121 --backend marlin
    """
    from marlin_bench.compare import compare as compare_records
    from marlin_bench.compare import moved_packages
    from marlin_bench.compare import unlike as differences
    from marlin_bench.exit_codes import ExitCode
    from marlin_bench.gate_rules import RelativeRule
    from marlin_bench.judgement import Judgement
    from marlin_bench.noise import read_noise_map
    from marlin_bench.plan import SelectionError
    from marlin_bench.selection import model_shapes_of, select

    runs = [_open(argument, results) for argument in (old, new)]
    found = differences(runs[0].meta, runs[1].meta)
    if found and not unlike:
        raise options.OptionError(f"the runs are unlike: {'; '.join(found)}: add --unlike to compare them all the same")
    for sentence in [*found, *moved_packages(runs[0].meta, runs[1].meta)]:
        typer.echo(sentence, err=True)
    chosen = options.selection(only, layer, backend, batch)
    names: set[tuple[str, str]] = set()
    refusals = []
    for run in reversed(runs):  # what only one of them has is told, too
        try:
            wanted = select(run.records, chosen, model_shapes_of(run.meta))
        except SelectionError as error:
            refusals.append(error)
            continue
        names |= {(record.cell, record.backend) for record in wanted}
    if len(refusals) == len(runs):
        raise refusals[0]
    changes = compare_records(
        runs[0].records,
        runs[1].records,
        RelativeRule(rule="relative", relative=min_effect),
        noise=None if noise is None else read_noise_map(noise),
        chosen=lambda record: (record.cell, record.backend) in names,
        across=unlike,
    )
    if runs[0].meta.suite_digest != runs[1].meta.suite_digest:
        changes = _shared(changes, runs)
    changes.sort(key=_gravity)
    _print(changes, as_json=as_json)
    counts = {kind: sum(change.judgement is kind for change in changes) for kind in Judgement}
    typer.echo(", ".join(f"{count} {kind.value}" for kind, count in counts.items()), err=True)
    if not changes:
        raise typer.Exit(ExitCode.NOTHING_MEASURED)
    raise typer.Exit(ExitCode.GATE_FAILED if fail_on_worse and counts[Judgement.WORSE] else ExitCode.DONE)


def _open(argument: str, results: Path | None) -> Run:
    from marlin_bench.cli.locate import find_run
    from marlin_bench.store import read_run, results_folder

    return read_run(find_run(argument, results_folder(results)), with_telemetry=False)


def _shared(changes: list[CellChange], runs: list[Run]) -> list[CellChange]:
    """What both runs of two suites have; what only one of them has is counted on stderr."""
    kept = [change for change in changes if change.old is not None and change.new is not None]
    for run, missing in zip(runs, ("new", "old"), strict=True):
        alone = [change for change in changes if getattr(change, missing) is None]
        if alone:
            names = ", ".join(sorted({change.backend for change in alone}))
            typer.echo(f"left out: {len(alone)} results that only {run.meta.run} has ({names})", err=True)
    return kept


def _gravity(change: CellChange) -> tuple[int, float]:
    from marlin_bench.judgement import Judgement

    order = (Judgement.WORSE, Judgement.INVALID, Judgement.AMBIGUOUS, Judgement.BETTER, Judgement.SAME)
    return order.index(change.judgement), -abs(change.evidence.deciding.log) if change.evidence else 0.0


def _percent(change: Change | None) -> str:
    from marlin_bench.units import NOTHING

    return NOTHING if change is None else f"{100 * (change.ratio.value - 1):+.2f}%"


def _bounds(change: Change) -> str:
    return f"{100 * (change.ratio.low - 1):+.2f} to {100 * (change.ratio.high - 1):+.2f}%"


def _choices(change: CellChange) -> str:
    """What tuning settled on, where that is no longer the same."""
    old, new = change.old, change.new
    if old is None or new is None or old.choice == new.choice:
        return ""
    differing = [key for key in {**old.choice, **new.choice} if old.choice.get(key) != new.choice.get(key)]
    return "; " + ", ".join(f"{key} {old.choice.get(key, 'none')} → {new.choice.get(key, 'none')}" for key in differing)


def _print(changes: list[CellChange], *, as_json: bool) -> None:
    from marlin_bench.judgement import Judgement
    from marlin_bench.table import Column, Line, Table, print_table
    from marlin_bench.units import NOTHING, format_percent

    if as_json:
        sys.stdout.write(json.dumps([_as_json(change) for change in changes], indent=1) + "\n")
        return
    several_timers = len({change.timer for change in changes}) > 1
    columns = (
        Column("verdict"),
        Column("cell"),
        Column("backend"),
        *([Column("timer")] if several_timers else []),
        Column("time", right=True),
        Column("95% interval", right=True, rank=3),
        Column("cycles", right=True, rank=2),
        Column("at one clock", right=True, rank=1),
        Column("against baseline", right=True, rank=1),
        Column("baseline itself", right=True, rank=2),
        Column("tolerance", right=True, rank=4),
        Column("why", rank=1, elastic=True),
    )
    styles = {Judgement.WORSE: "red", Judgement.INVALID: "red", Judgement.AMBIGUOUS: "yellow"}
    lines = []
    for change in changes:
        seen = change.evidence
        numbers = (
            (NOTHING,) * 7
            if seen is None
            else (
                _percent(seen.time),
                _bounds(seen.time),
                _percent(seen.cycles),
                _percent(seen.steady),
                _percent(seen.paired),
                _percent(seen.baseline_part),
                format_percent(seen.tolerance, 1),
            )
        )
        place = (change.cell, change.backend, *([change.timer] if several_timers else []))
        cells = (change.judgement.value, *place, *numbers, change.reason + _choices(change))
        lines.append(Line(cells, styles.get(change.judgement, "")))
    dropped = print_table(Table(columns, lines), sys.stdout)
    if dropped:
        typer.echo(f"a wider terminal also shows {', '.join(dropped)}", err=True)


def _as_json(change: CellChange) -> dict[str, object]:
    seen = change.evidence
    parts = (
        {}
        if seen is None
        else {
            name: None if part is None else {"ratio": part.ratio.value, "low": part.ratio.low, "high": part.ratio.high}
            for name, part in (
                ("time", seen.time),
                ("cycles", seen.cycles),
                ("at_one_clock", seen.steady),
                ("against_baseline", seen.paired),
                ("baseline", seen.baseline_part),
            )
        }
        | {"baseline_backend": seen.baseline, "tolerance": seen.tolerance, "noise": seen.noise}
    )
    return {
        "verdict": change.judgement.value,
        "cell": change.cell,
        "backend": change.backend,
        "timer": change.timer,
        "reason": change.reason + _choices(change),
        **parts,
    }


def noise(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Runs of the same code on the same machine.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Keep the map for gates.")
    ] = None,
    results: options.Results = None,
) -> None:
    """Show how far each cell moves between runs of the same code: the floor that no comparison can see below.

    Example: marlin-bench noise 20261121T0800 20261121T0900 -o noise.json
    """
    from marlin_bench.noise import noise_map
    from marlin_bench.table import Column, Line, Table, print_table
    from marlin_bench.units import format_percent

    found = noise_map([_open(argument, results) for argument in runs])
    lines = [
        Line((*key.rsplit("|", 2)[:2], key.rsplit("|", 1)[1], format_percent(floor, 2)))
        for key, floor in found.floors.items()
    ]
    columns = (Column("cell"), Column("backend"), Column("timer", rank=1), Column("noise floor", right=True))
    print_table(Table(columns, lines), sys.stdout)
    typical = format_percent(found.typical, 2)
    typer.echo(f"{len(lines)} cells over {len(found.runs)} runs on {found.device}, {typical} typically", err=True)
    if output is not None:
        try:
            output.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise options.OptionError(f"cannot write {output} ({error.strerror}): name another file") from error
