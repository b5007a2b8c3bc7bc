"""`time`: measure one layer without writing a suite."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from marlin_bench.cli import options
from marlin_bench.cli.run import Budget, report

_CUDA_BACKENDS = "cublas_fp16,naive_w4a16,marlin"
_CPU_BACKENDS = "dense_fp32,dense_bf16,tinygemm_cpu"


def time(
    K: Annotated[int, typer.Option("-K", min=1, help="Input features.")],
    N: Annotated[int, typer.Option("-N", min=1, help="Output features.")],
    batch: Annotated[list[str], typer.Option("-M", metavar="M", help="Batch sizes, such as 1,16,64.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend", "-b", metavar="NAME", show_default="the usual ones of the device", help="Backends to time."
        ),
    ] = None,
    group_size: Annotated[
        str, typer.Option("--group-size", "-g", metavar="SIZE", help="Weights that share a scale, or `column`.")
    ] = "128",
    device: options.Device = None,
    budget: Budget = None,
    results: options.Results = None,
) -> None:
    """Measure one layer without a suite file; the suite it stands for is written beside its records.

    Example: marlin-bench time -K 4096 -N 4096 -M 1,16 --backend cublas_fp16,marlin
    """
    from marlin_bench.cli.locate import open_run
    from marlin_bench.cli.progress import open_progress
    from marlin_bench.plan import Selection
    from marlin_bench.record_table import record_table
    from marlin_bench.run import run_suite
    from marlin_bench.speedup import without_companions
    from marlin_bench.store import results_folder
    from marlin_bench.suite import parse_suite
    from marlin_bench.table import print_table
    from marlin_bench.units import parse_duration

    if group_size != "column" and not group_size.isdecimal():
        raise options.OptionError(f"--group-size takes a number or `column`: '{group_size}' is neither")
    batches = options.batch_sizes(batch) or ()
    kind = "cpu" if device == "cpu" or (device is None and not _has_cuda()) else "cuda"
    names = options.names(backend) or tuple((_CPU_BACKENDS if kind == "cpu" else _CUDA_BACKENDS).split(","))
    text = _suite_text(kind, K, N, batches, group_size, names)
    suite = parse_suite(text, source="marlin-bench time", name=f"time_{K}x{N}")
    with open_progress(sys.stderr) as progress:
        outcome = run_suite(
            suite,
            selection=Selection(),
            results=results_folder(results),
            devices=device,
            budget_s=None if budget is None else parse_duration(budget),
            progress=progress,
        )
    (outcome.folder / "suite.yaml").write_text(text, encoding="utf-8")
    if outcome.cells_done:
        found = open_run(str(outcome.folder), outcome.folder.parent, Selection())
        print_table(record_table(without_companions(found.rows)), sys.stdout)
    report(outcome, folder_to=sys.stderr)
    raise typer.Exit(outcome.exit_code)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _suite_text(kind: str, K: int, N: int, batches: tuple[int, ...], group_size: str, backends: tuple[str, ...]) -> str:
    return (
        "description: One layer, written by `marlin-bench time`.\n"
        f"device: {{kind: {kind}}}\n"
        "layers:\n"
        f"  - {{K: {K}, N: {N}}}\n"
        f"M: [{', '.join(map(str, batches))}]\n"
        f"group_sizes: [{group_size}]\n"
        f"backends: [{', '.join(backends)}]\n"
    )
