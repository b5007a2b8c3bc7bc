"""`plot`: figures of a run, as SVG and PNG."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marlin_bench.cli.locate import SelectedRun

app = typer.Typer(
    help="Draw a run as SVG and PNG.\n\nExample: marlin-bench plot roofline --layer 72k_x_18k", no_args_is_help=True
)

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default="beside the run, else here",
        help=".svg or .png; a name without either gives both.",
    ),
]
Datasheet = Annotated[bool, typer.Option("--datasheet", help="Draw the vendor's roofs instead of the measured ones.")]


@app.command("roofline")
def roofline(
    run: options.RunArgument = None,
    output: Output = None,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    datasheet: Datasheet = False,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Mark products over the bytes that `profile` counted, too."),
    ] = None,
    results: options.Results = None,
) -> None:
    """Draw what each product reached against what the machine allows, FP16 and 4-bit twins joined.

    Example: marlin-bench plot roofline --layer 72k_x_18k -o roofline.svg
    """
    from marlin_bench.ledger import measured_intensities
    from marlin_bench.panels import roofline_panels
    from marlin_bench.plots.roofline import draw

    found = _open(run, only, layer, backend, batch, results, datasheet=datasheet)
    source = "datasheet roofs" if datasheet else "measured roofs"
    seen = {} if profile is None else measured_intensities(profile)
    panels = roofline_panels(found.rows, found.roofs, seen)
    _save(found, "roofline", output, lambda: draw(panels, _title(found, source)))


@app.command("speedup")
def speedup(
    run: options.RunArgument = None,
    output: Output = None,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    datasheet: Datasheet = False,
    results: options.Results = None,
) -> None:
    """Draw the speed-up over the 16-bit baseline against M, under the ideal, with the crossover.

    Example: marlin-bench plot speedup --backend marlin
    """
    from marlin_bench.panels import speedup_panels
    from marlin_bench.plots.speedup import draw

    found = _open(run, only, layer, backend, batch, results, datasheet=datasheet)
    source = "ideal by the datasheet" if datasheet else "ideal by measured roofs"
    _save(found, "speedup", output, lambda: draw(speedup_panels(found.rows), _title(found, source)))


@app.command("knee")
def knee(
    run: options.RunArgument = None,
    output: Output = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    datasheet: Datasheet = False,
    results: options.Results = None,
) -> None:
    """Draw the M at which each kernel leaves its ideal and the M from which the 16-bit baseline wins.

    Example: marlin-bench plot knee --backend marlin
    """
    from marlin_bench.knee import knees
    from marlin_bench.plots.knee import draw
    from marlin_bench.speedup import curves

    found = _open(run, None, layer, backend, None, results, datasheet=datasheet)
    _save(found, "knee", output, lambda: draw(knees(curves(found.rows)), _title(found, "knee and crossover")))


@app.command("paper")
def paper(
    figure: Annotated[int, typer.Option("--figure", metavar="1|9|10|11|12", help="Which of the paper's figures.")],
    run: options.RunArgument = None,
    output: Output = None,
    backend: options.Backends = None,
    results: options.Results = None,
) -> None:
    """Draw a figure of the MARLIN paper again: its published A10 values behind, the run in front with its own ideal.

    Example: marlin-bench plot paper --figure 1
    """
    from marlin_bench import paper as figures
    from marlin_bench.plots import paper as plots

    if figure not in figures.FIGURES:
        raise options.OptionError(f"the paper's kernel figures are 1, 9, 10, 11 and 12: there is no {figure} here")
    found = _open(run, None, None, backend, None, results, datasheet=False)
    meta, environment = found.run.meta, found.run.meta.environment
    device = f"{environment.device_name}, {meta.origin.value}"
    title = f"MARLIN paper, figure {figure}: {device}, clocks {meta.clock_policy}"

    def draw() -> Figure:
        if figure == 9:
            return plots.draw_models(figures.paper_models(found.rows, environment.device_name), title)
        if figure == 11:
            return plots.draw_roofline(figures.paper_roofline(found.rows, found.roofs), title, environment.device_name)
        number = next(one for one in (1, 10, 12) if one == figure)
        curves = figures.paper_speedup(number, found.rows, environment.sm_count)
        return plots.draw_speedup(curves, title, environment.device_name)

    _save(found, f"paper_figure_{figure}", output, draw)


@app.command("clocks")
def clocks(run: options.RunArgument = None, output: Output = None, results: options.Results = None) -> None:
    """Draw clock, power, temperature and throttle events over the run, with its cells marked.

    Example: marlin-bench plot clocks
    """
    from marlin_bench.plots.clocks import draw

    found = _open(run, None, None, None, None, results, datasheet=False, with_telemetry=True)
    _save(found, "clocks", output, lambda: draw(found.run))


def _open(
    run: str | None,
    only: list[str] | None,
    layer: list[str] | None,
    backend: list[str] | None,
    batch: list[str] | None,
    results: Path | None,
    *,
    datasheet: bool,
    with_telemetry: bool = False,
) -> SelectedRun:
    """The rows of the headline timer; a chosen backend brings the baseline that it is compared with."""
    from dataclasses import replace

    from marlin_bench.cli.locate import headline_timer, open_run
    from marlin_bench.speedup import without_companions
    from marlin_bench.store import results_folder

    found = open_run(
        run,
        results_folder(results),
        options.selection(only, layer, backend, batch),
        datasheet=datasheet,
        with_telemetry=with_telemetry,
    )
    timer = headline_timer(found.rows)
    drawn = without_companions(row for row in found.rows_with_baselines if row.record.timer == timer)
    return replace(found, rows=drawn)


def _title(found: SelectedRun, source: str) -> str:
    meta = found.run.meta
    day = (
        f"{meta.started[:4]}-{meta.started[4:6]}-{meta.started[6:8]}"
        if meta.started[:8].isdecimal()
        else meta.started[:10]
    )
    origin = "" if meta.origin.value == "measured" else f", {meta.origin.value}"
    return f"{meta.environment.device_name}, suite {meta.suite}, {day}, {source}{origin}"


def _save(found: SelectedRun, stem: str, output: Path | None, draw: Callable[[], Figure]) -> None:
    from marlin_bench.plots.canvas import save

    paths = _paths(found.run.folder, stem, output)
    is_collecting = gc.isenabled()
    gc.disable()  # a figure is a hundred thousand objects that all stay: looking for garbage among them takes a tenth
    try:
        save(draw(), paths)
    finally:
        if is_collecting:
            gc.enable()
    for path in paths:
        typer.echo(path)


def _paths(folder: Path, stem: str, output: Path | None) -> Sequence[Path]:
    from marlin_bench.plots.canvas import SUFFIXES, PlotError
    from marlin_bench.store import published_folder

    if output is not None:
        if output.suffix in SUFFIXES:
            return (output,)
        if output.suffix:
            raise PlotError(f"a plot is .svg or .png: '{output.name}' is neither")
        return tuple(output.with_suffix(suffix) for suffix in SUFFIXES)
    # published runs are read, never added to
    is_published = folder.resolve().is_relative_to(published_folder().resolve())
    place = Path() if is_published or not os.access(folder, os.W_OK) else folder
    return tuple(place / f"{stem}{suffix}" for suffix in SUFFIXES)
