"""Where a gate's rules come from: a suite's `gate`, or a policy file that holds nothing else.

A policy file is `gate:` and an optional `description:`, with the rules written as in a suite; it judges a run of any
suite by the suite text that the run keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from marlin_bench.gate_rules import (
    AbsoluteRule,
    BatchRange,
    GateRule,
    KneeRule,
    ModelRule,
    RelativeRule,
    RightRule,
    Select,
)
from marlin_bench.record import RunMeta
from marlin_bench.suite import Suite, SuiteError, load_suite, parse_suite
from marlin_bench.suite_sentences import first_complaint
from marlin_bench.suite_text import parse_document, read_text
from marlin_bench.suite_values import StrictModel, expanded_batches, group_rows
from marlin_bench.units import format_percent, format_time


class PolicyFile(StrictModel):
    """Rules without a suite."""

    description: str = ""
    """What the policy guards, in a line."""
    gate: Annotated[tuple[GateRule, ...], Field(strict=False, min_length=1)]
    """The rules."""


@dataclass(frozen=True)
class Policy:
    """Rules, `source` as it was asked for, and the suite that they belong to: None for a policy file, for any run."""

    name: str
    source: str
    rules: tuple[GateRule, ...]
    suite: Suite | None


def load_policy(name_or_path: str) -> Policy:
    """The rules of a suite or policy file; SuiteError, one sentence, when it is neither or has no rules."""
    path = Path(name_or_path)
    if path.is_file():
        document = parse_document(read_text(path), str(path))
        if "gate" in document.data and set(document.data) <= {"gate", "description"}:
            try:
                return Policy(path.stem, name_or_path, PolicyFile.model_validate(document.data).gate, None)
            except ValidationError as error:
                raise first_complaint(error, document) from error
    suite = load_suite(name_or_path)
    if not suite.gate:
        raise SuiteError(name_or_path, "this suite has no gate: write rules under its key `gate`, see docs/gate.md")
    return Policy(suite.name, name_or_path, suite.gate, suite)


def suite_of_run(meta: RunMeta) -> Suite | None:
    """The suite as the run keeps it; None where this version cannot read it."""
    try:
        return parse_suite(meta.suite_text, source=meta.run, name=meta.suite)
    except SuiteError:
        return None


def _several(patterns: str | tuple[str, ...] | None) -> str | None:
    return patterns if patterns is None or isinstance(patterns, str) else " or ".join(patterns)


def _batches(select: Select) -> str | None:
    match select.M:
        case None:
            return None
        case int():
            return f"M = {select.M}"
        case BatchRange(at_least=low, at_most=high):
            return f"M ≤ {high}" if low is None else f"M ≥ {low}" if high is None else f"{low} ≤ M ≤ {high}"
        case _:
            return f"M in {', '.join(map(str, expanded_batches(select.M)))}"


def _selection(select: Select) -> str:
    group = None
    if select.group_size is not None:
        rows = group_rows(select.group_size)
        group = "one scale a column" if rows is None else f"group size {rows}"
    parts = (_several(select.backend), _several(select.layer), _batches(select), group, _several(select.format))
    return ", ".join(part for part in parts if part is not None) or "everything"


def bound_text(rule: AbsoluteRule | ModelRule | KneeRule) -> str:
    """`at least 95% of ideal`, `at least 2.50x`, `at least M = 28`."""
    side, limit = ("at least", rule.at_least) if rule.at_least is not None else ("at most", rule.at_most)
    assert limit is not None  # a bounded rule has exactly one bound
    match rule:
        case AbsoluteRule():
            ideal = "ideal" if rule.ideal == "computed" else f"an ideal of {rule.ideal:g}x"
            return f"{side} {format_percent(limit, 0 if round(100 * limit, 6).is_integer() else 1)} of {ideal}"
        case ModelRule():
            return f"{side} {limit:.2f}x"
        case KneeRule():
            return f"{side} M = {limit:g}"


def rule_text(rule: GateRule) -> str:
    """The rule as one line for people."""
    where = _selection(rule.select)
    locked = ", clocks locked" if rule.clocks == "locked" else ""
    match rule:
        case AbsoluteRule():
            return f"{where}: {bound_text(rule)}{locked}"
        case ModelRule():
            return f"{rule.model}, {where}: {bound_text(rule)}{locked}"
        case KneeRule():
            return f"knee of {where}: {bound_text(rule)}{locked}"
        case RelativeRule():
            slack = (
                f"{format_percent(rule.relative, 1)}, {format_time(rule.absolute)}, {rule.noise:g} x the noise floor"
            )
            return f"{where}: not slower than the baseline run by more than the largest of {slack}{locked}"
        case RightRule():
            return f"{where}: right answers{locked}"
