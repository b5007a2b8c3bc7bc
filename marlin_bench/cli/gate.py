"""`gate`: judge a run by the rules of its suite, or of a policy file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.gate_case import Case
    from marlin_bench.gate_policy import Policy
    from marlin_bench.record import Record
    from marlin_bench.store import Run
    from marlin_bench.verdict import GateReport

STEP_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
_SHOWN_PASSES = 40


def _file(name: str, help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar="FILE", show_default=False, help=help_text)
    return option


def gate(
    policy: Annotated[
        str, typer.Argument(metavar="SUITE_OR_POLICY", help="A suite with a `gate`, or a file of rules alone.")
    ],
    run: options.RunArgument = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="RUN", show_default="the accepted run", help="What relative rules compare."),
    ] = None,
    noise: Annotated[Path | None, _file("--noise", "A/A noise map, as `noise -o` writes it.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Any inconclusive cell ends with exit code 4.")] = False,
    retry: Annotated[
        int,
        typer.Option("--retry", metavar="N", min=0, help="Measure failing and inconclusive cells again, N times."),
    ] = 0,
    device: options.Device = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="List every cell that passed, not only those nearest to their limit.")
    ] = False,
    as_json: options.AsJson = False,
    markdown: Annotated[Path | None, _file("--md", "Write Markdown, within the limit of a comment.")] = None,
    junit_file: Annotated[Path | None, _file("--junit", "Write JUnit XML.")] = None,
    json_file: Annotated[Path | None, _file("--json-file", "Write the verdicts as JSON.")] = None,
    bmf: Annotated[Path | None, _file("--bmf", "Write Bencher Metric Format.")] = None,
    action_benchmark: Annotated[
        Path | None, _file("--action-benchmark", "Write JSON for github-action-benchmark.")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Annotate, and write the job summary of GitHub Actions.")
    ] = False,
    results: options.Results = None,
) -> None:
    """Judge a run: 0 passed, 1 too slow, 3 wrong, 4 inconclusive, 5 nothing to judge, 7 crashed.

    Example: marlin-bench gate suites/h200.yaml --baseline results/baselines/h200/h200 --retry 2
    """
    from marlin_bench.gate import judge
    from marlin_bench.gate_case import Case
    from marlin_bench.gate_policy import load_policy
    from marlin_bench.noise import read_noise_map
    from marlin_bench.store import results_folder

    rules, root = load_policy(policy), results_folder(results)
    found = _find(run, root, rules)
    case = Case(found, rules, _baseline(baseline, root, found), None if noise is None else read_noise_map(noise))
    report = judge(case, strict=strict)
    for attempt in range(1, retry + 1):
        again = _again(case, report, attempt, device)
        if again is None:
            break
        case = again
        report = judge(case, strict=strict, notes=[f"judged on {attempt + 1} measurements of what failed or was open"])
    _write_files(case, report, markdown, junit_file, json_file, bmf, action_benchmark)
    if github:
        _tell_github(report)
    _print(report, as_json=as_json, show_all=show_all)
    raise typer.Exit(report.exit_code)


def _find(argument: str | None, results: Path, policy: Policy) -> Run:
    """The run to judge; in a folder of quotations the one measured under the suite's clock policy."""
    from marlin_bench.cli.locate import NoRunError, find_run
    from marlin_bench.store import find_runs, read_meta, read_run

    try:
        folder = find_run(argument, results)
    except NoRunError:
        inside = find_runs(Path(argument)) if argument is not None else []
        suite = policy.suite
        fitting = [
            one
            for one in inside
            if suite is None
            or ((meta := read_meta(one)).suite == suite.name and meta.clock_policy == suite.clocks.policy)
        ]
        if not fitting:
            raise
        folder = fitting[-1]
    found = read_run(folder)
    meta = found.meta
    typer.echo(f"{folder} ({meta.environment.device_name}, {meta.origin.value}, clocks {meta.clock_policy})", err=True)
    return found


