"""`profile` and `ledger`: counted against measured bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from marlin_bench.cli import options

PROFILES_FILE = "profiles.jsonl"


def profile(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite by name, or a file.")],
    only: options.Only = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    batch: options.Batches = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the profiles are kept.")] = Path(
        PROFILES_FILE
    ),
) -> None:
    """Count with ncu what chosen cells really move, and hold it against what they must. Nothing is timed.

    Example: marlin-bench profile h200 --only '72k_x_18k/*/M16' --backend marlin
    """
    from marlin_bench.ledger import write_profiles
    from marlin_bench.ledger_table import ledger_table
    from marlin_bench.plan import backend_format, plan
    from marlin_bench.profile import Subject, find_ncu, ncu_version, profile_of, run_ncu
    from marlin_bench.record import record_id
    from marlin_bench.suite import load_suite
    from marlin_bench.table import print_table

    ncu = find_ncu()
    version = ncu_version(ncu)
    loaded = load_suite(suite)
    cells = plan(
        loaded,
        only=only,
        layers=options.names(layer),
        backends=options.names(backend),
        batches=options.batch_sizes(batch),
    )
    from marlin_bench.backends import load_backend
    from marlin_bench.device import slug

    device = slug(_device_name())
    found = []
    for cell in cells:
        for name in cell.backends:
            typer.echo(f"profiling {name} on {cell.id}", err=True)
            description = {
                "record_id": record_id(device, f"{cell.suite}/{cell.id}", name, "kernel"),
                "device": device,
                "cell": cell.id,
                "backend": name,
                "M": cell.M,
                "N": cell.N,
                "K": cell.K,
                "group_size": cell.group_size,
                "format": backend_format(name, cell.problem).name,
                "activation_dtype": load_backend(name).activation_dtype,
            }
            found.append(profile_of(run_ncu(ncu, Subject(suite, cell.id, name)), description, version))
            write_profiles(found, output)  # what is done stays when a later one fails
    print_table(ledger_table(found), sys.stdout)
    typer.echo(output, err=True)


def _device_name() -> str:
    import torch

    from marlin_bench.device import DeviceError

    if not torch.cuda.is_available():
        raise DeviceError("profiling needs an NVIDIA GPU, and torch sees none here")
    return torch.cuda.get_device_name(0)


def ledger(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", show_default="the published profile", help="What `profile` wrote."),
    ] = None,
) -> None:
    """Show a stored profile: bytes that must move against bytes that did, level by level. Needs no GPU.

    Example: marlin-bench ledger profiles.jsonl
    """
    from marlin_bench.ledger import LedgerError, read_profiles
    from marlin_bench.ledger_table import ledger_table
    from marlin_bench.store import published_folder
    from marlin_bench.table import print_table

    path = file
    if path is None:
        stored = sorted(published_folder().rglob(PROFILES_FILE))
        if not stored:
            raise LedgerError("there is no published profile: name a file that `marlin-bench profile` wrote")
        path = stored[-1]
    table = ledger_table(read_profiles(path))
    typer.echo(path, err=True)
    print_table(table, sys.stdout)
