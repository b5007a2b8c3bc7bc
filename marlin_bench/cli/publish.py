"""`publish`: a run's records, packed, into the folder that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to publish.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where published runs are kept.")] = Path(
        "results/published"
    ),
) -> None:
    """Copy a run with its records packed; refused for a run of unknown or uncommitted code.

    Example: marlin-bench publish results/h200/20261121T120000Z_h200_0123456789ab
    """
    from marlin_bench.store import publish as publish_run

    typer.echo(publish_run(run, to))
