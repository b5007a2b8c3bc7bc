"""A gate's verdicts for other programs: JUnit XML, JSON, GitHub annotations, and two formats of trend services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as Xml

from marlin_bench.speedup import Row
from marlin_bench.verdict import GateReport, Outcome, Subject, Verdict

MOST_ANNOTATIONS = 10
"""GitHub shows this many annotations of a kind and step, the first ones."""

Json = dict[str, Any]


def _test_name(verdict: Verdict) -> str:
    return f"{verdict.kind}[{verdict.subject.name}]"


def _xml_text(text: str) -> str:
    """Text without the control characters that XML 1.0 has no way to write."""
    return "".join(c if c in "\t\n" or (ord(c) >= 0x20 and not 0xFFFE <= ord(c) <= 0xFFFF) else "�" for c in text)


def junit(report: GateReport) -> str:
    """One test a rule and cell: failures fail, inconclusive and inapplicable ones are skipped (failing if strict)."""
    root = Xml.Element("testsuites", name="marlin-bench gate")
    for index, text in enumerate(report.rules):
        verdicts = [verdict for verdict in report.verdicts if verdict.rule == index]
        failing = [verdict for verdict in verdicts if _fails(report, verdict)]
        skipped = [v for v in verdicts if v.outcome in _SKIPPED and v not in failing]
        suite = Xml.SubElement(
            root,
            "testsuite",
            name=_xml_text(text),
            tests=str(len(verdicts)),
            failures=str(len(failing)),
            skipped=str(len(skipped)),
            errors="0",
        )
        for verdict in verdicts:
            test = Xml.SubElement(
                suite, "testcase", classname=f"{report.policy}.{verdict.kind}", name=_xml_text(_test_name(verdict))
            )
            message = _xml_text(f"{verdict.measured} (required {verdict.required}) {verdict.reason}".strip())
            if verdict in failing:
                failure = Xml.SubElement(test, "failure", message=message, type=verdict.outcome.value)
                failure.text = _xml_text(verdict.next_command)
            elif verdict in skipped:
                Xml.SubElement(test, "skipped", message=f"{verdict.outcome.value}: {message}")
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


_SKIPPED = {Outcome.INCONCLUSIVE, Outcome.NOT_APPLICABLE}


def _fails(report: GateReport, verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.FAILED or (report.strict and verdict.outcome is Outcome.INCONCLUSIVE)


def _subject(subject: Subject) -> Json:
    return asdict(subject)


def gate_json(report: GateReport) -> str:
    """Everything the gate found, the gravest verdict first; numbers in the unit of their limit."""
    verdicts = [
        {
            "outcome": verdict.outcome.value,
            "rule": verdict.rule,
            "kind": verdict.kind,
            "subject": _subject(verdict.subject),
            "value": verdict.value,
            "low": verdict.low,
            "high": verdict.high,
            "limit": verdict.limit,
            "measured": verdict.measured,
            "required": verdict.required,
            "reason": verdict.reason,
            "next": verdict.next_command,
            "published": verdict.is_published,
        }
        for verdict in report.by_severity
    ]
    whole = {
        "schema_version": 1,
        "policy": report.policy,
        "run": report.run,
        "folder": report.folder,
        "device": report.device,
        "commit": report.commit,
        "baseline": report.baseline,
        "strict": report.strict,
        "exit_code": int(report.exit_code),
        "ending": report.ending,
        "passed": report.count(Outcome.PASSED),
        "failed": report.count(Outcome.FAILED),
        "inconclusive": report.count(Outcome.INCONCLUSIVE),
        "not_applicable": report.count(Outcome.NOT_APPLICABLE),
        "notes": list(report.notes),
        "rules": list(report.rules),
        "verdicts": verdicts,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _command_value(text: str) -> str:
    """The message of a workflow command: percent signs and line ends are escaped, so that no record can start one."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _command_property(text: str) -> str:
    return _command_value(text).replace(":", "%3A").replace(",", "%2C")


def github_annotations(report: GateReport) -> Iterator[str]:
    """GitHub workflow commands, the gravest first: an error a failure, a warning an inconclusive cell."""
    for level, outcome in (("error", Outcome.FAILED), ("warning", Outcome.INCONCLUSIVE)):
        found = [verdict for verdict in report.by_severity if verdict.outcome is outcome]
        for verdict in found[:MOST_ANNOTATIONS]:
            title = _command_property(f"{verdict.subject.name}: {outcome.value}")
            parts = (verdict.measured, f"required {verdict.required}" if verdict.required else "", verdict.reason)
            text = _command_value(", ".join(part for part in parts if part))
            yield f"::{level} title={title}::{text}"


def _series_name(row: Row) -> str:
    return f"{row.record.cell} {row.record.backend}"


def bencher_metric_format(rows: list[Row]) -> str:
    """Bencher Metric Format: latency in nanoseconds with its interval, and speed-up, for each measured record."""
    found: Json = {}
    for row in rows:
        if row.time is None or not row.record.blocks:
            continue
        measures: Json = {
            "latency": _measure(row.time.value * 1e9, row.time.low * 1e9, row.time.high * 1e9),
        }
        if row.speedup is not None and row.baseline != row.record.backend:
            measures["speedup"] = _measure(row.speedup.value, row.speedup.low, row.speedup.high)
        found[_series_name(row)] = measures
    return json.dumps(found, indent=1) + "\n"


def _measure(value: float, low: float, high: float) -> Json:
    """A measure; bounds only where there are any."""
    bounded = low > float("-inf") and high < float("inf")
    return {"value": value} | ({"lower_value": low, "upper_value": high} if bounded else {})


def github_action_benchmark(rows: list[Row]) -> str:
    """`customSmallerIsBetter` of github-action-benchmark: microseconds with the margin of their interval."""
    found = [
        {
            "name": _series_name(row),
            "unit": "µs",
            "value": row.time.value * 1e6,
            "range": f"± {100 * row.time.margin:.2f}%",
        }
        for row in rows
        if row.time is not None and row.record.blocks
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
