"""`list`: what there is to run, with what, on what, and what was run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.table import Column

app = typer.Typer(
    help="List suites, backends, layers or runs.\n\nExample: marlin-bench list suites", no_args_is_help=True
)


def _print(columns: tuple[Column, ...], lines: list[dict[str, str | int]], as_json: bool) -> None:
    from marlin_bench.table import Line, Table, print_table

    if as_json:
        sys.stdout.write("[" + ",\n".join(json.dumps(line) for line in lines) + "]\n")
        return
    table = Table(columns, [Line(tuple(str(line[column.title]) for column in columns)) for line in lines])
    dropped = print_table(table, sys.stdout)
    if dropped:
        typer.echo(f"a wider terminal also shows {', '.join(dropped)}", err=True)


@app.command("suites")
def suites(as_json: options.AsJson = False) -> None:
    """List the shipped suites.

    Example: marlin-bench list suites
    """
    from marlin_bench.suite import load_suite, shipped_suite_names
    from marlin_bench.table import Column

    lines: list[dict[str, str | int]] = []
    for name in shipped_suite_names():
        suite = load_suite(name)
        lines.append(
            {
                "suite": name,
                "device": suite.device.name or suite.device.kind,
                "layers": len(suite.layers),
                "M": len(suite.M),
                "backends": len(suite.backends),
                "description": suite.description,
            }
        )
    columns = (
        Column("suite"),
        Column("device"),
        Column("layers", right=True, rank=2),
        Column("M", right=True, rank=2),
        Column("backends", right=True, rank=2),
        Column("description", elastic=True, rank=1),
    )
    _print(columns, lines, as_json)


@app.command("backends")
def backends(as_json: options.AsJson = False) -> None:
    """List the backends: what they compute with, whether each can run here, the command that brings a missing one.

    Example: marlin-bench list backends
    """
    import torch

    from marlin_bench.backends import backend_names, load_backend
    from marlin_bench.table import Column

    has_cuda = torch.cuda.is_available()
    lines: list[dict[str, str | int]] = []
    for name in backend_names():
        backend = load_backend(name)
        missing = backend.missing()
        if missing is not None:
            here = f"{missing.reason}: {missing.remedy}"
        else:
            here = "yes" if backend.device == "cpu" or has_cuda else "no CUDA device"
        lines.append(
            {
                "backend": name,
                "device": backend.device,
                "activations": backend.accepted,
                "outputs": backend.output_dtype,
                "meant for": backend.meant_for,
                "license": backend.license,
                "project": backend.project,
                "summary": backend.summary,
                "here": here,
            }
        )
    columns = (
        Column("backend"),
        Column("device"),
        Column("activations", rank=2),
        Column("outputs", rank=3),
        Column("meant for", rank=4),
        Column("license", rank=5),
        Column("summary", rank=1),
        Column("here", wrap=True),
    )
    _print(columns, lines, as_json)


@app.command("layers")
def layers(
    suite: Annotated[str | None, typer.Argument(metavar="SUITE", show_default="every shipped suite")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the layers of a suite, or of every shipped one.

    Example: marlin-bench list layers h200
    """
    from marlin_bench.suite import load_suite, shipped_suite_names
    from marlin_bench.table import Column

    lines: list[dict[str, str | int]] = []
    for name in [suite] if suite is not None else shipped_suite_names():
        loaded = load_suite(name)
        lines += [{"suite": loaded.name, "layer": layer.name, "K": layer.K, "N": layer.N} for layer in loaded.layers]
    columns = (
        Column("suite"),
        Column("layer"),
        Column("K", right=True),
        Column("N", right=True),
    )
    _print(columns, lines, as_json)


@app.command("runs")
def runs(as_json: options.AsJson = False, results: options.Results = None) -> None:
    """List the runs under --results and the published ones, oldest first.

    Example: marlin-bench list runs
    """
    from marlin_bench.store import StoreError, find_runs, published_folder, read_meta, results_folder
    from marlin_bench.table import Column

    lines: list[dict[str, str | int]] = []
    folders: dict[Path, Path] = {}
    for root in (results_folder(results), published_folder()):
        for folder in find_runs(root):
            folders.setdefault(folder.resolve(), folder)
    for folder in folders.values():
        try:
            meta = read_meta(folder)
        except StoreError as error:
            typer.echo(str(error), err=True)
            continue
        lines.append(
            {
                "run": meta.run,
                "device": meta.environment.device_name,
                "suite": meta.suite,
                "cells": meta.cells,
                "origin": meta.origin.value,
                "folder": str(folder),
            }
        )
    if not lines:
        typer.echo("no runs yet: measure one with `marlin-bench run smoke`", err=True)
    columns = (
        Column("run"),
        Column("device"),
        Column("suite", rank=1),
        Column("cells", right=True, rank=1),
        Column("origin", rank=2),
        Column("folder", rank=3),
    )
    _print(columns, lines, as_json)
