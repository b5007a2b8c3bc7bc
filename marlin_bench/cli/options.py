"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marlin_bench.plan import Selection

Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GLOB", help="Cells by glob on their id, such as '72k_x_18k/*/M16'. Repeatable."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME", help="Layers by name, glob, shape KxN or model; comma-separated."),
]
Backends = Annotated[
    list[str] | None, typer.Option("--backend", "-b", metavar="NAME", help="Backends by name; comma-separated.")
]
Batches = Annotated[list[str] | None, typer.Option("-M", metavar="M", help="Batch sizes, such as 1,16,64.")]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="DIR",
        show_default="MARLIN_BENCH_RESULTS, else ./results",
        help="Where run folders lie.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        show_default="the first of the suite's kind",
        help="0 | 0,1 | a GPU UUID | cpu | all: cells are shared over several, a ratio never crosses them.",
    ),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN", show_default="the newest run, else a published one", help="Run folder, or a part of its name."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class OptionError(ValueError):
    """An option that cannot be understood; one sentence."""


def names(values: list[str] | None) -> tuple[str, ...] | None:
    """Repeated, comma-separated words; None when the option was not given, OptionError when it names nothing."""
    if not values:
        return None
    words = tuple(word.strip() for value in values for word in value.split(",") if word.strip())
    if not words:
        raise OptionError("an empty selection selects nothing: name something or leave the option out")
    return words


def batch_sizes(values: list[str] | None) -> tuple[int, ...] | None:
    """M as given by -M 1,16 -M 64; OptionError for anything that is not a count."""
    words = names(values)
    if words is None:
        return None
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise OptionError(f"-M takes counts of at least 1, such as 1,16,64: '{word}' is none")
    return tuple(int(word) for word in words)


def selection(
    only: list[str] | None, layers: list[str] | None, backends: list[str] | None, batches: list[str] | None
) -> Selection:
    """The four selecting options together, with the same meaning for every command."""
    return Selection(
        only=tuple(only) if only else None,
        layers=names(layers),
        backends=names(backends),
        batches=batch_sizes(batches),
    )
