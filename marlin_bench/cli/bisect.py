"""`bisect`: the commit that made a kernel slower, or wrong."""

from __future__ import annotations

import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.bisect import Found, Measure, Step
    from marlin_bench.bisect_trees import Tree
    from marlin_bench.gate_rules import GateRule
    from marlin_bench.store import Run
    from marlin_bench.suite import Suite
    from marlin_bench.table import Line

MEASURE = ("-m", "marlin_bench", "run")
"""What a tree's interpreter runs to measure: the marlin-bench that the tree brings, else the one installed."""
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def bisect(
    good: Annotated[str, typer.Argument(metavar="GOOD", help="A commit that keeps the rule.")],
    bad: Annotated[str, typer.Argument(metavar="BAD", help="A later commit that breaks it.")],
    suite: Annotated[
        str, typer.Option("--suite", metavar="SUITE", help="What measures it: a suite file, or a shipped one's name.")
    ],
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            metavar="RULE",
            help="A rule as in a gate, such as '{rule: relative, select: {backend: marlin, M: 16}}'.",
        ),
    ],
    build: Annotated[
        str | None,
        typer.Option(
            "--build",
            metavar="COMMAND",
            show_default="nothing to build",
            help="Run in each commit's tree, in an environment of its own: 'pip install -e .'",
        ),
    ] = None,
    repository: Annotated[
        Path,
        typer.Option("--repository", "-C", metavar="DIR", show_default="this folder's", help="What is searched."),
    ] = Path(),
    retry: Annotated[
        int, typer.Option("--retry", metavar="N", min=0, help="Measure an ambiguous step again, N times.")
    ] = 1,
    device: options.Device = None,
    as_json: options.AsJson = False,
    results: options.Results = None,
) -> None:
    """Find the first commit that breaks a rule, measuring GOOD, BAD and the commit in question again at every step.

    Works on clones in a temporary folder; 0 found, 4 ambiguous or only skipped commits left, 5 an end cannot be
    measured.

    Example: marlin-bench bisect v1.2 HEAD --suite h200 --rule '{rule: relative, select: {backend: my_kernel}}' --build
    'pip install -e .'
    """
    from marlin_bench.bisect import Bisection, Question
    from marlin_bench.bisect_trees import Repository
    from marlin_bench.store import BISECTIONS_FOLDER, results_folder
    from marlin_bench.suite import load_suite

    asked, loaded = _parse_rule(rule), load_suite(suite)
    searched = Repository.around(repository)
    ends = searched.commit(good), searched.commit(bad)
    searched.refuse_unrelated(*ends)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    keep = (results_folder(results) / BISECTIONS_FOLDER / stamp).resolve()
    with tempfile.TemporaryDirectory(prefix="marlin-bench-bisect-", ignore_cleanup_errors=True) as scratch:
        question = Question(
            searched,
            loaded,
            asked,
            _measure(suite, loaded, asked, device),
            keep,
            Path(scratch).resolve(),
            build,
            retry,
            lambda sentence: typer.echo(sentence, err=True),
        )
        search = Bisection(question, *ends)
        # a cancelled job is a Ctrl-C, and jobs in the background of a shell start with Ctrl-C ignored
        before = {ending: signal.signal(ending, signal.default_int_handler) for ending in _ENDINGS}
        try:
            search.search()
        except KeyboardInterrupt:
            _print(search.found, keep, as_json=as_json)
            raise
        finally:
            for ending, handler in before.items():
                signal.signal(ending, handler)
    _print(search.found, keep, as_json=as_json)
    raise typer.Exit(search.found.exit_code)


def _parse_rule(text: str) -> GateRule:
    """One rule, as a gate holds them; SuiteError for anything else."""
    from pydantic import ValidationError

    from marlin_bench.gate_policy import PolicyFile
    from marlin_bench.suite_sentences import first_complaint
    from marlin_bench.suite_text import parse_document

    document = parse_document(f"gate:\n- {text}\n", "--rule")
    try:
        rules = PolicyFile.model_validate(document.data).gate
    except ValidationError as error:
        raise first_complaint(error, document) from error
    if len(rules) > 1:
        raise options.OptionError("--rule takes one rule: a search has one question")
    return rules[0]


