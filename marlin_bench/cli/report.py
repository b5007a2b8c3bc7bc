"""`report`: a run as one page, as Markdown, or as the results table of a README."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from marlin_bench.cli import options

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", show_default="report.html beside the run, else here", help="File."),
]


def report(
    run: options.RunArgument = None,
    output: Output = None,
    markdown: Annotated[bool, typer.Option("--md", help="Markdown instead, to stdout or to -o FILE.")] = False,
    readme: Annotated[
        Path | None, typer.Option("--readme", metavar="FILE", help="Put the results table between the file's markers.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="With --md or --readme: who is best where, ours and peers, instead.")
    ] = False,
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    datasheet: Annotated[bool, typer.Option("--datasheet", help="Judge by the vendor's roofs.")] = False,
    results: options.Results = None,
) -> None:
    """Write a run as one HTML page that opens offline: models, rooflines, every cell, clocks, machine, grades.

    Example: marlin-bench report -o report.html
    """
    from dataclasses import replace

    from marlin_bench.cli.locate import open_run
    from marlin_bench.report import markdown as md
    from marlin_bench.report import page
    from marlin_bench.store import results_folder

    found = open_run(
        run,
        results_folder(results),
        options.selection(only, layer, backend, batch),
        datasheet=datasheet,
        with_telemetry=True,
    )
    rows = found.rows_with_baselines
    kept = {id(row.record) for row in rows}
    shown = replace(found.run, records=[record for record in found.run.records if id(record) in kept])
    if best and not markdown and readme is None:
        raise options.OptionError("--best is a table of Markdown: add --md, or --readme FILE")
    if readme is not None:
        block, markers = (md.best_block, md.BEST) if best else (md.readme_block, md.RESULTS)
        md.put_between_markers(readme, block(shown, rows), markers)
        typer.echo(readme)
        return
    as_markdown = md.best_block if best else md.render
    if markdown and output is None:
        sys.stdout.write(as_markdown(shown, rows))
        return
    text = as_markdown(shown, rows) if markdown else page.render(shown, found.roofs, rows)
    path = output if output is not None else _place(found.run.folder) / "report.html"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise options.OptionError(f"cannot write {path} ({error.strerror}): choose another file with -o") from error
    typer.echo(path)


def _place(folder: Path) -> Path:
    """Beside the run, unless it is a published one, which is read and never added to."""
    import os

    from marlin_bench.store import published_folder

    is_published = folder.resolve().is_relative_to(published_folder().resolve())
    return Path() if is_published or not os.access(folder, os.W_OK) else folder