def _baseline(argument: str | None, results: Path, run: Run) -> Run | None:
    """The run to compare with: as named, else the accepted one of the device and suite."""
    from marlin_bench.baseline import find_baseline
    from marlin_bench.cli.locate import find_run
    from marlin_bench.store import read_run

    if argument is None:
        return find_baseline(results, run.meta)
    return read_run(find_run(argument, results))


def _again(case: Case, report: GateReport, attempt: int, device: str | None) -> Case | None:
    """The case with its open and failing cells measured once more; None when there are none to measure."""
    from marlin_bench.gate import GateError
    from marlin_bench.gate_case import planned_cell
    from marlin_bench.retry import cells_to_repeat, repeated
    from marlin_bench.units import counted

    if case.is_published or case.suite is None:
        return None
    cells = cells_to_repeat(report, (planned_cell(record) for record in case.run.records))
    if not cells:
        return None
    typer.echo(f"retry {attempt}: measuring {counted(len(cells), 'cell')} again", err=True)
    fresh = _measure(case, cells, attempt, device)
    digests = case.run.meta.environment.code_digest, fresh.meta.environment.code_digest
    if digests[0] != digests[1]:
        raise GateError(
            f"the code changed since {case.run.meta.run} was measured: measure the suite again instead of --retry"
        )
    records: list[Record] = fresh.records
    return replace(case, run=repeated(case.run, records))


def _measure(case: Case, cells: tuple[str, ...], attempt: int, device: str | None) -> Run:
    from marlin_bench.cli.progress import open_progress
    from marlin_bench.plan import Selection
    from marlin_bench.retry import retry_folder
    from marlin_bench.run import run_suite
    from marlin_bench.store import read_run

    assert case.suite is not None  # the caller has looked
    with open_progress(sys.stderr) as progress:
        outcome = run_suite(
            case.suite,
            selection=Selection(only=cells),
            results=retry_folder(case.run, attempt),
            devices=device,
            budget_s=None,
            progress=progress,
        )
    return read_run(outcome.folder)


def _write_files(
    case: Case,
    report: GateReport,
    markdown: Path | None,
    junit_file: Path | None,
    json_file: Path | None,
    bmf: Path | None,
    action_benchmark: Path | None,
) -> None:
    from marlin_bench import gate_files
    from marlin_bench.gate_tables import gate_markdown

    writers: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (markdown, lambda: gate_markdown(report)),
        (junit_file, lambda: gate_files.junit(report)),
        (json_file, lambda: gate_files.gate_json(report)),
        (bmf, lambda: gate_files.bencher_metric_format(case.rows)),
        (action_benchmark, lambda: gate_files.github_action_benchmark(case.rows)),
    )
    for path, text in writers:
        if path is None:
            continue
        try:
            path.write_text(text(), encoding="utf-8")
        except OSError as error:
            raise options.OptionError(f"cannot write {path} ({error.strerror}): name another file") from error


def _tell_github(report: GateReport) -> None:
    from marlin_bench.gate_files import github_annotations
    from marlin_bench.gate_tables import SUMMARY_LIMIT_BYTES, gate_markdown

    for line in github_annotations(report):
        typer.echo(line, err=True)
    summary = os.environ.get(STEP_SUMMARY_VARIABLE)
    if summary:
        with Path(summary).open("a", encoding="utf-8") as handle:
            handle.write(gate_markdown(report, SUMMARY_LIMIT_BYTES // 2))  # other steps of the job write there too


def _print(report: GateReport, *, as_json: bool, show_all: bool) -> None:
    from marlin_bench.gate_files import gate_json
    from marlin_bench.gate_tables import gate_table
    from marlin_bench.table import print_table

    for note in report.notes:
        typer.echo(note, err=True)
    if as_json:
        sys.stdout.write(gate_json(report))
    else:
        table, left_out = gate_table(report, None if show_all else _SHOWN_PASSES)
        print_table(table, sys.stdout)
        if left_out:
            typer.echo(f"{left_out} more passed or were not applicable: --all lists them", err=True)
    typer.echo(f"{report.summary}: {report.ending}", err=True)