def _measure(suite: str, loaded: Suite, rule: GateRule, device: str | None) -> Measure:
    """How a tree is measured: by `run` in a process of its own, with the same suite file at every commit."""
    from marlin_bench.bisect_trees import UntestableError, last_line, run_logged
    from marlin_bench.device import DeviceError
    from marlin_bench.exit_codes import ExitCode
    from marlin_bench.store import StoreError, read_run

    path = Path(suite)
    named = str(path.resolve()) if path.is_file() else suite
    backends = _backends(loaded, rule)

    def measure(tree: Tree, cells: tuple[str, ...], folder: Path) -> Run:
        command = [tree.python, *MEASURE, named, "--results", str(folder), "--backend", ",".join(backends)]
        command += [word for cell in cells for word in ("--only", cell)]
        command += [] if device is None else ["--device", device]
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "run.log"
        done = run_logged(command, tree, log)
        complaint = last_line(log).removeprefix("marlin-bench: ")
        if done.returncode == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if done.returncode == ExitCode.ENVIRONMENT:
            raise DeviceError(complaint)
        # a backend that was wrong (3) or crashed (7) has its record, and so has one without a right answer (5)
        if done.returncode in {ExitCode.DONE, ExitCode.WRONG_RESULT, ExitCode.NOTHING_MEASURED, ExitCode.PARTLY_FAILED}:
            try:
                return read_run(Path(done.stdout.strip().splitlines()[-1]))
            except (IndexError, StoreError) as error:
                raise UntestableError(f"left no run ({complaint})") from error
        raise UntestableError(f"cannot be measured ({complaint or f'exit code {done.returncode}'})")

    return measure


def _backends(suite: Suite, rule: GateRule) -> tuple[str, ...]:
    """The backends that the rule is about, and the baselines that they are compared with, in the suite's order."""
    from fnmatch import fnmatchcase

    from marlin_bench.backends import load_backend

    wanted = rule.select.backend
    patterns = ("*",) if wanted is None else (wanted,) if isinstance(wanted, str) else wanted
    return tuple(
        name
        for name in suite.backends
        if any(fnmatchcase(name, pattern) for pattern in patterns) or load_backend(name).is_baseline
    )


def _print(found: Found, keep: Path, *, as_json: bool) -> None:
    import json

    from marlin_bench.table import Column, Table, print_table

    if as_json:
        sys.stdout.write(json.dumps(_as_json(found, keep), indent=1) + "\n")
    else:
        columns = (
            Column("commit"),
            Column("verdict"),
            Column("measured"),
            Column("cell", rank=1),
            Column("why", rank=2, elastic=True),
            Column("message", rank=3, elastic=True),
        )
        print_table(Table(columns, [_line(step) for step in found.steps]), sys.stdout)
    if found.log:
        (keep / "git_bisect_log").write_text(found.log, encoding="utf-8")
    typer.echo(f"runs and logs: {keep}", err=True)
    typer.echo(_ending(found), err=True)


def _line(step: Step) -> Line:
    from marlin_bench.table import Line
    from marlin_bench.units import NOTHING

    verdict = step.verdict
    subject = NOTHING if verdict is None else verdict.subject.name
    measured = NOTHING if verdict is None else verdict.measured
    styles = {"bad": "red", "ambiguous": "yellow", "skip": "dim"}
    cells = (step.commit.hash[:10], step.standing.value, measured, subject, step.reason, step.commit.subject)
    return Line(cells, styles.get(step.standing.value, ""))


def _ending(found: Found) -> str:
    if found.first_bad is not None:
        return f"first bad commit: {found.first_bad.hash} {found.first_bad.subject}"
    if found.suspects:
        return f"only skipped commits are left; it is one of {', '.join(one.name for one in found.suspects)}"
    if found.steps and found.steps[-1].standing == "ambiguous":
        last = found.steps[-1]
        return f"stopped, ambiguous at {last.commit.name}: {last.reason}; measure longer, or quieten the machine"
    return "stopped before the first bad commit was found"


def _as_json(found: Found, keep: Path) -> dict[str, object]:
    return {
        "schema_version": 1,
        "good": found.good.hash,
        "bad": found.bad.hash,
        "first_bad": None if found.first_bad is None else found.first_bad.hash,
        "suspects": [one.hash for one in found.suspects],
        "followed": [one.name for one in found.followed],
        "exit_code": int(found.exit_code),
        "kept": str(keep),
        "steps": [
            {
                "commit": step.commit.hash,
                "message": step.commit.subject,
                "verdict": step.standing.value,
                "reason": step.reason,
                "subject": None if step.verdict is None else step.verdict.subject.name,
                "measured": None if step.verdict is None else step.verdict.measured,
                "value": None if step.verdict is None else step.verdict.value,
            }
            for step in found.steps
        ],
    }
